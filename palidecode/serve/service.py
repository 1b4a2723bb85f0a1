"""The model in its thread: requests join at a step's boundary, ended ones leave."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import NamedTuple

from starlette.requests import Request

from palidecode.errors import PalidecodeError
from palidecode.pipeline import PaliDecoder
from palidecode.pipeline.reading import Generated
from palidecode.pipeline.session import Question, Session, Writing
from palidecode.serve.pictures import Pictures
from palidecode.serve.refusals import Refused
from palidecode.serve.settings import Settings

log = logging.getLogger(__name__)

_STEPS_APART = 4
"""Steps between two joins: torch copies the cache of the whole batch, so several join together."""


class News(NamedTuple):
    """Progress of a job: tokens written, True at the end, the error that ended it."""

    tokens: int
    ended: bool
    error: Exception | None = None


class Job:
    """A question that waits, or whose answer is being written."""

    def __init__(self, question: Question, adapter: str | None, timeout: float) -> None:
        self.question, self.adapter, self._timeout = question, adapter, timeout
        self.loop = asyncio.get_running_loop()
        self._deadline = self.loop.time() + timeout
        self.arrived = asyncio.Event()
        self.news = News(0, False)  # the event loop's
        self.dropped = False
        self.told = 0  # tokens; the worker's
        self.session: Session | None = None
        self.writing: Writing | None = None

    async def progress(self) -> AsyncIterator[News]:
        """Yield the news whenever there are more tokens, to the end; leaving stops the work.

        Raises
        ------
        Refused
            If the model fails, or the request takes too long.
        """
        try:
            while True:
                async with asyncio.timeout_at(self._deadline):
                    await self.arrived.wait()
                self.arrived.clear()
                news = self.news
                if news.error is not None:
                    raise news.error
                yield news
                if news.ended:
                    return
        except TimeoutError:
            raise Refused(
                504,
                f"not answered within {self._timeout:g} s: ask for fewer tokens, or try later",
            ) from None
        finally:
            self.dropped = True

    async def finished(self, request: Request) -> Generated:
        """Wait for the whole answer; a client that goes away stops the work."""
        writing = asyncio.ensure_future(self._whole())
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                raise Refused(499, "the client went away")
            return writing.result()
        finally:
            writing.cancel()
            gone.cancel()

    async def _whole(self) -> Generated:
        async for _ in self.progress():
            pass
        return self.answer()

    def receive(self, news: News) -> None:
        """Take the news in the event loop."""
        self.news = news
        self.arrived.set()

    def answer(self, count: int | None = None) -> Generated:
        """Return the answer, or its first `count` tokens."""
        assert self.session is not None
        assert self.writing is not None
        return self.session.answer(self.writing, count)


class Service:
    """Answers questions in batches that others join and leave.

    Parameters
    ----------
    decoder : PaliDecoder
    settings : Settings
    """

    def __init__(self, decoder: PaliDecoder, settings: Settings) -> None:
        self.decoder, self._settings = decoder, settings
        self.pictures = Pictures(decoder, settings.max_pixels)
        name = model_name(decoder)
        self.models = [name, *(f"{name}:{adapter}" for adapter in decoder.adapters)]
        """Names of the model, and of it with each of its adapters."""
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._steps = 0  # since the last join
        self._adapter: str | None = None
        self._session = decoder.session()
        self._changed = threading.Condition()
        self._closing = False
        self.tokens = 0
        """Tokens written so far."""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread that runs the model."""
        self._thread = threading.Thread(target=self._work, name="palidecode-model", daemon=True)
        self._thread.start()

    def prompt_tokens(self, question: Question) -> int:
        """Return the number of tokens of a question, its pictures' included."""
        images = len(question.pictures) * self.decoder.engine.config.vision.tokens
        return images + len(self.decoder.tokenizer.encode_prompt(question.prompt))

    def adapter_of(self, model: str | None) -> str | None:
        """Return the adapter that a model's name means: ``NAME`` or ``NAME:ADAPTER``.

        Raises
        ------
        Refused
            For a name that isn't among `models`.
        """
        if model is None or model == self.models[0]:
            return None
        if model not in self.models:
            known = ", ".join(map(repr, self.models))
            raise Refused(404, f"no model {model!r}: this server has {known}")
        return model.removeprefix(f"{self.models[0]}:")

    def classes_of(self, model: str | None) -> tuple[str, ...]:
        """Return the classes that a model of `models` lists; None is the first."""
        return self.decoder.classes_of(self.adapter_of(model))

    def stop_accepting(self) -> None:
        """Answer those that were asked, and no others."""
        self._closing = True  # without the lock: a signal may have interrupted who holds it

    async def close(self) -> None:
        """Answer those that were asked, and end the thread."""
        self.stop_accepting()
        with self._changed:
            self._changed.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    @property
    def load(self) -> tuple[int, int]:
        """Number of answers that are being written, and of requests that wait."""
        return len(self._active), len(self._waiting)

    def ask(self, question: Question, adapter: str | None = None) -> Job:
        """Ask a question; see `Job.progress` for the answer.

        Raises
        ------
        Refused
            If too many wait, or the server stops.
        InputError
            If the model can't be asked that.
        """
        self._session.check(question)
        job = Job(question, adapter, self._settings.timeout)
        self._enqueue(job)
        return job

    def _enqueue(self, job: Job) -> None:
        with self._changed:
            if self._closing:
                raise Refused(503, "the server is stopping: ask again when it is back")
            free = self._settings.batch_size - len(self._active)
            if len(self._waiting) >= self._settings.queue + max(0, free):
                raise Refused(
                    429,
                    f"{len(self._waiting)} requests wait already: try again",
                    {"Retry-After": "1"},
                )
            self._waiting.append(job)
            self._changed.notify()

    # --- The thread of the model ----------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._active or self._closing):
                    self._changed.wait()
                if self._closing and not self._waiting and not self._active:
                    return
                new = self._admitted()
            try:
                self._go_on(new)
            except Exception as error:
                self._fail(error)

    def _admitted(self) -> list[Job]:
        """Take the first that wait, of the adapter in use; another has to wait for its turn."""
        new: list[Job] = []
        if self._active and self._steps < _STEPS_APART:
            return new
        while self._waiting and len(self._active) + len(new) < self._settings.batch_size:
            first = self._waiting[0]
            if first.dropped:
                self._waiting.popleft()
                continue
            other = first.adapter != (new[0].adapter if new else self._adapter)
            if other and (self._active or new):
                break
            new.append(self._waiting.popleft())
        self._active += new
        return new

    def _go_on(self, new: list[Job]) -> None:
        """Add the new ones, write the next token of each answer, and tell."""
        if new and new[0].adapter != self._adapter:
            self.decoder.use(new[0].adapter)
            self._adapter, self._session = new[0].adapter, self.decoder.session()
        dropped = [job for job in self._active if job.dropped]
        self._session.drop([job.writing for job in dropped if job.writing is not None])
        self._active = [job for job in self._active if not job.dropped]
        new = [job for job in new if not job.dropped]
        if new:
            self._steps = 0
            self._add(new)
            self._tell()
        self._steps += 1
        self._session.step()
        self._tell()

    def _add(self, jobs: list[Job]) -> None:
        """Add questions; one that can't be asked ends alone."""
        try:
            added = self._session.add([job.question for job in jobs])
        except PalidecodeError as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._add([job])
                return
            self._active.remove(jobs[0])
            _deliver([(jobs[0], News(0, True, Refused(400, str(error))))])
            return
        for job, writing in zip(jobs, added, strict=True):
            job.session, job.writing = self._session, writing

    def _tell(self) -> None:
        going = set(map(id, self._session.writing))
        news: list[tuple[Job, News]] = []
        for job in self._active:
            assert job.writing is not None
            count, ended = job.writing.count, id(job.writing) not in going
            if count > job.told or ended:
                news.append((job, News(count, ended)))
                self.tokens += count - job.told
                job.told = count
        self._active = [job for job in self._active if id(job.writing) in going]
        _deliver(news)

    def _fail(self, error: Exception) -> None:
        """End all answers in progress with an error, and begin anew."""
        log.error("the model failed: %s: %s", type(error).__name__, error)
        text = f"the model failed ({type(error).__name__}: {error})"
        failed = Refused(500, text.splitlines()[0])
        jobs, self._active = self._active, []
        self._session = self.decoder.session()
        _deliver((job, News(job.told, True, failed)) for job in jobs)


async def _gone(request: Request) -> None:
    """Wait until the client of a request that was read goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _deliver(news: Iterable[tuple[Job, News]]) -> None:
    """Hand news to the event loops of their jobs, in one call for each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, News]]] = {}
    for job, item in news:
        by_loop.setdefault(job.loop, []).append((job, item))
    for loop, items in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_receive, items)


def _receive(items: list[tuple[Job, News]]) -> None:
    for job, news in items:
        job.receive(news)


def service_of(request: Request) -> Service:
    """Return the service of the server that a request came to.

    Raises
    ------
    Refused
        If no model is loaded.
    """
    service: Service | None = request.app.state.service
    if service is None:
        raise Refused(503, "no model is loaded here: start the server with --model")
    return service


def model_name(decoder: PaliDecoder) -> str:
    """Return the name of a model: the last part of its folder, or its name on the hub."""
    return os.path.basename(os.path.normpath(decoder.source)) or "paligemma"
