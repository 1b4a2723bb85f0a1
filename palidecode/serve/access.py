"""Access to the server: hosts, origins, the key, sizes and times of requests; a line of log each.

A page of another site can make a browser send requests here, and a name that it controls can lead
to this machine (DNS rebinding). So ``Host`` must be an address, a local name or one that was
allowed, and ``Origin``, where a browser sends it, this server's or one that was allowed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import json
import logging
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from palidecode.serve.metrics import Metrics
from palidecode.serve.refusals import Refused, refusal
from palidecode.serve.settings import LOOPBACK, Settings

log = logging.getLogger("palidecode.serve.access")

OPEN = ("/", "/health")
"""Paths that need no key: the page asks for it."""
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "authorization, content-type",
    "Access-Control-Max-Age": "600",
}


@dataclass
class Traffic:
    """Requests in progress, and True when no others are taken."""

    running: int = 0
    closing: bool = False


class Access:
    """Lets requests through to the application, or refuses them.

    Parameters
    ----------
    app : ASGI application
    settings : Settings
    metrics : Metrics
    traffic : Traffic
    paths : set of str
        Paths of the routes, which logs and metrics name; others are ``other``.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        traffic: Traffic,
        paths: frozenset[str],
    ) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._traffic, self._paths = traffic, paths
        named = [origin.rpartition("//")[2] for origin in settings.allow_origin]
        self._hosts = {*LOOPBACK, settings.host.lower(), *(_host(name) for name in named)}
        self._origins = {origin.lower().rstrip("/") for origin in settings.allow_origin}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(headers, message)
            async with asyncio.timeout(self._settings.timeout):  # a client that doesn't read
                await send(message)

        headers = Headers(scope=scope)
        self._traffic.running += 1
        try:
            reply = self._answered(scope, headers)
            if reply is not None:
                await reply(scope, receive, sent)
            else:
                await self._app(scope, _Body(receive, headers, self._settings), sent)
        except TimeoutError:
            status = status or 408
        except Exception:
            status = 500
            raise
        finally:
            self._traffic.running -= 1
            self._tell(scope, status, time.perf_counter() - began)

    def _answered(self, scope: Scope, headers: Headers) -> Response | None:
        """Return the reply to a request that doesn't reach the application."""
        try:
            self._check(scope, headers)
        except Refused as error:
            return refusal(error.status, str(error), error.headers)
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return Response(status_code=204, headers=_PREFLIGHT)
        return None

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if _host(host) not in self._hosts and not _is_address(_host(host)):
            raise Refused(
                403,
                f"host {_host(host)!r} isn't this server's: use its address, or start it with "
                "--allow-origin HOST",
            )
        origin = headers.get("origin")
        if origin is not None and not self._same(origin, host) and not self._allowed(origin):
            raise Refused(403, f"origin {origin!r} may not ask: start with --allow-origin ORIGIN")
        if self._traffic.closing:
            raise Refused(
                503,
                "the server is stopping: ask again when it is back",
                {"Retry-After": "5", "Connection": "close"},
            )
        if scope["path"] not in OPEN and scope["method"] != "OPTIONS":
            self._check_key(headers.get("authorization", ""))

    def _check_key(self, given: str) -> None:
        key = self._settings.api_key
        if key is None:
            return
        scheme, _, text = given.partition(" ")
        if scheme.lower() == "basic":  # as Label Studio sends it: any name, the key as password
            try:
                text = base64.b64decode(text, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                text = ""
        if not hmac.compare_digest(text.strip().encode(), key.encode()):
            raise Refused(
                401,
                "this server needs its key: send Authorization: Bearer KEY",
                {"WWW-Authenticate": "Bearer"},
            )

    def _same(self, origin: str, host: str) -> bool:
        return urlsplit(origin).netloc.lower() == host.lower()

    def _allowed(self, origin: str) -> bool:
        return origin.lower() in self._origins

    def _add_headers(self, headers: Headers, message: Message) -> None:
        added = MutableHeaders(scope=message)
        added["X-Content-Type-Options"] = "nosniff"
        origin = headers.get("origin")
        if origin is not None and self._allowed(origin):
            added["Access-Control-Allow-Origin"] = origin
            added.add_vary_header("Origin")

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        """Log and count a request: nothing that it holds, nor a path that isn't a route's."""
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.request(path, status, seconds)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "method": scope["method"],
            "path": path,
            "status": status,
            "seconds": round(seconds, 3),
        }
        log.info(json.dumps(line))


class _Body:
    """Receives a request's body: so many bytes, in so many seconds."""

    def __init__(self, receive: Receive, headers: Headers, settings: Settings) -> None:
        self._receive, self._most, self._read = receive, settings.max_body, 0
        self._deadline = asyncio.get_running_loop().time() + settings.body_timeout
        self._whole = False
        self._promised = headers.get("content-length", "0")

    async def __call__(self) -> Message:
        """Return the next message of the client."""
        if self._whole:
            return await self._receive()  # waits for the client to go away
        if self._promised.isdecimal() and int(self._promised) > self._most:
            self._refuse()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise Refused(
                408, "the body didn't come in time: send it again", {"Connection": "close"}
            ) from None
        self._read += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._read > self._most:
            self._refuse()
        return message

    def _refuse(self) -> None:
        raise Refused(
            413,
            f"the body has more than {self._most:,} bytes: send a smaller picture",
            {"Connection": "close"},
        )


def _host(text: str) -> str:
    """Return a host without its port, in lower case."""
    text = text.lower().rstrip(".")
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _is_address(host: str) -> bool:
    """Return True for an address, which no other name can lead to."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
