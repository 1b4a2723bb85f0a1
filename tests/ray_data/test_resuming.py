"""A run that was begun on one machine is finished on Ray, and the other way round."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from PIL import Image

from palidecode import ray_data
from palidecode.cli import main
from palidecode.coco.writing import CocoOptions, MaskFormat
from palidecode.errors import InputError
from palidecode.ray_data.running import write
from palidecode.runs.journal import FAILURES, shards_folder
from palidecode.runs.local import RunOptions, Watch
from palidecode.runs.stopping import StopAsked
from tests.ray_data.samples import (
    BATCH,
    MAKE,
    MARKS,
    PICTURES,
    WORDS_OF,
    one,
    pictures_of,
    predict_words,
    predicted,
    printed,
    same,
)

pytestmark = MARKS
KEEP = RunOptions(keep_journal=True)


def shards_of(output):
    return list(shards_folder(output).glob("*.json"))


def options_of(found):
    return CocoOptions(list(found.job.names) or None, form=MaskFormat("rle"))


def stopped_on_ray(found, output, most):
    """Rows that were done when it stopped."""
    done = []

    def count(rows):
        done.append(rows)
        if sum(done) >= most:
            raise StopAsked

    with pytest.raises(StopAsked):
        write(found, output, options_of(found), watch=Watch(rows=count))
    return sum(done)


# The command line with a shard after each batch: these jobs are short.
ALONE = """
import sys
from palidecode.cli import main
from palidecode.runs import local
local._APART = 0.0
sys.exit(main(sys.argv[1:]))
"""


def kill_in_the_middle(words, output):
    """Run a command and kill it when it has two shards; again where a busy machine is too late."""
    while True:
        command = [sys.executable, "-c", ALONE, *words]
        # With as many threads as the workers: others may round scores otherwise.
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        alone = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        while alone.poll() is None and len(shards_of(output)) < 2:
            time.sleep(0.001)
        alone.kill()
        _, said = alone.communicate()
        if not output.exists():
            assert len(shards_of(output)) >= 2, said
            return
        shutil.rmtree(shards_folder(output), ignore_errors=True)
        output.unlink()
        (output.parent / FAILURES).unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["decoded", "predicted"])
def test_killed_on_one_machine_and_finished_on_ray(place, tmp_path, name, capsys):
    output = tmp_path / f"{name}.json"
    words = WORDS_OF[name](place, output)
    kill_in_the_middle(words, output)
    assert not output.exists()
    assert main([*words, "--ray", "auto", "--workers", "2", "--worker-cpus", "0.5", "--json"]) == 1
    assert printed(capsys)["resumed"] >= 2 * BATCH
    same(place, tmp_path, name)


@pytest.mark.parametrize("name", ["decoded", "predicted"])
def test_stopped_on_ray_and_finished_on_one_machine(place, tmp_path, name, capsys):
    output = tmp_path / f"{name}.json"
    done = stopped_on_ray(MAKE[name](place), output, 16)
    assert main([*WORDS_OF[name](place, output), "--json"]) == 1
    assert printed(capsys)["resumed"] >= done
    same(place, tmp_path, name)


@pytest.mark.parametrize("size", [12, 100])
def test_another_shard_size(place, tmp_path, size):
    output = tmp_path / "predicted.json"
    done = stopped_on_ray(predicted(place, shard_size=8), output, 16)
    found = predicted(place, shard_size=size)
    written = write(found, output, options_of(found), KEEP)
    assert written.kept >= done
    assert output.read_bytes() == one(place, "predicted")[0]
    found = predicted(place, shard_size=20)
    written = write(found, output, options_of(found))
    assert written.kept == PICTURES
    same(place, tmp_path, "predicted")


def test_another_batch_size(place, tmp_path):
    output = tmp_path / "predicted.json"
    found = predicted(place)
    write(found, output, options_of(found), KEEP)
    found = predicted(place, batch_size=3)
    assert write(found, output, options_of(found)).kept == PICTURES
    assert output.read_bytes() == one(place, "predicted")[0]


def test_a_picture_that_sorts_first_keeps_the_others(place, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    shutil.copytree(place / "pictures", pictures)
    output = tmp_path / "out" / "predicted.json"
    first = ray_data.write_coco(predicted(place, pictures), output, keep_journal=True)
    assert first.kept == 0
    shutil.copy(pictures_of(place)[0][1], pictures / "!.png")
    second = ray_data.write_coco(predicted(place, pictures), output, keep_journal=True)
    assert (second.rows, second.kept) == (PICTURES + 1, PICTURES + 1 - BATCH)
    names = [image["file_name"] for image in json.loads(output.read_text())["images"]]
    assert names[0] == "!.png"
    assert names[1:] == [
        image["file_name"] for image in json.loads(one(place, "predicted")[0])["images"]
    ]
    words = predict_words(place, output)
    words[1] = str(pictures)
    whole = output.read_bytes()
    assert main([*words, "--keep-journal", "--json"]) == 1
    assert printed(capsys)["resumed"] == PICTURES + 1
    assert output.read_bytes() == whole
    # Without it again, and without another: all that is left is in some shard.
    (pictures / "!.png").unlink()
    (pictures / "more" / "001.png").unlink()
    third = ray_data.write_coco(predicted(place, pictures), output, keep_journal=True)
    assert (third.rows, third.kept) == (PICTURES - 1, PICTURES - 1)
    assert "more/001.png" not in output.read_text()


def test_a_picture_that_changed_is_asked_about_again(place, tmp_path):
    pictures = tmp_path / "pictures"
    shutil.copytree(place / "pictures", pictures)
    output = tmp_path / "out" / "predicted.json"
    ray_data.write_coco(predicted(place, pictures), output, keep_journal=True)
    Image.new("RGB", (60, 20)).save(pictures / "000.png")
    second = ray_data.write_coco(predicted(place, pictures), output, keep_journal=True)
    assert (second.rows, second.kept) == (PICTURES, PICTURES - BATCH)
    (image,) = [i for i in json.loads(output.read_text())["images"] if i["file_name"] == "000.png"]
    assert (image["width"], image["height"]) == (60, 20)


def test_keywords_that_do_not_exist_are_refused_before_anything_starts(tmp_path):
    with pytest.raises(TypeError, match="scroe"):
        ray_data.predict(tmp_path, model="nowhere", scroe="box")
    with pytest.raises(InputError, match="score"):
        ray_data.predict(tmp_path, model="nowhere", score="bxo")
