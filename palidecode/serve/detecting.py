"""``POST /v1/detect`` and ``/v1/segment``: a picture and names to objects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from palidecode.prompts import Task, asked_names
from palidecode.serve.answers import wants_coco
from palidecode.serve.bodies import prompt_of, question_of, read_request
from palidecode.serve.objects import Reader
from palidecode.serve.refusals import json_reply
from palidecode.serve.service import service_of


def asking_to(task: Task) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint of a task."""

    async def endpoint(request: Request) -> Response:
        service, settings = service_of(request), request.app.state.settings
        began = time.perf_counter()
        coco = wants_coco(request)
        asked = await read_request(request, settings)
        prompt = prompt_of(asked.body, task, service)
        question = await question_of(asked, prompt, service, settings)
        job = service.ask(question, service.adapter_of(asked.body.model))
        answer = await job.finished(request)
        reader = Reader(service.decoder, asked.body.options)
        if coco:
            names = asked_names(answer.prompt)
            classes = None if names is None else names[1]
            made = await asyncio.to_thread(reader.dataset, answer, asked.name, classes)
            return json_reply(made)
        whole = await asyncio.to_thread(reader.whole, answer)
        return json_reply(whole | {"seconds": round(time.perf_counter() - began, 3)})

    return endpoint
