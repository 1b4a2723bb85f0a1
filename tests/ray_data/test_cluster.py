"""Ray's workers, and a machine without Ray: nothing here starts one."""

import gzip
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from palidecode import ray_data
from palidecode.cli import main
from palidecode.errors import InputError
from palidecode.ray_data.cluster import Workers
from palidecode.ray_data.sources import answers_of, records_of
from palidecode.runs.answers import DecodeJob, DecodeOptions
from tests.samples import answer, written


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
        ({"concurrency": (0, 2)}, "concurrency must be at least 1"),
        ({"concurrency": (3, 2)}, "concurrency must be at least 1"),
        ({"num_cpus": 0}, "num_cpus above 0"),
        ({"num_gpus": -1}, "num_gpus from 0"),
    ],
)
def test_workers_that_can_not_be(options, told):
    with pytest.raises(InputError, match=told):
        Workers(**options)


def test_what_a_worker_asks_for():
    assert Workers().remote_args() == {"num_cpus": 1.0}
    assert Workers(2, 0.5, 1).remote_args() == {"num_cpus": 0.5, "num_gpus": 1}
    assert [Workers(num_cpus=cpus).threads for cpus in (0.5, 1, 3.9)] == [1, 1, 3]


def test_without_ray_the_pip_line_is_named(monkeypatch, capsys, tmp_path):
    path = written(tmp_path, [{"output": answer("cat"), "width": 8, "height": 8}])
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'palidecode\[ray\]'"):
        ray_data.decode(path)
    assert main(["decode", str(path), "-o", str(tmp_path / "coco.json"), "--ray"]) == 2
    assert "pip install 'palidecode[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"images": []}, "no images with a usable name"),
        ({"images": [{"id": 1}]}, r"images\[0\]: no file_name"),
        ({"images": [{"id": 1, "file_name": "../a.png"}]}, "leads out of"),
        ({"images": [7]}, "not an object: 7"),
        ({"annotations": []}, "no list of 'images'"),
        ([], "is a results list"),
    ],
)
def test_coco_files_without_pictures(tmp_path, content, told):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=told):
        ray_data.read_coco(path, tmp_path)


def as_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


KINDS = {
    "rows.jsonl": lambda path, rows: path.write_text("\n".join(map(json.dumps, rows))),
    "rows.json": lambda path, rows: path.write_text(json.dumps(rows)),
    "gzip.jsonl": lambda path, rows: path.write_bytes(gzip.compress(json.dumps(rows[0]).encode())),
    "rows.parquet": as_parquet,
}


@pytest.mark.parametrize("name", KINDS)
def test_keys_of_a_file_that_mean_something_inside_are_passed_over(tmp_path, name):
    rows = [{"image": "a.png", "output": answer("cat"), "width": 8, "height": 8}]
    rows[0] |= {"problem": "it rains", "line": 99}
    KINDS[name](tmp_path / name, rows)
    source, reader = answers_of(tmp_path / name, DecodeOptions())
    job = DecodeJob(DecodeOptions(), reader)
    ((row,),) = [list(map(job.item, records_of(part))) for part in source.shards(9, job.columns)]
    assert (row.name, row.answer, row.size) == ("a.png", answer("cat"), (8, 8))
    assert row.line == (0 if name.endswith(".parquet") else 1)
