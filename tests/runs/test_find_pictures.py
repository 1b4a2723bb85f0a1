"""Pictures of folders: which, and in what order."""

import os
import random
import re
import subprocess
import tempfile
from pathlib import Path

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


def test_folders_deeper_than_pythons_recursion(tmp_path):
    folder = tmp_path.joinpath(*["d"] * 1100)
    os.makedirs(folder.parents[600])
    os.makedirs(folder)
    (folder / "a.png").touch()
    (tmp_path / "z.png").touch()
    found = find_pictures([tmp_path])
    assert [item.name for item in found] == ["d/" * 1100 + "a.png", "z.png"]


def test_paths_longer_than_the_system_takes_are_reported(tmp_path):
    (tmp_path / "a.png").touch()
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(20):
            os.mkdir("x" * 250)
            os.chdir("x" * 250)
        (Path("deep.png")).touch()
        found = find_pictures([tmp_path])
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-rf", tmp_path / ("x" * 250)], check=True)
    assert found[0].name == "a.png"
    assert found[1].reason.endswith(": can't be read: File name too long")
    assert len(found) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_folder_without_permission_is_reported():
    with tempfile.TemporaryDirectory() as name:
        secret = Path(name) / "secret"
        secret.mkdir(mode=0)
        (Path(name) / "a.png").touch()
        os.chmod(name, 0o755)
        os.seteuid(65534)
        try:
            found = find_pictures([name])
        finally:
            os.seteuid(0)
    assert [item.name for item in found] == ["a.png", "secret/"]
    assert found[1].reason == f"{secret}: can't be read: Permission denied"
