"""Answers as PaliGemma writes them, made from a seed."""

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
FIRST_LABEL_ID = 1000  # labels are one token each here; any id of the text vocabulary will do
SEPARATOR_ID = 2161


def boxes(rng: np.random.Generator, count: int, smallest: int = 16) -> np.ndarray:
    """Boxes with area, as bins y1 x1 y2 x2, shape (count, 4)."""
    sides = rng.integers(smallest, LOC_COUNT // 2, (count, 2))
    corners = rng.integers(0, LOC_COUNT - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def texts(
    seed: int, count: int, objects: int, *, masks: bool, codes_of: np.ndarray | None = None
) -> list[str]:
    """`count` clean answers of so many objects each, with or without seg tokens.

    Codes are drawn from the rows (N, 16) of `codes_of`, or at random without it; random
    codes parse like any others but decode to speckles, not to things.
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
    """The same as arrays of token ids, ended by ``<eos>``."""
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
    """Label ids to text through a dict, as cheap as a tokenizer can be."""
    return "".join([PIECES[token] for token in ids])
