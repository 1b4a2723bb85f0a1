"""Run the server: its socket, its signals, and the browser."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import webbrowser
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from palidecode.errors import InputError
from palidecode.pipeline import PaliDecoder
from palidecode.serve.access import Traffic
from palidecode.serve.app import create_app
from palidecode.serve.settings import Settings

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(
    load: Callable[[], PaliDecoder | None],
    settings: Settings,
    started: Callable[[str, PaliDecoder | None], None],
    *,
    open_browser: bool = False,
    log: bool = True,
) -> None:
    """Serve until SIGINT or SIGTERM; then answer those that were asked.

    Parameters
    ----------
    load : callable
        Loads the model, after the port is taken.
    settings : Settings
    started : callable
        Called with the address and the model when requests are taken.
    open_browser : bool
    log : bool
        Write a line of JSON for each request to stderr.

    Raises
    ------
    InputError
        If the address can't be listened on.
    """
    with _listening(settings) as listener:
        decoder = load()
        app = create_app(decoder, settings)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(settings.timeout) or 1,
        )
        address = address_of(listener, settings)
        server = _Server(config, lambda: started(address, decoder), app.state.traffic)
        if open_browser:
            server.then = lambda: webbrowser.open(address)
        logging.basicConfig(level=logging.INFO if log else logging.WARNING, format="%(message)s")
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Tells when it takes requests, and when it takes no more."""

    def __init__(self, config: uvicorn.Config, told: Callable[[], None], traffic: Traffic) -> None:
        super().__init__(config)
        self._told, self._traffic = told, traffic
        self.then: Callable[[], object] = lambda: None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop gracefully at SIGINT and SIGTERM; a second one ends the process."""
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        try:
            for number in _SIGNALS:
                signal.signal(number, self._stop)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._traffic.closing = True
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    async def on_tick(self, counter: int) -> bool:
        """Exit when the requests in progress have ended; new ones are refused until then."""
        if self._traffic.closing and self._traffic.running == 0:
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._told()
            self.then()


def _listening(settings: Settings) -> socket.socket:
    """Return a socket that listens on the address of the settings."""
    host, port = settings.host, settings.port
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, number)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise InputError(
            f"can't listen on {host}:{port}: {error.strerror or error}; choose another --port, or "
            "--port 0 for a free one"
        ) from error
    return listener


def address_of(listener: socket.socket, settings: Settings) -> str:
    """Return the address of the page."""
    host = settings.host
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
