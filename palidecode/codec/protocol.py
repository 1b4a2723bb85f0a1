"""The interface of a mask codec, and the input checks that all codecs share."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError
from palidecode.vocab import MASK_SIDE, SEG_COUNT, SEG_PER_MASK


class MaskCodec(Protocol):
    """Decodes sixteen codes to a 64×64 field, and encodes masks as codes."""

    @property
    def id(self) -> str:
        """Id of the weights: ``google-oid``, ``palidecode-demo`` or ``custom:…``."""

    def decode(self, codes: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Decode codes to fields.

        Parameters
        ----------
        codes : array_like of int, shape (N, 16)
            In 0 … 127, the 4×4 grid row by row.

        Returns
        -------
        ndarray of float32, shape (N, 64, 64)
            Roughly in [-1, 1]; a pixel is mask where it is above 0.

        Raises
        ------
        InputError
            If the shape is another, or the codes aren't integers in 0 … 127.
        """

    def encode(self, masks: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Encode masks as codes.

        Parameters
        ----------
        masks : array_like of float or bool, shape (N, 64, 64)
            Crops of the objects' boxes, in [0, 1].

        Returns
        -------
        ndarray of uint8, shape (N, 16)

        Raises
        ------
        InputError
            If the shape is another, or values are outside [0, 1].
        """


def check_codes(codes: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Convert codes to (N, 16) int64, N = 0 included, or raise `InputError`."""
    try:
        array = np.asarray(codes)
    except (TypeError, ValueError) as error:
        raise InputError(f"codes must be integers of shape (N, {SEG_PER_MASK}): {error}") from error
    if array.shape in ((0,), (0, SEG_PER_MASK)):
        return np.zeros((0, SEG_PER_MASK), np.int64)
    if array.ndim != 2 or array.shape[1] != SEG_PER_MASK or array.dtype.kind not in "iu":
        raise InputError(
            f"codes must be integers of shape (N, {SEG_PER_MASK}), "
            f"got {array.dtype} of shape {array.shape}"
        )
    if array.min() < 0 or array.max() >= SEG_COUNT:
        raise InputError(f"codes must be in 0 … {SEG_COUNT - 1}, got {array.min()} … {array.max()}")
    return array.astype(np.int64)


def check_masks(masks: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Convert masks to (N, 64, 64) float32, N = 0 included, or raise `InputError`."""
    side = MASK_SIDE
    try:
        array = np.asarray(masks, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"masks must be numbers of shape (N, {side}, {side}): {error}") from error
    if array.shape in ((0,), (0, side, side)):
        return np.zeros((0, side, side), np.float32)
    if array.ndim != 3 or array.shape[1:] != (side, side):
        raise InputError(f"masks must have shape (N, {side}, {side}), got {array.shape}")
    if not (array.min() >= 0 and array.max() <= 1):
        raise InputError("masks must be in [0, 1]; divide 8 bit masks by 255")
    return np.ascontiguousarray(array)
