"""Servers in OpenAI's form on a real socket, well-behaved and not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from palidecode.vocab import loc_token

MODEL = "paligemma"
BOX = (100, 200, 700, 800)
Reply = Callable[["Handler", dict[str, Any]], None]


def entry(token: str, logprob: float, *top: tuple[str, float]) -> dict[str, Any]:
    """One token of ``logprobs.content``."""
    listed = [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in top]
    return {
        "token": token,
        "logprob": logprob,
        "bytes": list(token.encode()),
        "top_logprobs": listed,
    }


def tokens_of(label: str = "cat", end: float = -3.0) -> list[dict[str, Any]]:
    """The tokens of one box, each of probability exp(-0.1), and how likely an end was first."""
    spelled = [*map(loc_token, BOX), f" {label}"]
    return [
        entry(token, -0.1, (token, -0.1), *([("<eos>", end)] if number == 0 else []))
        for number, token in enumerate(spelled)
    ]


def completion(
    content: str | None, tokens: list[dict[str, Any]] | None, finish: str = "stop"
) -> dict[str, Any]:
    """A chat completion."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, "refusal": None},
        "logprobs": None if tokens is None else {"content": tokens, "refusal": None},
        "finish_reason": finish,
    }
    usage = {"prompt_tokens": 260, "completion_tokens": 6, "total_tokens": 266}
    facts = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL}
    return facts | {"choices": [choice], "usage": usage}


CAT = "".join(map(loc_token, BOX)) + " cat"


def answers_cat(handler: Handler, body: dict[str, Any]) -> None:
    """Answer with one cat."""
    handler.send(200, completion(CAT, tokens_of()))


def status(code: int, message: str = "no", **headers: str) -> Reply:
    """Answer with an error in OpenAI's form."""

    def reply(handler: Handler, body: dict[str, Any]) -> None:
        error = {"error": {"message": message, "type": "error", "code": code}}
        handler.send(code, error, {name.replace("_", "-"): text for name, text in headers.items()})

    return reply


def sends(text: str, kind: str = "application/json", cut: int = 0) -> Reply:
    """Answer with any text, perhaps without its last bytes."""

    def reply(handler: Handler, body: dict[str, Any]) -> None:
        data = text.encode()
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) - cut])
        handler.close_connection = True

    return reply


def hangs(handler: Handler, body: dict[str, Any]) -> None:
    """Never answer."""
    handler.server.ended.wait(30)  # type: ignore[attr-defined]
    handler.close_connection = True


def drops(handler: Handler, body: dict[str, Any]) -> None:
    """Close the connection without a byte."""
    handler.close_connection = True


class Handler(BaseHTTPRequestHandler):
    """Answers by the server's script, and then by its last reply."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer ``/models``."""
        self.server.place.seen.append((self.path, dict(self.headers), {}))  # type: ignore[attr-defined]
        self.server.place.models(self, {})  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        """Answer ``/chat/completions``."""
        place: Place = self.server.place  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with place.lock:
            number = len(place.bodies)
            place.bodies.append(body)
            place.seen.append((self.path, dict(self.headers), body))
        place.script[min(number, len(place.script) - 1)](self, body)

    def send(self, code: int, value: object, headers: dict[str, str] | None = None) -> None:
        """Send JSON."""
        data = json.dumps(value).encode()
        self.send_response(code)
        for name, text in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *parts: object) -> None:
        """Print nothing."""


def lists_models(*names: str, **more: Any) -> Reply:
    """Answer ``/models``."""
    data = [
        {"id": name, "object": "model", "created": 1, "owned_by": "x", **more} for name in names
    ]
    return lambda handler, body: handler.send(200, {"object": "list", "data": data})


@dataclass
class Place:
    """A running server: its address, what it was asked, and its replies in order."""

    script: list[Reply]
    models: Reply = field(default_factory=lambda: lists_models(MODEL))
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *parts: object) -> None:
        """Print nothing: clients hang up."""


@contextmanager
def serving(*script: Reply, models: Reply | None = None) -> Iterator[Place]:
    """Serve replies in order; the last one answers all further requests."""
    place = Place(list(script) or [answers_cat])
    if models is not None:
        place.models = models
    server = _Server(("127.0.0.1", 0), Handler)
    server.place, server.ended = place, threading.Event()  # type: ignore[attr-defined]
    place.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield place
    finally:
        server.ended.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
        thread.join()
