"""Runs in one process: what is finished counts, whatever was cut or changed in between."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from palidecode.coco.shards import read_shard
from palidecode.coco.writing import CocoOptions, CocoWriter, MaskFormat
from palidecode.codec.weights import DEMO_ID
from palidecode.detections import CodecMismatchWarning
from palidecode.errors import InputError
from palidecode.pipeline import ModelOptions
from palidecode.runs.answers import AnswerDecoder, DecodeJob, DecodeOptions, decode_rows
from palidecode.runs.journal import FAILURES, shards_folder
from palidecode.runs.local import RunOptions, Watch, write_coco
from palidecode.runs.pictures import PredictJob, predict_options
from palidecode.runs.sources import find_pictures
from palidecode.runs.stopping import StopAsked
from tests.runtime.tiny_models import one_thread, write_folder
from tests.samples import answer

KEEP = RunOptions(keep_journal=True)
COCO = CocoOptions(["thing 1", "thing 2"], form=MaskFormat("rle"))
ROWS, BATCH = 61, 8


class Log:
    """Notes what a run does, and stops it after so many rows."""

    def __init__(self, most=None):
        self.finished, self.worked, self.done, self.most = 0, [], 0, most

    def watch(self):
        return Watch(begin=self.begin, result=self.result, rows=self.rows)

    def begin(self, rows):
        self.finished = rows

    def result(self, items, result):
        self.worked += items

    def rows(self, rows):
        self.done += rows
        if self.most is not None and self.done >= self.most:
            raise StopAsked


@pytest.fixture
def answers(tmp_path):
    """A file of answers: some about the same picture, some broken, some odd."""
    rng = np.random.default_rng(8)
    lines = []
    for number in range(ROWS):
        boxes = rng.integers(0, 1024, (rng.integers(4), 4))
        boxes[1:].sort(axis=1)  # the first may have no area
        objects = [
            answer(f"thing {rng.integers(5)}", box.tolist(), rng.integers(0, 128, 16).tolist())
            for box in boxes
        ]
        row = {
            "image": f"{number % 50}.png",
            "output": " ; ".join(objects) + " ; oh" * (number % 2),
        }
        row |= {"width": 64, "height": 48 + (number == 57)}  # another size than row 7 says
        row |= {"scores": [0.5]} if number % 9 == 0 else {}
        lines.append(json.dumps(row)[: 25 if number % 11 == 3 else None])
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def job(batch_size=BATCH, **options):
    return DecodeJob(DecodeOptions(weights=DEMO_ID, batch_size=batch_size, **options))


def decoded(answers, output, run=None, log=None, work=None, coco=COCO):
    work = work or job()
    watch = log.watch() if log else None
    return write_coco(work, work.items(answers), output, coco, run, watch)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def fresh(answers, tmp_path):
    """What an undisturbed run writes."""
    written = decoded(answers, tmp_path / "fresh" / "coco.json")
    assert written.kept == 0
    assert written.rows == ROWS
    assert written.report.annotations > 40
    assert written.report.empty_boxes > 0
    assert sorted(files(tmp_path / "fresh")) == ["coco.json", FAILURES]
    return files(tmp_path / "fresh")


def test_the_file_is_what_one_writer_writes(answers, fresh, tmp_path):
    from palidecode.answers.rows import read_rows

    decoder = AnswerDecoder.load(DecodeOptions(weights=DEMO_ID))
    problems = []
    with CocoWriter(tmp_path / "one.json", categories=COCO.categories, form=COCO.form) as writer:
        for rows, found, skipped in decode_rows(read_rows(answers), decoder, BATCH):
            writer.add(found, [row.name for row in rows])
            problems += skipped
    assert fresh["coco.json"] == (tmp_path / "one.json").read_bytes()
    listed = [json.loads(line) for line in fresh[FAILURES].splitlines()]
    wanted = [{"output": "coco.json", **problem._asdict()} for problem in sorted(problems)]
    assert listed == wanted
    assert len(listed) > 10
    assert {"'7.png' is 64×49 here but 64×48 in an earlier row"} < {row["reason"] for row in listed}


@pytest.mark.parametrize("batches", range(8))
def test_a_run_resumes_wherever_it_was_cut(answers, fresh, tmp_path, batches):
    output = tmp_path / "out" / "coco.json"
    log = Log(batches * BATCH)
    with suppress(StopAsked):
        decoded(answers, output, log=log)
    assert not output.exists()
    log = Log()
    written = decoded(answers, output, log=log)
    done = max(batches, 1) * BATCH
    assert written.kept == done
    assert len(log.worked) == ROWS - done
    assert 0 < log.finished <= done
    assert files(output.parent) == fresh
    assert not shards_folder(output).exists()


@pytest.mark.parametrize("size", [1, 5, 12, 100])
def test_batches_of_another_size_count_where_they_are_whole(answers, tmp_path, size):
    boxes = CocoOptions(form=MaskFormat("none"))
    decoded(answers, tmp_path / "fresh" / "coco.json", coco=boxes)
    output = tmp_path / "out" / "coco.json"
    with suppress(StopAsked):
        decoded(answers, output, log=Log(4 * BATCH), coco=boxes)
    log = Log(48)
    with suppress(StopAsked):
        written = decoded(answers, output, log=log, work=job(size), coco=boxes)
    assert len(log.worked) == log.done - 4 * BATCH // size * size
    written = decoded(answers, output, coco=boxes)
    assert written.kept >= 4 * BATCH
    assert files(output.parent) == files(tmp_path / "fresh")


def test_a_damaged_shard_is_done_again(answers, fresh, tmp_path):
    output = tmp_path / "out" / "coco.json"
    with suppress(StopAsked):
        decoded(answers, output, log=Log(6 * BATCH))
    shard = max(shards_folder(output).glob("*.json"), key=os.path.getsize)
    rows = len(read_shard(shard))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert decoded(answers, output, KEEP).kept == 6 * BATCH - rows
    assert decoded(answers, output).kept == ROWS
    assert files(output.parent) == fresh


def test_without_a_journal_nothing_is_kept(answers, fresh, tmp_path):
    output = tmp_path / "out" / "coco.json"
    alone = RunOptions(no_journal=True)
    with suppress(StopAsked):
        decoded(answers, output, alone, Log(2 * BATCH))
    assert list(output.parent.iterdir()) == []
    decoded(answers, output, alone)
    assert files(output.parent) == fresh


def test_nothing_usable_leaves_only_the_list(tmp_path):
    answers = tmp_path / "answers.jsonl"
    answers.write_text("{\n" * 3)
    output = tmp_path / "out" / "coco.json"
    for run in (None, KEEP, RunOptions(no_journal=True)):
        written = decoded(answers, output, run)
        assert (written.report.images, len(written.failed)) == (0, 3)
        assert list(files(output.parent)) == [FAILURES]


def test_options_that_decide_a_number_are_another_run(answers, tmp_path):
    output = tmp_path / "out" / "coco.json"
    decoded(answers, output, KEEP)
    for work, coco, told in (
        (job(clip=True), COCO, "clip was false, now true"),
        (job(label_from_prompt=True), COCO, "label_from_prompt was false, now true"),
        (job(), replace(COCO, form=MaskFormat("none")), 'segmentation was "rle", now "none"'),
        (job(), replace(COCO, categories=["cat"]), "categories was "),
        (DecodeJob(DecodeOptions(backend="onnx")), COCO, 'backend was "auto", now "onnx"'),
    ):
        with pytest.raises(InputError, match=f"belongs to another run: {told}"):
            decoded(answers, output, KEEP, work=work, coco=coco)
    assert decoded(answers, output, KEEP, work=job(3, size=(9, 9), images=str(tmp_path))).kept > 0


def test_warnings_of_finished_rows_are_repeated(tmp_path, monkeypatch):
    monkeypatch.delenv("PALIDECODE_WEIGHTS", raising=False)
    answers = tmp_path / "answers.jsonl"
    row = {"output": answer("cat", codes=[7] * 16), "width": 64, "height": 64}
    answers.write_text("\n".join([json.dumps(row)] * 20))
    for kept in (0, 20):
        with pytest.warns(CodecMismatchWarning) as told:
            written = decoded(
                answers, tmp_path / "coco.json", KEEP, work=DecodeJob(DecodeOptions())
            )
        assert written.kept == kept
        assert len(told) == 1


# -- pictures ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("local") / "model")
    (folder / "palidecode.json").write_text(json.dumps({"codes": DEMO_ID}))
    with one_thread():
        yield folder


@pytest.fixture
def pictures(tmp_path):
    """Pictures 1.png to 12.png (in hexadecimal); 5.png is cut short."""
    rng = np.random.default_rng(9)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(1, 13):
        draw(folder / f"{number:x}.png", rng)
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:200])
    return folder


def draw(path, rng):
    Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(path)


def predicted(model, pictures, output, run=KEEP, batch_size=3):
    options = predict_options(
        ModelOptions(str(model), "float32"), prompt="segment cat ; dog", batch_size=batch_size
    )
    log = Log()
    written = write_coco(
        PredictJob(options), find_pictures([pictures]), output, COCO, run, log.watch()
    )
    return written, [item.name for item in log.worked]


def test_the_engine_of_a_run_is_the_one_that_auto_stands_for(model):
    def engine_of(options, **more):
        job = PredictJob(predict_options(options, prompt="detect cat")).with_engine(**more)
        return job.settings()["model"]["engine"]

    assert engine_of(ModelOptions(str(model))) == "torch"
    for quantize, accelerator, engine in (
        ("int8", False, "onnx"),
        ("int4", False, "onnx"),
        ("int8", True, "torch"),
        (None, False, "torch"),
    ):
        options = ModelOptions(str(model), quantize=quantize)
        assert engine_of(options, accelerator=accelerator) == engine
    assert engine_of(ModelOptions(str(model), engine="onnx"), accelerator=True) == "onnx"


def names_in(output):
    return [image["file_name"] for image in json.loads(output.read_text())["images"]]


def test_pictures_that_were_added_removed_or_changed(model, pictures, tmp_path):
    output, rng = tmp_path / "coco.json", np.random.default_rng(10)
    written, worked = predicted(model, pictures, output)
    assert (written.kept, len(worked)) == (0, 12)
    assert written.failed == [{"image": "5.png", "reason": written.failed[0]["reason"]}]
    first = output.read_bytes()

    draw(pictures / "0.png", rng)  # sorts first: every batch begins elsewhere
    written, worked = predicted(model, pictures, output)
    assert worked == ["0.png", "1.png", "2.png"]
    assert written.kept == 10
    assert names_in(output) == [f"{number:x}.png" for number in range(13) if number != 5]

    (pictures / "0.png").unlink()
    written, worked = predicted(model, pictures, output)
    assert worked == []
    assert output.read_bytes() == first

    draw(pictures / "9.png", rng)
    shutil.copystat(pictures / "8.png", pictures / "9.png")
    written, worked = predicted(model, pictures, output)
    assert worked == ["7.png", "8.png", "9.png"]

    draw(pictures / "5.png", rng)  # mended
    written, worked = predicted(model, pictures, output)
    assert worked == ["4.png", "5.png", "6.png"]
    assert written.failed == []

    again = tmp_path / "again.json"
    predicted(model, pictures, again, run=None)
    assert output.read_bytes() == again.read_bytes()


def test_a_picture_that_failed_and_can_be_read_now_is_tried_again(model, pictures, tmp_path):
    """Its file is the same, as after a network disk was away."""
    output = tmp_path / "coco.json"
    whole, broken = pictures / "6.png", (pictures / "5.png")
    size = whole.stat().st_size
    broken.write_bytes(broken.read_bytes()[:200].ljust(size, b"\0"))
    shutil.copystat(whole, broken)
    written, _ = predicted(model, pictures, output)
    assert len(written.failed) == 1
    _, worked = predicted(model, pictures, output)
    assert worked == []
    shutil.copy2(whole, broken)
    for wanted in (["4.png", "5.png", "6.png"], []):
        written, worked = predicted(model, pictures, output)
        assert worked == wanted
        assert written.failed == []


def test_another_batch_size_and_device_are_the_same_run(model, pictures, tmp_path):
    output = tmp_path / "coco.json"
    predicted(model, pictures, output)
    written, worked = predicted(model, pictures, output, batch_size=4)
    assert (written.kept, worked) == (12, [])
    assert names_in(output) == [f"{number:x}.png" for number in range(1, 13) if number != 5]
