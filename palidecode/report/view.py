"""The page of pictures with their objects: the gallery of the report, without a truth."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from palidecode.answers.assembler import ParseIssue
from palidecode.answers.parsing import Answer
from palidecode.coco.reading import ImageRow
from palidecode.detections import Detections
from palidecode.evaluation.coco.matches import KINDS
from palidecode.geometry.masks import MaskCrop
from palidecode.report.gallery import MOST_DRAWN, MOST_PICTURES, SIDE, Ints, Thumbnails, outline
from palidecode.report.page import write_page
from palidecode.vocab import LOC_COUNT, PALIGEMMA, SEG_COUNT, loc_token, seg_token
from palidecode.wording import many

_FOUND = len(KINDS)  # the script's kind of an object that nothing was compared with
_SIDE = 640  # pixels of a picture's copy
_UNLABELLED = "(no label)"
_BESIDE = "index_files"


@dataclass(frozen=True)
class RawAnswer:
    """A model's answer about a picture, the prompt that it answers, and its parse issues."""

    prompt: str
    answer: Answer
    issues: Sequence[ParseIssue]

    def pieces(self) -> list[tuple[str, bool, list[str]]]:
        """Cut the answer where issues begin and end: text, in an issue, issues that end there."""
        tokens = [self.answer] if isinstance(self.answer, str) else list(map(_spelled, self.answer))
        starts = np.cumsum([0, *map(len, tokens)])
        text = "".join(tokens)
        spans = [
            (int(start), int(stop), str(issue.kind.value))
            for issue in self.issues
            for start, stop in [
                issue.span if isinstance(self.answer, str) else starts[list(issue.span)]
            ]
        ]
        pieces = [("", False, [kind for _, stop, kind in spans if stop == 0])]
        cuts = {0, len(text), *(start for start, _, _ in spans), *(stop for _, stop, _ in spans)}
        for start, stop in pairwise(sorted(cuts)):
            odd = any(first <= start and stop <= last for first, last, _ in spans)
            pieces.append((text[start:stop], odd, [kind for _, end, kind in spans if end == stop]))
        return [piece for piece in pieces if piece[0] or piece[2]]


def _spelled(token: int) -> str:
    loc, seg = token - PALIGEMMA.loc_offset, token - PALIGEMMA.seg_offset
    if 0 <= loc < LOC_COUNT:
        return loc_token(loc)
    if 0 <= seg < SEG_COUNT:
        return seg_token(seg)
    return f"[{token}]"


def write_view(
    folder: str | os.PathLike[str],
    found: Detections,
    images: str | os.PathLike[str],
    *,
    name: str = "predictions",
    answers: Sequence[Sequence[RawAnswer]] = (),
    facts: Sequence[tuple[str, str]] = (),
    notices: Sequence[str] = (),
    step: Callable[[int], object] = lambda count: None,
) -> list[str]:
    """Write ``index.html`` with pictures and their objects.

    Up to 600 pictures the page is self-contained; of more, copies are files in ``index_files``.

    Parameters
    ----------
    folder : path
    found : Detections
    images : path
        The folder of the named pictures. One that can't be read is an empty frame.
    name : str
        The heading.
    answers : sequence, optional
        The answers about each image.
    facts, notices
        Lines at the top: see `made_with`; and what the reader must know.
    step : callable
        Is called with 1 after each picture.

    Returns
    -------
    list of str
        Why pictures can't be shown, one text each.
    """
    folder = Path(folder)
    beside = folder / _BESIDE if len(found.sizes) > MOST_PICTURES else None
    thumbnails = Thumbnails(images, _SIDE, beside)
    found = found.select(np.argsort(found.image_index, kind="stable"))
    classes = [label for label, _ in Counter(found.labels).most_common()]
    pictures = _pictures(found, classes, answers, thumbnails, step)
    nameless = [
        f"{picture['name']}: has no file name"
        for picture, given in zip(pictures, found.names, strict=True)
        if not given
    ]
    shown = [label or _UNLABELLED for label in classes]
    write_page(
        folder / "index.html",
        "view.html",
        {
            "thumbs": thumbnails.encoded,
            "beside": beside is not None,
            "plain": True,
            "kinds": {"view": {"classes": shown, "curves": [], "pictures": pictures}},
        },
        beside=beside is not None,
        name=name,
        facts=facts,
        notices=[*notices, *thumbnails.notices(), *_notices(found, len(nameless))],
        pictures=len(pictures),
        objects=len(found),
        classes=shown,
        masks=bool(found.has_mask.any()),
        scored=bool(np.isfinite(found.scores).any()),
        answers=sum(map(len, answers)),
        issues=sum(len(one.issues) for each in answers for one in each),
    )
    return [*thumbnails.unreadable.values(), *nameless]


def _pictures(
    found: Detections,
    classes: Sequence[str],
    answers: Sequence[Sequence[RawAnswer]],
    thumbnails: Thumbnails,
    step: Callable[[int], object],
) -> list[dict[str, object]]:
    """Return what the page knows of each picture; objects are in the order of the images."""
    number = {label: index for index, label in enumerate(classes)}
    pictures: list[dict[str, object]] = []
    for index, crops in enumerate(_crops(found)):
        start = int(np.searchsorted(found.image_index, index))
        part = found.select(slice(start, start + len(crops)))
        pictures.append(_picture(part, index, crops, number, thumbnails))
        if answers:
            pictures[-1]["answers"] = [(one.prompt, one.pieces()) for one in answers[index]]
            pictures[-1]["issues"] = sum(len(one.issues) for one in answers[index])
        step(1)
    return pictures


def _notices(found: Detections, nameless: int) -> list[str]:
    """Return notices about pictures without a name, and objects that are not drawn."""
    notices = []
    if nameless:
        notices.append(f"{many(nameless, 'picture')} without a file name: shown as blank canvases")
    clipped = len(found) - int(np.minimum(_counts(found), MOST_DRAWN).sum())
    if clipped:
        shown = f"a picture shows its {MOST_DRAWN} best."
        notices.append(f"not drawn: {many(clipped, 'object')}; {shown}")
    return notices


def _counts(found: Detections) -> Ints:
    return np.bincount(found.image_index, minlength=len(found.sizes))


def _crops(found: Detections) -> Iterator[list[MaskCrop | None]]:
    """Yield the masks of each image's rows, which are in the order of the images."""
    crops = found.crops()
    for count in _counts(found).tolist():
        yield list(islice(crops, count))


def _picture(
    part: Detections,
    index: int,
    crops: Sequence[MaskCrop | None],
    number: Mapping[str, int],
    thumbnails: Thumbnails,
) -> dict[str, object]:
    """One picture in the format of the gallery's script, its rows without a truth."""
    width, height = part.sizes[index].tolist()
    identity, name = part.image_ids[index], part.names[index]
    named = name or f"image {index + 1 if identity is None else identity}"
    thumb = thumbnails.of(ImageRow(id=index, file_name=name, width=width, height=height))
    scale = SIDE / max(width, height)
    scores = part.scores.tolist()
    best = np.argsort(-np.nan_to_num(part.scores, nan=np.inf), kind="stable")[:MOST_DRAWN]
    corners = part.xyxy.astype(np.float64)
    boxes = (np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]) * scale).round(1)
    predictions = []
    for row in sorted(best.tolist()):
        crop = crops[row]
        path = None if crop is None else outline(crop, scale)
        score = None if math.isnan(scores[row]) else round(scores[row], 4)
        label = number[part.labels[row]]
        predictions.append([label, _FOUND, score, 0, -1, *boxes[row].tolist(), path])
    return {
        "name": named,
        "thumb": None if thumb is None else thumb[0],
        "width": round(width * scale, 1),
        "height": max(1.0, round(height * scale, 1)),
        "truths": [],
        "predictions": predictions,
    }
