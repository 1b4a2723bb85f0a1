"""Settings of the server: its limits, and who may ask it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from palidecode.errors import InputError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Settings:
    """Limits of a server, and who may ask it.

    Attributes
    ----------
    host : str
        Address that it listens on.
    port : int
        0 takes a free one.
    api_key : str, optional
        Asked of every request but the page: ``Authorization: Bearer KEY``.
    allow_origin : tuple of str
        Origins of other pages that may ask (``https://example.org``), and further host names.
    allow_urls : bool
        Fetch pictures that a request names by their address.
    images : str, optional
        Directory of the pictures that tasks of Label Studio name as local files.
    label_studio, label_studio_key : str, optional
        Address of a Label Studio, whose pictures are fetched, and the access token for it.
    max_body : int
        Bytes of a request.
    max_pixels : int
        Of a picture.
    max_pictures : int
        Of one prompt.
    max_new_tokens : int
        Tokens of the longest answer that may be asked for.
    batch_size : int
        Answers that are written together.
    queue : int
        Requests that may wait; further ones are told to come back.
    timeout : float
        Seconds that an answer may take.
    body_timeout : float
        Seconds that the body of a request may take to arrive.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    allow_origin: tuple[str, ...] = ()
    allow_urls: bool = False
    images: str | None = None
    label_studio: str | None = None
    label_studio_key: str | None = None
    max_body: int = 32 << 20
    max_pixels: int = 50_000_000
    max_pictures: int = 8
    max_new_tokens: int = 1024
    batch_size: int = 16
    queue: int = 64
    timeout: float = 120.0
    body_timeout: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"port must be between 0 and 65535, got {self.port}")
        if self.api_key == "":
            raise InputError("api_key must not be empty")
        for name in ("max_body", "max_pixels", "max_pictures", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.queue < 0:
            raise InputError(f"queue must be 0 or more, got {self.queue}")
        if self.images is not None and not os.path.isdir(self.images):
            raise InputError(f"images: {self.images}: no such directory")
        if self.label_studio is not None and not self.label_studio.startswith("http"):
            raise InputError(f"label_studio must be an http address, got {self.label_studio!r}")
        for name in ("timeout", "body_timeout"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, got {getattr(self, name):g}")
