"""Open the pictures of requests, and remember the last ones."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from palidecode.errors import InputError
from palidecode.files import open_encoded, picture_size
from palidecode.pipeline import PaliDecoder
from palidecode.pipeline.session import Shrunk
from palidecode.serve.refusals import Refused

_KEPT_BYTES = 64 << 20


class Pictures:
    """The last pictures as a model sees them, by a hash of their files; any thread may ask.

    Parameters
    ----------
    decoder : PaliDecoder
    max_pixels : int
    """

    def __init__(self, decoder: PaliDecoder, max_pixels: int) -> None:
        self._decoder, self._max_pixels = decoder, max_pixels
        self._kept: OrderedDict[bytes, Shrunk] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def shrink(self, data: bytes, name: str) -> Shrunk:
        """Open a picture's file; `name` is for messages.

        Raises
        ------
        Refused
            If it can't be read, or has too many pixels.
        """
        key = hashlib.blake2b(data, digest_size=16).digest()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        try:
            self._check(data, name)
            shrunk = self._decoder.shrink(open_encoded(data, name))
        except InputError as error:
            raise Refused(400, str(error)) from error
        self._keep(key, shrunk)
        return shrunk

    def _check(self, data: bytes, name: str) -> None:
        width, height = picture_size(name, data)
        if width * height > self._max_pixels:
            raise Refused(
                413,
                f"{name}: {width}×{height} pixels are more than {self._max_pixels:,}: send a "
                "smaller one",
            )

    def _keep(self, key: bytes, shrunk: Shrunk) -> None:
        with self._lock:
            if key not in self._kept:
                self._bytes += shrunk.pixels.nbytes
            self._kept[key] = shrunk
            while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].pixels.nbytes
