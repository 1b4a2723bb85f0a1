"""Shards and the file merged of them: the one that a single writer makes."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from palidecode.coco.shards import (
    Merger,
    Result,
    Shard,
    ShardBuilder,
    key_of,
    read_keys,
    read_shard,
)
from palidecode.coco.writing import CocoOptions, CocoWriter, MaskFormat
from palidecode.detections import decode
from palidecode.errors import InputError
from tests.samples import answer

LABELS = ("cat", "Cats", "dog", "", "object", "zebra", "bike", 'a "quoted" label', "Hündchen\n")
BATCH = 12


def batches(seed, codec, count=6):
    """Detections and names of pictures, some of which come again."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        answers = []
        for _ in range(BATCH):
            boxes = rng.integers(0, 1024, (rng.integers(4), 4))
            boxes[1:].sort(axis=1)  # the first may have no area
            objects = [
                answer(
                    LABELS[rng.integers(len(LABELS))],
                    box.tolist(),
                    rng.integers(0, 128, 16).tolist() if rng.integers(2) else None,
                )
                for box in boxes
            ]
            answers.append(" ; ".join(objects) + " ; oh" * int(rng.integers(2)))
        names = [f"{rng.integers(20)}.jpg" for _ in answers]
        yield decode(answers, (64, 48), codec), names


def built(parts, options, each, start=0):
    """Shards of `each` batches."""
    builder = ShardBuilder(options)
    for number, (found, names) in enumerate(parts, 1):
        rows = range(start, start + len(names))
        builder.add([key_of(row) for row in rows], Result(found, range(len(names)), names, {}))
        start += len(names)
        if number % each == 0 or number == len(parts):
            yield builder.take()


def saved(folder, shard):
    """The shard as it is read again."""
    path = folder / shard.name
    shard.save(folder)
    assert read_shard(path) == shard
    assert read_keys(path) == (b"".join(shard.keys), [])
    assert len(json.loads(path.read_text())["annotations"]) == len(shard.texts)
    return read_shard(path)


def whole(path, parts, options):
    """What one writer makes of all, and its report."""
    names = ("categories", "match", "unmapped", "drop_empty")
    given = {name: getattr(options, name) for name in names}
    with CocoWriter(
        path, **given, aliases=options.aliases, form=options.form, info={"by": "me"}
    ) as writer:
        for found, names in parts:
            writer.add(found, names)
    return path.read_bytes(), vars(writer.report)


@pytest.mark.parametrize("form", ["rle", "polygons", "exact", "none"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"categories": ["dog", "cat", "bicycle"]},
        {"categories": ["dog", "cat", "bicycle"], "match": "loose"},
        {"categories": ["dog", "cat"], "unmapped": "drop"},
        {"categories": [{"id": 7, "name": "dog"}], "aliases": {"cat": "zebra", "Cats": "dog"}},
        {"drop_empty": True},
    ],
)
@pytest.mark.parametrize("each", [1, 2, 6])
def test_merged_shards_are_what_one_writer_writes(tmp_path, demo_codec, form, options, each):
    options = CocoOptions(**options, form=MaskFormat(form, min_area=3.0))
    parts = list(batches(3, demo_codec))
    wanted, report = whole(tmp_path / "one.json", parts, options)
    issues = Counter(issue.kind.value for found, _ in parts for _, issue in found.issues)
    rng = random.Random(each)
    for kind in ("in memory", "read", "cut"):
        merger = Merger(tmp_path / "merged.json", options, {"by": "me"})
        with merger:
            for made in built(parts, options, each):
                shard = made if kind == "in memory" else saved(tmp_path, made)
                cuts = [0, len(shard)]
                if kind == "cut":
                    cuts = sorted({*cuts, *rng.choices(range(len(shard)), k=3)})
                for first, stop in pairwise(cuts):
                    merger.add(shard, first, stop)
        assert (tmp_path / "merged.json").read_bytes() == wanted
        assert vars(merger.writer.report) == report
        assert merger.issues == issues
        assert (merger.rows, merger.failed) == (6 * BATCH, [])
    assert report["annotations"] > 10
    assert report["dropped_boxes" if options.drop_empty else "empty_boxes"] > 0
    assert report["empty_boxes" if options.drop_empty else "dropped_boxes"] == 0
    assert sum(issues.values()) > 10


@pytest.mark.parametrize("form", ["rle", "polygons"])
def test_any_rows_of_any_shards_are_merged(tmp_path, demo_codec, form):
    """Rows of two sets of shards, cut differently, in turns: what one writer makes of the rows."""
    options = CocoOptions(["dog"], unmapped="keep", form=MaskFormat(form))
    parts = list(batches(4, demo_codec))
    rows = [(found.image(row), [names[row]]) for found, names in parts for row in range(BATCH)]
    few, many = list(built(parts, options, 1)), list(built(parts, options, 3))
    rng = random.Random(form)
    merger = Merger(tmp_path / "merged.json", options, {"by": "me"})
    order, place = [], 0
    with merger:
        while place < len(rows):
            stop = min(place + rng.randrange(1, 9), len(rows))
            if rng.random() < 0.7:  # else these rows are gone
                order += range(place, stop)
                for row in range(place, stop):
                    shards, size = rng.choice([(few, BATCH), (many, 3 * BATCH)])
                    merger.add(shards[row // size], row % size, row % size + 1)
            place = stop
    wanted, report = whole(tmp_path / "one.json", [rows[row] for row in order], options)
    assert (tmp_path / "merged.json").read_bytes() == wanted
    assert vars(merger.writer.report) == report
    assert report["empty_boxes"] > 0


def shard_of(folder, *names, size=(64, 48), reasons=None, lines=()):
    builder = ShardBuilder(CocoOptions(form=MaskFormat("none")))
    bad = reasons or {}
    rows = [row for row in range(len(names)) if row not in bad]
    found = decode([answer("cat")] * len(rows), size)
    builder.add(
        [key_of(*names, row) for row in range(len(names))], Result(found, rows, names, bad, lines)
    )
    shard = builder.take()
    shard.save(folder)
    return folder / shard.name


def test_what_is_not_whole_is_no_shard(tmp_path):
    assert read_shard(tmp_path / "nothing.json") is None
    assert read_keys(tmp_path / "nothing.json") is None
    path = shard_of(tmp_path, "a.jpg", "b.jpg")
    data = path.read_bytes()
    for place in (0, 20, len(data) // 2, len(data) - 4):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert read_shard(path) is read_keys(path) is None
    path.write_bytes(data[:-1])
    assert read_shard(path) is read_keys(path) is None
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(data)
    assert read_shard(path) is not None
    with pytest.raises(InputError, match="can't be read"):
        read_shard(tmp_path)


def test_a_shard_that_can_not_be_written_is_an_error(tmp_path):
    with pytest.raises(InputError, match="can't be written"):
        shard_of(tmp_path / "nowhere", "a.jpg")


def merged(path, *parts, **options):
    merger = Merger(path, CocoOptions(), {}, **options)
    with merger:
        for shard in parts:
            merger.add(shard, 0, len(shard))
    return merger


def test_issues_are_reported_with_their_picture_or_line(tmp_path):
    builder = ShardBuilder(CocoOptions(form=MaskFormat("none")))
    found = decode([answer("cat"), f"{answer('cat')} ; hm"], (64, 48))
    builder.add([], Result(found, [0, 2], ["a.jpg", "b.jpg", "c.jpg"], {1: "no"}, [5, 6, 7]))
    shard = builder.take()
    for by, where in (("image", "c.jpg"), ("line", 7)):
        issues = []
        merged(tmp_path / "coco.json", shard, failed_by=by, on_issue=issues.append)
        assert issues == [{by: where, "kind": "stray_text", "span": [43, 45], "text": "hm"}]


def test_pictures_of_another_size_or_that_come_again_are_skipped(tmp_path):
    first = read_shard(shard_of(tmp_path, "a.jpg", "b.jpg", "a.jpg"))
    second = read_shard(shard_of(tmp_path, "b.jpg", "c.jpg", size=(32, 32)))
    path = tmp_path / "coco.json"
    merger = merged(path, first, second, failed_by="line")
    reason = "'b.jpg' is 32×32 here but 64×48 in an earlier row"
    assert merger.failed == [{"line": 4, "reason": reason}]
    dataset = json.loads(path.read_text())
    assert [image["file_name"] for image in dataset["images"]] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [row["image_id"] for row in dataset["annotations"]] == [1, 2, 1, 3]
    merger = merged(path, first, first, once=True)
    assert merger.failed == [
        {"image": name, "reason": f"a picture named '{name}' came before"}
        for name in ("a.jpg", "a.jpg", "b.jpg", "a.jpg")
    ]


def test_rows_that_failed_are_listed(tmp_path):
    names = ("a.jpg", "b.jpg", "\udcfc.jpg")
    reasons = {0: "cut", 2: "bomb"}
    path = shard_of(tmp_path, *names, reasons=reasons)
    assert read_keys(path)[1] == [0, 2]
    merger = merged(tmp_path / "coco.json", read_shard(path))
    wanted = [{"image": names[row], "reason": reason} for row, reason in reasons.items()]
    assert merger.failed == wanted
    assert merger.writer.report.images == 1
    merger = merged(tmp_path / "coco.json", read_shard(path), read_shard(path), failed_by="line")
    assert [row["line"] for row in merger.failed] == [1, 3, 4, 6]
    numbered = read_shard(shard_of(tmp_path, *names, reasons=reasons, lines=[7, 9, 12]))
    merger = merged(tmp_path / "coco.json", numbered, failed_by="line")
    assert merger.failed == [{"line": 7, "reason": "cut"}, {"line": 12, "reason": "bomb"}]


def test_a_builder_begins_anew():
    builder = ShardBuilder(CocoOptions(form=MaskFormat("none")))
    for label in ("cat", "dog"):
        found = decode([answer(label)], (64, 64))
        builder.add([key_of(label)], Result(found, [0], [f"{label}.jpg"], {}))
        shard = builder.take()
        assert (shard.labels, shard.images) == ([label], [(f"{label}.jpg", 64, 64)])
    assert builder.shard == Shard()
