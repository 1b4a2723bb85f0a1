"""How far a number would move on another set of as many images.

This is the half-sample bootstrap: each resample holds half of the images, drawn without
repeats, and hotcoco accumulates its own numbers over them without matching anything again. Half
of the pictures vary twice as much as all of them, and drawing without repeats halves that
again, so the resamples are spread as those of drawing with repeats (the delete-d jackknife with
d = n/2: Shao and Wu, Annals of Statistics 17, 1989). Drawing with repeats isn't possible:
hotcoco 1.3.0 counts an image once however often it is drawn, in `compare` too, whose intervals
are a quarter too narrow for that reason.

The percentiles of the resamples become an interval *around the number*. AP interpolates
precision upwards, and the fewer images there are the more: resamples lie above the number and
may not even contain it. Their spread is right, their place is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError
from palidecode.evaluation.engine import METRICS, NOTHING, Engine, stats_of_images
from palidecode.evaluation.tables import Table

Floats = npt.NDArray[np.float64]

NOT_RESAMPLED = ("AR1", "AR10")
"""They need another matching each, and nobody asks for their intervals."""

_AT_ONCE = 32  # resamples


@dataclass(frozen=True)
class Interval:
    """A number, and where it would lie on other sets of as many images.

    Attributes
    ----------
    value, low, high : float
    standard_error : float
        Standard deviation over the resamples.
    confidence : float
    """

    value: float
    low: float
    high: float
    standard_error: float
    confidence: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def resampled_stats(engine: Engine, found: Table, resamples: int, seed: int) -> Floats:
    """COCO's numbers over half of the images; the same seed draws the same halves.

    Parameters
    ----------
    engine : Engine
    found : Table
        All predictions scored.
    resamples, seed : int

    Returns
    -------
    ndarray of float64, shape (resamples, 12)
        NaN for AR1, AR10, and where a half has no object.
    """
    if resamples < 10:
        raise InputError(f"a bootstrap needs at least 10 resamples, got {resamples}")
    if seed < 0:
        raise InputError(f"a seed is a whole number from 0, got {seed}")
    if len(engine.scene.images) < 2:
        return np.full((resamples, len(METRICS)), np.nan)
    evaluator = engine.matched(found)
    halves = _halves(len(engine.scene.images), resamples, seed)
    stats = np.concatenate([stats_of_images(evaluator, some) for some in halves])
    return np.where(stats == NOTHING, np.nan, stats)


def _halves(images: int, resamples: int, seed: int) -> Iterator[list[list[int]]]:
    """Places of the images that each resample holds, some resamples at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - start)
        yield [np.sort(rng.permutation(images)[: images // 2]).tolist() for _ in range(count)]


def centred(
    samples: Floats,
    values: Floats,
    images: int,
    confidence: float,
    limits: tuple[float, float],
) -> dict[str, Interval]:
    """The width of the samples' percentiles, around the numbers themselves.

    Parameters
    ----------
    samples : ndarray of float64, shape (resamples, 12)
        From `resampled_stats`.
    values : ndarray of float64, shape (12,)
        NaN for what has none.
    images : int
        An odd number can't be halved; that is made up for.
    confidence : float
        Share of the samples between the percentiles.
    limits : tuple of float
        Nothing lies beyond.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence lies between 0 and 1, got {confidence}")
    found: dict[str, Interval] = {}
    held = images // 2
    scale = np.sqrt(held / (images - held))
    for column, (name, value) in enumerate(zip(METRICS, values.tolist(), strict=True)):
        drawn = samples[:, column]
        drawn = drawn[~np.isnan(drawn)]
        if np.isnan(value) or len(drawn) < 2 or name in NOT_RESAMPLED:
            continue
        drawn = (drawn - drawn.mean()) * scale
        below, above = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
        found[name] = Interval(
            value=value,
            low=max(limits[0], value + float(below)),
            high=min(limits[1], value + float(above)),
            standard_error=float(drawn.std()),
            confidence=confidence,
        )
    return found


def share_above(samples: Floats, names: Any) -> dict[str, float]:
    """In which share of the resamples a difference is above 0; ties count half."""
    found = {}
    for name in names:
        drawn = samples[:, METRICS.index(name)]
        drawn = drawn[~np.isnan(drawn)]
        found[name] = float(np.mean((drawn > 0) + 0.5 * (drawn == 0)))
    return found
