"""Folders of label files: what may be written over, and what an earlier conversion left."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from palidecode.errors import InputError
from palidecode.files import inside, replacing

_MARK = ".palidecode-{}"
"""File that a conversion to a format leaves; only a folder with it is written again."""


def write_folder(
    folder: str | os.PathLike[str], name: str, files: Mapping[str, str], labels: str
) -> list[str]:
    """Write text files into a folder, each replaced as a whole; nothing is deleted.

    Parameters
    ----------
    folder : path
    name : str
        The format.
    files : mapping of str to str
        Content of each file by its name in the folder.
    labels : str
        Subfolder of the label files.

    Returns
    -------
    list of str
        Label files in the folder that belong to no picture: an earlier conversion left them.

    Raises
    ------
    InputError
        If label files are there that no conversion to this format wrote, or a name leads out of
        the folder.
    """
    base = Path(folder)
    if base.exists() and not base.is_dir():
        raise InputError(f"{base}: is a file; {name} needs a folder")
    paths = {inside(base, file): text for file, text in files.items()}
    mark, there = base / _MARK.format(name), base / labels
    earlier = {path.resolve() for path in there.rglob("*") if path.is_file()}
    endings = {path.suffix for path in paths}
    earlier = {path for path in earlier if path.suffix in endings}
    taken = sorted(earlier | {path for path in paths if path.exists()})
    if taken and not mark.is_file():
        raise InputError(
            f"{taken[0]}: is there already, and not from `palidecode convert --to {name}`; "
            "choose another -o"
        )
    there.mkdir(parents=True, exist_ok=True)
    for path, text in [(mark, ""), *paths.items()]:
        with replacing(path) as file:
            file.write(text)
    return sorted(str(path.relative_to(base.resolve())) for path in earlier - paths.keys())
