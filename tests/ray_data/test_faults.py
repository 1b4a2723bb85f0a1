"""Whatever dies on Ray, the file is that of an undisturbed machine."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from palidecode import ray_data
from palidecode.cli import main
from palidecode.coco.writing import CocoOptions, MaskFormat
from palidecode.errors import InputError
from palidecode.ray_data import pool
from palidecode.ray_data.running import write
from palidecode.runs.journal import FAILURES, HEADER, shards_folder
from palidecode.runs.local import Watch
from palidecode.runs.stopping import StopAsked
from tests.ray_data.samples import (
    ANSWERS,
    BATCH,
    MAKE,
    MARKS,
    PICTURES,
    decoded,
    gone,
    one,
    pictures_of,
    predict_words,
    predicted,
    printed,
    ray_processes,
    same,
)

pytestmark = MARKS


def actors(session):
    return [pid for pid, title in ray_processes(session).items() if "ray::Actor" in title]


@pytest.mark.parametrize("name", ["decoded", "predicted"])
def test_an_actor_that_is_killed_costs_nothing(cluster, place, tmp_path, name):
    killed = []

    def kill(_):
        # A killed one is seen for a moment longer.
        left = [pid for pid in actors(cluster) if pid not in killed]
        if left and len(killed) < 2:
            os.kill(left[0], signal.SIGKILL)
            killed.append(left[0])

    found = MAKE[name](place)
    options = CocoOptions(list(found.job.names) or None, form=MaskFormat("rle"))
    written = write(found, tmp_path / f"{name}.json", options, watch=Watch(rows=kill))
    assert len(killed) == 2
    assert written.kept == 0
    same(place, tmp_path, name)


def test_shards_of_an_actor_that_never_answers_are_done_by_another(
    cluster, place, tmp_path, monkeypatch
):
    # As of a machine whose cable was out: nothing says that it won't answer any more.
    monkeypatch.setattr(pool, "_SILENCE", 2)
    stopped = []

    def stop(_):
        left = [pid for pid in actors(cluster) if pid not in stopped]
        if len(left) > 1 and not stopped:
            os.kill(left[0], signal.SIGSTOP)
            stopped.append(left[0])

    found = MAKE["decoded"](place)
    options = CocoOptions(list(found.job.names) or None, form=MaskFormat("rle"))
    try:
        written = write(found, tmp_path / "decoded.json", options, watch=Watch(rows=stop))
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)
    assert len(stopped) == 1
    assert written.kept == 0
    same(place, tmp_path, "decoded")


def session_of(command):
    """The Ray session that a command's driver has started: in the command lines of its children."""
    parents, sessions = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            title = (path / "cmdline").read_text()
        except (OSError, ValueError):
            continue
        found = re.search(r"--session[-_]dir=[^\0]*/(session_[^/\0]+)", title)
        if found:
            sessions[int(path.name)] = found[1]
    for process, session in sessions.items():
        if parents.get(parents[process]) == command:
            return session
    return None


def test_a_driver_that_is_killed_goes_on(place, orphans, tmp_path, capsys):
    output = tmp_path / "predicted.json"
    words = [*predict_words(place, output), "--shard-size", "4", "--ray"]
    more = ["--workers", "2"]
    log = tmp_path.parent / "driver.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "palidecode", *words, *more]
        driver = subprocess.Popen(command, stdout=file, stderr=file)
        shards, session = shards_folder(output), None
        while session is None or len(list(shards.glob("*.json"))) < 3:
            assert driver.poll() is None, log.read_text()
            session = session or session_of(driver.pid)
            time.sleep(0.01)
        processes = ray_processes(session)
        driver.kill()
        driver.wait()
    assert not output.exists()
    before = {path.name for path in shards.glob("*.json")}
    assert 3 <= len(before) < 11
    assert len(processes) > 1
    assert gone(pid for pid, title in processes.items() if "ray::Actor" in title)
    orphans |= processes  # what else there is takes longer
    assert main([*words, "local", *more, "--worker-cpus", "0.5", "--json"]) == 1
    said = printed(capsys)
    assert said["resumed"] >= 12
    assert said["resumed"] % 4 == 0
    same(place, tmp_path, "predicted")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_driver_that_is_stopped_goes_on(place, cluster, tmp_path, number, code):
    import ray

    output = tmp_path / "predicted.json"
    words = [*predict_words(place, output), "--shard-size", "4", "--workers", "2"]
    words += ["--worker-cpus", "0.5", "--ray"]
    command = [sys.executable, "-m", "palidecode", *words]
    driver = subprocess.Popen(
        [*command, ray.get_runtime_context().gcs_address], stderr=subprocess.PIPE, text=True
    )
    while len(list(shards_folder(output).glob("*.json"))) < 2:
        assert driver.poll() is None, driver.stderr.read()
        time.sleep(0.01)
    driver.send_signal(number)
    _, told = driver.communicate()
    assert driver.returncode == code, told
    assert told.rstrip().endswith("run the same command again to resume")
    assert not output.exists()
    assert len(list(shards_folder(output).glob("*.json"))) >= 2
    assert main([*words, "auto"]) == 1
    same(place, tmp_path, "predicted")


def test_a_stopped_run_leaves_no_thread_that_calls_ray(place, tmp_path, monkeypatch):
    # Ray ends a process that calls it after its shutdown: exit code 1 instead of 130.
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    stopped = threading.Event()
    step = StreamingExecutor._scheduling_loop_step

    def slow(self, topology):
        more = step(self, topology)
        if stopped.is_set():
            time.sleep(4)  # Ray itself waits for two seconds
        return more

    def stop(_):
        stopped.set()
        raise StopAsked

    monkeypatch.setattr(StreamingExecutor, "_scheduling_loop_step", slow)
    rows = ray_data.read_jsonl(place / "answers.jsonl")
    found = decoded(place, rows, shard_size=2, concurrency=1)
    with pytest.raises(StopAsked):
        write(
            found,
            tmp_path / "a.json",
            CocoOptions(form=MaskFormat("rle")),
            watch=Watch(rows=stop),
        )
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("StreamingExecutor", "iter_threaded"))]


@dataclass
class Full:
    """A job whose process can't write more than so many bytes into a file."""

    job: object
    limit: int

    def __getattr__(self, name):
        if name.startswith("__") or name == "job":
            raise AttributeError(name)  # while it is unpickled
        return getattr(self.job, name)

    def load(self, threads=None):
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit,) * 2)
        return self.job.load(threads)


def test_a_full_disk_is_one_clear_error(place, tmp_path):
    output = tmp_path / "decoded.json"
    found = decoded(place)
    options = CocoOptions(list(found.job.names) or None, form=MaskFormat("rle"))
    full = replace(found, job=Full(found.job, 3_000))
    for _ in range(2):
        with pytest.raises(InputError, match="can't be written: File too large; finished work"):
            write(full, output, options)
        assert not output.exists()
    shards = {path: path.stat().st_size for path in shards_folder(output).glob("*.json")}
    assert max(shards.values(), default=0) <= 3_000
    assert not list(shards_folder(output).glob("*.part"))
    written = write(found, output, options)
    assert 8 * len(shards) <= written.kept < ANSWERS
    same(place, tmp_path, "decoded")


def test_a_disk_that_is_full_when_shards_are_merged(place, tmp_path):
    output = tmp_path / "decoded.json"
    found = decoded(place)
    options = CocoOptions(list(found.job.names) or None, form=MaskFormat("rle"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    done = []

    def fill(rows):
        done.append(rows)
        if sum(done) >= ANSWERS:
            limit = len(one(place, "decoded")[0]) // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    try:
        with pytest.raises(InputError, match="File too large; finished work is kept: free some"):
            write(found, output, options, watch=Watch(rows=fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == [shards_folder(output).name]
    written = write(found, output, options)
    assert written.kept == written.rows
    same(place, tmp_path, "decoded")


def test_only_what_is_missing_is_done(place, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    shutil.copytree(place / "pictures", pictures)
    out = tmp_path / "out"
    output = out / "predicted.json"
    first = ray_data.write_coco(predicted(place, pictures), output, keep_journal=True)
    assert first.kept == 0
    shards = {path: path.stat().st_mtime_ns for path in shards_folder(output).glob("*.json")}
    assert len(shards) == 7  # of 8, 8, 8, 8, 4, 4 and 4 pictures
    (damaged,) = [path for path in shards if b'"000.png"' in path.read_bytes()]
    damaged.write_bytes(damaged.read_bytes().replace(b"bbox", b"xobb", 1))
    (broken,) = pictures.rglob("013.png")
    shutil.copy(next(pictures.rglob("012.png")), broken)
    second = ray_data.write_coco(predicted(place, pictures), output, keep_journal=True)
    made = [
        path
        for path in shards_folder(output).glob("*.json")
        if path.stat().st_mtime_ns != shards.get(path)
    ]
    assert damaged in made
    assert len(made) == 2
    assert second.kept == PICTURES - 8 - BATCH
    assert len(second.failed) == len(first.failed) - 1
    words = predict_words(place, tmp_path / "mended" / "predicted.json")
    words[1] = str(pictures)
    assert main(words) == 1
    capsys.readouterr()
    assert output.read_bytes() == (tmp_path / "mended" / "predicted.json").read_bytes()
    # Another prompt is another run; the single machine's is not.
    header = shards_folder(output) / HEADER
    kept = header.read_bytes()
    with pytest.raises(InputError, match=r'prompts was .*"segment cat ; dog".*now .*"segment cat"'):
        ray_data.write_coco(predicted(place, pictures, prompt="segment cat"), output)
    assert header.read_bytes() == kept
    words[-1] = str(output)
    assert main([*words, "--keep-journal", "--json"]) == 1
    assert printed(capsys)["resumed"] == PICTURES
    assert output.read_bytes() == (tmp_path / "mended" / "predicted.json").read_bytes()
    assert header.read_bytes() == kept
    third = ray_data.write_coco(predicted(place, pictures), output, restart=True)
    assert third.kept == 0
    assert {path.name for path in out.iterdir()} == {"predicted.json", FAILURES}
    assert output.read_bytes() == (tmp_path / "mended" / "predicted.json").read_bytes()


@dataclass
class Deadly(Full):
    """A job that kills its process."""

    limit: int = 0

    def load(self, threads=None):
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_kills_every_actor_is_named(place, tmp_path):
    found = predicted(place, concurrency=1)
    found = replace(found, job=Deadly(found.job))
    names = [name for name, _ in pictures_of(place)]
    with pytest.raises(Exception, match="killed its worker 3 times") as caught:
        write(found, tmp_path / "coco.json", CocoOptions())
    assert f"from {names[0]!r} to {names[7]!r}" in str(caught.value)
