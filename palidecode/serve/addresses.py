"""Fetch pictures by their address, never from a private network."""

from __future__ import annotations

from palidecode.serve.refusals import Refused
from palidecode.serve.settings import Settings


async def fetch(url: str, settings: Settings) -> bytes:
    """Fetch a picture."""
    raise Refused(403, "this server fetches no addresses: send the picture's file")
