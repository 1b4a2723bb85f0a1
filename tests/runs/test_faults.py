"""What goes wrong in long runs, done for real: processes are killed, disks are full.

Every run is a process of its own, forked from a server that has the libraries loaded.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from palidecode.coco.shards import read_shard
from palidecode.codec.weights import DEMO_ID, load_weights, shipped_path
from palidecode.runs.journal import FAILURES, HEADER, shards_folder
from tests.runtime.tiny_models import write_folder
from tests.samples import CODES, answer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(os, "fork"), reason="kills processes by POSIX signals, forked from a server"
    ),
]

_PATIENCE = 1200  # tenths of a second; counted, so that a machine that is frozen is no failure
PICTURES = 500
BATCH = 10
PREDICT = ["--dtype", "float32", "--max-new-tokens", "14", "--max-objects", "1"]
PREDICT += ["--batch-size", str(BATCH), "--prompt"]
LOADED = ["torch", "palidecode.cli", "palidecode.pipeline.checkpoint", "palidecode.cli.predict"]
LOADED += ["palidecode.runtime.generate", "palidecode.runtime.weights", "palidecode.codec.onnx"]
LOADED += ["palidecode.cli.decode", "palidecode.answers.rows", "palidecode.runs.local"]
LOADED += ["tests.runs.test_faults"]


def child(arguments, log, limit):
    """In the new process: the command line, as it is run in a terminal."""
    from palidecode.cli import main

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    from palidecode.runs import local

    local._APART = 0.0  # a shard after each batch: these jobs are short
    sys.exit(main(arguments))


class Run:
    """A command in a process of its own."""

    def __init__(self, arguments, folder, limit=None):
        self.log = folder.parent / f"{folder.name}.log"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LOADED)
        words = [str(word) for word in arguments]
        arguments = (words, str(self.log), limit)
        self.process = context.Process(target=child, args=arguments, daemon=True)
        self.process.start()

    def wait(self):
        """Its exit code and what it said."""
        for _ in range(_PATIENCE):
            if self.process.exitcode is not None:
                break
            self.process.join(0.1)
        code = self.process.exitcode
        assert code is not None, f"still running: {self.log.read_text()}"
        self.process.close()
        return code, self.log.read_text()

    def signal(self, number):
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def wait_for(self, folder, shards=3):
        """Until so many shards are there."""
        while len(shards_of(folder)) < shards:
            assert self.process.is_alive(), self.log.read_text()
            time.sleep(0.001)


def run(arguments, folder, limit=None):
    return Run(arguments, folder, limit).wait()


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("PALIDECODE_WEIGHTS", raising=False)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """500 small pictures, every tenth cut short, answers about them, and a tiny model."""
    folder = tmp_path_factory.mktemp("faults")
    model = write_folder(folder / "model")
    (model / "palidecode.json").write_text(json.dumps({"codes": DEMO_ID}))
    rng = np.random.default_rng(5)
    pictures = folder / "pictures"
    pictures.mkdir()
    lines = []
    for number in range(PICTURES):
        path = pictures / f"{number:03}.png"
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(path)
        objects = [
            answer(f"thing {rng.integers(9)}", sorted(rng.integers(0, 1024, 4).tolist()), CODES)
            for _ in range(rng.integers(3))
        ]
        row = {"image": path.name, "width": 640, "height": 480, "output": " ; ".join(objects)}
        lines.append(json.dumps(row))
        if number % 10 == 3:
            path.write_bytes(path.read_bytes()[:200])
            lines[-1] = lines[-1][:30]
    (folder / "answers.jsonl").write_text("\n".join(lines))
    few = folder / "few"
    few.mkdir()
    for path in sorted(pictures.iterdir())[:60]:
        shutil.copy(path, few)
    return folder


def command(name, place, output, few=False):
    """A long run of either kind."""
    if name == "decode":
        words = ["decode", place / "answers.jsonl", "--weights", DEMO_ID]
        return [*words, "--batch-size", BATCH, "-o", output]
    pictures = place / ("few" if few else "pictures")
    words = ["predict", pictures, "--model", place / "model", *PREDICT, "detect cat ; dog"]
    return [*words, "-o", output]


@pytest.fixture(scope="module")
def undisturbed(place):
    """What each command writes when nothing happens, and how long that takes."""
    found = {}
    for name, few in (("decode", False), ("predict", False), ("predict", True)):
        folder = place / f"undisturbed-{name}-{few}"
        folder.mkdir()
        began = time.monotonic()
        code, said = run(command(name, place, folder / "coco.json", few), folder)
        assert code == 1, said  # every tenth is left out
        seconds = time.monotonic() - began
        found[name, few] = (contents(folder), seconds)
    return found


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shards_of(folder):
    return list(shards_folder(folder / "coco.json").glob("*.json"))


def rows_of(folder):
    """Keys of all rows that are finished."""
    return [key for path in shards_of(folder) for key in read_shard(path).keys]


def interrupted(words, folder):
    """A run that was killed in the middle; its shards."""
    folder.mkdir()
    running = Run(words, folder)
    running.wait_for(folder)
    running.signal(signal.SIGKILL)
    assert running.wait()[0] == -signal.SIGKILL
    assert not (folder / "coco.json").exists()
    return shards_of(folder)


@pytest.mark.parametrize(("name", "kills"), [("predict", 8), ("decode", 12)])
def test_killed_at_random_moments_nothing_is_lost_or_done_twice(place, undisturbed, name, kills):
    wanted, seconds = undisturbed[name, False]
    rng = random.Random(f"{name} 7")
    hits = series = 0
    while hits < kills:
        series += 1
        assert series <= kills
        folder = place / f"killed-{name}-{series}"
        folder.mkdir()
        shards = shards_folder(folder / "coco.json")
        words = command(name, place, folder / "coco.json")
        finished = -1
        aside = folder / f".{shards.name}.part"  # while it is deleted
        while not (folder / "coco.json").exists() or shards.exists() or aside.exists():
            running = Run(words, folder)
            if hits < kills:
                running.process.join(rng.uniform(0, 0.4 * seconds))
                running.signal(signal.SIGKILL)
            code, said = running.wait()
            if code != -signal.SIGKILL:
                assert code == 1, said
                assert f"{PICTURES - PICTURES // 10} pictures in" in said
                continue
            hits += 1
            if shards.exists() and not (folder / "coco.json").exists():
                before, finished = finished, len(rows_of(folder))
                assert finished >= before
                assert len(set(rows_of(folder))) == finished
        assert contents(folder) == wanted


@pytest.mark.parametrize("name", ["predict", "decode"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_cleanly(place, undisturbed, tmp_path, name, number):
    folder = tmp_path / "out"
    folder.mkdir()
    words = command(name, place, folder / "coco.json")
    running = Run(words, folder)
    running.wait_for(folder)
    running.signal(number)
    code, said = running.wait()
    assert code == 128 + number
    assert said.splitlines()[-1] == "palidecode: stopped; run the same command again to resume"
    assert "Traceback" not in said
    done = len(rows_of(folder))
    code, said = run(words, folder)
    assert code == 1
    assert said.startswith("palidecode: resuming: ")
    assert done > 0
    assert contents(folder) == undisturbed[name, False][0]


@pytest.mark.parametrize("name", ["predict", "decode"])
def test_a_full_disk_is_one_clear_error(place, undisturbed, tmp_path, name):
    folder = tmp_path / "out"
    folder.mkdir()
    words = command(name, place, folder / "coco.json")
    limit = len(undisturbed[name, False][0]["coco.json"]) // 4
    code, said = run(words, folder, limit)
    full = folder / "coco.json"
    notes = ("palidecode: resuming: ", "palidecode: loading ")
    errors = [line for line in said.splitlines() if not line.startswith(notes)]
    assert code == 2
    assert len(errors) == 1
    assert errors[0].startswith(f"palidecode: {full}: can't be written: File too large; finished")
    assert not list(shards_folder(full).glob("*.part"))
    assert all(read_shard(path) is not None for path in shards_of(folder))
    assert len(rows_of(folder)) > 0
    code, said = run(words, folder, limit)  # still full
    assert code == 2
    assert "can't be written: File too large" in said
    code, said = run(words, folder)
    assert code == 1, said
    assert contents(folder) == undisturbed[name, False][0]


def test_a_disk_that_is_full_at_the_very_end(place, undisturbed, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    output = folder / "coco.json"
    words = command("predict", place, output, few=True)
    wanted = undisturbed["predict", True][0]
    # The shards first, so that only the output is to be written.
    assert run([*words, "--keep-journal"], folder)[0] == 1
    output.unlink()
    (folder / FAILURES).unlink()
    code, said = run(words, folder, len(wanted["coco.json"]) - 100)
    assert code == 2
    last = said.splitlines()[-1]
    assert last.startswith(f"palidecode: {output}: can't be written: File too large; finished")
    assert [path.name for path in folder.iterdir()] == ["coco.json.shards"]
    assert run(words, folder)[0] == 1
    assert contents(folder) == wanted


def test_every_tenth_picture_fails_and_is_listed(undisturbed):
    for name, key in (("predict", "image"), ("decode", "line")):
        found, _ = undisturbed[name, False]
        assert sorted(found) == ["coco.json", FAILURES]
        images = json.loads(found["coco.json"])["images"]
        failed = [json.loads(line) for line in found[FAILURES].splitlines()]
        bad = range(3, PICTURES, 10)
        good = [f"{number:03}.png" for number in range(PICTURES) if number not in bad]
        assert [image["file_name"] for image in images] == good
        wanted = [f"{n:03}.png" if name == "predict" else n + 1 for n in bad]
        assert [row[key] for row in failed] == wanted
        why = "can't be read as a picture" if name == "predict" else "not JSON"
        assert all(why in row["reason"] and row["output"] == "coco.json" for row in failed)


def test_a_picture_that_was_mended_is_tried_again(place, tmp_path):
    pictures = tmp_path / "few"
    shutil.copytree(place / "few", pictures)
    words = command("predict", place, tmp_path / "mended" / "coco.json", few=True)
    words[1] = pictures
    (tmp_path / "mended").mkdir()
    assert run([*words, "--keep-journal"], tmp_path / "mended")[0] == 1
    for path in pictures.glob("*3.png"):
        shutil.copy(pictures / "000.png", path)
    code, said = run([*words, "--overlay", tmp_path / "drawn"], tmp_path / "mended")
    assert code == 0, said
    assert "resuming: 54 pictures already finished" in said
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    assert run([*words[:-1], fresh / "coco.json"], fresh)[0] == 0
    assert contents(tmp_path / "mended") == contents(fresh)


def test_a_damaged_shard_is_done_again_and_a_damaged_header_refused(place, undisturbed, tmp_path):
    folder = tmp_path / "out"
    words = command("predict", place, folder / "coco.json", few=True)
    shards = interrupted(words, folder)
    header = shards_folder(folder / "coco.json") / HEADER
    whole = header.read_bytes()
    header.write_bytes(whole[:-20])
    code, said = run(words, folder)
    assert code == 2
    assert said.startswith(f"palidecode: {header}: is damaged; write to another -o, or discard")
    assert said.count("\n") == 1
    header.write_bytes(whole)
    shards[0].write_bytes(shards[0].read_bytes()[:-300])  # as after a power cut
    shards[1].write_bytes(shards[1].read_bytes().replace(b"png", b"pgn", 1))
    assert run(words, folder)[0] == 1
    assert contents(folder) == undisturbed["predict", True][0]


def test_other_runs_do_not_mix(place, undisturbed, tmp_path):
    folder = tmp_path / "out"
    words = command("predict", place, folder / "coco.json", few=True)
    interrupted(words, folder)
    kept = contents(shards_folder(folder / "coco.json"))
    other = tmp_path / "other"
    shutil.copytree(place / "model", other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-3] ^= 1  # one bit of one number
    (other / "model.safetensors").write_bytes(weights)
    prompt, model = words.index("detect cat ; dog"), words.index("--model") + 1
    dtype = words.index("float32")
    for place_of, value, told in (
        (
            prompt,
            "detect cat ; bird",
            'prompts was ["detect cat ; dog"], now ["detect cat ; bird"]',
        ),
        (model, other, "model.safetensors was sha256 "),
        (dtype, "bfloat16", 'dtype was "float32", now "bfloat16"'),
    ):
        changed = list(words)
        changed[place_of] = value
        code, said = run(changed, folder)
        assert code == 2
        assert said.count("\n") == 1
        assert told in said
        assert said.endswith("write to another -o, or discard that run with --restart\n")
    assert contents(shards_folder(folder / "coco.json")) == kept
    assert run(words, folder)[0] == 1
    assert contents(folder) == undisturbed["predict", True][0]


def test_other_weights_do_not_mix(place, undisturbed, tmp_path):
    folder = tmp_path / "out"
    words = command("decode", place, folder / "coco.json")
    interrupted(words, folder)
    weights = tmp_path / "other.npz"
    arrays = {name: array * 1.01 for name, array in load_weights(shipped_path()).arrays.items()}
    np.savez(weights, **arrays)
    code, said = run([*words, "--weights", weights], folder)
    assert code == 2
    assert "another run: mask codec was sha256 " in said
    code, said = run([*words, "--segmentation", "none", "--restart"], folder)
    assert code == 1, said
    assert "resuming" not in said
    assert sorted(contents(folder)) == ["coco.json", FAILURES]


def test_of_other_answers_only_what_changed_is_done_again(place, tmp_path):
    folder, fresh = tmp_path / "out", tmp_path / "fresh"
    words = command("decode", place, folder / "coco.json")
    interrupted(words, folder)
    before = set(rows_of(folder))
    changed = tmp_path / "other.jsonl"
    lines = (place / "answers.jsonl").read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"<loc", b"thing <loc", 1)
    changed.write_bytes(b"\n".join([*lines, lines[0]]))
    words[1] = changed
    assert run([*words, "--keep-journal"], folder)[0] == 1
    assert len(before - set(rows_of(folder))) <= 1
    fresh.mkdir()
    assert run([*words[:-1], fresh / "coco.json"], fresh)[0] == 1
    shutil.rmtree(shards_folder(folder / "coco.json"))
    assert contents(folder) == contents(fresh)


@pytest.mark.parametrize("name", ["predict", "decode"])
def test_two_processes_do_not_write_the_same(place, undisturbed, tmp_path, name):
    folder = tmp_path / "out"
    folder.mkdir()
    words = command(name, place, folder / "coco.json")
    first = Run(words, folder)
    first.wait_for(folder, 1)
    first.signal(signal.SIGSTOP)
    second = tmp_path / "second"
    second.mkdir()
    code, said = run(words, second)
    assert code == 2
    assert said.startswith(
        f"palidecode: {folder / 'coco.json'}.shards: another process is writing it"
    )
    first.signal(signal.SIGCONT)
    assert first.wait()[0] == 1
    assert contents(folder) == undisturbed[name, False][0]


@pytest.mark.parametrize("name", ["predict", "decode"])
def test_without_a_journal_the_output_is_the_same(place, undisturbed, tmp_path, name):
    folder = tmp_path / "out"
    folder.mkdir()
    words = command(name, place, folder / "coco.json", few=name == "predict")
    assert run([*words, "--no-journal"], folder)[0] == 1
    assert contents(folder) == undisturbed[name, name == "predict"][0]


# -- drawn pictures ----------------------------------------------------------------------

CUTS = int(os.environ.get("PALIDECODE_CUTS", "2"))  # resumed runs, all but one after a power cut


def power_cut(folder, rng):
    """Lose some shards, and damage drawn pictures that no shard has: a shard's are synced first."""
    for path in shards_of(folder):
        if rng.random() < 0.5:
            path.unlink()
    kept = {name for path in shards_of(folder) for name, *_ in read_shard(path).images}
    for path in sorted((folder / "drawn").iterdir()):
        how = rng.choice(["whole", "empty", "cut", "zeros", "gone"])
        if path.name in kept or how == "whole":
            continue
        data = path.read_bytes()
        size = rng.randrange(len(data) + 1) if how == "cut" else 0
        path.write_bytes(data[:size] + bytes(len(data) - size) * (how == "zeros"))
        if how == "gone":
            path.unlink()


def test_overlays_of_a_killed_run_and_after_power_cuts_are_those_of_an_undisturbed_one(
    place, tmp_path
):
    def words(name):
        """The run of a folder, with masks: a resumed run draws them from the COCO file."""
        found = command("predict", place, tmp_path / name / "coco.json", few=True)
        found[found.index("detect cat ; dog")] = "segment cat ; dog"
        found[found.index("14")] = "26"
        return [*found, "--overlay", tmp_path / name / "drawn"]

    def all_of(name):
        folder = tmp_path / name
        return {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }

    (tmp_path / "whole").mkdir()
    assert run(words("whole"), tmp_path / "whole")[0] == 1
    wanted = all_of("whole")
    assert len(wanted) == 54 + 2
    assert b'"segmentation"' in wanted[Path("coco.json")]
    interrupted(words("killed"), tmp_path / "killed")
    assert 3 * BATCH * 0.9 <= len(list((tmp_path / "killed" / "drawn").glob("*.png"))) < 54
    rng = random.Random(20)
    for number in range(CUTS):
        shutil.copytree(tmp_path / "killed", tmp_path / f"cut{number}")
        if number:
            power_cut(tmp_path / f"cut{number}", rng)
        code, said = run(words(f"cut{number}"), tmp_path / f"cut{number}")
        assert code == 1, said
        assert all_of(f"cut{number}") == wanted
