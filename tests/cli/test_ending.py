"""Early ends of a command: each in a process of its own, with real signals, limits and streams."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import palidecode
from palidecode.cli import main
from palidecode.cli.ending import ended
from palidecode.codec.weights import DEMO_ID, shipped_path
from palidecode.errors import InputError
from tests.samples import CODES, answer

COMMAND = [sys.executable, "-m", "palidecode"]
TEXT = ["decode", "--text", answer("cat"), "--size", "64x64"]
MOMENTS = 7


def test_what_is_unexpected_is_one_line_and_exit_2(capsys, monkeypatch):
    def line(error):
        assert ended(error) == 2
        (said,) = capsys.readouterr().err.splitlines()
        return said.removeprefix("palidecode: ")

    assert line(InputError("a.json: not JSON")) == "a.json: not JSON"
    assert line(MemoryError()).startswith("not enough memory (MemoryError); give less")
    torch_says = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …\nframe 1")
    assert line(torch_says).startswith("not enough memory (RuntimeError: DefaultCPUAllocator")
    assert "(ulimit -u)" in line(RuntimeError("can't start new thread"))
    assert "nested too deeply" in line(RecursionError("maximum recursion depth exceeded"))
    full = OSError(errno.ENOSPC, "No space left on device", "/tmp/x")
    assert line(full).startswith("/tmp/x: No space left on device; PALIDECODE_DEBUG=1")
    try:
        [].remove("x")
    except ValueError as error:
        said = line(error)
    assert said.startswith("unexpected ValueError: list.remove(x): x not in list (test_ending.py:")
    assert said.endswith(
        "please report it with its traceback: PALIDECODE_DEBUG=1 shows the traceback"
    )
    monkeypatch.setenv("PALIDECODE_DEBUG", "1")
    assert ended(MemoryError()) == 2
    assert capsys.readouterr().err.startswith(
        "palidecode: MemoryError\npalidecode: not enough memory"
    )


def shell(redirection, *words):
    done = subprocess.run(
        ["bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "bash", *COMMAND, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has /dev/full")
def test_the_exit_code_is_true_without_a_reader():
    piped = [*TEXT, "-o", "-"]
    assert shell("| true", *TEXT) == (0, "")
    assert shell(">&-", *TEXT) == (0, "")
    assert shell(">&- 2>&- <&-", *TEXT) == (0, "")
    assert (
        shell("2>/dev/full", "decode", "--text", "x <loc0001>", "--size", "8x8", "--json")[0] == 0
    )
    start = "palidecode: the standard output can't be written: "
    assert shell(">/dev/full", *TEXT) == (2, f"{start}No space left on device\n")
    assert shell("2>/dev/full >/dev/full", *TEXT)[0] == 2
    assert shell("| true", *piped) == (2, f"{start}Broken pipe\n")
    assert shell(">&-", *piped) == (2, f"{start}it is closed\n")


@pytest.mark.slow
def test_a_closed_stdout_is_no_file_of_ours_and_leaves_no_journal(tmp_path):
    answers = tmp_path / "answers.jsonl"
    row = {"output": answer("cat", codes=CODES), "width": 64, "height": 64}
    answers.write_text("\n".join([json.dumps(row)] * 9))
    words = ["decode", answers, "--weights", DEMO_ID, "-o"]
    for number, how in enumerate((">/dev/null", "| true", ">&- 2>&-", ">/dev/full")):
        code, _ = shell(how, *words, tmp_path / f"{number}.json")
        assert code == (2 if how == ">/dev/full" else 0)
    written = sorted(tmp_path.iterdir())
    assert [path.name for path in written[:-1]] == [f"{number}.json" for number in range(4)]
    assert len({path.read_bytes() for path in written[:-1]}) == 1


def limited(code, *words, cwd=None):
    """Run the command line in a process that first runs `code`; -c imports from `cwd`."""
    script = f"import resource, os, sys\nfrom palidecode.cli import main\n{code}\nsys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        cwd=cwd,
    )
    return done.returncode, done.stderr


def test_too_little_memory_is_one_line(tmp_path):
    big = tmp_path / "big.json"
    with big.open("wb") as file:
        file.truncate(3 << 30)
    limit = "import palidecode.cli.evaluate\nsize = 2 << 30\n"
    limit += "resource.setrlimit(resource.RLIMIT_AS, (size, size))"
    code, said = limited(limit, "evaluate", big, big)
    assert code == 2, said
    assert said.startswith("palidecode: not enough memory (MemoryError")
    assert said.count("\n") == 1


@pytest.fixture
def everybodys():
    """A folder that every user may write; `tmp_path` is inside of one that isn't."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


@pytest.fixture(scope="module")
def everybodys_code():
    """A copy of the package that every user may read: a checkout can be one user's alone."""
    here = Path(palidecode.__file__).parents[1]
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        for folder in ("palidecode", "vqvae_weights"):
            unread = shutil.ignore_patterns("__pycache__")
            shutil.copytree(here / folder, Path(name, folder), ignore=unread)
        yield name


@pytest.mark.skipif(os.geteuid() != 0, reason="the limit is of a user, and root's is not applied")
def test_no_thread_can_be_started(everybodys, everybodys_code):
    answers = everybodys / "answers.jsonl"
    answers.write_text(json.dumps({"output": answer("cat"), "width": 64, "height": 64}))
    words = ["decode", str(answers), "-o", str(everybodys / "first.json")]
    # Everything is imported first: the new user may not read every folder of modules.
    limit = f"main({words})\nos.setresuid(65534, 65534, 65534)\n"
    limit += "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))"
    words = ["decode", answers, "-o", everybodys / "coco.json"]
    code, said = limited(limit, *words, cwd=everybodys_code)
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith("palidecode: can't start new thread: the limit of processes")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_user_without_home_and_passwd_entry(everybodys, everybodys_code):
    answers = everybodys / "answers.jsonl"
    answers.write_text(json.dumps({"output": answer("cat", codes=CODES), "size": [64, 64]}))
    words = ["decode", str(answers), "--weights", DEMO_ID, "-o", str(everybodys / "first.json")]
    become = f"import palidecode.cli.weights\nmain({words})\nos.setresuid(54321, 54321, 54321)\n"
    become += "for name in ('HOME', 'XDG_CACHE_HOME', 'PALIDECODE_CACHE', 'PALIDECODE_WEIGHTS'):\n"
    become += "    os.environ.pop(name, None)"
    words = ["decode", answers, "-o", everybodys / "coco.json"]
    code, said = limited(become, *words, cwd=everybodys_code)
    assert code == 0, said
    assert (everybodys / "coco.json").read_bytes() == (everybodys / "first.json").read_bytes()
    code, said = limited(become, "weights", "fetch", cwd=everybodys_code)
    assert code == 2
    home = "no home directory for fetched weights; name one: PALIDECODE_CACHE=DIR"
    assert said.splitlines()[-1] == f"palidecode: {home}"


def test_a_home_that_can_not_be_written(monkeypatch, capsys):
    for name in ("XDG_CACHE_HOME", "PALIDECODE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    assert main(["weights", "fetch"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("palidecode: /dev/null/.cache/palidecode/vae-oid.npz: can't be written:")
    assert main([*TEXT]) == 0


@pytest.mark.slow
def test_a_package_in_a_zip_reads_boxes_and_says_what_it_lacks(tmp_path):
    archive = tmp_path / "package.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for package in (Path(palidecode.__file__).parent, shipped_path().parent):
            for path in package.rglob("*"):
                if "__pycache__" not in path.parts:
                    file.write(path, path.relative_to(package.parent))

    def zipped(*words):
        command = [*COMMAND, *words]
        environment = {**os.environ, "PYTHONPATH": str(archive)}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
        )
        return done.returncode, done.stderr

    assert zipped(*TEXT) == (0, "")
    for words in (["demo", "--answers"], ["decode", "--text", answer("a", codes=CODES), *TEXT[3:]]):
        code, said = zipped(*words, *(["--weights", DEMO_ID] if words[0] == "decode" else []))
        assert (code, said.count("\n")) == (2, 1)
        assert said.startswith(f"palidecode: {archive}/")
        assert "data in an archive can't be read; unpack it, or install" in said


def start(*words):
    return subprocess.Popen(
        [*COMMAND, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decode", "predict", "evaluate"])
def test_signals_at_random_moments(tmp_path, name):
    """From before the first import to the end, loading of the model included."""
    for number in range(2):
        Image.new("RGB", (64, 48)).save(tmp_path / f"{number}.png")
    out = tmp_path / "out"
    out.mkdir()
    row = {"output": answer("cat", codes=CODES), "width": 64, "height": 64}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row))
    words = {
        "decode": ["decode", tmp_path / "answers.jsonl", "--weights", DEMO_ID],
        "predict": ["predict", tmp_path, "--model", "demo", "--prompt", "detect a"],
        "evaluate": ["demo", "--answers"],
    }[name]
    words += ["-o", out / ("coco.json" if name != "evaluate" else "demo")]
    began = time.monotonic()
    plain = start(*words)
    _, said = plain.communicate()
    assert plain.returncode == 0, said
    seconds = time.monotonic() - began
    rng = random.Random(name)
    for _ in range(MOMENTS):
        subprocess.run(["rm", "-rf", out], check=True)
        number = rng.choice([signal.SIGINT, signal.SIGTERM])
        running = start(*words)
        with running:
            time.sleep(rng.uniform(0, seconds))
            running.send_signal(number)
            _, said = running.communicate()
        # Before the first line of palidecode and after its last the signal ends the process.
        assert running.returncode in (0, 128 + number, -number), said
        assert "Traceback" not in said or "palidecode" not in said
        assert not list(out.glob(".*")), said
        if running.returncode == 128 + number:
            assert said.splitlines()[-1].startswith(("palidecode: interrupted", "palidecode: stop"))
