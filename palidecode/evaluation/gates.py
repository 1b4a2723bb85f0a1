"""Limits that an evaluation's numbers must reach, for continuous integration (``--min``)."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from palidecode.errors import InputError

TOLERANCE = 1e-9
"""A perfect AP is computed as 0.9999999999999998."""


def read_limits(texts: Iterable[str], known: Collection[str]) -> dict[str, float]:
    """Parse limits such as ``AP=0.5`` of `known` numbers; the highest limit of each counts."""
    limits: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known:
            raise InputError(
                f"--min {text}: unknown number {name!r}; choose from {', '.join(known)}"
            )
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if math.isnan(limit):
            raise InputError(f"--min {text}: not NAME=VALUE, for instance {name}=0.5")
        limits[name] = max(limit, limits.get(name, limit))
    return limits


def below(numbers: Mapping[str, float | None], limits: Mapping[str, float]) -> dict[str, float]:
    """Return the limits that are missed by more than `TOLERANCE`.

    A number that isn't there, or couldn't be computed (None or NaN), misses every limit.
    """
    missed = {}
    for name, limit in limits.items():
        number = numbers.get(name)
        if number is None or not number >= limit - TOLERANCE:
            missed[name] = limit
    return missed
