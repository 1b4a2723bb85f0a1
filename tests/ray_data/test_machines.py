"""More than one machine: whatever is lost, the file is that of one undisturbed machine."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from palidecode.cli import main
from palidecode.runs.journal import shards_folder
from tests.ray_data.machines import (
    LINKS,
    Command,
    Machine,
    cut,
    end,
    free_port,
    network,
    processes_of,
)
from tests.ray_data.samples import MARKS, WORDS_OF, decode_words, predict_words
from tests.runtime.tiny_models import one_thread

pytestmark = MARKS
TIMES = 5  # the answers of `place`, so often
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # HTTP/2's first frame
links = pytest.mark.skipif(not LINKS, reason="needs root and iproute2")


@pytest.fixture(scope="module")
def work(place, tmp_path_factory):
    """Longer work than `place`: commands by name, and the file of one machine."""
    folder = tmp_path_factory.mktemp("machines")
    lines = (place / "answers.jsonl").read_text().splitlines()
    rows = [line.replace('"image": "', f'"image": "{n}-') for n in range(TIMES) for line in lines]
    (folder / "answers.jsonl").write_text("\n".join(rows))
    more = {"decoded": ["--shard-size", "16"], "predicted": ["--shard-size", "4"]}

    def words(name, output, *, shards=True):
        found = WORDS_OF[name](place, output)
        if name == "decoded":
            found[1] = str(folder / "answers.jsonl")
        return [*found[:-2], *(more[name] if shards else []), *found[-2:]]

    files = {}
    with one_thread():
        for name in WORDS_OF:
            output = folder / f"{name}.json"
            assert main(words(name, output, shards=False)) == 1
            files[name] = output.read_bytes()
    return words, files


@pytest.fixture
def folder():
    """A short path, as Ray's sockets need; all processes that know it have ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="pd", dir="/tmp") as name:
        yield Path(name) / "ray"
        for _ in range(300):
            if not processes_of(name):
                break
            time.sleep(0.1)
        left = processes_of(name)
        for pid in left:
            end(pid)
        assert not left


@pytest.fixture
def machines(folder):
    """Starts machines, and ends them."""
    started = []

    def start(*given, **more):
        started.append(Machine(folder, *given, **more))
        return started[-1]

    yield start
    for machine in started:
        machine.kill()


def test_a_machine_that_is_killed_is_not_waited_for(work, machines, tmp_path):
    words, files = work
    head = machines()
    for name in WORDS_OF:
        other = machines(head.address)
        command = Command(head, words(name, tmp_path / name / "coco.json"), "--workers", "2")
        command.wait_for(3)
        other.kill()
        code, said = command.end()
        assert code == 1, said  # as on one machine: every tenth row is broken
        assert (tmp_path / name / "coco.json").read_bytes() == files[name]


def test_a_head_that_is_killed_ends_the_run_which_resumes(work, machines, tmp_path):
    words, files = work
    head = machines()
    for name in WORDS_OF:
        output = tmp_path / name / "coco.json"
        command = Command(head, words(name, output))
        command.wait_for(3)
        head.kill()
        code, said = command.end()
        assert code == 2, said
        assert re.fullmatch(
            r"palidecode: the run broke off[^\n]*Ray [^\n]*is finished is kept: start the cluster "
            r"again if it isn't running, then run the same command again to resume\n",
            said,
        ), said
        assert not output.exists()
        assert len(list(shards_folder(output).glob("*.json"))) >= 3
        head = machines(port=int(head.address.rpartition(":")[2]))
        command = Command(head, words(name, output))
        code, said = command.end()
        assert code == 1, said
        assert said.startswith("palidecode: resuming: ")
        assert output.read_bytes() == files[name]


def test_a_cluster_that_asks_for_a_token_is_named(place, machines, tmp_path):
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    head = machines(environment=secret)
    code, said = Command(head, decode_words(place, tmp_path / "coco.json")).end()
    assert code == 2
    (said,) = said.splitlines()
    assert said.startswith(f"palidecode: no Ray at {head.address!r}: ")
    assert "copy ~/.ray/auth_token of the head to this one and set RAY_AUTH_MODE=token" in said
    assert not list(tmp_path.iterdir())


@pytest.fixture
def cables():
    """A network of two machines."""
    with network(1, 2):
        yield


@links
def test_a_machine_without_its_cable(work, cables, machines, tmp_path):
    words, files = work
    head = machines(number=1)
    machines(head.address, number=2)
    # After 25 seconds the head gives the machine up, so that is the last.
    for name, seconds in (("predicted", 3), ("decoded", 25)):
        output = tmp_path / name / "coco.json"
        command = Command(head, words(name, output), "--workers", "2")
        command.wait_for(3)
        cut(2, seconds)
        code, said = command.end()
        assert code == 1, said
        assert output.read_bytes() == files[name]


# -- waiting for Ray ---------------------------------------------------------------------


@contextmanager
def listening(said):
    """The address of something that greets with a few bytes, or is silent with None."""
    kept = []

    def greet():
        with suppress(OSError):  # until it is closed
            while True:
                connection, _ = server.accept()
                kept.append(connection)
                connection.sendall(said)
                if said != SETTINGS:
                    connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=greet)
        if said is not None:
            thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        if said is not None:
            thread.join()
    for connection in kept:
        connection.close()


def test_an_address_without_a_ray_is_one_line(place, tmp_path):
    closed = f"127.0.0.1:{free_port()}"
    with (
        listening(None) as silent,
        listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as web,
        listening(b"") as shut,
    ):
        told = {
            closed: "nothing listens there",
            silent: "no answer in 10 s",
            web: "what listens there isn't Ray; is it another port?",
            shut: "what listens there isn't Ray; is it another port?",
        }
        started = {}
        for address in told:
            words = decode_words(place, tmp_path / "coco.json")
            command = [sys.executable, "-m", "palidecode", *words, "--ray", address]
            started[address] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for address, process in started.items():
            _, said = process.communicate(timeout=60)
            assert process.returncode == 2
            (said,) = said.splitlines()
            assert said.startswith(f"palidecode: no Ray at {address!r}: {told[address]}")
    assert not list(tmp_path.iterdir())


def test_a_signal_is_heard_while_ray_is_waited_for(place, tmp_path):
    # It greets as Ray does, and never answers: Ray waits in its own code.
    with listening(SETTINGS) as address:
        words = [*predict_words(place, tmp_path / "coco.json"), "--ray", address]
        command = [sys.executable, "-m", "palidecode", *words]
        drivers = {
            number: subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        time.sleep(8)
        for number, driver in drivers.items():
            driver.send_signal(number)
            _, said = driver.communicate(timeout=60)
            assert driver.returncode == 128 + number
            assert said == "palidecode: stopped; run the same command again to resume\n"


def test_a_signal_is_heard_while_no_worker_fits(place, cluster, tmp_path):
    import ray

    words = [*decode_words(place, tmp_path / "coco.json"), "--worker-cpus", "99", "--ray"]
    command = [sys.executable, "-m", "palidecode", *words, ray.get_runtime_context().gcs_address]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = driver.stderr.readline()
    assert "no machine of the cluster has 99 CPUs and 0 GPUs for a worker" in said
    driver.send_signal(signal.SIGTERM)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 143
    assert said == "palidecode: stopped; run the same command again to resume\n"
    assert not list(tmp_path.iterdir())
