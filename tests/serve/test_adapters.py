"""Adapters over HTTP: every request gets the answer of the adapter that it names."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest

from palidecode.cli import main
from palidecode.files import data_folder
from palidecode.pipeline import PaliDecoder
from palidecode.serve.bodies import scene_names
from palidecode.trainer.settings import Settings
from palidecode.trainer.training import Training
from tests.runtime.tiny_models import one_thread
from tests.serve.running import server

SCENES = data_folder("palidecode.demo") / "scenes"
KNOWN = {"a": ("cat", "dog"), "b": ("star",)}
PROMPT = "detect cat ; dog ; star ; circle ; heart"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters of the tiny model, of a few steps on wrong answers."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, classes) in enumerate(KNOWN.items()):
        rows = [
            {
                "image": scene_names()[seed],
                "prefix": f"detect {' ; '.join(classes)}",
                "suffix": f"<loc0100><loc0200><loc0300><loc0400> {classes[0]}",
            }
        ]
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        settings = Settings(steps=20, batch_size=1, rank=2, rate=2e-2, evaluate_every=20, seed=seed)
        with one_thread():
            Training(
                "demo", path, folder / name, images=SCENES, settings=settings, device="cpu"
            ).run(lambda numbers: None)
        notes = folder / name / "palidecode.json"
        notes.write_text(json.dumps(json.loads(notes.read_text()) | {"classes": classes}))
    return {name: folder / name for name in KNOWN}


@pytest.fixture(scope="module")
def running(adapters):
    options = [f"{name}={folder}" for name, folder in adapters.items()]
    with server("--adapter", options[0], "--adapter", options[1]) as made:
        yield made


@pytest.mark.filterwarnings("ignore:.*not among the classes")
def test_every_request_gets_its_adapters_answer(adapters, running):
    decoder = PaliDecoder.from_pretrained("demo", engine="onnx", adapters=adapters)
    wanted = {}
    for model, adapter in {"demo": None, "demo:a": "a", "demo:b": "b"}.items():
        decoder.use(adapter)
        for name in scene_names()[:4]:
            wanted[model, name] = decoder.detect(SCENES / name, PROMPT)

    def post(case):
        model, name = case
        body = {"model": model, "scene": name, "prompt": PROMPT}
        return httpx2.post(f"{running.url}v1/detect", json=body, timeout=60).json()

    cases = sorted(wanted, key=lambda case: case[::-1])  # adapters in turns
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(post, cases * 2))
    for case, reply in zip(cases * 2, replies, strict=True):
        assert [item["label"] for item in reply["objects"]] == list(wanted[case].labels)
        boxes = np.array([item["box"] for item in reply["objects"]]).reshape(-1, 4)
        np.testing.assert_allclose(boxes, wanted[case].xyxy, atol=0.05)
    answers = [reply["answer"] for reply in replies[: len(cases)]]
    assert len({tuple(answers[n::3]) for n in range(3)}) == 3  # the adapters differ


def test_a_model_without_a_prompt_is_asked_for_its_own_classes(running):
    def prompt(model):
        body = {"model": model, "scene": scene_names()[0]}
        return httpx2.post(f"{running.url}v1/detect", json=body, timeout=60).json()["prompt"]

    for model in ("demo:a", "demo:b", "demo:a"):
        assert prompt(model) == f"detect {' ; '.join(KNOWN[model[-1]])}"
    assert prompt("demo").startswith("detect airplane ; car ; cat")
    listed = httpx2.get(f"{running.url}v1/models").json()["data"]
    assert [entry["id"] for entry in listed] == ["demo", "demo:a", "demo:b"]
    assert [tuple(entry["classes"]) for entry in listed[1:]] == list(KNOWN.values())


def test_a_name_that_no_adapter_has_is_refused(running):
    body = {"model": "demo:c", "scene": scene_names()[0]}
    reply = httpx2.post(f"{running.url}v1/detect", json=body)
    assert reply.status_code == 404
    said = reply.json()["error"]["message"]
    assert said == "no model 'demo:c': this server has 'demo', 'demo:a', 'demo:b'"


@pytest.mark.parametrize("given", ["a", "=DIR", "a=", "a=x"])
def test_adapters_that_cannot_be_loaded_are_refused(given, tmp_path, capsys):
    given = given.replace("x", str(tmp_path))
    assert main(["serve", "--adapter", given, "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "NAME=DIR" in said or "holds no adapter" in said
