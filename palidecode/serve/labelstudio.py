"""Label Studio's ML backend: ``/health``, ``/setup`` and ``/predict``.

The protocol is that of Label Studio's documentation, "Write your own ML backend", and of the
label-studio-ml SDK: a project sends its labelling config and tasks, and gets a prediction for
each. Rectangles, polygons and brush strokes are written, whichever the config has.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import parse_qs, urljoin, urlsplit
from xml.etree import ElementTree as ET

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from palidecode.coco.writing import CocoReport, MaskFormat, annotations_of
from palidecode.detections import Detections
from palidecode.errors import InputError
from palidecode.files import inside, reason_of, regular
from palidecode.formats.labelstudio import Tool, shape_of
from palidecode.formats.objects import ConvertReport, Labelled, LabelledPicture, visible
from palidecode.pipeline.reading import Generated
from palidecode.prompts import Task as TaskName
from palidecode.prompts import prompts_for, with_verb
from palidecode.serve.addresses import download, fetch
from palidecode.serve.bodies import Asked, Body, from_base64, question_of
from palidecode.serve.objects import Json, Reader
from palidecode.serve.options import Options, read_json
from palidecode.serve.refusals import Refused, json_reply
from palidecode.serve.service import Service, service_of
from palidecode.serve.settings import Settings
from palidecode.version import __version__

MAX_CONFIG = 1 << 20
_KINDS: dict[str, Tool] = {
    "RectangleLabels": "box",
    "PolygonLabels": "polygon",
    "BrushLabels": "brush",
}
_LOCAL = "/data/local-files/"


class Task(msgspec.Struct, frozen=True):
    """A task: an item to label."""

    data: Json
    id: int | str | None = None


class SetupBody(msgspec.Struct, frozen=True):
    """The request of Label Studio when a backend is connected."""

    schema: str = ""
    project: str | int | None = None


class PredictBody(msgspec.Struct, frozen=True):
    """A request for predictions."""

    tasks: list[Task]
    label_config: str = ""


@dataclass(frozen=True)
class Config:
    """A labelling config: the image's tag and field, and tools with their names.

    Attributes
    ----------
    image : str
        Name of the Image tag.
    field : str
        Field of the tasks' data that holds the picture.
    tools : dict of str to str
        Names of the tags by the kind of tool: ``box``, ``polygon``, ``brush``.
    labels : list of str
    """

    image: str
    field: str
    tools: dict[Tool, str]
    labels: list[str]

    @property
    def version(self) -> str:
        """Name of the predictions' version."""
        return f"palidecode {__version__}"


def read_config(text: str) -> Config:
    """Read a labelling config.

    Raises
    ------
    Refused
        If it isn't XML, or has no image or none of the tools.
    """
    if len(text) > MAX_CONFIG or "<!" in text:
        raise Refused(400, "label_config: too long, or with a document type; send the config alone")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise Refused(400, f"label_config: not XML: {error}") from error
    image = next(root.iter("Image"), None)
    if image is None or not image.get("value", "").startswith("$"):
        raise Refused(400, 'label_config: no <Image value="$FIELD">')
    tools: dict[Tool, str] = {}
    labels: list[str] = []
    for tag, tool in _KINDS.items():
        for node in root.iter(tag):
            if node.get("toName") == image.get("name") and tool not in tools:
                tools[tool] = node.get("name", "")
                labels += [label.get("value", "") for label in node.iter("Label")]
    if not tools or not any(labels):
        known = ", ".join(_KINDS)
        raise Refused(400, f"label_config: no labels of {known} for the image")
    names = [label for label in dict.fromkeys(labels) if label]
    return Config(image.get("name", ""), image.get("value", "")[1:], tools, names)


async def health(request: Request) -> Response:
    """Answer ``GET /health``."""
    return json_reply({"status": "UP", "model_class": "palidecode"})


async def setup(request: Request) -> Response:
    """Answer ``POST /setup``: accept a project's labelling config."""
    service_of(request)
    body: SetupBody = read_json(await request.body(), SetupBody)
    version = f"palidecode {__version__}"
    if body.schema:
        version = read_config(body.schema).version
    return json_reply({"model_version": version})


async def predict(request: Request) -> Response:
    """Answer ``POST /predict``: a prediction for each task."""
    service = service_of(request)
    settings: Settings = request.app.state.settings
    body: PredictBody = read_json(await request.body(), PredictBody)
    config = read_config(body.label_config)
    together = asyncio.Semaphore(settings.batch_size)

    async def one(task: Task) -> Json:
        async with together:
            return await _predicted(request, service, settings, config, task)

    results = await asyncio.gather(*map(one, body.tasks))
    return json_reply({"results": results, "model_version": config.version})


async def _predicted(
    request: Request, service: Service, settings: Settings, config: Config, task: Task
) -> Json:
    address = task.data.get(config.field)
    if not isinstance(address, str):
        raise Refused(400, f"task {task.id}: no picture in data.{config.field}")
    file = await _picture(address, settings)
    options = Options(segmentation="polygons" if "polygon" in config.tools else "rle")
    try:
        task_name: TaskName = "segment" if {"polygon", "brush"} & config.tools.keys() else "detect"
        names = prompts_for(config.labels)[0]
        asked = Asked(file, "the picture", Body(options=options))
        question = await question_of(asked, with_verb(task_name, names), service, settings)
    except InputError as error:
        raise Refused(400, f"label_config: {error}") from error
    answer = await service.ask(question).finished(request)
    reader = Reader(service.decoder, options)
    return await asyncio.to_thread(_prediction, reader, answer, config)


def _prediction(reader: Reader, answer: Generated, config: Config) -> Json:
    """Return an answer as a prediction: its shapes, and the mean of their scores."""
    detections = reader.detections(answer)
    width, height = answer.size
    picture = LabelledPicture("", width, height, _labelled(detections, config.tools))
    made = [
        shape_of(item, box, picture, str(number), config.tools, config.image)
        for number, (item, box) in enumerate(visible(picture, ConvertReport()))
    ]
    shapes = [shape for shape in made if shape is not None]
    scores = [shape["score"] for shape in shapes if "score" in shape]
    score = round(sum(scores) / len(scores), 6) if scores else 0.0
    return {"result": shapes, "score": score, "model_version": config.version}


def _labelled(detections: Detections, tools: dict[Tool, str]) -> list[Labelled]:
    """Return the objects with their masks as polygons, or as RLE for a brush alone."""
    form = MaskFormat("polygons" if "polygon" in tools else "rle" if "brush" in tools else "none")
    report = CocoReport()
    labels = list(dict.fromkeys(detections.labels))
    found = annotations_of(detections, labels.index, form, lambda image: report, True)
    items = []
    for item in found:
        x, y, w, h = item.bbox
        box = (x, y, x + w, y + h)
        items.append(Labelled(labels[item.category], box, item.score, item.segmentation or None))
    return items


async def _picture(address: str, settings: Settings) -> bytes:
    """Return the file of a task's picture.

    ``data:`` addresses hold it; ``/data/local-files/?d=NAME`` is a file in ``--images``; others
    are of Label Studio's own server, ``--label-studio``, or fetched as any address is.
    """
    if address.startswith("data:"):
        return from_base64(address)
    parts = urlsplit(address)
    if settings.images is not None and parts.path == _LOCAL:
        name = parse_qs(parts.query).get("d", [""])[0]
        return await asyncio.to_thread(_local, settings.images, name)
    home = settings.label_studio
    if home is not None:
        url = urljoin(home, address)
        if urlsplit(url)[:2] == urlsplit(home)[:2]:
            key = settings.label_studio_key
            headers = {} if key is None else {"Authorization": f"Token {key}"}
            return await asyncio.to_thread(
                download, url, settings.max_body, headers=headers, trusted=home
            )
    if not parts.scheme:
        raise Refused(
            400,
            f"picture {address}: start the server with --label-studio URL, or with --images DIR "
            "for local files",
        )
    return await fetch(address, settings)


def _local(folder: str, name: str) -> bytes:
    try:
        return regular(inside(folder, name)).read_bytes()
    except (InputError, OSError) as error:
        raise Refused(404, f"picture {name!r}: {reason_of(error)}") from error
