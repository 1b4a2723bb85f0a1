"""Sources of pictures that people type: files, folders, globs, lists of paths, addresses."""

from __future__ import annotations

import glob
import hashlib
import os
import sys
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from palidecode.answers.row_files import LINES, Problem, open_rows
from palidecode.answers.rows import RowReader
from palidecode.codec.weights import cache_dir
from palidecode.errors import InputError
from palidecode.files import (
    PICTURES,
    STDOUT,
    PictureBytes,
    open_encoded,
    open_picture,
    reason_of,
    replacing,
)

STDIN = STDOUT
"""``-``: a list of pictures on the standard input."""
_VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
_UNREAD = (
    *(*_VIDEOS, ".heic", ".heif", ".pdf", ".psd", ".svg", ".eps", ".tga", ".jxl", ".exr", ".dcm"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
)
"""Endings of pictures and videos that can't be read; other files beside pictures are ignored."""
_MOST_BYTES = 64 << 20  # of a download
_SECONDS = 30  # without a byte
_BLOCK = 1 << 16


class PictureFile(NamedTuple):
    """A picture and its name in the output, which is its path within the folder given.

    `data`, the content of its file, goes before `path`. `group` are the paths of all pictures
    that the prompt is about, in order, where they are several; boxes are measured in `path`.
    """

    path: str
    name: str
    data: bytes | None = None
    group: tuple[str, ...] = ()

    @property
    def picture(self) -> str | PictureBytes:
        """The path, or the content of the file."""
        return self.path if self.data is None else PictureBytes(self.data, self.name)

    def open(self) -> Image.Image:
        """Open the picture, as `open_picture` does."""
        if self.data is None:
            return open_picture(self.path)
        return open_encoded(self.data, self.name)


class Unread(NamedTuple):
    """A picture that can't be used."""

    name: str
    reason: str


Source = str | os.PathLike[str]


def each_picture(
    inputs: Sequence[Source],
    skipped: Counter[str] | None = None,
    box_image: int | None = None,
) -> Iterator[PictureFile | Unread]:
    """Yield the pictures of some sources: of a folder of millions only the names are held.

    Parameters
    ----------
    inputs : sequence of path or str
        Files; folders, with the folders in them, in order of their names; globs; lists of paths
        and addresses, one a line, in a ``.txt`` or on the standard input (``-``); addresses
        (http, https), which are downloaded into the cache. A path of a list is as it stands, or
        else in the list's folder; one that doesn't exist, and an address that can't be
        downloaded, are pictures that can't be read. A ``.jsonl`` is such a list with a row for
        each, ``{"image": "a.jpg"}``, or ``{"images": ["a.jpg", "b.jpg"]}`` for a prompt about
        several.
    skipped : Counter, optional
        Counts files in folders that are pictures or videos of other kinds, by ending.
    box_image : int, optional
        Index of the picture that boxes are measured in, of a row that names several and has no
        ``box_image`` of its own.

    Raises
    ------
    InputError
        If a source doesn't exist or holds no picture, or two pictures would have the same name.
    """
    skipped = Counter() if skipped is None else skipped
    names: set[str] = set()
    one_folder = len(inputs) == 1 and os.path.isdir(inputs[0])  # within it names differ
    for given in inputs:
        none, before = True, Counter(skipped)
        for item in _pictures_of(os.fspath(given), skipped, box_image):
            none = False
            if not one_folder:
                if item.name in names:
                    text = f"two pictures would be named {item.name!r}: predict their folders apart"
                    raise InputError(text)
                names.add(item.name)
            yield item
        if none:
            others = skipped - before
            kinds = f", only {kinds_of(others)}" if others else f" ({', '.join(PICTURES)})"
            raise InputError(f"{given}: no picture in it{kinds}")


def find_pictures(
    inputs: Sequence[Source],
    skipped: Counter[str] | None = None,
    box_image: int | None = None,
) -> list[PictureFile | Unread]:
    """List what `each_picture` yields."""
    return list(each_picture(inputs, skipped, box_image))


def kinds_of(skipped: Counter[str]) -> str:
    """Return counts of kinds of files: ``3 HEIC, 1 PDF``."""
    return ", ".join(f"{count:,} {kind}" for kind, count in skipped.most_common())


def _pictures_of(
    given: str, skipped: Counter[str], box_image: int | None
) -> Iterator[PictureFile | Unread]:
    if _is_address(given):
        yield _downloaded(given)
    elif os.path.isdir(given):
        yield from _inside(given, skipped)
    elif given == STDIN:
        yield from _listed(sys.stdin.read(), "", given)
    elif given.lower().endswith(".txt") and os.path.isfile(given):
        yield from _listed(_text_of(given), os.path.dirname(given), given)
    elif given.lower().endswith(LINES) and os.path.isfile(given):
        yield from _in_rows(given, box_image)
    elif given.lower().endswith(_VIDEOS):
        raise InputError(
            f"{given}: a video; make pictures of it, two a second for instance: "
            f"ffmpeg -i {given} -vf fps=2 frames/%06d.jpg"
        )
    elif os.path.isfile(given):
        yield PictureFile(given, os.path.basename(given))
    elif glob.has_magic(given):
        yield from _matching(given, skipped)
    else:
        raise InputError(f"{given}: no such picture or folder")


def _matching(pattern: str, skipped: Counter[str]) -> Iterator[PictureFile | Unread]:
    found = sorted(glob.glob(pattern, recursive=True))
    files = [path for path in found if os.path.splitext(path)[1].lower() in PICTURES]
    others = (os.path.splitext(path)[1].lower() for path in set(found).difference(files))
    skipped.update(ending[1:].upper() for ending in others if ending in _UNREAD)
    if not files:
        raise InputError(f"{pattern}: no picture matches")
    root = _common_folder(files)
    yield from (PictureFile(path, _name_in(root, path)) for path in files)


def _listed(text: str, folder: str, where: str) -> Iterator[PictureFile | Unread]:
    """Yield the pictures of a list; their names are their paths in the folder of all of them."""
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines() if line.strip()]
    paths = [_path_of(line, folder) for line in lines]
    root = _common_folder([path for path in paths if not _is_address(path)])
    for path in paths:
        if _is_address(path):
            yield _downloaded(path)
        else:
            yield PictureFile(path, _name_in(root, path))


def _path_of(name: str, folder: str) -> str:
    """Return the path of a picture in a list: as it stands, or else in the list's folder."""
    beside = os.path.join(folder, name)
    return name if _is_address(name) or os.path.exists(name) else _existing(beside, name)


def _existing(path: str, otherwise: str) -> str:
    return path if os.path.exists(path) else otherwise


def _in_rows(path: str, box_image: int | None) -> Iterator[PictureFile | Unread]:
    """Yield the pictures of rows, or the groups of several; names are as in `_listed`."""
    reader, folder = RowReader.of(None, None, None, None, box_image), os.path.dirname(path)
    found: list[tuple[list[str], int] | Unread] = []
    with open_rows(path) as file:
        for item in file.objects():
            try:
                if isinstance(item, Problem):
                    raise InputError(item.reason)
                found.append(_group_of(item[1], reader, folder))
            except InputError as error:
                line = item.line if isinstance(item, Problem) else item[0]
                found.append(Unread(f"line {line}", f"{path}: line {line}: {error}"))
    named = [paths[boxed] for paths, boxed in (one for one in found if not isinstance(one, Unread))]
    root = _common_folder(named)
    for one in found:
        if isinstance(one, Unread):
            yield one
        else:
            paths, boxed = one
            group = tuple(paths) if len(paths) > 1 else ()
            yield PictureFile(paths[boxed], _name_in(root, paths[boxed]), None, group)


def _group_of(row: Mapping[str, object], reader: RowReader, folder: str) -> tuple[list[str], int]:
    """Return the paths of a row's pictures, and which of them has the boxes."""
    names = [picture.name for picture in reader.named(row)]
    reader.picture(row)  # refuses several of which none is named
    paths = [_path_of(name, folder) for name in names if name is not None]
    if len(paths) < len(names):
        raise InputError("needs 'image', a file name, or 'images', a list of them")
    if any(map(_is_address, paths)):
        raise InputError("names an address; rows name files")
    return paths, reader.box_index(row, len(paths)) or 0


def _common_folder(paths: Sequence[str]) -> str:
    folders = {os.path.dirname(os.path.abspath(path)) for path in paths}
    try:
        return os.path.commonpath(folders) if folders else ""
    except ValueError as error:  # several drives
        raise InputError(f"{paths[0]} and other pictures: {error}") from error


def _name_in(root: str, path: str) -> str:
    return os.path.relpath(os.path.abspath(path), root).replace(os.sep, "/")


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read as a list of pictures: {error}") from error


def _inside(folder: str, skipped: Counter[str]) -> Iterator[PictureFile | Unread]:
    """Pictures of a folder and the folders in it, by name; links to folders aren't followed."""
    open_folders = [_in_folder(folder, "", skipped)]
    while open_folders:
        for is_folder, item in open_folders[-1]:
            if is_folder and isinstance(item, PictureFile):
                open_folders.append(_in_folder(item.path, f"{item.name}/", skipped))
                break
            yield item
        else:
            open_folders.pop()


def _in_folder(
    folder: str, prefix: str, skipped: Counter[str]
) -> Iterator[tuple[bool, PictureFile | Unread]]:
    """Pictures and folders of one folder, by name, and which are folders."""
    folders: set[str] = set()
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                ending = os.path.splitext(entry.name)[1].lower()
                if entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
                elif ending not in PICTURES:
                    if ending in _UNREAD:
                        skipped[ending[1:].upper()] += 1
                    continue
                elif not (entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path)):
                    continue  # a pipe, a link to nothing or to itself
                names.append(entry.name)
    except OSError as error:  # no permission, or a path of more bytes than the system takes
        yield False, Unread(prefix or ".", f"{folder}: can't be read: {error.strerror or error}")
    for name in sorted(names):
        yield name in folders, PictureFile(os.path.join(folder, name), prefix + name)


# -- addresses ---------------------------------------------------------------------------


def _is_address(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def _downloaded(address: str) -> PictureFile | Unread:
    """Download a picture into the cache, unless it is there; its name is the address's last part.

    At most 64 MiB are read.
    """
    name = os.path.basename(urllib.parse.unquote(urllib.parse.urlsplit(address).path)) or "picture"
    digest = hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()
    path = cache_dir() / "pictures" / digest
    if not path.exists():
        try:
            _download(address, path)
        except (OSError, HTTPException, ValueError) as error:
            return Unread(name, f"{address}: can't be downloaded: {reason_of(error)}")
    return PictureFile(os.fspath(path), name)


def _download(address: str, path: Path) -> None:
    data = bytearray()
    with _OPENER.open(address, timeout=_SECONDS) as response:
        while block := response.read(_BLOCK):
            data += block
            if len(data) > _MOST_BYTES:
                raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
        expected = response.headers.get("Content-Length", "")
    if expected.isdecimal() and len(data) < int(expected):
        raise ValueError(f"the connection broke off after {len(data)} of {expected} bytes")
    with replacing(path, "wb") as file:
        file.write(data)


class _OnlyHttp(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone, never to files or other protocols."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        if not _is_address(newurl):
            raise ValueError(f"it leads to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_OnlyHttp)
