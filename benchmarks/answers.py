"""Seeded random answers in PaliGemma's format."""

from __future__ import annotations

import numpy as np

from palidecode.vocab import LOC_COUNT, PALIGEMMA, SEG_COUNT, SEG_PER_MASK, loc_token, seg_token

LABELS = (
    "cat",
    "dog",
    "person",
    "traffic light",
    "wine glass",
    "chair",
    "car",
    "baseball bat",
    "cell phone",
    "book",
)
FIRST_LABEL_ID = 1000  # labels are one token each; any id of the text vocabulary would do
SEPARATOR_ID = 2161


def boxes(rng: np.random.Generator, count: int, smallest: int = 16) -> np.ndarray:
    """Draw boxes with area, as bins y1 x1 y2 x2, shape (count, 4)."""
    sides = rng.integers(smallest, LOC_COUNT // 2, (count, 2))
    corners = rng.integers(0, LOC_COUNT - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def texts(
    seed: int, count: int, objects: int, *, masks: bool, codes_of: np.ndarray | None = None
) -> list[str]:
    """Write `count` clean answers with `objects` objects each, with or without seg tokens.

    Codes are rows (N, 16) of `codes_of`, or random without it; random codes parse like others
    but decode to speckles.
    """
    rng = np.random.default_rng(seed)
    answers = []
    for _ in range(count):
        parts = []
        for loc in boxes(rng, objects).tolist():
            codes: list[int] = []
            if masks and codes_of is not None:
                codes = codes_of[rng.integers(len(codes_of))].tolist()
            elif masks:
                codes = rng.integers(0, SEG_COUNT, SEG_PER_MASK).tolist()
            tokens = "".join([*map(loc_token, loc), *map(seg_token, codes)])
            parts.append(f"{tokens} {LABELS[rng.integers(len(LABELS))]}")
        answers.append(" ; ".join(parts))
    return answers


def token_ids(seed: int, count: int, objects: int, *, masks: bool) -> list[np.ndarray]:
    """Write answers as arrays of token ids that end with ``<eos>``."""
    rng = np.random.default_rng(seed)
    answers = []
    for _ in range(count):
        ids: list[int] = []
        for loc in boxes(rng, objects):
            codes = rng.integers(0, SEG_COUNT, SEG_PER_MASK if masks else 0)
            ids += (loc + PALIGEMMA.loc_offset).tolist() + (codes + PALIGEMMA.seg_offset).tolist()
            ids += [FIRST_LABEL_ID + int(rng.integers(len(LABELS))), SEPARATOR_ID]
        answers.append(np.array([*ids[:-1], PALIGEMMA.eos]))
    return answers


PIECES = {FIRST_LABEL_ID + index: f" {label}" for index, label in enumerate(LABELS)}
PIECES[SEPARATOR_ID] = " ;"


def detokenize(ids: list[int]) -> str:
    """Convert label ids to text by a dict, the cheapest possible tokenizer."""
    return "".join([PIECES[token] for token in ids])
