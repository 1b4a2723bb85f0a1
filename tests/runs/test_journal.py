"""The journal and its rows; whole runs are in test_faults."""

from __future__ import annotations

import json
import os
import threading
import zlib

import numpy as np
import pytest

from palidecode.cli import main
from palidecode.detections import Detections, decode
from palidecode.errors import InputError
from palidecode.geometry.rle import Rle
from palidecode.runs.journal import (
    FAILURES,
    Header,
    Journal,
    encode_row,
    hash_files,
    journal_path,
    remove_leftovers,
    write_failures,
)
from palidecode.runs.prediction import PictureFile, detections_of, picture_rows
from palidecode.version import __version__
from tests.samples import CODES, answer

HEADER = Header("predict", {"task": "detect", "prompts": ("cat",)}, {"model": "00ff" * 16})
ROWS = [{"image": f"{number}.jpg", "boxes": [[0.1, 2, 3, 4]]} for number in range(5)]


@pytest.fixture
def path(tmp_path):
    return journal_path(tmp_path / "coco.json")


def written(path, rows=ROWS, header=HEADER):
    with Journal(path) as journal:
        journal.begin(header)
        journal.append(rows)
    return path


def read(path, header=HEADER):
    with Journal(path) as journal:
        went_on = journal.begin(header)
        rows = [row for _, row in journal.rows()]
        assert went_on == bool(rows)
        return rows


def refused(path, header=HEADER):
    kept = path.read_bytes()
    with pytest.raises(InputError) as caught:
        read(path, header)
    assert path.read_bytes() == kept
    return str(caught.value)


# -- the file ----------------------------------------------------------------------------


def test_rows_come_back_and_more_can_be_added(path):
    assert path.name == "coco.json.journal.jsonl"
    written(path)
    with Journal(path) as journal:
        assert journal.begin(HEADER)
        places = journal.append([{"image": "ü\udc80\n"}, {}])
        found = list(journal.rows())
        assert [row for _, row in found] == [*ROWS, {"image": "ü\udc80\n"}, {}]
        assert [place for place, _ in found][-2:] == places
        assert [journal.read(place) for place, _ in reversed(found)] == [
            row for _, row in reversed(found)
        ]


def test_every_line_is_json_with_a_checksum(path):
    first, *others = written(path).read_bytes().splitlines()
    assert [json.loads(line)["image"] for line in others] == [row["image"] for row in ROWS]
    head = json.loads(first)
    assert (head["palidecode_journal"], head["version"]) == (1, __version__)
    assert head["settings"]["prompts"] == ["cat"]
    for line in (first, *others):
        assert int(json.loads(line)["crc"], 16) == zlib.crc32(line[len('{"crc":"00000000",') :])


@pytest.mark.parametrize("lost", [1, 7, 40])
def test_the_torn_last_line_is_cut(path, lost):
    data = written(path).read_bytes()
    path.write_bytes(data[:-lost])
    assert read(path) == ROWS[:-1]
    assert path.read_bytes() == b"".join(data.splitlines(keepends=True)[:-1])


def test_a_torn_line_longer_than_a_block(path):
    with written(path).open("ab") as file:
        file.write(b'{"crc":"' + b"x" * 200_000)
    assert read(path) == ROWS


def test_a_run_killed_while_it_wrote_the_header_begins_anew(path):
    path.write_bytes(written(path).read_bytes()[:50])
    assert read(path) == []
    written(path)
    assert read(path) == ROWS


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("how", ["bit", "empty", "short", "zeros"])
def test_any_damaged_line_is_an_error_with_its_number(path, number, how):
    lines = written(path).read_bytes().splitlines(keepends=True)
    line = bytearray(lines[number - 1])
    line[len(line) // 2] ^= 4
    lines[number - 1] = {
        "bit": bytes(line),
        "empty": b"\n",
        "short": lines[number - 1][:-9] + b"\n",
        "zeros": bytes(len(line) - 1) + b"\n",
    }[how]
    path.write_bytes(b"".join(lines))
    assert refused(path).startswith(f"{path}: line {number} is damaged; delete it and all after")


def test_a_line_deleted_or_swapped_is_still_a_row(path):
    """Each row stands for itself: order and number are not the journal's business."""
    lines = written(path).read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[3], lines[1]]))
    assert [row["image"] for row in read(path)] == ["2.jpg", "0.jpg"]


def test_another_run_is_refused_and_what_differs_said(path):
    written(path)
    task = Header("predict", HEADER.settings | {"task": "segment"}, HEADER.hashes)
    assert 'another run: task was "detect", now "segment". write to another -o' in refused(
        path, task
    )
    model = Header("predict", HEADER.settings, {"model": "11ff" * 16})
    assert "model was sha256 00ff00ff, now sha256 11ff11ff" in refused(path, model)
    other = Header("decode", {"prompts": ["x" * 99], "more": 1, "most": None}, {})
    told = refused(path, other)
    assert 'command was predict, now decode; prompts was ["cat"], now ["xxx' in told
    assert "…; more was null, now 1; and 2 more. write" in told
    assert "now not there" in refused(path, Header("predict", HEADER.settings, {}))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("palidecode_journal", 2, "its schema is 2, not 1."),
        ("version", "0.0.0", f"version was 0.0.0, now {__version__}."),
        ("settings", {}, 'task was null, now "detect"'),
    ],
)
def test_other_schemas_and_versions_are_refused(path, key, value, told):
    row = HEADER.as_row() | {key: value}
    path.write_bytes(encode_row(row) + encode_row(ROWS[0]))
    assert told in refused(path)


def test_what_is_no_journal_is_left_alone(path):
    path.write_bytes(encode_row(ROWS[0]))
    assert "line 1 is not a journal's" in refused(path)
    path.write_text('{"image": "mine"}\n')
    assert "line 1 is damaged" in refused(path)


def test_restart_forgets(path):
    written(path)
    other = Header("decode", {}, {})
    with Journal(path) as journal:
        assert not journal.begin(other, restart=True)
    assert read(path, other) == []


def test_two_at_once_are_refused(path):
    with Journal(path) as journal:
        journal.begin(HEADER)
        with pytest.raises(InputError, match="another process is writing it"):
            Journal(path).__enter__()
    assert read(path) == []


def test_one_that_was_deleted_meanwhile_is_opened_again(path, monkeypatch):
    """The other process may end between our opening of the file and our locking it."""
    import fcntl

    written(path)
    locked = []

    def flock(number, how):
        if not locked:
            path.unlink()
        locked.append(number)

    monkeypatch.setattr(fcntl, "flock", flock)
    with Journal(path) as journal:
        assert not journal.begin(HEADER)
        journal.append(ROWS)
    assert len(locked) == 2
    assert len(path.read_bytes().splitlines()) == 6


def test_a_journal_without_rows_leaves_no_file_and_is_nobodys(path):
    with Journal(path):
        assert path.exists()
    assert not path.exists()
    with Journal(path) as journal:
        journal.begin(HEADER)
        kept = path.read_bytes()
    assert not path.exists()
    path.write_bytes(kept)  # as after a kill
    with Journal(path) as journal:
        assert not journal.begin(Header("decode", {}, {}))
        journal.append(ROWS)
    assert read(path, Header("decode", {}, {})) == ROWS


def test_a_removed_journal_is_not_the_next_ones(path):
    with Journal(path) as journal:
        journal.begin(HEADER)
        journal.remove()
        written(path)
    assert read(path) == ROWS


def test_a_place_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"journal\.jsonl: can't be written: "):
        Journal(journal_path(tmp_path / "file" / "coco.json")).__enter__()


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


def test_leftovers_of_dead_processes_are_deleted(tmp_path):
    dead, living, foreign = (
        tmp_path / f".coco.json.{number}.part" for number in (2**22 + 1, os.getpid(), "notes")
    )
    for file in (dead, living, foreign):
        file.touch()
    remove_leftovers(tmp_path / "coco.json")
    assert sorted(tmp_path.iterdir()) == sorted([living, foreign])


# -- rows of pictures ----------------------------------------------------------------------


def same(found: Detections, other: Detections) -> bool:
    arrays = ("xyxy", "scores", "image_index", "sizes", "codes", "has_mask")
    return (
        all(
            np.array_equal(a := getattr(found, name), b := getattr(other, name), equal_nan=True)
            and a.dtype == b.dtype
            for name in arrays[:2]
        )
        and all(
            np.array_equal(getattr(found, name), getattr(other, name))
            and getattr(found, name).dtype == getattr(other, name).dtype
            for name in arrays[2:]
        )
        and (found.labels, found.rles, found.issues) == (other.labels, other.rles, other.issues)
    )


def test_detections_to_rows_and_back_exactly():
    texts = [f"{answer('cat', codes=CODES)} ; {answer('dog')} ; oh", "", answer("ü \u2028")]
    found = decode(texts, [(333, 77), (64, 64), (1000, 3)], scores=[[0.1, 1 / 3], [], None])
    pictures = [PictureFile(None, f"{number}.jpg") for number in range(3)]
    rows = json.loads(json.dumps(picture_rows(pictures, found), allow_nan=False))
    assert same(detections_of(rows, codes_id=found.codes_id), found)
    assert [row["image"] for row in rows] == ["0.jpg", "1.jpg", "2.jpg"]
    assert rows[0]["masks"] == [bytes(CODES).hex(), None]
    assert rows[0]["issues"][0][0] == "stray_text"
    assert rows[2]["scores"] == [None]
    assert same(detections_of([]), decode([], []))


def test_rows_with_rle():
    rle = Rle(size=[64, 64], counts="PPP1")
    found = decode([f"{answer('cat')} ; {answer('dog')}"], [(64, 64)])
    found.has_mask[0] = True
    given = Detections(**{**vars(found), "rles": [rle, None]})
    rows = json.loads(json.dumps(picture_rows([PictureFile(None, "a")], given)))
    assert same(detections_of(rows), given)


# -- the command ---------------------------------------------------------------------------


def test_a_kept_journal_of_decode(tmp_path, capsys):
    answers = tmp_path / "answers.jsonl"
    row = {"output": answer("cat"), "width": 64, "height": 64}
    answers.write_text(json.dumps(row) + "\n{\n")
    words = ["decode", str(answers), "-o", str(tmp_path / "coco.json"), "--keep-journal"]
    assert main(words) == 1
    first = (tmp_path / "coco.json").read_bytes()
    kept = journal_path(tmp_path / "coco.json").read_bytes()
    assert json.loads(kept.splitlines()[-1])["rows"] == 2
    assert main(words) == 1
    assert (tmp_path / "coco.json").read_bytes() == first
    failed = json.loads((tmp_path / FAILURES).read_text())
    assert (failed["output"], failed["line"]) == ("coco.json", 2)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "answers.jsonl",
        "coco.json",
        "coco.json.journal.jsonl",
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
