"""Ray's workers, and a machine without Ray: nothing here starts one."""

import json
import sys

import pytest

from palidecode import ray_data
from palidecode.cli import main
from palidecode.errors import InputError
from palidecode.ray_data.cluster import Workers
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
