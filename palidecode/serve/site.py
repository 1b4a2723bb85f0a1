"""The page, the bundled pictures, and facts about the server."""

from __future__ import annotations

import asyncio
import mimetypes

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from palidecode.serve.bodies import SCENES, scene, scene_names
from palidecode.serve.chat import MAX_TOP
from palidecode.serve.objects import Json
from palidecode.serve.page import page
from palidecode.serve.refusals import json_reply
from palidecode.serve.service import Service
from palidecode.serve.settings import Settings
from palidecode.version import __version__

POLICY = "frame-ancestors 'none'"
"""The rest of the page's policy is in its head, where this can't be."""


def info_of(service: Service | None, settings: Settings) -> Json:
    """Return facts about the server; see ``GET /v1/info``."""
    return {
        "version": __version__,
        "model": None if service is None else _model(service),
        "api_key": settings.api_key is not None,
        "limits": {
            "max_body": settings.max_body,
            "max_pixels": settings.max_pixels,
            "max_pictures": settings.max_pictures,
            "max_new_tokens": settings.max_new_tokens,
            "top_logprobs": MAX_TOP,
            "batch_size": settings.batch_size,
            "queue": settings.queue,
            "timeout": settings.timeout,
            "urls": settings.allow_urls,
        },
        "scenes": scene_names(),
    }


def _model(service: Service) -> Json:
    decoder = service.decoder
    names = service.models
    return {
        "name": names[0],
        "names": names,
        "classes": {name: list(service.classes_of(name)) for name in names},
        "side": decoder.image_config.size,
        "engine": decoder.engine.name,
        "codec": decoder.codes_id,
    }


async def info(request: Request) -> Response:
    """Answer ``GET /v1/info``."""
    return json_reply(info_of(request.app.state.service, request.app.state.settings))


async def index(request: Request) -> Response:
    """Answer ``GET /``: the page."""
    facts = info_of(request.app.state.service, request.app.state.settings)
    html = await asyncio.to_thread(page, facts)
    return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})


async def scenes(request: Request) -> Response:
    """Answer ``GET /v1/scenes``."""
    return json_reply({SCENES: scene_names()})


async def one_scene(request: Request) -> Response:
    """Answer ``GET /v1/scenes/NAME``: the picture."""
    name = request.path_params["name"]
    data = await asyncio.to_thread(scene, name)
    kind, _ = mimetypes.guess_type(name)
    return Response(data, media_type=kind, headers={"Cache-Control": "max-age=3600"})
