"""Read requests: pictures and prompts, as a form or as JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass

import msgspec
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from palidecode.errors import InputError
from palidecode.files import data_folder, inside
from palidecode.pipeline.session import Question
from palidecode.prompts import Task, prompts_for, with_verb
from palidecode.serve.addresses import fetch
from palidecode.serve.options import Options, read_json
from palidecode.serve.refusals import Refused
from palidecode.serve.service import Service
from palidecode.serve.settings import Settings

SCENES = "scenes"
HARBOUR = "harbour.png"
_FIELDS = ("image", "scene", "url", "prompt", "classes", "options", "model")
_GIVE = "give one of: image (a file), scene (a name of /v1/scenes), url"


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request as JSON; a form has the same fields.

    Attributes
    ----------
    image : str, optional
        The picture's file in base64, or a ``data:`` address.
    scene : str, optional
        A bundled picture.
    url : str, optional
        The picture's address, if the server fetches pictures.
    prompt : str, optional
    classes : list of str, optional
        Names to ask for, instead of a prompt.
    options : Options
    model : str, optional
    """

    image: str | None = None
    scene: str | None = None
    url: str | None = None
    prompt: str | None = None
    classes: list[str] | None = None
    options: Options = Options()
    model: str | None = None


@dataclass(frozen=True)
class Asked:
    """A request that was read: the picture's file and its name, and the rest."""

    picture: bytes
    name: str
    body: Body


async def read_request(request: Request, settings: Settings) -> Asked:
    """Read a picture and a prompt, from a form or from JSON.

    Raises
    ------
    Refused
        For a body that is none of these, and pictures that can't be had.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        body = read_json(await request.body(), Body)
        data = None if body.image is None else from_base64(body.image)
        return await _with_picture(data, "image", body, settings)
    if kind != "multipart/form-data":
        raise Refused(415, f"content-type {kind or '(none)'}: send multipart/form-data or JSON")
    return await _read_form(request, settings)


async def _read_form(request: Request, settings: Settings) -> Asked:
    try:
        async with request.form(max_files=1, max_fields=20) as form:
            fields: dict[str, str] = {}
            data, name = None, "image"
            for key, value in form.multi_items():
                if key not in _FIELDS or key in fields or (key == "image" and data is not None):
                    raise Refused(400, f"form field {key!r}: {_once(key)}")
                if isinstance(value, UploadFile):
                    if key != "image":
                        raise Refused(400, f"form field {key!r} is a file; the file is 'image'")
                    data, name = await value.read(), value.filename or "image"
                else:
                    fields[key] = value
    except HTTPException as error:  # the form's
        raise Refused(400, f"the form can't be read: {error.detail}") from error
    options = read_json(fields.pop("options", "{}"), Options, "options")
    classes = fields.pop("classes", None)
    names = None if classes is None else [name.strip() for name in classes.split(";")]
    if "image" in fields:
        data = from_base64(fields.pop("image"))
    body = Body(**fields, classes=names, options=options)
    return await _with_picture(data, name, body, settings)


def _once(key: str) -> str:
    return "comes twice" if key in _FIELDS else f"unknown; there are {', '.join(_FIELDS)}"


def from_base64(text: str) -> bytes:
    """Decode base64, or a ``data:`` address with it."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise Refused(400, "image: a data: address must end in ;base64, and the data")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"image: not base64: {error}") from error


async def _with_picture(data: bytes | None, name: str, body: Body, settings: Settings) -> Asked:
    """Find the picture of a request."""
    if [data is not None, body.scene is not None, body.url is not None].count(True) != 1:
        raise Refused(400, f"which picture? {_GIVE}")
    if body.scene is not None:
        return Asked(scene(body.scene), body.scene, body)
    if body.url is not None:
        return Asked(await fetch(body.url, settings), body.url, body)
    assert data is not None
    return Asked(data, name, body)


def scene_names() -> list[str]:
    """Return the names of the bundled pictures."""
    folder = data_folder("palidecode.demo") / SCENES
    return sorted(path.name for path in folder.glob("*.jpg"))


def scene(name: str) -> bytes:
    """Return the file of a bundled picture; the page reads an answer about one more."""
    if name == HARBOUR:
        return (data_folder("palidecode.demo") / HARBOUR).read_bytes()
    if name not in scene_names():
        raise Refused(404, f"no scene {name!r}: GET /v1/scenes lists them")
    return inside(data_folder("palidecode.demo") / SCENES, name).read_bytes()


def prompt_of(body: Body, task: Task | None, service: Service) -> str:
    """Return the prompt of a request; by default its model's classes are asked for."""
    if body.prompt is not None and body.classes is not None:
        raise Refused(400, "give prompt or classes, not both")
    try:
        if body.prompt is not None and body.prompt.strip():
            return body.prompt if task is None else with_verb(task, body.prompt)
        names = service.classes_of(body.model) if body.classes is None else body.classes
        if task is None or not names:
            raise Refused(400, "nothing to ask: give a prompt, for instance 'detect cat ; dog'")
        return with_verb(task, prompts_for(names)[0])
    except InputError as error:
        raise Refused(400, str(error)) from error


async def question_of(asked: Asked, prompt: str, service: Service, settings: Settings) -> Question:
    """Return the question of a request; its picture is opened in another thread."""
    options = asked.body.options.asking(settings)
    if asked.body.options.box_image != 0:
        raise Refused(400, "box_image must be below the number of pictures, which is 1")
    picture = await asyncio.to_thread(service.pictures.shrink, asked.picture, asked.name)
    return Question([picture], prompt, options.grammar, options.generating)
