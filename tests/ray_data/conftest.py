"""Tests on Ray end in time, and leave no process behind, also where they fail."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.ray_data.machines import Command, descendants, end
from tests.ray_data.samples import gone, running

LIMIT = 600  # seconds; a test takes less than two minutes on a busy machine


@pytest.fixture(autouse=True)
def bounded():
    """Fail a test that hangs, where the system has such alarms."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(number, frame):
        raise TimeoutError(f"still running after {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def nothing_left():
    """End what a test has started and not ended, and fail where that is more than nothing."""
    before = children()
    yield
    for process in Command.started:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    Command.started.clear()
    left = [pid for pid in children() - before if not gone([pid], 50)]
    titles = [Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace") for pid in left]
    for pid in left:
        for each in descendants(pid):
            end(each)
    assert not left, titles


def children():
    """The processes that this one has started and that run, without Python's own trackers."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            title = (path / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if parent == os.getpid() and b"multiprocessing" not in title and running(path.name):
            found.add(int(path.name))
    return found
