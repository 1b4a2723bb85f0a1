"""``POST /v1/stream``: tokens and objects as the model writes them, as server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from palidecode.answers.assembler import ParsedObject
from palidecode.answers.stream import StreamParser
from palidecode.pipeline.reading import Generated
from palidecode.serve.bodies import prompt_of, question_of, read_request
from palidecode.serve.objects import Reader
from palidecode.serve.options import Options
from palidecode.serve.refusals import Refused
from palidecode.serve.service import Job, Service, service_of
from palidecode.serve.settings import Settings

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def event(name: str, data: object) -> bytes:
    """Return one server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))


async def stream(request: Request) -> Response:
    """Answer ``POST /v1/stream``."""
    service = service_of(request)
    settings: Settings = request.app.state.settings
    asked = await read_request(request, settings)
    prompt = prompt_of(asked.body, None, service)
    question = await question_of(asked, prompt, service, settings)
    job = service.ask(question, service.adapter_of(asked.body.model))
    events = _events(service, job, asked.name, asked.body.options)
    return StreamingResponse(events, media_type="text/event-stream", headers=HEADERS)


async def _events(service: Service, job: Job, name: str, options: Options) -> AsyncIterator[bytes]:
    """Yield the events of an answer: start, token, object, and end or error."""
    began = time.perf_counter()
    width, height = job.question.pictures[0].size
    yield event("start", {"prompt": job.question.prompt, "width": width, "height": height})
    telling = _Telling(service, options)
    try:
        async for news in job.progress():
            for item in await telling.of(job.answer(news.tokens), news.ended):
                yield item
        whole = await asyncio.to_thread(telling.reader.whole, job.answer())
        whole["coco"] = await asyncio.to_thread(telling.reader.dataset, job.answer(), name)
        yield event("end", whole | {"seconds": round(time.perf_counter() - began, 3)})
    except Refused as error:
        yield event("error", {"message": str(error), "code": error.status})


class _Telling:
    """Turns an answer that grows into events."""

    def __init__(self, service: Service, options: Options) -> None:
        self.reader = Reader(service.decoder, options)
        self._tokenizer = service.decoder.tokenizer
        vocabulary = self._tokenizer.vocabulary
        self._parser = StreamParser(vocabulary=vocabulary, detokenize=self._tokenizer.decode)
        self._tokens = 0
        self._boxes = 0

    async def of(self, answer: Generated, ended: bool) -> list[bytes]:
        """Return the events of the tokens and objects that are new in an answer."""
        events = []
        new: list[ParsedObject] = []
        for index, token in enumerate(answer.token_ids[self._tokens :], self._tokens):
            data = {
                "index": index,
                "id": token,
                "text": self._tokenizer.decode([token]),
                "logprob": answer.logprobs[index],
            }
            events.append(event("token", data))
            new += self._parser.feed([token])
        self._tokens = len(answer.token_ids)
        if ended:
            new += self._parser.close()
        first = self._boxes
        self._boxes += sum(item.loc is not None for item in new)
        if self._boxes > first:
            rows = slice(first, self._boxes)
            objects = await asyncio.to_thread(self.reader.objects, answer, rows)
            events += [event("object", item) for item in objects]
        return events
