"""The folder of an unfinished run; whole runs are in test_local and test_faults."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest

from palidecode.cli import main
from palidecode.coco.shards import Result, ShardBuilder, key_of, read_shard
from palidecode.coco.writing import CocoOptions, MaskFormat
from palidecode.detections import decode
from palidecode.errors import InputError
from palidecode.runs.journal import (
    FAILURES,
    HEADER,
    OWNER,
    Header,
    Journal,
    encode_row,
    hash_files,
    shards_folder,
    write_failures,
)
from palidecode.version import __version__
from tests.samples import answer

RUN = Header(
    "predict", {"prompts": ("cat",), "model": {"dtype": "float32"}}, {"model": "00ff" * 16}
)
OTHER = Header("decode", {}, {})


@pytest.fixture
def output(tmp_path):
    return tmp_path / "coco.json"


@pytest.fixture
def header(output):
    return shards_folder(output) / HEADER


def save(folder, name="a.jpg"):
    """Write a shard of one picture."""
    builder = ShardBuilder(CocoOptions(form=MaskFormat("none")))
    builder.add([key_of(name)], Result(decode([answer("cat")], (64, 64)), [0], [name], {}))
    shard = builder.take()
    shard.save(folder)
    return shard


def written(output, run=RUN):
    with Journal(output) as journal:
        journal.begin(run)
        return save(journal.folder)


def names(output):
    return sorted(path.name for path in shards_folder(output).iterdir())


def refused(output, run=RUN):
    before = {path: path.read_bytes() for path in shards_folder(output).iterdir()}
    with pytest.raises(InputError) as caught, Journal(output) as journal:
        journal.begin(run)
    assert {path: path.read_bytes() for path in shards_folder(output).iterdir()} == before
    return str(caught.value)


# -- the folder --------------------------------------------------------------------------


def test_shards_come_back_and_more_can_be_added(output):
    first = written(output)
    assert shards_folder(output).name == "coco.json.shards"
    with Journal(output) as journal:
        journal.begin(RUN)
        second = save(journal.folder, "b.jpg")
        assert {path.name for path in journal.shards()} == {first.name, second.name}
        assert journal.shard(first.name) == first
        (journal.folder / second.name).write_bytes(b"x")
        with pytest.raises(InputError, match="is damaged; run the same command again"):
            journal.shard(second.name)


def test_the_header_is_json_with_a_checksum(output, header):
    written(output)
    line = header.read_bytes()
    found = json.loads(line)
    assert (found["command"], found["version"]) == ("predict", __version__)
    assert found["settings"] == {"prompts": ["cat"], "model": {"dtype": "float32"}}
    assert int(found["crc"], 16) == zlib.crc32(line[len('{"crc":"00000000",') : -1])


def test_leftovers_of_a_killed_run_are_deleted(output):
    shard = written(output)
    (shards_folder(output) / "0123.part").touch()
    with Journal(output) as journal:
        journal.begin(RUN)
    assert names(output) == sorted([shard.name, HEADER])


def test_a_run_killed_while_it_wrote_the_header_begins_anew(output, header):
    written(output)
    whole = header.read_bytes()
    for path in shards_folder(output).glob("*.json"):
        path.unlink()
    header.write_bytes(whole[:50])
    written(output, OTHER)
    assert json.loads(header.read_bytes())["command"] == "decode"


@pytest.mark.parametrize("how", ["bit", "empty", "short", "zeros", "foreign", "gone"])
def test_a_damaged_header_is_refused(output, header, how):
    written(output)
    line = header.read_bytes()
    middle = len(line) // 2
    header.write_bytes(
        {
            "bit": line[:middle] + bytes([line[middle] ^ 4]) + line[middle + 1 :],
            "empty": b"\n",
            "short": line[:-9] + b"\n",
            "zeros": bytes(len(line) - 1) + b"\n",
            "foreign": b'{"image": "mine"}\n',
            "gone": b"",
        }[how]
    )
    told = refused(output)
    assert told.startswith(f"{header}: is damaged; write to another -o, or discard that run")


def test_another_run_is_refused_with_what_differs(output):
    written(output)
    task = Header("predict", RUN.settings | {"task": "segment"}, RUN.hashes)
    told = refused(output, task)
    assert 'belongs to another run: task was null, now "segment". write to another -o' in told
    dtype = Header("predict", RUN.settings | {"model": {"dtype": "float16"}}, RUN.hashes)
    assert 'another run: dtype was "float32", now "float16".' in refused(output, dtype)
    model = Header("predict", RUN.settings, {"model": "11ff" * 16})
    assert "model was sha256 00ff00ff, now sha256 11ff11ff" in refused(output, model)
    told = refused(output, Header("decode", {"prompts": ["x" * 99], "more": 1, "most": None}, {}))
    assert 'command was predict, now decode; prompts was ["cat"], now ["xxx' in told
    assert "…; more was null, now 1; and 2 more. write" in told
    assert "now missing" in refused(output, Header("predict", RUN.settings, {}))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("version", "0.0.0", f"version was 0.0.0, now {__version__}."),
        ("settings", {}, 'prompts was null, now ["cat"]'),
        ("settings", [], "is not the header of a run"),
    ],
)
def test_other_versions_and_headers_are_refused(output, header, key, value, told):
    written(output)
    header.write_bytes(encode_row(RUN.as_row() | {key: value}))
    assert told in refused(output)


def test_what_is_no_header_is_left_alone(output, header):
    written(output)
    header.write_bytes(encode_row({"image": "a.jpg"}))
    assert "is not the header of a run" in refused(output)


def test_restart_discards(output):
    shard = written(output)
    with Journal(output) as journal:
        journal.begin(OTHER, restart=True)
        assert journal.shards() == []
        save(journal.folder)
    assert names(output) == sorted([shard.name, HEADER])
    with Journal(output) as journal:
        journal.begin(OTHER)


def test_two_at_once_are_refused(output):
    with Journal(output) as journal:
        journal.begin(RUN)
        with pytest.raises(InputError, match=r"coco\.json\.shards: another process is writing it"):
            Journal(output).__enter__()
        save(journal.folder)
    assert len(names(output)) == 2


def test_one_that_was_deleted_meanwhile_is_opened_again(output, header, monkeypatch):
    """The other process may end between our opening of the file and our locking it."""
    written(output)
    locked = []

    def flock(number, how):
        if not locked:
            for path in shards_folder(output).iterdir():
                path.unlink()
            shards_folder(output).rmdir()
        locked.append(number)

    monkeypatch.setattr(fcntl, "flock", flock)
    with Journal(output) as journal:
        journal.begin(OTHER)
        save(journal.folder)
    assert len(locked) == 2
    assert json.loads(header.read_bytes())["command"] == "decode"


def test_a_folder_without_shards_is_deleted_and_fits_any_run(output, header):
    with Journal(output):
        assert header.exists()
    assert not shards_folder(output).exists()
    with Journal(output) as journal:
        journal.begin(RUN)
        kept = header.read_bytes()
    assert not shards_folder(output).exists()
    shards_folder(output).mkdir()
    header.write_bytes(kept)  # as after a kill
    written(output, OTHER)
    with Journal(output) as journal:
        journal.begin(OTHER)


def test_a_removed_folder_is_not_the_next_ones(output):
    with Journal(output) as journal:
        journal.begin(RUN)
        save(journal.folder)
        output.write_text("{}")
        journal.remove(output)
        assert sorted(path.name for path in output.parent.iterdir()) == ["coco.json"]
        shard = written(output, OTHER)
    assert names(output) == sorted([shard.name, HEADER])
    assert read_shard(shards_folder(output) / shard.name) == shard


def test_a_folder_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"coco\.json\.shards: can't be written: "):
        Journal(tmp_path / "file" / "coco.json").__enter__()
    for folder in (tmp_path, Path(), Path("/")):
        with pytest.raises(InputError, match="is a directory; name a file to write"):
            Journal(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_are_hashed(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_files({"x": tmp_path / "a"})["x"].startswith("ba7816bf8f01cfea")
    with pytest.raises(InputError, match="nowhere: can't be read: No such file"):
        hash_files({"x": tmp_path / "nowhere"})


# -- what failed, what was left ------------------------------------------------------------


def test_failures_of_other_outputs_and_foreign_lines_stay(tmp_path):
    listed = tmp_path / FAILURES
    assert write_failures(tmp_path / "a.json", []) is None
    assert not listed.exists()
    assert write_failures(tmp_path / "a.json", [{"image": "ü.jpg", "reason": "cut"}]) == listed
    write_failures(tmp_path / "b.json", [{"image": "2.jpg", "reason": "cut"}])
    with listed.open("ab") as file:
        file.write(b"not \xff ours\n")
    write_failures(tmp_path / "a.json", [{"image": "3.jpg", "reason": "bomb"}])
    assert listed.read_bytes().splitlines() == [
        b'{"output": "b.json", "image": "2.jpg", "reason": "cut"}',
        b"not \xff ours",
        b'{"output": "a.json", "image": "3.jpg", "reason": "bomb"}',
    ]
    write_failures(tmp_path / "a.json", [])
    assert len(listed.read_bytes().splitlines()) == 2
    listed.write_text('{"output": "b.json", "image": "2.jpg", "reason": "cut"}\n')
    write_failures(tmp_path / "b.json", [])
    assert not listed.exists()


def test_a_torn_last_line_is_cut(tmp_path):
    listed = tmp_path / FAILURES
    whole = b'{"output": "b.json", "image": "1.jpg", "reason": "cut"}'
    for torn in (whole[:30], bytes(40), b"[", whole[:3]):
        listed.write_bytes(whole + b"\n" + torn)
        write_failures(tmp_path / "a.json", [])
        assert listed.read_bytes() == whole + b"\n"
    listed.write_bytes(whole)  # written by hand, without a line break at the end
    write_failures(tmp_path / "a.json", [])
    assert listed.read_bytes() == whole + b"\n"


def test_processes_that_end_together_lose_no_failures(tmp_path):
    code = "import sys; from pathlib import Path; from palidecode.runs.journal import *\n"
    code += "for row in range(30): write_failures(Path(sys.argv[1]), [{'line': row}])"
    names = [f"{number}.json" for number in range(4)]
    running = [subprocess.Popen([sys.executable, "-c", code, tmp_path / name]) for name in names]
    assert [process.wait() for process in running] == [0] * 4
    rows = [json.loads(line) for line in (tmp_path / FAILURES).read_text().splitlines()]
    assert sorted(row["output"] for row in rows) == names
    assert {row["line"] for row in rows} == {29}
    assert [path.name for path in tmp_path.iterdir()] == [FAILURES]


# -- file systems without locks ------------------------------------------------------------


@pytest.fixture(params=[errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def no_locks(request, monkeypatch):
    """Give the answer of Lustre's default, of NFS without lockd, and of some FUSE file systems."""

    def flock(number, how):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_file_names_the_owner(output):
    with Journal(output) as journal:
        journal.begin(RUN)
        save(journal.folder)
        owner = journal.folder / OWNER
        wanted = f"process {os.getpid()} on {platform.node()} is writing it, .* delete {owner}; or"
        with pytest.raises(InputError, match=wanted):
            Journal(output).__enter__()
        assert owner.exists()
    assert not owner.exists()
    with Journal(output) as journal:
        journal.begin(RUN)
        assert len(journal.shards()) == 1
        output.write_text("{}")
        journal.remove(output)
        with Journal(output) as another:
            another.begin(OTHER)
            save(another.folder)
            journal.__exit__()
            assert owner.exists()
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "coco.json",
        "coco.json.shards",
    ]


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_killed_run_is_for_the_user_to_judge(output):
    written(output)
    owner = shards_folder(output) / OWNER
    owner.write_text("process 7 on elsewhere\n")
    with pytest.raises(InputError, match="process 7 on elsewhere is writing it"):
        Journal(output).__enter__()
    owner.unlink()
    with Journal(output) as journal:
        journal.begin(RUN)
        assert len(journal.shards()) == 1


@pytest.mark.slow
def test_without_locks_pairs_of_runs_never_mix(tmp_path):
    """Both processes run the whole command; the kernel's answer is the one of such a disk."""
    answers = tmp_path / "answers.jsonl"
    row = {"output": answer("cat"), "width": 64, "height": 64}
    answers.write_text(
        "".join(json.dumps({**row, "image": f"{n}.jpg"}) + "\n" for n in range(3000))
    )
    code = "import errno, fcntl, sys\nfrom palidecode.cli import main\n"
    code += "def flock(number, how): raise OSError(errno.ENOTSUP, 'not supported')\n"
    code += "fcntl.flock = flock\nsys.exit(main())"
    contents = set()
    for number in range(6):
        output = tmp_path / str(number) / "coco.json"
        words = ["decode", answers, "-o", output, "--batch-size", "50"]
        pair = [
            subprocess.Popen(
                [sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        told = [process.communicate()[1] for process in pair]
        codes = sorted(process.returncode for process in pair)
        assert codes in ([0, 0], [0, 2]), told
        assert not any("Traceback" in text or "unexpected" in text for text in told)
        contents.add(output.read_bytes())
        assert [path.name for path in output.parent.iterdir()] == ["coco.json"]
    assert len(contents) == 1


# -- the command ---------------------------------------------------------------------------


def test_kept_shards_of_decode(tmp_path, capsys):
    answers = tmp_path / "answers.jsonl"
    row = {"output": answer("cat"), "width": 64, "height": 64}
    answers.write_text(json.dumps(row) + "\n{\n")
    words = ["decode", str(answers), "-o", str(tmp_path / "coco.json"), "--keep-journal"]
    assert main(words) == 1
    first = (tmp_path / "coco.json").read_bytes()
    (kept,) = shards_folder(tmp_path / "coco.json").glob("*.json")
    assert len(read_shard(kept)) == 2
    before = kept.stat().st_mtime_ns
    assert main(words) == 1
    assert kept.stat().st_mtime_ns == before
    assert "resuming: 1 row already finished" in capsys.readouterr().err
    assert (tmp_path / "coco.json").read_bytes() == first
    failed = json.loads((tmp_path / FAILURES).read_text())
    assert (failed["output"], failed["line"]) == ("coco.json", 2)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "answers.jsonl",
        "coco.json",
        "coco.json.shards",
        FAILURES,
    ]


def test_answers_from_a_pipe_are_read_once(tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = json.dumps({"output": answer("cat"), "width": 64, "height": 64})
    writing = threading.Thread(target=lambda: pipe.write_text(text))
    writing.start()
    assert main(["decode", str(pipe), "-o", str(tmp_path / "coco.json")]) == 0
    writing.join()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["coco.json", "pipe"]


def test_no_usable_row_leaves_only_the_list(tmp_path, capsys):
    answers = tmp_path / "answers.jsonl"
    answers.write_text("{\n")
    assert main(["decode", str(answers), "-o", str(tmp_path / "out" / "coco.json")]) == 2
    assert [file.name for file in (tmp_path / "out").iterdir()] == [FAILURES]
