"""Answers that several test files write."""

from __future__ import annotations

from collections.abc import Sequence

from palidecode.vocab import loc_token, seg_token

CODES = (40, 97, 78, 34, 99, 6, 107, 10, 41, 6, 107, 119, 82, 80, 25, 13)
"""The shipped codec's codes of a sailboat."""


def answer(
    label: str, loc: Sequence[int] = (100, 200, 700, 800), codes: Sequence[int] | None = None
) -> str:
    """One object as a model writes it."""
    return "".join(map(loc_token, loc)) + "".join(map(seg_token, codes or ())) + f" {label}"
