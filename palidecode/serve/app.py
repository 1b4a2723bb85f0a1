"""The application: routes, and errors as JSON."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from palidecode.errors import PalidecodeError
from palidecode.pipeline import PaliDecoder
from palidecode.serve import answers, chat, labelstudio, site, streaming
from palidecode.serve.access import Access, Traffic
from palidecode.serve.detecting import asking_to
from palidecode.serve.metrics import Metrics, metrics
from palidecode.serve.openapi import openapi
from palidecode.serve.refusals import Refused, refusal
from palidecode.serve.service import Service
from palidecode.serve.settings import Settings

log = logging.getLogger(__name__)

ROUTES = [
    Route("/", site.index),
    Route("/v1/info", site.info),
    Route("/v1/scenes", site.scenes),
    Route("/v1/scenes/{name}", site.one_scene),
    Route("/v1/models", chat.models),
    Route("/v1/chat/completions", chat.chat, methods=["POST"]),
    Route("/v1/stream", streaming.stream, methods=["POST"]),
    Route("/v1/detect", asking_to("detect"), methods=["POST"]),
    Route("/v1/segment", asking_to("segment"), methods=["POST"]),
    Route("/v1/decode", answers.decode, methods=["POST"]),
    Route("/openapi.json", openapi),
    Route("/metrics", metrics),
    Route("/health", labelstudio.health),
    Route("/setup", labelstudio.setup, methods=["POST"]),
    Route("/predict", labelstudio.predict, methods=["POST"]),
]


def create_app(decoder: PaliDecoder | None, settings: Settings | None = None) -> Starlette:
    """Return the server as an ASGI application.

    Parameters
    ----------
    decoder : PaliDecoder or None
        Without a model only ``/v1/decode`` and the page's reading of answers work.
    settings : Settings, optional

    Examples
    --------
    >>> app = create_app(None)
    >>> app.state.settings.port
    8000
    """
    settings = settings or Settings()
    service = None if decoder is None else Service(decoder, settings)

    @asynccontextmanager
    async def running(app: Starlette) -> AsyncIterator[None]:
        if service is not None:
            service.start()
        yield
        if service is not None:
            await service.close()

    numbers, traffic = Metrics(service), Traffic()
    paths = frozenset(route.path for route in ROUTES)
    access = Middleware(Access, settings, numbers, traffic, paths)
    app = Starlette(
        routes=ROUTES,
        middleware=[access],
        lifespan=running,
        exception_handlers={
            Refused: _refused,
            PalidecodeError: _bad_input,
            HTTPException: _http,
            Exception: _defect,
        },
    )
    app.state.service, app.state.settings = service, settings
    app.state.metrics, app.state.traffic = numbers, traffic
    app.state.created = int(time.time())
    return app


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal(error.status, str(error), error.headers)


def _bad_input(request: Request, error: Exception) -> Response:
    return refusal(400, str(error))


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}; GET /openapi.json lists all"
    return refusal(error.status_code, message, error.headers)


def _defect(request: Request, error: Exception) -> Response:
    log.error("%s %s: %s", request.method, request.url.path, type(error).__name__)
    return refusal(500, f"unexpected {type(error).__name__}; please report it")
