"""``POST /v1/detect`` and ``/v1/segment``: a picture and names to objects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from palidecode.coco.writing import to_coco
from palidecode.pipeline.reading import Generated
from palidecode.prompts import Task, asked_names
from palidecode.serve.answers import wants_coco
from palidecode.serve.bodies import Asked, prompt_of, question_of, read_request
from palidecode.serve.objects import Json, Reader
from palidecode.serve.refusals import json_reply
from palidecode.serve.service import service_of


def asking_to(task: Task) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint of a task."""

    async def endpoint(request: Request) -> Response:
        service, settings = service_of(request), request.app.state.settings
        began = time.perf_counter()
        coco = wants_coco(request)
        asked = await read_request(request, settings)
        prompt = prompt_of(asked.body, task, service.decoder)
        question = await question_of(asked, prompt, service, settings)
        job = service.ask(question, service.adapter_of(asked.body.model))
        answer = await job.finished(request)
        reader = Reader(service.decoder, asked.body.options)
        if coco:
            return json_reply(await asyncio.to_thread(_dataset, reader, asked, answer))
        whole = await asyncio.to_thread(reader.whole, answer)
        return json_reply(whole | {"seconds": round(time.perf_counter() - began, 3)})

    return endpoint


def _dataset(reader: Reader, asked: Asked, answer: Generated) -> Json:
    """Return the objects of an answer as a COCO dataset, with a category for each name."""
    detections = reader.detections(answer)
    keep = ~(detections.scores < asked.body.options.min_score)
    names = asked_names(answer.prompt)
    return to_coco(
        detections.select(keep),
        categories=None if names is None else names[1],
        segmentation=asked.body.options.segmentation,
        file_names=[asked.name],
    )
