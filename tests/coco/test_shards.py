"""Shards and the file merged of them: the one that a single writer makes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from palidecode.coco.shards import CocoShard, MergingCocoWriter, read_shard
from palidecode.coco.writing import CocoWriter, MaskFormat
from palidecode.detections import decode
from palidecode.errors import InputError
from tests.samples import answer

LABELS = ("cat", "Cats", "dog", "", "object", "zebra", "bike", 'a "quoted" label', "Hündchen\n")


def chunks(seed, codec, count=6, size=12):
    """Detections and names of pictures, some of which come again."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        answers = []
        for _ in range(size):
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
            answers.append(" ; ".join(objects))
        names = [f"{rng.integers(20)}.jpg" for _ in answers]
        yield decode(answers, (64, 48), codec), names


@pytest.mark.parametrize("form", ["rle", "polygons", "exact", "none"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"categories": ["dog", "cat", "bicycle"]},
        {"categories": ["dog", "cat", "bicycle"], "match": "loose"},
        {"categories": ["dog", "cat"], "unmapped": "drop"},
        {"categories": [{"id": 7, "name": "dog"}], "aliases": {"cat": "zebra", "Cats": "dog"}},
    ],
)
@pytest.mark.parametrize("each", [1, 2, 6])
def test_merged_shards_are_what_one_writer_writes(tmp_path, demo_codec, form, options, each):
    given = {**options, "form": MaskFormat(form, min_area=3.0)}
    parts = list(chunks(3, demo_codec))
    with CocoWriter(tmp_path / "one.json", info={"by": "me"}, **given) as alone:
        for found, names in parts:
            alone.add(found, names)
    with MergingCocoWriter(tmp_path / "merged.json", info={"by": "me"}, **given) as merging:
        for number in range(0, len(parts), each):
            shard = CocoShard(**given)
            with shard:
                for found, names in parts[number : number + each]:
                    shard.add(found, names)
                shard.note(number=number)
            path = tmp_path / f"{number}.json"
            shard.save(path)
            read = read_shard(path)
            assert read.said["number"] == number
            assert json.loads(path.read_text())["images"] == read.images
            assert merging.add_shard(read) == []
    wanted = (tmp_path / "one.json").read_bytes()
    assert (tmp_path / "merged.json").read_bytes() == wanted
    assert vars(merging.report) == vars(alone.report)
    assert alone.report.annotations > 10
    assert alone.report.empty_boxes > 0


def shard_of(path, *names, size=(64, 48)):
    shard = CocoShard(form=MaskFormat("none"))
    with shard:
        shard.add(decode([answer("cat")] * len(names), size), list(names))
        shard.note(failed=[])
    shard.save(path)
    return read_shard(path)


def test_what_is_not_whole_is_no_shard(tmp_path):
    path = tmp_path / "shard.json"
    assert read_shard(path) is None
    shard_of(path, "a.jpg", "b.jpg")
    data = path.read_bytes()
    for place in (0, 20, len(data) // 2, len(data) - 4):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert read_shard(path) is None
    path.write_bytes(data[:-1])
    assert read_shard(path) is None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["shard.json"]
    path.write_bytes(data)
    assert read_shard(path) is not None
    with pytest.raises(InputError, match="can't be read"):
        read_shard(tmp_path)


def test_a_shard_that_can_not_be_written_is_an_error(tmp_path):
    with pytest.raises(InputError, match="can't be written"):
        shard_of(tmp_path / "nowhere" / "shard.json", "a.jpg")


def test_pictures_of_another_size_or_that_come_again_are_left_out(tmp_path):
    first = shard_of(tmp_path / "1.json", "a.jpg", "b.jpg")
    second = shard_of(tmp_path / "2.json", "b.jpg", "c.jpg", size=(32, 32))
    with MergingCocoWriter(tmp_path / "coco.json", form=MaskFormat("none")) as writer:
        assert writer.add_shard(first) == []
        left_out = writer.add_shard(second)
        assert left_out == [(0, "'b.jpg' is 32×32 here but 64×48 in an earlier row")]
    dataset = json.loads((tmp_path / "coco.json").read_text())
    assert [image["file_name"] for image in dataset["images"]] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [row["image_id"] for row in dataset["annotations"]] == [1, 2, 3]
    with MergingCocoWriter(tmp_path / "once.json", once=True) as writer:
        writer.add_shard(first)
        assert writer.add_shard(first) == [
            (0, "a picture named 'a.jpg' came before"),
            (1, "a picture named 'b.jpg' came before"),
        ]
