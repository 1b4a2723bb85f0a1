"""Fetch pictures by their address, never from a private network.

A name is resolved once, all of its addresses are checked, and the connection goes to the address
that was checked; so do redirects. Otherwise a request could read what only this machine reaches.
"""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from urllib.parse import urljoin, urlsplit

from palidecode.files import reason_of
from palidecode.serve.refusals import Refused
from palidecode.serve.settings import Settings

_SECONDS = 20.0
_REDIRECTS = 4
_BLOCK = 1 << 16
_EMBEDDING = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "2002::/16", "2001::/32")))
"""IPv6 networks whose addresses lead to an IPv4 address."""


async def fetch(url: str, settings: Settings) -> bytes:
    """Fetch a picture from the public network.

    Raises
    ------
    Refused
        If the server fetches no addresses, and for one that is private or can't be fetched.
    """
    if not settings.allow_urls:
        raise Refused(403, "this server fetches no addresses: send the picture's file")
    return await asyncio.to_thread(download, url, settings.max_body)


def is_public(address: str) -> bool:
    """Return True for an address of the public network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if any(ip in network for network in _EMBEDDING):
            return False
    return ip.is_global and not ip.is_multicast


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


def download(
    url: str,
    most: int,
    *,
    allowed: Callable[[str], bool] = is_public,
    resolved: Callable[[str, int], list[str]] = resolve,
    trusted: str | None = None,
    headers: Mapping[str, str] | None = None,
    seconds: float = _SECONDS,
) -> bytes:
    """Download at most `most` bytes within some seconds, following redirects.

    Parameters
    ----------
    url : str
    most : int
    allowed : callable
        Returns True for an address that may be connected to; every one of a name must be.
    resolved : callable
        Returns the addresses of a host and port.
    trusted : str, optional
        Address of a server that may be private.
    headers : mapping, optional
        Sent to the first server alone.

    Raises
    ------
    Refused
        For an address that isn't allowed, and a download that fails.
    """
    deadline = time.monotonic() + seconds
    first = url
    for _ in range(_REDIRECTS):
        sent = dict(headers or {}) if _origin(url) == _origin(first) else {}
        free = trusted is not None and _origin(url) == _origin(trusted)
        check = _every if free else allowed
        try:
            found = _get(url, most, deadline, check, resolved, sent)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Refused(400, f"url {first}: can't be fetched: {reason_of(error)}") from error
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise Refused(400, f"url {first}: more than {_REDIRECTS} redirects")


def _every(address: str) -> bool:
    return True


def _origin(url: str) -> tuple[str, str]:
    return urlsplit(url)[:2]


def _get(
    url: str,
    most: int,
    deadline: float,
    allowed: Callable[[str], bool],
    resolved: Callable[[str, int], list[str]],
    headers: Mapping[str, str],
) -> bytes | str:
    """Return the body of an address, or where it redirects to."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it isn't http or https")
    host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    addresses = resolved(host, port)
    if not addresses or not all(map(allowed, addresses)):
        raise Refused(403, f"url {url}: {host} is no public address; send the picture's file")
    connection = _connected(parts.scheme, host, port, addresses[0], deadline)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"User-Agent": "palidecode", **headers})
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308):
            return response.headers.get("Location", "")
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        data = bytearray()
        while block := response.read(_BLOCK):
            data += block
            if len(data) > most:
                raise ValueError(f"it has more than {most:,} bytes")
            if time.monotonic() > deadline:
                raise ValueError("it took too long")
        return bytes(data)
    finally:
        connection.close()


def _connected(
    scheme: str, host: str, port: int, address: str, deadline: float
) -> http.client.HTTPConnection:
    """Return a connection to an address that speaks as if to the host."""
    left = max(0.1, deadline - time.monotonic())
    kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    connection = kind(host, port, timeout=left)
    connected = socket.create_connection((address, port), left)
    if scheme == "https":
        connected = ssl.create_default_context().wrap_socket(connected, server_hostname=host)
    connection.sock = connected
    return connection
