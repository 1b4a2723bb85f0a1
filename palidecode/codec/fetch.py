"""Download Google's codec weights (on request only), and verify that a codec matches them."""

from __future__ import annotations

import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from palidecode.codec.protocol import MaskCodec
from palidecode.codec.weights import (
    GOOGLE_BYTES,
    GOOGLE_FILE,
    GOOGLE_SHA256,
    GOOGLE_URL,
    cache_dir,
    sha256_of,
)
from palidecode.errors import WeightsError
from palidecode.files import reason_of

_BLOCK = 1 << 16
_BROKEN = (
    urllib.error.URLError,
    http.client.HTTPException,
    ssl.SSLError,
    TimeoutError,
    ConnectionError,
)
_FINAL = (401, 403, 404, 410)  # status codes that a retry doesn't change
_PASS = 0.9  # the published plots are lossy; other weights correlate near 0


def fetch(
    target: Path | None = None,
    *,
    url: str = GOOGLE_URL,
    size: int = GOOGLE_BYTES,
    sha256: str = GOOGLE_SHA256,
    attempts: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Download the official weights, resuming an interrupted download; return the checked file.

    `progress` is called with (bytes so far, bytes in total). Until all is checked, only
    ``<target>.part`` exists.
    """
    path = target or cache_dir() / GOOGLE_FILE
    if os.path.isfile(path) and path.stat().st_size == size and sha256_of(path) == sha256:
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if part.exists() and part.stat().st_size > size:
            part.unlink()
        for attempt in range(1, attempts + 1):
            problem = _download(url, part, size, progress)
            if problem is None:
                break
            if attempt == attempts:
                raise WeightsError(
                    f"{url}: {problem} (tried {attempts} times); run it again to resume, or "
                    f"download the file yourself and set PALIDECODE_WEIGHTS to its path"
                )
        _check_download(part, url, size, sha256)
        os.replace(part, path)
    except OSError as error:
        raise WeightsError(f"{path}: can't be written: {error}") from error
    return path


def _download(
    url: str, part: Path, size: int, progress: Callable[[int, int], None] | None
) -> str | None:
    """Append the missing bytes; return the problem if the connection broke."""
    done = part.stat().st_size if part.exists() else 0
    if done == size:
        return None
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
            done = done if resumed else 0
            with part.open("ab" if resumed else "wb") as file:
                while (block := response.read(_BLOCK)) and done <= size:
                    file.write(block)
                    done += len(block)
                    if progress:
                        progress(done, size)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # left from a longer file: start over
        elif error.code in _FINAL:
            raise WeightsError(f"{url}: can't be downloaded: {error}") from error
        return f"can't be downloaded: {error}"
    except _BROKEN as error:
        return f"can't be downloaded: {reason_of(error)}"
    return None if done >= size else f"the connection broke off after {done} of {size} bytes"


def _check_download(part: Path, url: str, size: int, sha256: str) -> None:
    downloaded = part.stat().st_size
    if downloaded != size or sha256_of(part) != sha256:
        part.unlink()
        raise WeightsError(
            f"{url}: the download ({downloaded} bytes) is not the expected file ({size} bytes, "
            f"sha256 {sha256[:12]}…) and was deleted"
        )


class Verification(NamedTuple):
    """Result of `verify`: correlations with five published fields, and if all are high enough."""

    correlations: tuple[float, ...]
    passed: bool


def verify(codec: MaskCodec) -> Verification:
    """Check that a codec decodes like Google's, by five published code sequences.

    Their fields were read off plots that JoeJoe1313 published with answers of PaliGemma 2
    checkpoints. Each is known up to scale and offset, so they are compared by correlation.

    Returns
    -------
    Verification
        Passed when every correlation is at least 0.9.
    """
    with (
        resources.files("palidecode.codec").joinpath("golden.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as golden,
    ):
        codes, published = golden["codes"], golden["fields"]
    correlations = tuple(
        _correlation(field.astype(np.float64), plot.astype(np.float64))
        for field, plot in zip(codec.decode(codes), published, strict=True)
    )
    return Verification(correlations, min(correlations) >= _PASS)


def _correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Pearson correlation; 0 where a field is constant or not finite."""
    if not np.isfinite(a).all():
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else 0.0
