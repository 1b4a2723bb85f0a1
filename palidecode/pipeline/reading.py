"""Read a model's answers: token ids and their probabilities to detections with scores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt

from palidecode.answers.assembler import ParsedObject
from palidecode.answers.batch import join_results
from palidecode.answers.parsing import parse
from palidecode.answers.scoring import RECIPES, Score, check_score, evidence_of
from palidecode.codec.protocol import MaskCodec
from palidecode.detections import Detections, place_objects
from palidecode.detections.columns import Rows
from palidecode.detections.objects import Images
from palidecode.detections.tables import as_html, as_text
from palidecode.detections.voting import vote
from palidecode.errors import InputError
from palidecode.geometry.boxes import expected_bins, loc_to_xyxy
from palidecode.vocab import LOC_COUNT, LOC_PER_BOX, Vocabulary
from palidecode.wording import many

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

SUB_BIN_RADIUS = 12
"""Bins to each side that count for a sub-bin box."""


class Tokens(Protocol):
    """The meaning of an answer's token ids."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Ids of loc, seg and control tokens."""

    def decode(self, ids: Sequence[int], /) -> str:
        """Convert ids to text."""

    def is_separator(self, token: int, /) -> bool:
        """Return True if a token's text contains a ``;``."""


class UnreadablePictureWarning(UserWarning):
    """A picture of a batch can't be read; the others are answered without it."""


@dataclass(frozen=True)
class Generated:
    """The answer to one prompt about one picture.

    Attributes
    ----------
    prompt, text : str
        The text spells loc and seg tokens, and omits control tokens.
    token_ids : list of int
        ``<eos>`` included where the model wrote it. A server's tokens that are text have no ids
        of a tokenizer, but numbers from a million on.
    logprobs : list of float
        Natural log of each token's probability.
    end_logprobs : list of float
        Natural log of the probability that ``<eos>`` had in each token's place.
    size : tuple of 2 int
        Width and height of the picture in pixels; (0, 0) if it could not be read.
    finished : bool
        True if it ended with ``<eos>``, not at the limit.
    loc_probabilities : ndarray of float32, shape (L, 1024), or None
        The distribution of each loc token, if asked for.
    error : str
        The reason that there is no answer: the picture can't be read. Else ``""``.
    name : str
        Path of the picture, ``""`` for one in memory.
    """

    prompt: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    end_logprobs: list[float] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    finished: bool = False
    loc_probabilities: npt.NDArray[np.float32] | None = None
    error: str = ""
    name: str = ""

    def top_locs(self, k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the k likeliest bins of every loc token and their probabilities, (L, k) each.

        Raises
        ------
        InputError
            If the answer was generated without ``loc_probabilities=True``.
        """
        if self.loc_probabilities is None:
            raise InputError("generate(…, loc_probabilities=True) keeps what top_locs needs")
        order = np.argsort(-self.loc_probabilities, axis=1, kind="stable")[:, :k]
        return order, np.take_along_axis(self.loc_probabilities, order, 1)


class Found(NamedTuple):
    """Detections with an image for each picture, and why a picture has no answer, or ``""``."""

    detections: Detections
    errors: list[str]


class Answers(list[Generated]):
    """The answers of `PaliDecoder.generate`: a list, with the verbs of `Detections`.

    Each answer is an image of `detections`. The verbs that are about objects read the answers as
    `PaliDecoder.read` does by default.

    Parameters
    ----------
    answers : iterable of Generated
    read : callable
        Makes detections of answers.
    """

    def __init__(
        self, answers: Iterable[Generated], read: Callable[[Sequence[Generated]], Detections]
    ) -> None:
        super().__init__(answers)
        self._read = read

    @cached_property
    def detections(self) -> Detections:
        """The objects of the answers, as they were when first asked for; one image per answer."""
        return self._read(self)

    @property
    def names(self) -> list[str]:
        """The path of each answer's picture, ``""`` for one in memory."""
        return [answer.name for answer in self]

    @overload  # type: ignore[override]
    def __getitem__(self, rows: int) -> Generated: ...
    @overload
    def __getitem__(self, rows: Rows) -> Answers: ...
    def __getitem__(self, rows: int | Rows) -> Generated | Answers:
        """Return one answer by its index, or `Answers` for a slice, a mask or indices."""
        if isinstance(rows, (int, np.integer)):
            return super().__getitem__(rows)
        every = list(self)
        numbers = np.arange(len(self))[rows if isinstance(rows, slice) else np.asarray(rows)]
        return self._of(every[number] for number in numbers.tolist())

    def __add__(self, other: Iterable[Generated]) -> Answers:  # type: ignore[override]
        """Append other answers."""
        return self._of([*self, *other])

    def __reduce__(self) -> tuple[type, tuple[list[Generated]]]:
        """Copy and pickle as a plain list: the model stays behind."""
        return list, (list(self),)

    def _of(self, answers: Iterable[Generated]) -> Answers:
        return Answers(answers, self._read)

    def image(self, name: str) -> Answers:
        """Select the answers about the picture of this path."""
        return self._of(answer for answer in self if answer.name == name)

    def filter(
        self,
        *,
        label: str | Sequence[str] | None = None,
        score: float | None = None,
        area: tuple[float, float] | None = None,
    ) -> Detections:
        """Select objects; see `Detections.filter`."""
        return self.detections.filter(label=label, score=score, area=area)

    def nms(self, iou: float, class_agnostic: bool = False) -> Detections:
        """Drop boxes that overlap a better one; see `Detections.nms`."""
        return self.detections.nms(iou, class_agnostic)

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one row per object; see `Detections.to_dict`."""
        return self.detections.to_dict()

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one row per object; see `Detections.to_csv`."""
        self.detections.to_csv(path)

    def to_pandas(self) -> pandas.DataFrame:
        """Return one row per object; see `Detections.to_pandas`."""
        return self.detections.to_pandas()

    def show(self, images: Images | None = None, limit: int = 16) -> None:
        """Show the pictures with their objects; see `Detections.show`."""
        self.detections.show(images, limit)

    def plot(self, images: Images | None = None, limit: int = 16) -> Figure:
        """Plot the pictures with their objects; see `Detections.plot`."""
        return self.detections.plot(images, limit)

    def __repr__(self) -> str:
        return as_text(many(len(self), "answer"), self._cells(), len(self))

    def _repr_html_(self) -> str:
        """Return a table of the answers for notebooks, and one of their objects."""
        table = as_html(many(len(self), "answer"), self._cells(), len(self))
        return table + self.detections._repr_html_()

    def _cells(self) -> list[list[str]]:
        rows = [[a.name or f"#{n}", a.prompt, a.error or a.text] for n, a in enumerate(self[:10])]
        return [["image", "prompt", "answer"], *rows]


def read_answers(
    answers: Sequence[Generated],
    per_picture: int,
    tokens: Tokens,
    *,
    codec: MaskCodec | None,
    codes_id: str,
    score: Score,
    sub_bin: bool,
    divisor: int,
    clip: bool,
    samples: int,
) -> Detections:
    """Read answers as detections; see `PaliDecoder.read`."""
    recipe = RECIPES[check_score(score)]
    vocabulary = tokens.vocabulary
    results = [
        parse(answer.token_ids, vocabulary=vocabulary, detokenize=tokens.decode)
        for answer in answers
    ]
    scores: list[list[float]] = []
    for answer, result in zip(answers, results, strict=True):
        evidence = evidence_of(
            result.objects,
            answer.token_ids,
            answer.logprobs,
            answer.end_logprobs,
            tokens.is_separator,
            vocabulary,
        )
        scores.append([recipe(item) for item in evidence])
    detections = place_objects(
        join_results(results),
        len(answers),
        [answer.size if not answer.error else (1, 1) for answer in answers],
        codec,
        divisor,
        scores=scores,
        clip=clip,
        codes_id=codes_id,
    )
    if sub_bin and len(detections):
        bins = [
            _sub_bins(answer, result.objects, vocabulary.loc_offset)
            for answer, result in zip(answers, results, strict=True)
        ]
        sizes = detections.sizes[detections.image_index]
        xyxy = loc_to_xyxy(np.concatenate(bins), sizes, divisor=divisor, clip=clip)
        detections = replace(detections, xyxy=xyxy)
    found = replace(
        detections,
        image_index=detections.image_index // per_picture,
        sizes=np.array([a.size for a in answers], np.int64).reshape(-1, 2)[::per_picture],
        names=[answer.name for answer in answers[::per_picture]],
        image_ids=[],
        issues=[(number // per_picture, issue) for number, issue in detections.issues],
    )
    return found if samples == 1 else vote(found, detections.image_index % samples, samples)


def _sub_bins(
    answer: Generated, objects: Sequence[ParsedObject], loc_offset: int
) -> npt.NDArray[np.float64]:
    """Expected y1, x1, y2, x2 of every object with a box, (N, 4), in bins."""
    starts = [item.span[0] for item in objects if item.loc is not None]
    if not starts:
        return np.zeros((0, LOC_PER_BOX))
    if answer.loc_probabilities is None:
        raise InputError("sub_bin needs answers generated with loc_probabilities=True")
    bins = np.array(answer.token_ids) - loc_offset
    is_loc = (bins >= 0) & (bins < LOC_COUNT)
    number = np.cumsum(is_loc) - 1  # index of a loc token among the loc tokens
    rows = (number[starts][:, None] + np.arange(LOC_PER_BOX)).ravel()
    modes = bins[is_loc][rows]
    mean = expected_bins(modes, answer.loc_probabilities[rows], SUB_BIN_RADIUS)
    mean, modes = mean.reshape(-1, 2, 2), modes.reshape(-1, 2, 2)  # top left, bottom right
    # Means of two sides that are nearer than the radius may cross: keep their bins.
    crossed = (mean[:, 1] <= mean[:, 0])[:, None]
    return np.where(crossed, modes, mean).reshape(-1, LOC_PER_BOX)
