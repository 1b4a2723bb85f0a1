"""The COCO file that goes on after a cut, wherever it was."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress

import pytest

from palidecode.answers.jsonl import Problem
from palidecode.coco.writing import CocoWriter, MaskFormat
from palidecode.detections import decode
from palidecode.errors import InputError
from palidecode.runs.journal import Header, Journal, journal_path
from palidecode.runs.resuming import ResumableCocoWriter, beside
from tests.samples import CODES, answer

HEADER = Header("predict", {"task": "detect", "prompts": ("cat",)}, {"model": "00ff" * 16})

TEXTS = [
    f"{answer(f'label {number % 7}', codes=CODES if number % 3 else None)} ; "
    f"{answer('cat', (9, 9, 3, 3))}"
    for number in range(40)
]


@pytest.fixture
def path(tmp_path):
    return journal_path(tmp_path / "coco.json")


def chunks():
    for start in range(0, len(TEXTS), 5):
        found = decode(TEXTS[start : start + 5], (64, 48), codes_id="palidecode-demo")
        # Several answers about one picture.
        yield found, [f"{(start + place) // 2}ü.jpg" for place in range(5)]


OPTIONS = {"categories": ["cat", "label 3"], "form": MaskFormat("rle")}


def uninterrupted(tmp_path):
    with CocoWriter(tmp_path / "whole.json", **OPTIONS) as writer:
        for found, names in chunks():
            writer.add(found, names)
    return (tmp_path / "whole.json").read_bytes(), vars(writer.report)


class PowerCut(Exception):
    pass


@pytest.mark.filterwarnings("ignore::palidecode.detections.CodecMismatchWarning")
def test_writing_goes_on_wherever_it_was_cut(tmp_path, path):
    wanted, report = uninterrupted(tmp_path)
    output = tmp_path / "coco.json"
    for cut in range(9):
        for unsaid in (0, 2):  # chunks that were written but not said in the journal
            with Journal(path) as journal:
                journal.begin(HEADER)
                with (
                    suppress(PowerCut),
                    ResumableCocoWriter(output, journal, **OPTIONS) as writer,
                ):
                    for number, (found, names) in enumerate(chunks()):
                        if number == cut:
                            raise PowerCut
                        writer.add(found, names)
                        writer.progress.rows += 5
                        writer.progress.issues["odd"] += 1
                        writer.progress.problems.append(Problem(number, "why"))
                        if number < cut - unsaid:
                            writer.checkpoint(now=True)
                    raise PowerCut
                assert not output.exists()
            with Journal(path) as journal:
                assert journal.begin(HEADER) == (cut > unsaid)
                with ResumableCocoWriter(output, journal, **OPTIONS) as writer:
                    done = writer.progress.rows // 5
                    assert done == max(0, min(cut, 8) - unsaid)
                    assert writer.progress.issues == Counter({"odd": done} if done else {})
                    assert writer.progress.problems == [Problem(n, "why") for n in range(done)]
                    for found, names in list(chunks())[done:]:
                        writer.add(found, names)
                assert vars(writer.report) == report
                journal.remove(output)
            assert output.read_bytes() == wanted
            output.unlink()
            assert [file.name for file in tmp_path.iterdir()] == ["whole.json"]


def half(tmp_path, path):
    """A journal and parts of an output that is half done."""
    with Journal(path) as journal:
        journal.begin(HEADER)
        with (
            suppress(PowerCut),
            ResumableCocoWriter(tmp_path / "coco.json", journal, **OPTIONS) as writer,
        ):
            found, names = next(chunks())
            writer.add(found, names)
            writer.progress.rows = 5
            writer.checkpoint(now=True)
            raise PowerCut


@pytest.mark.filterwarnings("ignore::palidecode.detections.CodecMismatchWarning")
@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("annotations", lambda data: data[:-1], "is shorter than the journal says"),
        ("images", lambda data: b"", "is shorter than the journal says"),
        ("annotations", lambda data: data.replace(b"\n", b" ", 1), "is not as the journal says"),
        ("images", lambda data: data.replace(b"{", b"[", 1), "is not as the journal says"),
    ],
)
def test_damaged_parts_are_refused(tmp_path, path, kind, change, told):
    half(tmp_path, path)
    part = beside(tmp_path / "coco.json", kind)
    part.write_bytes(change(part.read_bytes()))
    with Journal(path) as journal:
        journal.begin(HEADER)
        writer = ResumableCocoWriter(tmp_path / "coco.json", journal, **OPTIONS)
        with pytest.raises(InputError, match=f"{told}.*--restart"):
            writer.__enter__()


@pytest.mark.filterwarnings("ignore::palidecode.detections.CodecMismatchWarning")
def test_without_the_annotations_it_begins_anew(tmp_path, path):
    """As after a kill between the output's appearing and the journal's going."""
    half(tmp_path, path)
    beside(tmp_path / "coco.json", "annotations").unlink()
    with Journal(path) as journal:
        assert journal.begin(HEADER)
        with ResumableCocoWriter(tmp_path / "coco.json", journal, **OPTIONS) as writer:
            assert writer.progress.rows == 0
            for found, names in chunks():
                writer.add(found, names)
    assert (tmp_path / "coco.json").read_bytes() == uninterrupted(tmp_path)[0]


def test_names_that_are_no_utf8_are_written(tmp_path):
    with CocoWriter(tmp_path / "coco.json") as writer:
        writer.add(decode([answer("cat")], [(64, 64)]), ["\udce4ü.jpg"])
    dataset = json.loads((tmp_path / "coco.json").read_text(encoding="utf-8"))
    assert dataset["images"][0]["file_name"] == "\udce4ü.jpg"
