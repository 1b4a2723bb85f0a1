"""Bootstrap confidence intervals over images.

COCO's numbers use the half-sample bootstrap: each resample has half of the images, drawn without
replacement, and hotcoco accumulates its numbers over them without new matching. Half of the images
have twice the variance of all images, and drawing without replacement halves it again, so the
resamples spread like those drawn with replacement (the delete-d jackknife with d = n/2: Shao and
Wu, Annals of Statistics 17, 1989). Drawing with replacement isn't possible: hotcoco 1.3.0 counts an
image once however often it is drawn, which makes the intervals of its own `compare` a quarter too
narrow.

The percentiles of the resamples are centred on the number. AP interpolates precision upwards, the
more the fewer images there are, so the resamples are above the number and may not even contain it.
Their spread is right, their mean is not. A comparison's share of resamples counts the centred ones.

Precision, recall and F1 are sums over images: resampling with replacement only changes weights, and
their intervals are the percentiles themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError
from palidecode.evaluation.coco.engine import METRICS, NOTHING, Engine, stats_of_images
from palidecode.evaluation.coco.measures import RATES
from palidecode.evaluation.coco.tables import Table

Floats = npt.NDArray[np.float64]

NOT_RESAMPLED = ("AR1", "AR10")
"""Each needs a matching of its own, and their intervals are rarely of interest."""

_BLOCK = 32  # resamples


@dataclass(frozen=True)
class Interval:
    """A number and its confidence interval on other sets of as many images.

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
        """Convert to JSON values."""
        return asdict(self)


def resampled_stats(
    engine: Engine, predicted: Table, resamples: int, seed: int, names: Sequence[str] = METRICS
) -> Floats:
    """Compute numbers over random halves of the images; a seed fixes the halves.

    Takes predictions that all have a score, and names of `METRICS` and `LVIS_NUMBERS`; returns
    (resamples, names), NaN for AR1, AR10, and for halves without an object.
    """
    if resamples < 10:
        raise InputError(f"a bootstrap needs at least 10 resamples, got {resamples}")
    if seed < 0:
        raise InputError(f"a seed is a whole number from 0, got {seed}")
    if len(engine.scene.images) < 2:
        return np.full((resamples, len(names)), np.nan)
    evaluator = engine.matched(predicted)
    halves = _halves(len(engine.scene.images), resamples, seed)
    stats = np.concatenate([stats_of_images(evaluator, some, names) for some in halves])
    stats[:, [name in NOT_RESAMPLED for name in names]] = NOTHING
    return np.where(stats == NOTHING, np.nan, stats)


def _halves(images: int, resamples: int, seed: int) -> Iterator[list[list[int]]]:
    """Draw the indices of each resample's images, a block of resamples at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        count = min(_BLOCK, resamples - start)
        yield [np.sort(rng.permutation(images)[: images // 2]).tolist() for _ in range(count)]


def centred(samples: Floats, values: Floats, images: int) -> Floats:
    """Move resamples of halves so that their mean is the number, and scale them to whole sets.

    Parameters
    ----------
    samples : ndarray of float64, shape (resamples, N)
        From `resampled_stats`, or their differences.
    values : ndarray of float64, shape (N,)
        NaN for numbers without a value.
    images : int
        Number of images; corrects for odd numbers.

    Returns
    -------
    ndarray of float64, shape (resamples, N)
        NaN for numbers without a value or a resample.
    """
    held = images // 2
    moved = np.full_like(samples, np.nan)
    for column, drawn in enumerate(samples.T):
        known = ~np.isnan(drawn)
        if known.any():
            spread = (drawn - drawn[known].mean()) * np.sqrt(held / (images - held))
            # Where all halves agree, rounding must not tell them apart.
            moved[:, column] = np.round(values[column] + spread, 12)
    return moved


def resampled_rates(counts: npt.NDArray[np.int64], resamples: int, seed: int) -> Floats:
    """Compute precision, recall and F1 of images drawn with replacement; a seed fixes the draws.

    `counts` (B, 3) are right and wrong predictions and missed objects of every image. Returns
    (resamples, 3), NaN if a number can't be computed, and for a single image.
    """
    images = len(counts)
    if images < 2:
        return np.full((resamples, len(RATES)), np.nan)
    rng = np.random.default_rng(seed)
    even = np.full(images, 1 / images)
    sums = np.array([rng.multinomial(images, even) @ counts for _ in range(resamples)])
    right, wrong, missed = sums.T
    parts = np.stack([right, right, 2 * right], axis=1).astype(np.float64)
    wholes = np.stack([right + wrong, right + missed, 2 * right + wrong + missed], axis=1)
    rates: Floats = np.divide(parts, wholes, out=np.full_like(parts, np.nan), where=wholes > 0)
    return rates


def percentiles(
    samples: Floats, columns: Sequence[str], values: Floats, confidence: float, least: float = 0.0
) -> dict[str, Interval]:
    """Return the intervals that leave out as many of the highest resamples as of the lowest.

    Their edges are resamples, so that an interval of a difference and `share_above` agree.

    Parameters
    ----------
    samples : ndarray of float64, shape (resamples, N)
        From `centred` or `resampled_rates`, or differences.
    columns : sequence of N str
        Names of the numbers.
    values : ndarray of float64, shape (N,)
        The numbers; NaN for numbers without a value.
    confidence : float
        Share of the resamples in the interval.
    least : float
        The least possible value; the largest is 1.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1, got {confidence}")
    intervals: dict[str, Interval] = {}
    for column, (name, value) in enumerate(zip(columns, values.tolist(), strict=True)):
        drawn = samples[:, column]
        drawn = np.sort(drawn[~np.isnan(drawn)])
        if not np.isnan(value) and len(drawn) > 1:
            # 0.1 / 2 · 1000 may be 49.99…
            outside = int(len(drawn) * (1 - confidence) / 2 + 1e-9)
            low, high = np.clip(drawn[[outside, -1 - outside]], least, 1.0).tolist()
            intervals[name] = Interval(value, low, high, float(drawn.std()), confidence)
    return intervals


def share_above(samples: Floats, columns: Sequence[str], names: Iterable[str]) -> dict[str, float]:
    """Return the share of the resamples in which a difference is above 0; ties count half."""
    shares = {}
    for name in names:
        drawn = samples[:, columns.index(name)]
        drawn = drawn[~np.isnan(drawn)]
        shares[name] = float(np.mean((drawn > 0) + 0.5 * (drawn == 0)))
    return shares
