"""``palidecode predict --endpoint``: runs over a server that may fail, stop and resume."""

import io
import itertools
import json
import signal
import subprocess
import sys

import pytest
from PIL import Image

from palidecode import ray_data
from palidecode.cli import main
from palidecode.pipeline import EndpointOptions
from palidecode.runs.journal import FAILURES
from tests.pipeline.servers import (
    CAT,
    MODEL,
    answers_cat,
    completion,
    hangs,
    serving,
    status,
)
from tests.pipeline.test_endpoint import sent
from tests.ray_data.samples import MARKS

COUNT, BATCH = 12, 4
KEY = "sk-do-not-tell"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        size = (64 + number, 48) if number != 5 else (300, 200)
        Image.effect_noise(size, 20 + number).convert("RGB").save(folder / f"{number:02}.jpg")
    return folder


def words(pictures, place, path, *more):
    return [
        *("predict", str(pictures), "--endpoint", place.url, "--model", MODEL, "-o", str(path)),
        *("--prompt", "detect cat", "--batch-size", str(BATCH), "--retries", "0", *more),
    ]


def test_a_run_whose_server_dies_resumes(pictures, tmp_path, capsys):
    dead = [status(500, "boom")] * 2  # a picture, and a grey one
    with serving() as place:
        assert main(words(pictures, place, tmp_path / "whole.json", "--concurrency", "1")) == 0
    whole = json.loads((tmp_path / "whole.json").read_text())
    assert len(whole["annotations"]) == COUNT
    capsys.readouterr()
    with serving(*[answers_cat] * 6, *dead, answers_cat) as place:
        command = words(pictures, place, tmp_path / "coco.json", "--concurrency", "1", "--quiet")
        assert main(command) == 2
        printed = capsys.readouterr().err
        assert printed == (
            f"palidecode: {place.url}: 500 Internal Server Error: boom; what is finished is kept: "
            "run the same command again to resume\n"
        )
        assert not (tmp_path / "coco.json").exists()
        assert main(command) == 0
        # The first batch isn't asked again. A request that waited may go out while the run ends.
        assert 0 <= len(place.bodies) - (6 + 2 + COUNT - BATCH) <= 1
    found = json.loads((tmp_path / "coco.json").read_text())
    assert found["annotations"] == whole["annotations"]
    assert found["info"]["model"] == f"{MODEL} at {place.url}"


def test_another_server_is_another_run(pictures, tmp_path, capsys):
    with serving(*[answers_cat] * 6, status(403)) as place:
        command = words(pictures, place, tmp_path / "coco.json", "--concurrency", "1")
        assert main(command) == 2
    with serving() as other:
        assert main(words(pictures, other, tmp_path / "coco.json")) == 2
        assert "endpoint" in capsys.readouterr().err


def test_a_refused_picture_is_listed_and_the_others_are_written(pictures, tmp_path, capsys):
    def refuses_large(handler, body):
        large = Image.open(io.BytesIO(sent(body)[1])).width > 200
        (status(413, "too large") if large else answers_cat)(handler, body)

    with serving(refuses_large) as place:
        assert main(words(pictures, place, tmp_path / "coco.json", "--json")) == 1
    printed = capsys.readouterr()
    (unread,) = json.loads(printed.out)["unread"]
    assert unread["name"] == "05.jpg"
    assert unread["reason"].endswith("413 Request Entity Too Large: too large")
    assert "warning" not in printed.err
    (failure,) = map(json.loads, (tmp_path / FAILURES).read_text().splitlines())
    assert failure["image"] == "05.jpg"
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert [row["file_name"] for row in coco["images"]] == [
        f"{number:02}.jpg" for number in range(COUNT) if number != 5
    ]


def test_the_key_is_in_no_file_and_no_message(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PALIDECODE_API_KEY", KEY)
    with serving(*[answers_cat] * 6, status(401, f"unknown key {KEY}")) as place:
        command = words(pictures, place, tmp_path / "coco.json", "--concurrency", "1", "-v")
        assert main(command) == 2
    assert place.seen[-1][1]["Authorization"] == f"Bearer {KEY}"
    printed = capsys.readouterr()
    assert "unknown key ***" in printed.err
    assert KEY not in printed.out + printed.err
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    assert not any(KEY.encode() in path.read_bytes() for path in kept)


@pytest.mark.filterwarnings("default::UserWarning")
def test_without_probabilities_the_file_has_no_scores(pictures, tmp_path, capsys):
    with serving(lambda handler, body: handler.send(200, completion(CAT, None))) as place:
        assert main(words(pictures, place, tmp_path / "coco.json")) == 0
    printed = capsys.readouterr().err
    assert printed.count("sends no log probabilities of its tokens: objects have no scores") == 1
    rows = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert len(rows) == COUNT
    assert not any("score" in row for row in rows)


@pytest.mark.filterwarnings("ignore:.*sends no log probabilities")
def test_without_probabilities_votes_of_samples_are_scores(pictures, tmp_path):
    dog, turns = CAT.replace("cat", "dog"), itertools.count()

    def answer(handler, body):
        handler.send(200, completion(dog if next(turns) % 4 == 3 else CAT, None))

    with serving(answer) as place:
        # A label that wasn't asked for is an object, too: servers have no grammar.
        more = ("--samples", "4", "--temperature", "1", "--concurrency", "1")
        assert main(words(pictures, place, tmp_path / "coco.json", *more)) == 0
    rows = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert sorted(row["score"] for row in rows) == [0.25] * COUNT + [0.75] * COUNT


def test_a_server_that_hangs_ends_the_run(pictures, tmp_path, capsys):
    with serving(hangs) as place:
        assert main(words(pictures, place, tmp_path / "coco.json", "--timeout", "0.3")) == 2
    assert "no answer in 0.3 s (--timeout)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--device", "cpu"), "--device can't be combined with --endpoint: the server decides"),
        (("--no-grammar", "--engine", "onnx"), "--engine, --no-grammar can't be combined"),
        (("--max-objects", "3"), "--max-objects can't be combined"),
        (("--concurrency", "0"), "--concurrency must be at least 1, got 0"),
        (("--endpoint", "host:1"), "--endpoint must be an address as http://host:8000/v1"),
    ],
)
def test_options_that_do_not_fit_are_refused(pictures, tmp_path, capsys, more, said):
    with serving() as place:
        assert main(words(pictures, place, tmp_path / "coco.json", *more)) == 2
    assert said in capsys.readouterr().err
    assert not place.bodies


def test_options_of_a_server_need_one(pictures, tmp_path, capsys):
    command = ["predict", str(pictures), "--model", "demo", "-o", str(tmp_path / "coco.json")]
    assert main([*command, "--task", "detect", "--retries", "3"]) == 2
    assert "--retries needs --endpoint" in capsys.readouterr().err


@pytest.mark.slow
def test_a_second_interruption_does_not_wait_for_a_request(pictures, tmp_path):
    with serving(hangs) as place:
        command = words(pictures, place, tmp_path / "coco.json", "--timeout", "600")
        process = subprocess.Popen(
            [sys.executable, "-m", "palidecode", *command],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        while not place.bodies:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        while "Ctrl-C again" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=20)  # the server hangs for 30 s
    assert process.returncode == 130
    assert "run the same command again to resume" in printed


class TestOnRay:
    """The same on a cluster."""

    pytestmark = MARKS

    def test_the_file_is_that_of_one_process(self, cluster, pictures, tmp_path):
        with serving() as place:
            assert main(words(pictures, place, tmp_path / "one.json")) == 0
            ray = ("--ray", "auto", "--workers", "2", "--worker-cpus", "0.5")
            assert main(words(pictures, place, tmp_path / "ray.json", *ray)) == 0
            found = ray_data.predict(
                str(pictures),
                model=EndpointOptions(place.url, MODEL),
                prompt="detect cat",
                concurrency=1,
                num_cpus=0.5,
            )
            ray_data.write_coco(found, tmp_path / "python.json", segmentation="polygons")
        one = (tmp_path / "one.json").read_bytes()
        assert (tmp_path / "ray.json").read_bytes() == one
        assert json.loads((tmp_path / "python.json").read_text()) == json.loads(one)

    def test_a_server_that_is_gone_ends_the_run_and_it_resumes(
        self, cluster, pictures, tmp_path, capsys
    ):
        with serving(*[answers_cat] * 6, *[status(403, "no more")] * 8, answers_cat) as place:
            ray = ("--ray", "auto", "--workers", "1", "--worker-cpus", "0.5", "--shard-size", "4")
            command = words(pictures, place, tmp_path / "ray.json", "--concurrency", "1", *ray)
            assert main(command) == 2
            assert "no more; the key is read from" in capsys.readouterr().err
            while len(place.bodies) < 14:
                assert main(command) in (0, 2)
            assert main(command) == 0
        assert len(json.loads((tmp_path / "ray.json").read_text())["annotations"]) == COUNT
