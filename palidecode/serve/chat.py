"""``POST /v1/chat/completions`` and ``GET /v1/models`` in OpenAI's form.

``message.content`` is the raw answer, with its loc and seg tokens. The shapes are those of
OpenAI's API reference, "Create chat completion" and "The chat completion chunk object".
"""

from __future__ import annotations

import asyncio
import codecs
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from palidecode.pipeline.session import Question, Writing
from palidecode.serve.addresses import fetch
from palidecode.serve.bodies import from_base64
from palidecode.serve.objects import Json
from palidecode.serve.options import Options, read_json
from palidecode.serve.refusals import Refused, json_reply
from palidecode.serve.service import Job, Service, service_of
from palidecode.serve.settings import Settings
from palidecode.serve.streaming import HEADERS

MAX_TOP = 1024
"""The most ``top_logprobs``: every bin of a loc token."""
_ONE_MESSAGE = (
    "PaliGemma answers one question: send one message of role 'user' with its pictures and prompt"
)


class ImageUrl(msgspec.Struct, frozen=True):
    """An address of a picture; ``data:`` addresses hold it."""

    url: str
    detail: str | None = None


class ImagePart(msgspec.Struct, frozen=True, tag_field="type", tag="image_url"):
    """A picture in a message."""

    image_url: ImageUrl


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """Text in a message."""

    text: str


class Message(msgspec.Struct, frozen=True):
    """One message."""

    role: str
    content: str | list[ImagePart | TextPart]


class StreamOptions(msgspec.Struct, frozen=True):
    """Options of a streamed reply."""

    include_usage: bool = False


class ChatBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A chat completion request.

    ``grammar`` and ``box_image`` are this server's own; ``skip_special_tokens`` is vLLM's, which
    keeps loc and seg tokens in the text, as they always are here.
    """

    messages: list[Message]
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    user: str | None = None
    grammar: bool = True
    box_image: int = 0
    skip_special_tokens: bool = False


async def chat(request: Request) -> Response:
    """Answer ``POST /v1/chat/completions``."""
    service = service_of(request)
    settings: Settings = request.app.state.settings
    body: ChatBody = read_json(await request.body(), ChatBody)
    if body.skip_special_tokens:
        raise Refused(400, "skip_special_tokens: loc and seg tokens are the answer; leave it out")
    top = body.top_logprobs or 0
    if not 0 <= top <= MAX_TOP or (top and not body.logprobs):
        raise Refused(400, f"top_logprobs must be 0 to {MAX_TOP}, with logprobs: true, got {top}")
    question = await _question(body, top, service, settings)
    job = service.ask(question, service.adapter_of(body.model))
    completion = _Completion(service, job, body)
    if not body.stream:
        answer = await job.finished(request)
        return json_reply(completion.whole(answer.text, answer.finished))
    chunks = completion.chunks()
    return StreamingResponse(chunks, media_type="text/event-stream", headers=HEADERS)


async def _question(body: ChatBody, top: int, service: Service, settings: Settings) -> Question:
    if len(body.messages) != 1 or body.messages[0].role != "user":
        raise Refused(400, f"messages: {_ONE_MESSAGE}")
    content = body.messages[0].content
    parts = [TextPart(content)] if isinstance(content, str) else content
    prompt = " ".join(part.text.strip() for part in parts if isinstance(part, TextPart)).strip()
    images = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    if not images:
        raise Refused(400, "messages: no picture; add a part of type image_url")
    if len(images) > settings.max_pictures:
        raise Refused(400, f"messages: more than {settings.max_pictures} pictures")
    if not 0 <= body.box_image < len(images):
        raise Refused(400, f"box_image must be below the number of pictures, {len(images)}")
    limit = body.max_completion_tokens
    if limit is None:
        limit = body.max_tokens
    options = Options(
        max_new_tokens=limit,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed or 0,
        grammar=body.grammar,
    ).asking(settings)
    files = [
        from_base64(url) if url.startswith("data:") else await fetch(url, settings)
        for url in images
    ]

    pictures = [
        await asyncio.to_thread(service.pictures.shrink, data, f"picture {number}")
        for number, data in enumerate(files, 1)
    ]
    generating = replace(options.generating, top_logprobs=top)
    return Question(pictures, prompt, options.grammar, generating, body.box_image)


class _Completion:
    """Writes a job's answer as a completion, whole or in chunks."""

    def __init__(self, service: Service, job: Job, body: ChatBody) -> None:
        self._tokenizer, self._job, self._body = service.decoder.tokenizer, job, body
        self._facts = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model or service.models[0],
        }
        self._prompt_tokens = service.prompt_tokens(job.question)

    @property
    def _written(self) -> Writing:
        assert self._job.writing is not None
        return self._job.writing

    def _usage(self) -> dict[str, int]:
        written = self._written.count
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self._prompt_tokens + written,
        }

    def whole(self, text: str, finished: bool) -> Json:
        """Return the completion of an answer that has ended."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(0, self._written.count),
            "finish_reason": "stop" if finished else "length",
        }
        facts = {"object": "chat.completion", "choices": [choice], "usage": self._usage()}
        return self._facts | facts

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the completion in chunks, as server-sent events."""
        try:
            yield self._chunk({"role": "assistant", "content": ""})
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            told = 0
            async for news in self._job.progress():
                ids = self._written.tokens.token_ids[told : news.tokens]
                text = decoder.decode(b"".join(map(self._tokenizer.token_bytes, ids)), news.ended)
                logprobs = self._logprobs(told, news.tokens)
                if text or logprobs:
                    yield self._chunk({"content": text}, logprobs)
                told = news.tokens
            finished = self._written.tokens.finished
            yield self._chunk({}, None, "stop" if finished else "length")
            if self._body.stream_options is not None and self._body.stream_options.include_usage:
                facts = {"object": "chat.completion.chunk", "choices": [], "usage": self._usage()}
                yield _data(self._facts | facts)
            yield b"data: [DONE]\n\n"
        except Refused as error:
            yield _data({"error": {"message": str(error), "code": error.status}})

    def _chunk(
        self, delta: dict[str, str], logprobs: Json | None = None, finish_reason: str | None = None
    ) -> bytes:
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return _data(self._facts | {"object": "chat.completion.chunk", "choices": [choice]})

    def _logprobs(self, first: int, stop: int) -> Json | None:
        """Return ``logprobs`` of some tokens; None if they weren't asked for."""
        if not self._body.logprobs or first == stop:
            return None
        tokens = self._written.tokens
        content = []
        for index in range(first, stop):
            token = tokens.token_ids[index]
            if not self._tokenizer.token_bytes(token):
                continue  # <eos> is no text
            entry = self._entry(token, tokens.logprobs[index])
            best = []
            if self._body.top_logprobs:
                ids, logprobs = (column.tolist() for column in tokens.top[index])
                best = [self._entry(*pair) for pair in zip(ids, logprobs, strict=True)]
            content.append(entry | {"top_logprobs": best})
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> Json:
        data = self._tokenizer.token_bytes(token)
        text = data.decode(errors="replace")
        if token == self._tokenizer.vocabulary.eos:
            text, data = "<eos>", b"<eos>"
        return {"token": text, "logprob": logprob, "bytes": list(data)}


def _data(value: object) -> bytes:
    return b"data: %s\n\n" % msgspec.json.encode(value)


async def models(request: Request) -> Response:
    """Answer ``GET /v1/models``, with each model's mask codec and its classes, if it lists any."""
    service = service_of(request)
    created: int = request.app.state.created
    facts: Json = {"object": "model", "created": created, "owned_by": "palidecode"}
    facts |= {"codes": service.decoder.codes_id}
    data = [
        {"id": name, **facts, "classes": list(service.classes_of(name))} for name in service.models
    ]
    return json_reply({"object": "list", "data": data})
