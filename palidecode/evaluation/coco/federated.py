"""LVIS's federated ground truth: pictures that are labelled for some categories alone.

Gupta et al. 2019, and the package lvis 0.5.3: of each picture, a prediction of a category that is
neither annotated nor known to be absent counts in nothing, and a wrong prediction of a category
whose objects aren't all annotated neither; and only the 300 best predictions of a picture count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from palidecode.coco.categories import Category
from palidecode.coco.reading import ImageRow
from palidecode.errors import InputError

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BEST_OF_PICTURE = 300
"""Predictions of a picture that LVIS counts, of all categories together."""

FREQUENCIES = ("r", "c", "f")
"""A category's ``frequency``: rare, common or frequent in LVIS's training pictures."""


@dataclass(frozen=True)
class Federated:
    """Categories that pictures are labelled for, by index.

    Attributes
    ----------
    negative : list of (list of int, or None)
        Of each image, the categories known to be absent; None if it is labelled for all.
    not_exhaustive : list of list of int
        Of each image, the categories of which some objects aren't annotated.
    """

    negative: list[list[int] | None]
    not_exhaustive: list[list[int]]

    def renumbered(self, new: Ints) -> Federated:
        """Give the categories new indices; -1 leaves one out."""

        def kept(categories: list[int]) -> list[int]:
            return [index for index in new[categories].tolist() if index >= 0]

        return Federated(
            [None if one is None else kept(one) for one in self.negative],
            [kept(one) for one in self.not_exhaustive],
        )

    def counted(
        self, image: Ints, category: Ints, annotated: tuple[Ints, Ints], classes: int
    ) -> Bools:
        """Return True for predictions whose picture is labelled for their category.

        `annotated` are image and category of the annotations.
        """
        everywhere = np.array([one is None for one in self.negative], np.bool_)
        lengths = [len(one or ()) for one in self.negative]
        absent = np.repeat(np.arange(len(lengths)), lengths) * classes
        absent += np.fromiter(chain.from_iterable(one or () for one in self.negative), np.int64)
        present = annotated[0] * classes + annotated[1]
        labelled = np.isin(image * classes + category, np.append(absent, present))
        return np.asarray(labelled | everywhere[image])

    def excused(self, image: Ints, category: Ints) -> Bools:
        """Return True for predictions that aren't wrong without an object."""
        sets = [frozenset(one) for one in self.not_exhaustive]
        pairs = zip(image.tolist(), category.tolist(), strict=True)
        return np.fromiter((of in sets[at] for at, of in pairs), np.bool_, len(image))


def read_federated(
    images: Sequence[ImageRow], categories: Sequence[Category], where: str
) -> Federated | None:
    """Read what the pictures are labelled for; None if they say nothing about it.

    Raises
    ------
    InputError
        If ``neg_category_ids`` or ``not_exhaustive_category_ids`` is no list of ids.
    """
    if not any(image.federated for image in images):
        return None
    index_of = {item["id"]: index for index, item in enumerate(categories)}
    negative: list[list[int] | None] = []
    for image in images:
        absent = _indices(image, "neg_category_ids", index_of, where)
        negative.append(absent if image.federated else None)
    partly = [_indices(image, "not_exhaustive_category_ids", index_of, where) for image in images]
    return Federated(negative, partly)


def _indices(image: ImageRow, key: str, index_of: Mapping[int, int], where: str) -> list[int]:
    """Return the indices of a list of ids; those of unknown categories are nobody's."""
    ids = getattr(image, key)
    if ids is None:
        return []
    if not isinstance(ids, list) or not all(type(number) is int for number in ids):
        raise InputError(f"{where}: image {image.id!r}: {key} must be a list of category ids")
    return [index_of[number] for number in ids if number in index_of]


def beyond_best(image: Ints, score: npt.NDArray[np.float64]) -> Bools:
    """Mark predictions beyond the 300 best of their image; the first of equal ones are better."""
    order = np.lexsort((-np.nan_to_num(score), image))
    firsts = np.searchsorted(image[order], image[order])
    beyond = np.zeros(len(image), np.bool_)
    beyond[order[np.arange(len(order)) - firsts >= BEST_OF_PICTURE]] = True
    return beyond
