"""Requests that share a batch: their answers, their failures, the queue and its end."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from palidecode.files import open_encoded
from palidecode.pipeline import AskOptions, PaliDecoder
from palidecode.pipeline.session import Question
from palidecode.prompts import write_prompt
from palidecode.serve import Settings
from palidecode.serve.bodies import scene, scene_names
from palidecode.serve.refusals import Refused
from palidecode.serve.service import Service

URL = "http://127.0.0.1:8000"
ASK = AskOptions()


def question(decoder, number=0, **options):
    name = scene_names()[number % len(scene_names())]
    prompt = write_prompt("segment", decoder.classes[number % 3 :])
    picture = decoder.shrink(open_encoded(scene(name), name))
    return Question([picture], prompt, True, replace(ASK.generating, **options))


def body(number, decoder):
    classes = list(decoder.classes[number % 3 :])
    return {"scene": scene_names()[number % len(scene_names())], "classes": classes}


def test_concurrent_requests_get_the_answers_of_single_ones(client, decoder):
    task = ["detect", "segment"]
    alone = [client.post(f"/v1/{task[n % 2]}", json=body(n, decoder)).json() for n in range(24)]
    with ThreadPoolExecutor(12) as pool:
        posts = [
            pool.submit(client.post, f"/v1/{task[n % 2]}", json=body(n, decoder)) for n in range(24)
        ]
        together = [post.result().json() for post in posts]
    for one, other in zip(alone, together, strict=True):
        assert one["answer"] == other["answer"]
        for item, same in zip(one["objects"], other["objects"], strict=True):
            assert item["score"] == pytest.approx(same["score"], abs=1e-4)
    assert sum(len(item["objects"]) for item in alone) > 24


def test_a_request_that_cannot_be_asked_leaves_the_others(decoder):
    service = Service(decoder, Settings())

    async def run():
        bad = question(decoder, max_new_tokens=100)
        jobs = [service.ask(question(decoder, n)) for n in range(3)]
        # It passes the checks, and fails when its grammar is made.
        object.__setattr__(bad, "prompt", "detect " + " ; ".join(["a " * 300] * 3))
        jobs.insert(1, service.ask(bad))
        service.start()
        return await asyncio.gather(*(job._whole() for job in jobs), return_exceptions=True)

    first, failed, *others = asyncio.run(run())
    asyncio.run(service.close())
    assert all(answer.finished for answer in (first, *others))
    assert isinstance(failed, Refused)
    assert failed.status == 400


def test_too_many_requests_are_told_to_come_back(decoder):
    service = Service(decoder, Settings(batch_size=2, queue=1))

    async def run():
        for _ in range(3):
            service.ask(question(decoder))
        with pytest.raises(Refused, match="wait already") as error:
            service.ask(question(decoder))
        return error.value

    error = asyncio.run(run())
    assert (error.status, error.headers["Retry-After"]) == (429, "1")


def test_a_request_that_takes_too_long_is_ended_and_its_work_too(decoder):
    service = Service(decoder, Settings(timeout=0.05))

    async def run():
        job = service.ask(question(decoder))  # the model isn't started: it waits
        with pytest.raises(Refused, match=r"within 0.05 s") as error:
            await job._whole()
        assert job.dropped
        service.start()
        await service.close()
        return error.value.status

    assert asyncio.run(run()) == 504
    assert service.tokens == 0


def test_leaving_an_answer_stops_its_work(decoder):
    service = Service(decoder, Settings())

    async def run():
        job = service.ask(question(decoder, max_new_tokens=1000))
        service.start()
        progress = job.progress()
        await anext(progress)
        await progress.aclose()
        await service.close()
        return job.writing

    writing = asyncio.run(run())
    assert not writing.tokens.finished
    assert service.load == (0, 0)


def test_a_service_that_stops_answers_those_that_were_asked(decoder):
    service = Service(decoder, Settings())

    async def run():
        jobs = [service.ask(question(decoder, n)) for n in range(4)]
        service.stop_accepting()
        with pytest.raises(Refused, match="is stopping"):
            service.ask(question(decoder))
        service.start()
        answers = await asyncio.gather(*(job._whole() for job in jobs))
        await service.close()
        return answers

    assert all(answer.finished for answer in asyncio.run(run()))


def test_a_model_that_fails_ends_its_requests_and_goes_on(decoder):
    """The engine's graph is taken away for a moment, as if its memory were gone."""
    other = PaliDecoder.from_pretrained("demo", engine="onnx")
    service = Service(other, Settings())

    async def run():
        service.start()
        await service.ask(question(other))._whole()
        graph = other.engine._sessions.pop("decoder")
        other.engine._sessions["decoder"] = None
        with pytest.raises(Refused, match="the model failed") as error:
            await service.ask(question(other, 1))._whole()
        other.engine._sessions["decoder"] = graph
        answer = await service.ask(question(other, 1))._whole()
        await service.close()
        return error.value.status, answer.finished

    assert asyncio.run(run()) == (500, True)
