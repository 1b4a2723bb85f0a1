"""The Ray path: the very files of the single machine, from every source. On a real local Ray."""

from __future__ import annotations

import io
import json
import re
import tarfile
import warnings

import numpy as np
import pytest
from PIL import Image

from palidecode import evaluate_coco, ray_data
from palidecode.cli import main
from palidecode.errors import InputError
from palidecode.ray_data.cluster import Workers
from tests.ray_data.samples import (
    ANSWERS,
    MAKE,
    MARKS,
    PICTURES,
    WORDS_OF,
    WORKERS,
    decode_words,
    decoded,
    failures,
    one,
    pictures_of,
    predict_words,
    predicted,
    same,
)
from tests.samples import answer

pytestmark = MARKS


@pytest.mark.parametrize("name", ["decoded", "predicted"])
def test_the_file_is_that_of_one_machine(place, tmp_path, name):
    written = ray_data.write_coco(MAKE[name](place), tmp_path / f"{name}.json")
    same(place, tmp_path, name)
    dataset = json.loads(one(place, name)[0])
    assert written.report.annotations == len(dataset["annotations"]) > 30
    with_area = [found for found in dataset["annotations"] if min(found["bbox"][2:]) > 0]
    assert all(found["segmentation"] for found in with_area)
    assert written.kept == 0
    assert written.rows == {"decoded": ANSWERS, "predicted": PICTURES}[name]
    assert len(written.failed) == {"decoded": 24, "predicted": 5}[name]


@pytest.mark.parametrize("name", ["decoded", "predicted"])
def test_the_command_with_one_option_more(place, tmp_path, name, capsys):
    words = WORDS_OF[name](place, tmp_path / f"{name}.json")
    assert main([*words, "--ray", "auto", "--workers", "2", "--worker-cpus", "0.5"]) == 1
    same(place, tmp_path, name)
    mine = capsys.readouterr()
    assert main(WORDS_OF[name](place, tmp_path / "again" / f"{name}.json")) == 1
    theirs = capsys.readouterr()
    # Without a terminal a slow run also prints its progress.
    said = [
        [line for line in err.splitlines() if not re.search(r": loading |ing: \d", line)]
        for err in (mine.err, theirs.err)
    ]
    assert said[0] == said[1] != []
    objects, where = mine.out.splitlines()[0].split(" in ")
    assert theirs.out.startswith(f"{objects} in ")
    assert where == str(tmp_path / f"{name}.json")


# -- sources -----------------------------------------------------------------------------


def records(place):
    """The answers as `json` reads them, without broken lines."""
    found = []
    for number, line in enumerate((place / "answers.jsonl").read_text().split("\n"), 1):
        if line.endswith("}"):
            found.append((number, json.loads(line)))
    return found


def usable(place, tmp_path):
    """A file of the usable answers alone, and what one machine makes of it."""
    path = tmp_path / "usable.jsonl"
    path.write_text("\n".join(json.dumps(row) for _, row in records(place)))
    words = decode_words(place, tmp_path / "usable.json")
    words[1] = str(path)
    assert main(words) == 0  # whatever is left out is so by design
    return path, (tmp_path / "usable.json").read_bytes()


def test_jsonl_in_pieces_and_parquet_give_the_same(place, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, wanted = usable(place, tmp_path)
    lines = path.read_text().splitlines()
    (tmp_path / "pieces").mkdir()
    (tmp_path / "parquet").mkdir()
    for number, start in enumerate(range(0, len(lines), 50)):
        rows = lines[start : start + 50]
        (tmp_path / "pieces" / f"{number}.jsonl").write_text("\n".join(rows) + "\n")
        table = pa.Table.from_pylist([json.loads(row) for row in rows])
        pq.write_table(table, tmp_path / "parquet" / f"{number}.parquet", row_group_size=7)
    pieces = ray_data.read_jsonl(tmp_path / "pieces")
    assert [row["line"] for row in pieces.take_all()] == list(range(1, len(lines) + 1))
    parquet = ray_data.read_parquet(tmp_path / "parquet")
    for source in (pieces, parquet):
        written = ray_data.write_coco(decoded(place, source), tmp_path / "coco.json")
        assert written.failed == []
        assert (tmp_path / "coco.json").read_bytes() == wanted


def test_values_of_other_types_are_problems(place, tmp_path):
    rows = [
        {"image": "a.png", "width": 320, "height": 240, "output": answer("cat")},
        {"image": "b.png", "width": "abc", "height": 240, "output": answer("cat")},
        {"image": "c.png", "width": 1 << 70, "height": 1, "output": 7},
        {"image": "\ud800.png", "width": 320, "height": 240, "output": answer("cat")},
        {"image": 5, "width": 320, "height": 240, "output": answer("cat")},
        {"image": "d.png", "width": 320, "height": 240, "prediction": answer("dog"), "bytes": 3},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    words = decode_words(place, tmp_path / "rows.json")
    words[1] = str(path)
    assert main(words) == 1
    wanted = (tmp_path / "rows.json").read_bytes(), failures(tmp_path, "rows")
    assert [row["line"] for row in wanted[1]] == [2, 3, 5]
    ray_data.write_coco(decoded(place, path), tmp_path / "rows.json")
    assert ((tmp_path / "rows.json").read_bytes(), failures(tmp_path, "rows")) == wanted
    # A Dataset holds no half characters.
    written = ray_data.write_coco(decoded(place, ray_data.read_jsonl(path)), tmp_path / "b.json")
    assert [row["line"] for row in written.failed] == [2, 3, 4, 5]


@pytest.mark.parametrize("name", ["answers.parquet", "answers.tar"])
def test_relative_and_damaged_files(place, tmp_path, name, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {"image": "a.png", "width": 320, "height": 240, "output": answer("cat")}
    path = tmp_path / name
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as tar:
            add(tar, "a.json", json.dumps(row).encode())
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    monkeypatch.chdir(tmp_path)
    read = {".tar": ray_data.read_webdataset, ".parquet": ray_data.read_parquet}[path.suffix]
    found = [decoded(place, source) for source in (name, read(name))]
    monkeypatch.chdir("/")  # as a worker on another machine
    for one_found in found:
        written = ray_data.write_coco(one_found, tmp_path / "coco.json")
        assert (written.report.annotations, written.failed) == (1, [])
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=rf"^.*{name}: can't be read: [^\n]*$"):
        ray_data.write_coco(decoded(place, path), tmp_path / "coco.json")


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_rows_of_other_keys_in_every_kind_of_file(place, tmp_path, monkeypatch, kind):
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    for n, size in enumerate([(30, 20), (64, 48)]):
        Image.new("RGB", size).save(tmp_path / f"{n}.png")
    rows = [{"image_path": f"{n % 2}.png", "text": answer(f"thing {n}")} for n in range(5)]
    rows = [{**row, "prediction": row["text"], "suffix": answer("truth")} for row in rows]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = "\n".join(map(json.dumps, rows))
        path.write_text(json.dumps(rows) if kind == "json" else lines)
    monkeypatch.chdir(tmp_path)
    words = ["decode", path.name, "-o"]
    assert main([*words, "one.json"]) == 0
    assert main([*words, "ray.json", "--ray", "auto", "--workers", "1"]) == 0
    wanted = (tmp_path / "one.json").read_bytes()
    assert (tmp_path / "ray.json").read_bytes() == wanted
    assert b'"thing 4"' in wanted
    if kind in ("jsonl", "csv"):  # lines, and rows that the driver reads
        rows = ray_data.decode(path, concurrency=1).dataset().take_all()
        assert [row["labels"] for row in rows] == [[f"thing {n}"] for n in range(5)]
    key = ["--output-key", "suffix", "--image-key", "image_path"]
    assert main([*words, "ray.json", "--ray", "auto", "--workers", "1", *key]) == 0
    assert b'"truth"' in (tmp_path / "ray.json").read_bytes()


def test_answers_that_differ_are_refused_before_a_worker_starts(place, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"image": "a", "text": answer("a"), "answer": answer("b")}))
    with pytest.raises(InputError, match="'text' and 'answer' differ"):
        ray_data.decode(path)
    assert ray_data.decode(path, output_key="text").job.reader.outputs == ("text",)


def add(tar, name, data):
    item = tarfile.TarInfo(name)
    item.size = len(data)
    tar.addfile(item, io.BytesIO(data))


def test_webdataset_parquet_and_coco_files_of_pictures(place, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = place / "pictures"
    found = pictures_of(place)
    with tarfile.open(tmp_path / "pictures.tar", "w") as tar:
        for name, path in found:
            add(tar, name, path.read_bytes())
    rows = [{"image": name, "bytes": path.read_bytes()} for name, path in found]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pictures.parquet", row_group_size=9)
    images = [{"id": n, "file_name": name} for n, (name, _) in enumerate(found)]
    (tmp_path / "truth.json").write_text(json.dumps({"images": images}))
    lines = [json.dumps({"image": name}) for name, _ in found]
    (tmp_path / "names.jsonl").write_text("\n".join(lines))
    for name in ("pictures.tar", "pictures.parquet"):
        job = predicted(place, tmp_path / name, concurrency=1)
        written = ray_data.write_coco(job, tmp_path / "out" / "predicted.json")
        assert (tmp_path / "out" / "predicted.json").read_bytes() == one(place, "predicted")[0]
        assert [row["image"] for row in written.failed] == [
            row["image"] for row in one(place, "predicted")[1]
        ]
        assert all("can't be read as a picture" in row["reason"] for row in written.failed)
    wanted = [(name, str(path)) for name, path in found]
    for source in (
        ray_data.read_pictures(folder),
        ray_data.read_coco(tmp_path / "truth.json", folder),
        ray_data.read_jsonl(tmp_path / "names.jsonl", folder, pictures=True),
    ):
        assert [(row["image"], row["path"]) for row in source.take_all()] == wanted


def test_webdataset_of_answers(place, tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (320, 240)).save(picture, "PNG")
    rows = [{**row, "image": f"{number}.png"} for number, row in records(place)[:40]]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    words = decode_words(place, tmp_path / "coco.json")
    words[1] = str(path)
    assert main(words) == 0  # boxes without an area are written
    wanted = (tmp_path / "coco.json").read_bytes()
    with tarfile.open(tmp_path / "answers.tar", "w") as tar:
        for number, row in enumerate(rows):
            key = row["image"].removesuffix(".png")
            add(tar, f"{key}.png", picture.getvalue())
            if number % 2:
                add(tar, f"{key}.txt", row["output"].encode())
            else:
                plain = {"output": row["output"], "width": None, "height": None}
                add(tar, f"{key}.json", json.dumps(plain).encode())
        add(tar, "broken.json", b"[")
    written = ray_data.write_coco(decoded(place, tmp_path / "answers.tar"), tmp_path / "coco.json")
    assert (tmp_path / "coco.json").read_bytes() == wanted
    (failed,) = written.failed
    assert failed["line"] == 41
    assert failed["reason"].startswith("not JSON")


# -- sinks -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["decoded", "predicted"])
def test_parquet_and_datasets_have_the_same_objects(place, tmp_path, name):
    import pyarrow.parquet as pq
    import ray.data

    found = MAKE[name](place)
    ray_data.write_parquet(found, tmp_path / "rows")
    with pytest.raises(InputError, match="exists; name a new folder"):
        ray_data.write_parquet(found, tmp_path / "rows")
    rows = pq.read_table(tmp_path / "rows").to_pylist()
    assert len(rows) == {"decoded": ANSWERS, "predicted": PICTURES}[name]
    dataset = json.loads(one(place, name)[0])
    with_area = [row["bbox"] for row in dataset["annotations"] if min(row["bbox"][2:]) > 0]
    boxes = sorted(box[:2] for box in with_area)
    said = [box[:2] for row in rows for box in row["boxes"] if box[2] > box[0] and box[3] > box[1]]
    np.testing.assert_allclose(sorted(np.round(said, 3).tolist()), boxes, atol=1e-3)
    failed = [row for row in rows if row["reason"] is not None]
    assert len(failed) == len(one(place, name)[1])
    # Rows of a Dataset, which may have gone through anything: the same file again.
    for path in (tmp_path / "rows").iterdir():
        assert path.suffix == ".parquet"
    again = ray.data.from_items(rows)
    ray_data.write_coco(again, tmp_path / "coco.json", unmapped="keep")
    wanted = json.loads(one(place, name)[0])
    made = json.loads((tmp_path / "coco.json").read_text())
    assert made["images"] == wanted["images"]
    assert [row["segmentation"] for row in made["annotations"]] == [
        row["segmentation"] for row in wanted["annotations"]
    ]


def test_evaluate_is_evaluate_coco(place, tmp_path):
    truth = json.loads(one(place, "decoded")[0])
    del truth["info"]
    for found in truth["annotations"]:
        found["bbox"][0] += 2
    for iou_type in ("bbox", "segm"):
        given = {"scores": "ignore", "orders": 2, "iou_type": iou_type}
        mine = ray_data.evaluate(truth, decoded(place), **given)
        theirs = evaluate_coco(truth, place / "one" / "decoded.json", **given)
        np.testing.assert_array_equal(mine.stats, theirs.stats)
        assert mine.stats[0] > 0.05  # boxes without an area count as wrong
    ray_data.evaluate(truth, decoded(place), path=tmp_path / "decoded.json", **given)
    same(place, tmp_path, "decoded")


# -- what is told ------------------------------------------------------------------------


def test_errors_of_workers_are_one_line(place, tmp_path):
    with pytest.raises(
        InputError, match=r"^the label 'thing \d' is not among the categories \(1\)"
    ):
        ray_data.write_coco(
            decoded(place), tmp_path / "a.json", categories=["cat"], unmapped="error"
        )
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"output": \n' * 3)
    with pytest.raises(InputError, match=r"nothing could be read; .*b\.json was not written"):
        ray_data.write_coco(decoded(place, broken), tmp_path / "b.json")
    assert len(failures(tmp_path, "b")) == 3
    assert not (tmp_path / "b.json").exists()


def test_warnings_and_pictures_of_two_sizes_are_told(place, tmp_path):
    rows = [
        {"image": f"{n % 30}.png", "width": 64, "height": 64 + (n == 40), "output": answer("cat")}
        for n in range(50)
    ]
    rows[3]["output"] = answer("cat", codes=[7] * 16)
    path = tmp_path / "sizes.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = ray_data.decode(path, batch_size=8, shard_size=16, **WORKERS)
    with pytest.warns(UserWarning, match="these seg codes belong to 'google-oid'"):
        written = ray_data.write_coco(found, tmp_path / "coco.json")
    reason = "'10.png' is 64×65 here but 64×64 in an earlier row"
    assert written.failed == [{"line": 41, "reason": reason}]
    words = ["decode", str(path), "-o", str(tmp_path / "one.json"), "--segmentation", "rle"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(words) == 1
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "coco.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"shard_size": 0}, "shard_size must be at least 1"),
    ],
)
def test_options_that_can_not_be(place, options, told):
    with pytest.raises(InputError, match=told):
        decoded(place, **options)


def test_more_workers_than_fit_do_not_wait_for_each_other(place, tmp_path):
    assert ray_data.decode(place / "answers.jsonl").workers.number(spare=False) == 1
    assert Workers(5).number(spare=False) == 5
    assert Workers(5).number(spare=True) == 1
    assert [Workers((few, 8)).number(spare=False) for few in (1, 3)] == [1, 3]
    for source in (None, ray_data.read_jsonl(place / "answers.jsonl")):
        found = decoded(place, source, concurrency=5, num_cpus=1)
        with pytest.warns(UserWarning, match="workers that fit now: [12] of 5; the others"):
            ray_data.write_coco(found, tmp_path / "decoded.json")
        same(place, tmp_path, "decoded")
    with pytest.warns(UserWarning, match="no machine of the cluster has 1 CPUs and 3 GPUs"):
        Workers(1, num_gpus=3).note(spare=False)


def test_sources_that_can_not_be(place, tmp_path):
    for source, told in (
        (tmp_path / "nothing.jsonl", "no such file or folder"),
        (tmp_path / "nothing.parquet", "no such file or folder"),
        (place / "pictures", "answers come in .jsonl, .json, .csv, .parquet or .tar"),
    ):
        with pytest.raises(InputError, match=told):
            ray_data.decode(source)
    with pytest.raises(InputError, match="where are the pictures of the COCO file"):
        predicted(place, place / "one" / "decoded.json")
    (tmp_path / "bad.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "../a.png"}]}))
    with pytest.raises(InputError, match="leads out of the folder"):
        predicted(place, tmp_path / "bad.json", images=place / "pictures")


@pytest.mark.parametrize("more", [["--overlay", "x"], ["--no-journal"]])
def test_what_a_cluster_does_not_do_is_said(place, tmp_path, more, capsys):
    words = predict_words(place, tmp_path / "coco.json")
    assert main([*words, *more, "--ray", "auto"]) == 2
    assert more[0] in capsys.readouterr().err


def test_a_coco_file_on_the_command_line(place, tmp_path, capsys):
    names = [name for name, _ in pictures_of(place)]
    listed = tmp_path / "truth.json"
    listed.write_text(
        json.dumps({"images": [{"id": n, "file_name": name} for n, name in enumerate(names)]})
    )
    words = predict_words(place, tmp_path / "out" / "predicted.json")
    words[1] = str(listed)
    ray = ["--ray", "auto", "--workers", "2", "--worker-cpus", "0.5"]
    assert main([*words, *ray]) == 2
    assert "where are the pictures of the COCO file" in capsys.readouterr().err
    assert main([*words, *ray, "--pictures", str(place / "pictures")]) == 1
    same(place, tmp_path / "out", "predicted")
    assert main([*words, "--pictures", str(place / "pictures")]) == 2
    assert "--pictures needs --ray" in capsys.readouterr().err


def test_rows_of_several_pictures(place, tmp_path):
    names = [name for name, _ in pictures_of(place)][:8]
    pairs = zip(names[::2], names[1::2], strict=True)
    rows = [{"images": [one, other], "box_image": n % 2} for n, (one, other) in enumerate(pairs)]
    path = place / "pictures" / "pairs.jsonl"  # where both find the pictures
    path.write_text("\n".join(map(json.dumps, [*rows, {"images": names[:2]}])))
    words = predict_words(place, tmp_path / "one.json")
    words[1] = str(path)
    assert main(words) == 1  # the last row names no picture for its boxes
    alone = (tmp_path / "one.json").read_bytes()
    words[words.index("-o") + 1] = str(tmp_path / "ray.json")
    words += ["--ray", "auto", "--workers", "2", "--worker-cpus", "0.5"]
    assert main([*words, "--pictures", str(place / "pictures")]) == 1
    path.unlink()
    assert (tmp_path / "ray.json").read_bytes() == alone
    assert len(json.loads(alone)["images"]) == 4


def test_tiles_and_a_second_look(place, tmp_path):
    looks = ["--tiles", "2x1", "--overlap", "0.1", "--zoom"]
    words = predict_words(place, tmp_path / "one.json") + looks
    assert main(words) == 1  # some pictures can't be read
    options = {"tiles": "2x1", "overlap": 0.1, "zoom": True}
    ray_data.write_coco(predicted(place, **options), tmp_path / "ray.json")
    assert (tmp_path / "ray.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert (tmp_path / "ray.json").read_bytes() != one(place, "predicted")[0]
