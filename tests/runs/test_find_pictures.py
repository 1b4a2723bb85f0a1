"""Pictures of folders: which, and in what order."""

import random
import re

import pytest

from palidecode import InputError
from palidecode.files import PICTURES
from palidecode.runs.sources import find_pictures

NAMES = (
    *("a", "a.jpg", "a-b", "a b.png", "A.jpg", "ä.jpg", "z.PNG", "b.txt", ".jpg", ".x.png", "a."),
    *("folder.jpg", "1.tif", "10.tif", "2.tif", "c\n.jpg"),
)


def fill(folder, rng, depth=0):
    """Files, folders, and links to files, folders, nothing and themselves."""
    for name in rng.sample(NAMES, 9):
        path = folder / name
        kind = rng.choice(("folder", "folder", "file", "file", "file", "link"))
        if kind == "folder" and depth < 4:
            path.mkdir()
            fill(path, rng, depth + 1)
        elif kind == "link":
            path.symlink_to(rng.choice((folder, __file__, "nowhere", path)))
        else:
            path.touch()


@pytest.mark.parametrize("seed", range(5))
def test_those_of_a_folder_come_as_paths_sort(tmp_path, seed):
    fill(tmp_path, random.Random(seed))
    (tmp_path / "sure.png").touch()
    wanted = [
        (str(path), path.relative_to(tmp_path).as_posix())
        for path in sorted(tmp_path.rglob("*"))
        if path.suffix.lower() in PICTURES and path.is_file()
    ]
    assert [(item.path, item.name) for item in find_pictures([tmp_path])] == wanted


def test_files_keep_the_order_they_are_given_in(tmp_path):
    for name in ("b.png", "a.png", "sub.bin"):
        (tmp_path / name).touch()
    found = find_pictures([tmp_path / "b.png", tmp_path / "sub.bin", tmp_path / "a.png"])
    assert [item.name for item in found] == ["b.png", "sub.bin", "a.png"]


def test_what_can_not_be_found_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, said in (("empty", "no picture in it"), ("gone", "no such picture or folder")):
        with pytest.raises(InputError, match=re.escape(f"{tmp_path / name}: {said}")):
            find_pictures([tmp_path / name])
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.png").touch()
    with pytest.raises(InputError, match=r"two pictures would be named 'a\.png'"):
        find_pictures([tmp_path / "one", tmp_path / "two"])
