"""Our own server as the model: a run over HTTP writes what a run in one process writes."""

import json
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import uvicorn

from palidecode import PaliDecoder
from palidecode.cli import main
from palidecode.serve import Settings, create_app
from tests.samples import DEMO

SCENES = DEMO / "scenes"


@contextmanager
def served(decoder, **settings):
    """Serve on a real socket; yield the address of the API."""
    config = uvicorn.Config(create_app(decoder, Settings(**settings)), port=0, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url(decoder):
    with served(decoder) as address:
        yield address


def predicted(tmp_path, name, *options):
    """Run ``palidecode predict``; return its COCO file."""
    path = tmp_path / f"{name}.json"
    same = ["--quiet", "--batch-size", "8"]  # masks are decoded in batches
    assert main(["predict", str(SCENES), "-o", str(path), *same, *options]) == 0
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    "question",
    [
        ("--task", "detect"),
        ("--task", "segment"),
        ("--prompt", "segment cat", "--prompt", "segment house ; moon"),
        ("--task", "detect", "--score", "objectness"),
        ("--task", "detect", "--sub-bin"),
        ("--task", "segment", "--tiles", "2x1", "--zoom"),
    ],
)
def test_files_equal_those_of_a_local_run_but_for_scores(tmp_path, url, question):
    local = predicted(tmp_path, "local", "--model", "demo", "--engine", "onnx", *question)
    remote = predicted(tmp_path, "remote", "--model", "demo", "--endpoint", url, *question)
    assert local["annotations"]
    for ours, theirs in zip(local["annotations"], remote["annotations"], strict=True):
        assert theirs.pop("score") == pytest.approx(ours.pop("score"), abs=1e-5)
        if "--sub-bin" in question:
            assert theirs.pop("bbox") == pytest.approx(ours.pop("bbox"), abs=2e-3)
            assert theirs.pop("area") == pytest.approx(ours.pop("area"), rel=1e-4)
    assert local["info"].pop("model") == "demo"
    assert remote["info"].pop("model") == f"demo at {url}"
    assert remote == local


def test_python_reads_the_same_answers(url, decoder):
    pictures = sorted(SCENES.glob("*.jpg"))[:4]
    remote = PaliDecoder.from_endpoint(url, "demo")
    assert remote.classes == decoder.classes
    ours, theirs = decoder.segment(pictures), remote.segment(pictures)
    assert theirs.labels == ours.labels
    assert np.array_equal(theirs.xyxy, ours.xyxy)
    assert np.array_equal(theirs.codes, ours.codes)
    assert theirs.scores == pytest.approx(ours.scores, abs=1e-5)
    assert theirs.names == ours.names


def test_a_full_queue_is_waited_for(decoder):
    pictures = sorted(SCENES.glob("*.jpg"))[:6]
    with served(decoder, queue=0, batch_size=1) as url:
        remote = PaliDecoder.from_endpoint(url, "demo", concurrency=6, pause=0.01)
        assert remote.detect(pictures).labels == decoder.detect(pictures).labels
