"""Rows of answers: one answer each, and the picture it is about.

A row is ``{"image": "cat.jpg", "output": "<loc…> cat"}``, or what other runtimes write: see
`AnswerRow` for the keys, and `palidecode.answers.row_files` for the files. A row that can't be
used becomes a `Problem` with its line number.
"""

from __future__ import annotations

import math
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple, TypeAlias

import numpy as np

from palidecode.answers.logprobs import scores_of_text
from palidecode.answers.parsing import Answer
from palidecode.answers.row_files import ROWS, Problem, RowFile, open_rows, read_object
from palidecode.errors import InputError, warn
from palidecode.files import check_size, inside, picture_size, regular
from palidecode.wording import many

OUTPUT_KEYS = (
    *("output", "token_ids", "text", "generated_text", "response", "prediction", "answer"),
    *("outputs", "choices"),
)
"""Keys of answers; the first that a row has is read."""
TRUTH_KEYS = ("suffix", "labels")
"""Keys of the truth in rows for fine-tuning."""
IMAGE_KEYS = ("image", "file_name", "image_path", "images", "custom_id")
"""Keys of pictures; the first that a row has is read."""
SIZE_KEYS = ("width", "height", "size", "image_size_wh")

_MAX_SCORE = float(np.finfo(np.float32).max)
_PERHAPS_TRUTH = ("text", "response", "answer")  # the truth in some data sets
# An answer inside a value: of the batch API's rows, chat completions, and vLLM's outputs.
_INNER = ("body", "choices", "message", "content", "text", "generated_text", "token_ids")
_ANY_KEY = re.compile(f'"({"|".join(OUTPUT_KEYS)})"'.encode())
_COCO_KEY = re.compile(rb'"(annotations|categories|category_id|info|licenses)"')
_HEAD = 1 << 16  # bytes
_OTHER_KEY = re.compile(f'"({"|".join(OUTPUT_KEYS[1:])})"'.encode())

Size: TypeAlias = tuple[int, int]
Row: TypeAlias = Mapping[str, object]

_PLAIN: Row = {"output": ""}


@dataclass(frozen=True)
class AnswerRow:
    """One answer and its picture.

    Attributes
    ----------
    line : int
        Number of the line, from 1.
    name : str
        The first of `IMAGE_KEYS`, or ``line-<number>`` if the row has none. Of a list of several
        the one whose index is ``box_image``.
    size : tuple of 2 int
        Width and height: ``width`` and ``height``, ``size`` or ``image_size_wh``, the
        picture's own, or the default.
    answer : str or list of int
        The first of `OUTPUT_KEYS`. Where no row of a file has one, a fine-tuning row's ``suffix``.
    prompt : str
        ``prompt`` or ``prefix``, or ``""``.
    scores : list of float or None
        One per box: ``scores``, or from the ``logprobs`` of a chat completion.
    codec : str
        ``codec``: the id of the weights that the seg codes belong to, ``""`` if the row has none.
    """

    line: int
    name: str
    size: Size
    answer: Answer
    prompt: str = ""
    scores: list[float] | None = None
    codec: str = ""


class Picture(NamedTuple):
    """The name of a row's picture, and the content of its file where the row holds it."""

    name: str | None
    data: bytes | None = None


def read_rows(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    size: Size | None = None,
    *,
    output_key: str | None = None,
    image_key: str | None = None,
    box_image: int | None = None,
) -> Iterator[AnswerRow | Problem]:
    """Read the rows of a file, in order.

    Parameters
    ----------
    path : str or path
        JSON Lines, a JSON array, CSV or Parquet, perhaps with gzip.
    images : str or path, optional
        The folder of the pictures. Names that lead out of it are problems. Without it a name that
        is a path, from the folder of the file or the working directory, is used as it is.
    size : tuple of 2 int, optional
        Width and height for rows that have neither a size nor a picture.
    output_key, image_key : str, optional
        Keys of the answer and the picture; by default the first of `OUTPUT_KEYS` and
        `IMAGE_KEYS` that a row has.
    box_image : int, optional
        Index of the picture that boxes are measured in, of a list of several; a row's own
        ``box_image`` goes first.

    Raises
    ------
    InputError
        If the file can't be read, or which key has the answers isn't clear.
    """
    return one_size(each_row(path, RowReader.of(images, size, output_key, image_key, box_image)))


def one_size(rows: Iterable[AnswerRow | Problem]) -> Iterator[AnswerRow | Problem]:
    """Yield the rows; one whose picture had another size in an earlier row is a `Problem`."""
    seen: dict[str, Size] = {}
    for row in rows:
        if isinstance(row, AnswerRow):
            first = seen.setdefault(row.name, row.size)
            if first != row.size:
                yield Problem(row.line, other_size(row.name, row.size, first))
                continue
        yield row


def each_row(
    path: str | os.PathLike[str], reader: RowReader, start: int = 0
) -> Iterator[AnswerRow | Problem]:
    """Yield what `read_rows` does, but don't check that one picture has one size.

    Rows are numbered from ``start + 1``.
    """
    with open_rows(path) as file:
        reader = replace(
            reader.choose(candidates(file), f"{path}: "),
            folder=os.path.dirname(path),
            blank=file.kind == "csv",
        )
        for found in file.objects():
            if isinstance(found, Problem):
                yield Problem(found.line + start, found.reason)
            else:
                yield reader.item(found[0] + start, found[1])


def holds_rows(path: str | os.PathLike[str]) -> bool:
    """Return True for a file of rows; False for COCO JSON and files that can't be read."""
    ending = os.path.splitext(path)[1].lower()
    if ending != ".json":
        return ending in ROWS
    try:
        with open(regular(path), "rb") as file:  # a pipe would be waited for
            head = file.read(_HEAD)
    except OSError:
        return False
    return bool(_ANY_KEY.search(head)) and not _COCO_KEY.search(head)


def other_size(name: str, size: Sequence[int], first: Sequence[int]) -> str:
    """Return why a row is skipped whose picture had another size in an earlier row."""
    return f"{name!r} is {size[0]}×{size[1]} here but {first[0]}×{first[1]} in an earlier row"


@dataclass(frozen=True)
class RowReader:
    """Reads JSON objects as `AnswerRow`.

    Attributes
    ----------
    images : str, optional
        The folder of the pictures.
    size : tuple of 2 int, optional
        Width and height for rows that have neither a size nor a picture.
    outputs : tuple of str
        Keys of answers, the first that a row has is read. Without any each row is judged alone.
    pictures : tuple of str
        Keys of pictures, in the same way.
    folder : str
        Where paths of pictures may start; the working directory is the second place.
    sizes : callable, optional
        Returns the size of the picture of a name, None where it isn't known.
    blank : bool
        A row without an answer has an empty one: CSV can't tell them apart.
    box_image : int, optional
        Index of the picture that boxes are measured in, where a row names several.
    """

    images: str | None = None
    size: Size | None = None
    outputs: tuple[str, ...] = ()
    pictures: tuple[str, ...] = IMAGE_KEYS
    folder: str = ""
    sizes: Callable[[str], Size | None] | None = None
    blank: bool = False
    box_image: int | None = None

    @classmethod
    def of(
        cls,
        images: str | os.PathLike[str] | None,
        size: Size | None,
        output_key: str | None,
        image_key: str | None,
        box_image: int | None = None,
    ) -> RowReader:
        """Return the reader for the options of `read_rows`."""
        if box_image is not None and box_image < 0:
            raise InputError(f"box_image must be 0 or above, got {box_image}")
        return cls(
            None if images is None else os.fspath(images),
            size,
            () if output_key is None else (output_key,),
            IMAGE_KEYS if image_key is None else (image_key,),
            box_image=box_image,
        )

    def choose(self, rows: Iterable[tuple[int, Row]], where: str = "") -> RowReader:
        """Look at all rows of a file, and choose the keys of their answers.

        Raises
        ------
        InputError
            If rows have two different answers, or the truth alone.
        """
        if self.outputs:
            return self
        return replace(self, outputs=_choose(rows, where))

    def item(self, line: int, row: Row) -> AnswerRow | Problem:
        """Read a row; a `Problem` says why it can't be used."""
        try:
            return self.read(line, row)
        except InputError as error:
            return Problem(line, str(error))
        except RecursionError:
            return Problem(line, "is nested too deeply")

    def read(self, line: int, row: Row) -> AnswerRow:
        """Read a row.

        Raises
        ------
        InputError
            If it can't be used.
        """
        picture = self.picture(row)
        prompt, codec = row.get("prompt", row.get("prefix")), row.get("codec")
        reader = self.choose([(line, row)])
        answer, scores = reader.answer(row)
        given = _scores_of(row.get("scores"))
        size = self.size_of(row, picture)
        if size is None:
            raise InputError(
                "the size of the picture is not known: give 'width' and 'height', or 'image' and "
                "the folder (--images), or one size for all (--size)"
            )
        return AnswerRow(
            line=line,
            name=picture.name or f"line-{line}",
            size=size,
            answer=answer,
            prompt=prompt if isinstance(prompt, str) else "",
            scores=scores if given is None else given,
            codec=codec if isinstance(codec, str) else "",
        )

    def picture(self, row: Row) -> Picture:
        """Return the name of the picture that a row's boxes are measured in, and its content.

        Raises
        ------
        InputError
            If it has no name, or is one of several and the row doesn't tell which.
        """
        several = self.named(row)
        index = self.box_index(row, len(several))
        if index is None:
            raise InputError(
                f"names {len(several)} pictures: box_image (--box-image N, from 0) says whose size "
                "the boxes have"
            )
        return several[index]

    def named(self, row: Row) -> list[Picture]:
        """Return the pictures of a row in the order of the prompt, mostly one.

        Raises
        ------
        InputError
            If one of them has no name.
        """
        key = next((key for key in self.pictures if row.get(key) is not None), None)
        value = None if key is None else row[key]
        if isinstance(value, np.ndarray):  # of rows in memory
            value = value.tolist()
        if not isinstance(value, (list, tuple)):
            return [_picture(key, value, row.get("bytes"))]
        if not value:
            raise InputError(f"{key!r} is an empty list")
        data = row.get("bytes") if len(value) == 1 else None
        return [_picture(key, one, data) for one in value]

    def box_index(self, row: Row, count: int) -> int | None:
        """Return the index of the picture that boxes are measured in, None where it isn't known.

        Raises
        ------
        InputError
            If it is no index of `count` pictures.
        """
        index = row.get("box_image")
        if index is None:
            index = 0 if count == 1 else self.box_image
        if isinstance(index, float) and index.is_integer():  # of a table
            index = int(index)
        if index is None or (type(index) is int and 0 <= index < count):
            return index
        raise InputError(
            f"box_image is {index!r}, and the row names {many(count, 'picture')}: count from 0"
        )

    def answer(self, row: Row) -> tuple[Answer, list[float] | None]:
        """Return the answer of a row, and scores from its probabilities where it has them.

        Raises
        ------
        InputError
            If it has none.
        """
        key = next((key for key in self.outputs if row.get(key) is not None), None)
        try:
            if key is not None:
                return _read_answer(row[key], key)
        except InputError:
            if not row.get("error"):
                raise
        if row.get("error"):  # of a batch API
            raise InputError(f"the request failed: {reprlib.repr(row['error'])}")
        if self.blank:
            return "", None
        raise InputError(f"needs an answer: {_listed(self.outputs)}")

    def size_of(self, row: Row, picture: Picture) -> Size | None:
        """Return the size of a row's picture; None if it isn't known.

        Raises
        ------
        InputError
            If it is no size, or the picture can't be read.
        """
        given, name = row.get("size"), picture.name
        given = row.get("image_size_wh") if given is None else given
        if row.get("width") is not None or row.get("height") is not None:
            given = [row.get("width"), row.get("height")]
        path = None if name is None or self.images is None else inside(self.images, name)
        if given is not None:
            return check_size(given)
        if picture.data is not None:
            return picture_size(name or "the picture", picture.data)
        if path is not None:
            return picture_size(path)
        found = None if name is None else self._known_size(name)
        found = found or self.size
        return None if found is None else check_size(found)

    def _known_size(self, name: str) -> Size | None:
        """Return the size of a picture that isn't in `images`."""
        if self.sizes is not None:
            size = self.sizes(name)
            if size is None:
                raise InputError(f"{name!r}: no such picture in the ground truth, or no size of it")
            return size
        for path in (os.path.join(self.folder, name), name):
            if os.path.isfile(path):
                return picture_size(path)
        return None


def _picture(key: str | None, value: object, data: object) -> Picture:
    if isinstance(value, Mapping):  # as in data sets of Hugging Face
        data, value = value.get("bytes"), value.get("path")
    if isinstance(data, bytes) and not value:
        return Picture(None, data)
    if key is not None and (not isinstance(value, str) or not value):
        raise InputError(f"{key!r} must be a file name, got {reprlib.repr(value)}")
    return Picture(str(value) if key else None, data if isinstance(data, bytes) else None)


def candidates(file: RowFile) -> Iterator[tuple[int, Row]]:
    """Yield the objects that decide which key has the answers; of plain rows only what counts."""
    if file.kind != "lines":
        rows = file.objects((*OUTPUT_KEYS, *TRUTH_KEYS))
        yield from (found for found in rows if not isinstance(found, Problem))
        return
    for line, text in file.lines():
        if b'"output"' in text and not _OTHER_KEY.search(text):
            yield line, _PLAIN
        else:
            with suppress(InputError):  # is a problem later
                yield line, read_object(text)


def _choose(rows: Iterable[tuple[int, Row]], where: str) -> tuple[str, ...]:
    there: set[str] = set()
    truth: dict[str, bool] = {}  # True for keys that never differ from the truth beside them
    differ: dict[tuple[str, str], int] = {}  # pairs of keys, and the first line
    others: dict[str, None] = {}
    for line, row in rows:
        found = {key: _content(row[key], key) for key in OUTPUT_KEYS if row.get(key) is not None}
        there |= found.keys()
        if not found:
            others |= dict.fromkeys(row)
        beside = [_content(row[key], key) for key in TRUTH_KEYS if isinstance(row.get(key), str)]
        for key in found.keys() & _PERHAPS_TRUTH if beside else ():
            truth[key] = truth.get(key, True) and found[key] in beside
        found.pop("token_ids", None)  # of the same answer
        for one, other in combinations(found, 2):
            if found[one] != found[other]:
                differ.setdefault((one, other), line)
    for (one, other), line in differ.items():
        if not (truth.get(one) or truth.get(other)):
            raise InputError(
                f"{where}{one!r} and {other!r} differ (line {line}); which has the answers? "
                f"--output-key {one} or --output-key {other} (output_key=)"
            )
    outputs = tuple(key for key in OUTPUT_KEYS if key in there and not truth.get(key))
    if outputs:
        return outputs
    if there:
        key = next(key for key in OUTPUT_KEYS if key in there)
        raise InputError(
            f"{where}{key!r} is the ground truth, equal to the 'suffix' or 'labels' beside "
            "it, not an answer; name the key of the answers: --output-key KEY (output_key=)"
        )
    if empty := tuple(key for key in OUTPUT_KEYS if key in others):
        return empty
    if "suffix" in others:
        warn(f"{where}no answers; reads 'suffix', the ground truth of fine-tuning rows, instead")
        return ("suffix",)
    if others:
        raise InputError(
            f"{where}no row has an answer ({_listed(OUTPUT_KEYS)}) but {_listed(others)}; name "
            "the key of the answers: --output-key KEY (output_key=)"
        )
    return OUTPUT_KEYS


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(map(repr, keys))


def _content(value: object, key: str) -> object:
    """Return what two answers are compared by."""
    try:
        answer, _ = _read_answer(value, key)
    except (InputError, RecursionError):
        return value
    return answer.strip() if isinstance(answer, str) else answer


def _read_answer(value: object, key: str) -> tuple[Answer, list[float] | None]:
    """Read the answer in a value: text, ids, a list of one, or an object of a known API."""
    if isinstance(value, str):
        return value, None
    if isinstance(value, (tuple, np.ndarray)):  # of rows in memory
        value = np.asarray(value).tolist()
    if isinstance(value, list):
        ids = all(type(token) is int and abs(token) < 1 << 62 for token in value)
        if ids and (value or key == "token_ids"):
            return value, None
        if len(value) == 1 and key != "token_ids":
            return _read_answer(value[0], key)
        if key != "token_ids":
            raise InputError(f"{key!r} has {len(value)} answers; a row has one")
    if isinstance(value, Mapping):
        inner = next((name for name in _INNER if value.get(name) is not None), None)
        if inner is not None:
            answer, scores = _read_answer(value[inner], inner)
            return answer, scores or _chat_scores(answer, value.get("logprobs"))
        if value.get("error"):
            raise InputError(f"the request failed: {reprlib.repr(value['error'])}")
    raise InputError(
        f"{key!r} has no answer: text, or a list of integers, got {reprlib.repr(value)}"
    )


def _chat_scores(answer: Answer, logprobs: object) -> list[float] | None:
    """Return the scores by ``logprobs.content`` of a chat completion, if there is one."""
    tokens = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if tokens is None or not isinstance(answer, str):
        return None
    if not isinstance(tokens, list) or not all(isinstance(token, Mapping) for token in tokens):
        tokens = []  # the scores are unknown, which is listed
    return scores_of_text(answer, tokens)


def _scores_of(scores: object) -> list[float] | None:
    if scores is None:
        return None
    if not isinstance(scores, list):
        raise InputError("'scores' must be a list with one number per box")
    return [
        float(score)
        if isinstance(score, (int, float))
        and not isinstance(score, bool)
        and abs(score) <= _MAX_SCORE
        else math.nan
        for score in scores
    ]
