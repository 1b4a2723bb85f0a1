"""An OpenAI-compatible server as the model: its options, and requests that are tried again."""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import os
import random
import threading
import time
import urllib.parse
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from palidecode.codec.weights import GOOGLE_ID, find_weights
from palidecode.errors import InputError, ServerError
from palidecode.pipeline.checkpoint import ModelNotes
from palidecode.version import __version__

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
Reply = Mapping[str, Any]

KEY_VARIABLE = "PALIDECODE_API_KEY"
_LONGEST_PAUSE = 30.0  # seconds between two tries
_PATIENCE = 600.0  # seconds that a busy server is waited for
_CONNECT = 10.0
_MOST_BYTES = 256 << 20  # of a reply
_SHOWN = 200  # characters of a server's own words


@dataclass(frozen=True)
class EndpointOptions:
    """The server that answers, see `PaliDecoder.from_endpoint`; plain values only.

    Attributes
    ----------
    endpoint : str
        Address of an OpenAI-compatible API: ``http://host:8000/v1``.
    model : str
        Name of the model there.
    codec : str, optional
        Weights of the mask codec, a file or an id; by default the codec that the server names,
        or else Google's.
    concurrency : int
        Requests at a time.
    timeout : float
        Seconds that a request may take.
    retries : int
        Further tries of a request that fails: no connection, no whole answer in time, a status of
        5xx. A busy server (429) is waited for, ten minutes at most.
    pause : float
        Seconds before the second try; they double with every further one, up to 30.
    top_logprobs : int
        Likeliest tokens that are asked for in each token's place. Sub-bin boxes ask for 1,024.
    api_key_env : str
        Environment variable that holds the API key, if the server wants one.
    vllm_grammar : bool
        Send the grammar of every detect and segment prompt as vLLM takes it: as
        ``structured_outputs``, for its backend ``guidance``. See `lark_grammar`.
    """

    endpoint: str
    model: str
    codec: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 5
    pause: float = 0.5
    top_logprobs: int = 20
    api_key_env: str = KEY_VARIABLE
    vllm_grammar: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "endpoint", _checked_address(self.endpoint))
        if not self.model:
            raise InputError("model must name a model of the server")
        if self.concurrency < 1:
            raise InputError(f"concurrency must be at least 1, got {self.concurrency}")
        if not 0 < self.timeout < math.inf:
            raise InputError(f"timeout must be above 0, got {self.timeout:g}")
        if self.retries < 0:
            raise InputError(f"retries must be 0 or more, got {self.retries}")
        if not 0 <= self.pause < math.inf:
            raise InputError(f"pause must be 0 or more, got {self.pause:g}")
        if self.top_logprobs < 0:
            raise InputError(f"top_logprobs must be 0 or more, got {self.top_logprobs}")

    @property
    def source(self) -> str:
        """The model and its server, for people."""
        return f"{self.model} at {self.endpoint}"

    @property
    def uses_gpu(self) -> bool:
        """Return False: what computes is elsewhere."""
        return False

    @property
    def batch_size(self) -> int:
        """Pictures that are asked about together: so many that the server always has work."""
        return 4 * self.concurrency

    def describe(self) -> ModelNotes:
        """Ask the server what it says of the model.

        Raises
        ------
        ServerError
            If it isn't there, or hasn't that model.
        """
        return self._notes

    @cached_property
    def _notes(self) -> ModelNotes:
        # Kept by these options alone: another server may answer at the same address later.
        return _described(self)

    def pinned(self) -> EndpointOptions:
        """Return the options: a server's model has no revision."""
        return self

    def with_engine(self, *, accelerator: bool | None = None) -> EndpointOptions:
        """Return the options: a server has its own engine."""
        return self

    def files(self, *, masks: bool) -> dict[str, Path]:
        """Return the files that a result depends on."""
        if not masks:
            return {}
        codes_id = self.describe().codes_id
        named = None if codes_id == GOOGLE_ID else codes_id
        return {"mask codec": find_weights(self.codec or named)}

    def settings(self) -> dict[str, Any]:
        """Return the options that decide a number."""
        return {
            "endpoint": self.endpoint,
            "model": self.model,
            "top_logprobs": self.top_logprobs,
            "vllm_grammar": self.vllm_grammar,
        }


def _checked_address(text: str) -> str:
    try:
        parts = urllib.parse.urlsplit(text)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or not text.isprintable() or " " in text:
        raise InputError(f"endpoint must be an address as http://host:8000/v1, got {text!r}")
    if parts.username is not None or parts.password is not None:
        raise InputError("endpoint must not hold a password; put a key into the environment")
    if parts.query or parts.fragment:
        raise InputError(f"endpoint must end with its path, as /v1, got {text!r}")
    return text.rstrip("/")


def _described(options: EndpointOptions) -> ModelNotes:
    server = Server(replace(options, retries=0))
    try:
        listed = server.models()
    finally:
        server.close()
    codes_id = GOOGLE_ID
    classes: tuple[str, ...] = ()
    if listed is not None:
        names = [str(entry.get("id")) for entry in listed]
        if options.model not in names:
            there = ", ".join(names[:10]) or "none"
            raise ServerError(f"{options.endpoint}: no model {options.model!r}; it serves {there}")
        codes_id, classes = _notes_in(listed[names.index(options.model)])
    return ModelNotes(options.source, codes_id, classes, None)


def _notes_in(entry: Reply) -> tuple[str, tuple[str, ...]]:
    """Return the codec and classes that palidecode's own server lists with a model."""
    codes, classes = entry.get("codes"), entry.get("classes")
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return (
        codes if isinstance(codes, str) else GOOGLE_ID,
        tuple(classes) if named and isinstance(classes, list) else (),
    )


@dataclass(eq=False)
class _FaultError(Exception):
    """A request that failed.

    Attributes
    ----------
    reason : str
    again : bool
        It may be tried again.
    about_request : bool
        It may be the request's, not the server's.
    busy : bool
        The server asks to come back later.
    after : float, optional
        Seconds to wait before.
    """

    reason: str
    again: bool = False
    about_request: bool = False
    busy: bool = False
    after: float | None = None


@dataclass(frozen=True)
class Refusal:
    """The server can't answer about this picture, though it does about others."""

    reason: str


@dataclass(frozen=True)
class Request:
    """Bodies of one request: the wanted one, and the same question about a grey picture."""

    body: Callable[[], bytes]
    harmless: Callable[[], bytes]


class Server:
    """A server and its connections, which a thread of its own looks after.

    Parameters
    ----------
    options : EndpointOptions

    Raises
    ------
    InputError
        If the key in the environment can't be one.
    """

    def __init__(self, options: EndpointOptions) -> None:
        import httpx2  # slow to import

        self.options = options
        self._key = os.environ.get(options.api_key_env, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise InputError(f"{options.api_key_env}: an API key has printable ASCII characters")
        headers = {"User-Agent": f"palidecode/{__version__}"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx2.Limits(
            max_connections=options.concurrency, max_keepalive_connections=options.concurrency
        )
        wait = httpx2.Timeout(options.timeout, connect=min(_CONNECT, options.timeout), pool=None)
        self._client = httpx2.AsyncClient(headers=headers, limits=limits, timeout=wait)
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        thread.start()
        self.close = weakref.finalize(self, _close, self._client, self._loop, thread)

    def models(self) -> list[Reply] | None:
        """Return the entries of ``/models``; None where a server has no such list."""
        try:
            reply = self._run(self._patient(lambda: self._send("GET", "/models")))
        except _FaultError as fault:
            if fault.reason.startswith(("404", "405", "501")):
                return None
            raise ServerError(self._message(fault)) from fault
        data = reply.get("data")
        if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
            raise ServerError(self._message(_FaultError("its /models is no list of models")))
        return data

    def answers(self, requests: Sequence[Request]) -> list[Reply | Refusal]:
        """Send requests, `concurrency` at a time; return their replies in order.

        Raises
        ------
        ServerError
            If the server is gone, or answers no request of this kind.
        """
        return self._run(self._all(requests))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _all(self, requests: Sequence[Request]) -> list[Reply | Refusal]:
        gate = asyncio.Semaphore(self.options.concurrency)
        tasks = [asyncio.ensure_future(self._one(gate, request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, gate: asyncio.Semaphore, request: Request) -> Reply | Refusal:
        async with gate:
            body = request.body()
            try:
                return await self._patient(lambda: self._send("POST", "/chat/completions", body))
            except _FaultError as fault:
                return await self._blame(request, body, fault)

    async def _blame(self, request: Request, body: bytes, fault: _FaultError) -> Reply | Refusal:
        """Find out whether a request or the server is at fault: ask about a grey picture."""
        if not fault.about_request:
            raise ServerError(self._message(fault)) from fault
        try:
            await self._send("POST", "/chat/completions", request.harmless())
        except _FaultError:
            raise ServerError(self._message(fault)) from fault
        if fault.again:  # it may have started anew meanwhile
            try:
                return await self._send("POST", "/chat/completions", body)
            except _FaultError as last:
                fault = last
        return Refusal(self._message(fault))

    async def _patient(self, send: Callable[[], Coroutine[Any, Any, Reply]]) -> Reply:
        """Try again while that may help."""
        failures, waited = 0, 0.0
        while True:
            try:
                return await send()
            except _FaultError as fault:
                pause = min(_LONGEST_PAUSE, self.options.pause * 2**failures)
                pause *= random.uniform(0.5, 1.0)  # clients that failed together come back apart
                if fault.busy:
                    pause = max(pause, fault.after or 0.0)
                    waited += pause
                    if waited > _PATIENCE:
                        raise
                else:
                    failures += 1
                    if not fault.again or failures > self.options.retries:
                        raise
            await asyncio.sleep(pause)

    async def _send(self, method: str, path: str, body: bytes | None = None) -> Reply:
        import httpx2

        kind = {"Content-Type": "application/json"} if body is not None else {}
        address = self.options.endpoint + path
        try:
            async with asyncio.timeout(self.options.timeout):
                stream = self._client.stream(method, address, content=body, headers=kind)
                async with stream as response:
                    data = await _read(response)
        except (TimeoutError, httpx2.TimeoutException) as error:
            if isinstance(error, httpx2.ConnectTimeout):
                raise _FaultError("no connection in time", again=True) from error
            reason = f"no answer in {self.options.timeout:g} s (--timeout)"
            raise _FaultError(reason, again=True, about_request=True) from error
        except (httpx2.TransportError, OSError) as error:
            raise _FaultError(_reason(error), again=True) from error
        except (httpx2.RequestError, httpx2.InvalidURL, ValueError) as error:
            raise _FaultError(_reason(error)) from error
        if response.status_code >= 300:
            raise self._fault_of(response, data)
        return _json_object(data, response.headers.get("Content-Type", ""))

    def _fault_of(self, response: httpx2.Response, data: bytes) -> _FaultError:
        """Return the fault of a status that is no success."""
        status = response.status_code
        said = _words_of(data)
        reason = f"{status} {response.reason_phrase}".strip() + (f": {said}" if said else "")
        if self._key:  # which a server may repeat
            reason = reason.replace(self._key, "***")
        if status < 400:
            there = response.headers.get("Location", "elsewhere")
            return _FaultError(f"{status}, it leads to {there}: give that address")
        if status in (401, 403):
            return _FaultError(f"{reason}; the key is read from {self.options.api_key_env}")
        after = _seconds_of(response.headers.get("Retry-After"))
        if status == 429 or (status == 503 and after is not None):
            return _FaultError(reason, again=True, busy=True, after=after)
        if status >= 500 or status in (408, 425):
            return _FaultError(reason, again=True, about_request=True)
        return _FaultError(reason, about_request=status in (400, 413, 415, 422))

    def _message(self, fault: _FaultError) -> str:
        tries = self.options.retries + 1
        often = f" ({tries} tries)" if fault.again and not fault.busy and tries > 1 else ""
        return f"{self.options.endpoint}: {fault.reason}{often}"


def _close(
    client: httpx2.AsyncClient, loop: asyncio.AbstractEventLoop, thread: threading.Thread
) -> None:
    asyncio.run_coroutine_threadsafe(client.aclose(), loop).result(timeout=_CONNECT)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=_CONNECT)
    loop.close()


async def _read(response: httpx2.Response) -> bytes:
    data = bytearray()
    async for block in response.aiter_bytes():
        data += block
        if len(data) > _MOST_BYTES:
            raise _FaultError(f"its answer has more than {_MOST_BYTES >> 20} MiB")
    return bytes(data)


def _json_object(data: bytes, kind: str) -> Reply:
    try:
        reply = json.loads(data)
    except (ValueError, RecursionError) as error:
        what = kind.partition(";")[0] or "something"
        shown = "" if "json" in what else f" but {what}"
        raise _FaultError(f"its answer is not JSON{shown}; is the address right (…/v1)?") from error
    if not isinstance(reply, dict):
        raise _FaultError("its answer is no JSON object; is the address right (…/v1)?")
    return reply


def _words_of(data: bytes) -> str:
    """Return a server's own words about an error, in one line."""
    text = data[: 16 * _SHOWN].decode("utf-8", "replace")
    try:
        found = json.loads(data)
        for key in ("error", "detail", "message"):
            found = found.get(key, found) if isinstance(found, dict) else found
        text = found if isinstance(found, str) else json.dumps(found)
    except (ValueError, RecursionError):
        text = "" if text.lstrip().startswith("<") else text  # a page
    words = " ".join(text.split())
    return words if len(words) <= _SHOWN else words[:_SHOWN] + "…"


def _reason(error: BaseException) -> str:
    """Return why there is no answer, in one line."""
    text = " ".join(str(error).split())
    if "onnect" in type(error).__name__:
        return f"no connection ({text or 'refused'}); is the server running?"
    return f"the connection broke off ({text or type(error).__name__})"


def _seconds_of(text: str | None) -> float | None:
    """Return the seconds of a ``Retry-After``: a number, or a date."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), _PATIENCE) if math.isfinite(seconds) else None
