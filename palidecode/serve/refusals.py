"""Refusals: why a request isn't answered, as one line of JSON."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response


class Refused(Exception):
    """A request that isn't answered: its HTTP status, and what, where, and the way out."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return the reply of a request that isn't answered."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "code": status}
    return json_reply({"error": error}, status, headers)


def json_reply(
    data: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return JSON in one line."""
    return Response(
        msgspec.json.encode(data), status, headers=headers, media_type="application/json"
    )
