"""Answers that several test files write, and bundled files that they read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import palidecode
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
