"""Answers that several test files write, and bundled files that they read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import palidecode
from palidecode import Detections
from palidecode.vocab import loc_token, seg_token

DEMO = Path(palidecode.__file__).parent / "demo"
TOKENIZER = DEMO / "model" / "tokenizer.json"
"""The bundled model's: few words, everything else is spelled in letters and bytes."""

CODES = (40, 97, 78, 34, 99, 6, 107, 10, 41, 6, 107, 119, 82, 80, 25, 13)
"""The shipped codec's codes of a sailboat."""


def answer(
    label: str, loc: Sequence[int] = (100, 200, 700, 800), codes: Sequence[int] | None = None
) -> str:
    """One object as a model writes it."""
    return "".join(map(loc_token, loc)) + "".join(map(seg_token, codes or ())) + f" {label}"


def written(folder: Path, rows: Sequence[str | dict[str, Any]]) -> Path:
    """A JSONL file of answers, some of which may be no JSON."""
    path = folder / "answers.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def random_detections(count: int, images: int = 3, seed: int = 0) -> Detections:
    """Objects without masks, some with an empty box or without a score."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 40, (count, 2, 2)).astype(np.float32)
    return Detections(
        xyxy=np.sort(corners, axis=1).reshape(-1, 4),
        labels=rng.choice(["cat", "dog"], count).tolist(),
        scores=np.where(rng.random(count) < 0.3, np.nan, rng.integers(0, 5, count) / 4).astype(
            np.float32
        ),
        image_index=np.sort(rng.integers(0, images, count)),
        sizes=np.full((images, 2), 48, np.int64),
        codes=np.zeros((count, 16), np.uint8),
        has_mask=np.zeros(count, bool),
    )
