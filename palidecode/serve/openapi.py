"""``GET /openapi.json``: the API, described in OpenAPI 3.1."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from palidecode.serve.answers import DecodeBody
from palidecode.serve.bodies import Body, scene_names
from palidecode.serve.chat import ChatBody
from palidecode.serve.labelstudio import PredictBody, SetupBody
from palidecode.serve.objects import Json
from palidecode.serve.refusals import json_reply
from palidecode.version import __version__

_BODIES = (Body, ChatBody, DecodeBody, PredictBody, SetupBody)
_NUMBER, _TEXT = {"type": "number"}, {"type": "string"}
_SPAN = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}


def _record(properties: Json, description: str | None = None) -> Json:
    made: Json = {"type": "object", "required": list(properties), "properties": properties}
    return made if description is None else made | {"description": description}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_RLE = _record({"size": _SPAN, "counts": _TEXT}, description="COCO's RLE of the whole picture")
_RINGS = _record(
    {"polygons": _list(_list(_NUMBER))}, description="Rings x1, y1, x2, y2 … in pixels"
)
_REPLIES: Json = {
    "Error": _record(
        {"error": _record({"message": _TEXT, "type": _TEXT, "code": {"type": "integer"}})}
    ),
    "Object": _record(
        {
            "label": _TEXT,
            "box": {
                **_list(_NUMBER),
                "minItems": 4,
                "maxItems": 4,
                "description": "x1, y1, x2, y2 in pixels",
            },
            "score": {"type": ["number", "null"]},
            "mask": {"anyOf": [{"type": "null"}, _RINGS, _RLE]},
            "tokens": {**_SPAN, "description": "Span in the answer's tokens, or in its text"},
        }
    ),
    "Issue": _record({"kind": _TEXT, "span": _SPAN, "text": _TEXT}),
    "Coco": _record(
        {
            name: ({"type": "object"} if name == "info" else _list({"type": "object"}))
            for name in ("info", "images", "annotations", "categories")
        },
        description="A COCO dataset",
    ),
}
_WHOLE = {
    "prompt": _TEXT,
    "answer": _TEXT,
    "finished": {"type": "boolean", "description": "False if it ended at max_new_tokens"},
    "width": {"type": "integer"},
    "height": {"type": "integer"},
    "objects": _list(_ref("Object")),
    "issues": _list(_ref("Issue")),
    "seconds": _NUMBER,
}
_REPLIES["Answer"] = _record(_WHOLE)
_REPLIES["Decoded"] = _record(
    {
        "images": _list(
            _record(
                {
                    "name": _TEXT,
                    **{name: _WHOLE[name] for name in ("width", "height", "objects", "issues")},
                }
            )
        ),
        "warnings": _list(_TEXT),
    }
)
_EXAMPLES: Json = {
    "Body": {"scene": "scene_000000.jpg", "prompt": "cat ; star"},
    "DecodeBody": {
        "answers": ["<loc0046><loc0538><loc0795><loc1022> cat"],
        "sizes": [[640, 480]],
    },
    "ChatBody": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,…"}},
                    {"type": "text", "text": "detect cat ; dog"},
                ],
            }
        ],
        "logprobs": True,
    },
    "PredictBody": {
        "tasks": [{"id": 1, "data": {"image": "/data/local-files/?d=a.jpg"}}],
        "label_config": '<View><Image name="image" value="$image"/><RectangleLabels name="box" '
        'toName="image"><Label value="cat"/></RectangleLabels></View>',
    },
    "SetupBody": {"project": "1", "schema": ""},
}
_FORMAT = {
    "name": "format",
    "in": "query",
    "schema": {"type": "string", "enum": ["objects", "coco"], "default": "objects"},
}


def _content(schema: Json, example: object = None, kind: str = "application/json") -> Json:
    return {kind: {"schema": schema} | ({} if example is None else {"example": example})}


def _reply(schema: Json, text: str = "The answer", kind: str = "application/json") -> Json:
    return {"description": text, "content": _content(schema, None, kind)}


def _operation(summary: str, reply: Json, body: Json | None = None, *parameters: Json) -> Json:
    refused = _reply(_ref("Error"), "Why it isn't answered")
    made: Json = {"summary": summary, "responses": {"200": reply, "4XX": refused, "5XX": refused}}
    if body is not None:
        made["requestBody"] = {"required": True, "content": body}
    if parameters:
        made["parameters"] = list(parameters)
    return made


def _named(name: str) -> Json:
    return _content(_ref(name), _EXAMPLES[name])


def _form() -> Json:
    """Return the form of a picture and a prompt; it has the fields of `Body`."""
    properties: Json = dict.fromkeys(("scene", "url", "prompt", "model"), _TEXT)
    properties["image"] = {"type": "string", "contentMediaType": "application/octet-stream"}
    properties["classes"] = {**_TEXT, "description": "Names, separated by ;"}
    properties["options"] = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": _ref("Options"),
    }
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {"multipart/form-data": {"schema": schema}}


@cache
def schema() -> Json:
    """Return the description of the API."""
    picture = _named("Body") | _form()
    answer = _reply({"anyOf": [_ref("Answer"), _ref("Coco")]})
    events = _reply({}, "Events: start, token, object, end, error", "text/event-stream")
    anything = _reply({"type": "object"})
    name = {"name": "name", "in": "path", "required": True, "schema": {"enum": scene_names()}}
    posts: dict[str, tuple[Any, ...]] = {
        "/v1/stream": ("Tokens and objects as the model writes them", events, picture),
        "/v1/detect": ("Boxes of the objects that a prompt names", answer, picture, _FORMAT),
        "/v1/segment": ("Boxes and masks of the objects", answer, picture, _FORMAT),
        "/v1/decode": (
            "Answers of any model to objects",
            _reply({"anyOf": [_ref("Decoded"), _ref("Coco")]}),
            _named("DecodeBody"),
            _FORMAT,
        ),
        "/v1/chat/completions": ("OpenAI's chat completion", anything, _named("ChatBody")),
        "/setup": ("Label Studio connects a project", anything, _named("SetupBody")),
        "/predict": ("Label Studio asks for predictions", anything, _named("PredictBody")),
    }
    gets: dict[str, tuple[Any, ...]] = {
        "/": ("The page", _reply(_TEXT, "The page", "text/html")),
        "/v1/info": ("The model, its classes and the limits", anything),
        "/v1/scenes": ("Names of the bundled pictures", anything),
        "/v1/scenes/{name}": ("A bundled picture", _reply({}, "The picture", "image/jpeg")),
        "/v1/models": ("OpenAI's list of models", anything),
        "/metrics": ("Numbers for Prometheus", _reply(_TEXT, "Numbers", "text/plain")),
        "/health": ("Label Studio asks if the server runs", anything),
    }
    paths: Json = {path: {"post": _operation(*parts)} for path, parts in posts.items()}
    paths |= {path: {"get": _operation(*parts)} for path, parts in gets.items()}
    paths["/v1/scenes/{name}"]["get"]["parameters"] = [name]
    _, components = msgspec.json.schema_components(
        _BODIES, ref_template="#/components/schemas/{name}"
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "palidecode", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components | _REPLIES,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


async def openapi(request: Request) -> Response:
    """Answer ``GET /openapi.json``."""
    return json_reply(schema())
