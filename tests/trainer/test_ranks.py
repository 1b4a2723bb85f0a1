"""Two real processes on the CPU, against one with twice the accumulation."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from palidecode.trainer.training import STATE
from tests.runtime.tiny_models import PICTURES, write_folder

pytestmark = pytest.mark.slow
SETTINGS = ["--device", "cpu", "--rank", "2", "--batch-size", "2", "--rate", "1e-2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    write_folder(folder / "model", 2)
    lines = []
    for number in range(7):
        PICTURES[number % 3].save(folder / f"{number}.png")
        corner = f"<loc{100 * number:04d}>"
        answer = f"{corner}{corner}<loc0900><loc0950> {'cat' if number % 2 else 'dog'}"
        row = {"image": f"{number}.png", "prefix": "detect cat ; dog", "suffix": answer}
        lines.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder


def words_of(place, out, steps, *more):
    words = ["-m", "palidecode", "finetune", place / "rows.jsonl", "--model", place / "model"]
    words += ["--val", place / "rows.jsonl", "-o", out, "--steps", steps, *SETTINGS, *more]
    return list(map(str, words))


def start(words, processes=1):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def done(run, code=0):
    out, said = run.communicate(timeout=300)
    assert run.returncode == code, said
    return out, said


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_two_processes_are_one_with_twice_the_accumulation(place, tmp_path):
    done(start(words_of(place, tmp_path / "one", 8, "--accumulate", "2")))
    out, said = done(start(words_of(place, tmp_path / "two", 8), 2))
    assert out.count("trained on 7 rows") == said.count("7 rows, 8 steps") == 1  # the first's
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert [line["step"] for line in two] == list(range(1, 9))
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["norm"] == pytest.approx(b["norm"], rel=1e-3)
    assert one[-1]["bbox AP50"] == two[-1]["bbox AP50"]
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert files[0] == files[1]
    assert STATE not in files[1]
    left, right = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two")
    )
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=1e-3, atol=1e-5)


ENDING = """
import atexit, torch
from torch import distributed
from palidecode.trainer.ranks import join_ranks
atexit.register(lambda: print("left" if not distributed.is_initialized() else "still there"))
ranks = join_ranks(torch.device("cpu"))
print(ranks.gather({ranks.number: "here"}))
"""


def test_processes_leave_their_group_before_they_end(tmp_path):
    # a thread of the group that outlives the interpreter aborts the process
    (tmp_path / "ending.py").write_text(ENDING)
    out, said = done(start([str(tmp_path / "ending.py")], 2))
    assert out.count("left") == 2, said
    assert out.count("{0: 'here', 1: 'here'}") == 2


def interrupted(run, out, number):
    for _ in range(1200):
        if (out / STATE).exists():
            break
        time.sleep(0.1)
    os.kill(run.pid, number)
    said = run.communicate(timeout=120)[1]
    assert run.returncode, said
    return said


def test_ctrl_c_leaves_a_checkpoint_and_both_resume(place, tmp_path):
    out, more = tmp_path / "out", ["--save-every", "3", "--epochs", "1"]
    run = start(words_of(place, out, 3000, *more), 2)
    said = interrupted(run, out, signal.SIGINT)
    assert "run the same command again to resume" in said
    before = log_of(out)[-1]["step"]
    assert 3 <= before < 3000
    run = start(words_of(place, out, 3000, *more), 2)
    for _ in range(600):
        if log_of(out)[-1]["step"] > before + 3:
            break
        time.sleep(0.1)
    interrupted(run, out, signal.SIGTERM)
    steps = [line["step"] for line in log_of(out)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > before + 3


def test_a_process_that_dies_ends_all(place, tmp_path):
    out = tmp_path / "out"
    run = start(words_of(place, out, 3000, "--save-every", "3"), 2)
    for _ in range(1200):
        if (out / STATE).exists():
            break
        time.sleep(0.1)
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True, check=True
    )
    children = list(map(int, listed.stdout.split()))
    os.kill(max(children), signal.SIGKILL)
    said = run.communicate(timeout=120)[1]
    assert run.returncode, said
    left = [pid for pid in children if os.path.exists(f"/proc/{pid}/stat")]
    assert left == []
    assert (out / STATE).exists()
