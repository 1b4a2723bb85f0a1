"""`palidecode finetune` from rows to a model that predicts."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from palidecode.cli import main
from palidecode.codec import load_codec
from palidecode.codec.weights import DEMO_ID
from palidecode.errors import InputError
from palidecode.evaluation.coco.evaluate import evaluate_coco
from palidecode.files import data_folder
from palidecode.pipeline import LongTextWarning
from palidecode.pipeline.checkpoint import NOTES
from palidecode.pipeline.decoder import PaliDecoder
from palidecode.runtime.weights import SINGLE
from palidecode.trainer.settings import Settings
from palidecode.trainer.training import STATE, Training
from palidecode.vocab import seg_token
from tests.runtime.tiny_models import PICTURES, line, one_thread, write_folder

ANSWERS = [
    "<loc0100><loc0200><loc0300><loc0400> cat",
    "<loc0001><loc0002><loc0700><loc0900> dog",
    "",
]
QUICK = {"steps": 6, "batch_size": 2, "rank": 2, "rate": 1e-2, "evaluate_every": 3}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("model"), 2)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


def write_rows(folder, *more):
    made = []
    for number, answer in enumerate(ANSWERS):
        PICTURES[number].save(folder / f"{number}.png")
        row = {"image": f"{number}.png", "prefix": "detect cat ; dog", "suffix": answer}
        made.append(row)
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [*made, *more])))
    return path


def trained(model, rows, out, **settings):
    training = Training(str(model), rows, out, settings=Settings(**QUICK | settings), device="cpu")
    seen = []
    training.run(seen.append)
    return seen


def weights_of(folder, name="adapter_model.safetensors"):
    return load_file(folder / name)


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_loss_falls_and_the_adapter_predicts(model, rows, tmp_path):
    seen = trained(model, rows, tmp_path / "out", steps=12)
    assert [numbers["step"] for numbers in seen] == list(range(1, 13))
    assert sum(n["loss"] for n in seen[-3:]) < 0.8 * sum(n["loss"] for n in seen[:3])
    assert not (tmp_path / "out" / STATE).exists()
    logged = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    assert list(map(json.loads, logged)) == seen
    card = (tmp_path / "out" / "README.md").read_text()
    assert "3 rows of `rows.jsonl`" in card
    assert "12 of 12 steps" in card
    base = PaliDecoder.from_pretrained(model, "float32", "cpu")
    decoder = PaliDecoder.from_pretrained(tmp_path / "out", "float32", "cpu")
    texts = [d.generate(PICTURES[0], "detect cat ; dog", 12)[0].text for d in (base, decoder)]
    assert texts[0] != texts[1]
    with pytest.raises(InputError, match="holds a finished training; name a new folder"):
        trained(model, rows, tmp_path / "out")
    with pytest.raises(InputError, match="is an adapter; train from its base, or merge it first"):
        trained(tmp_path / "out", rows, tmp_path / "more")


def test_the_same_seed_gives_the_same_adapter(model, rows, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trained(model, rows, tmp_path / name, seed=seed)
    same(weights_of(tmp_path / "a"), weights_of(tmp_path / "b"))
    first, third = weights_of(tmp_path / "a"), weights_of(tmp_path / "c")
    assert not torch.equal(next(iter(first.values())), next(iter(third.values())))


@pytest.mark.parametrize("full", [False, True])
def test_a_stopped_training_goes_on_to_the_same_bits(model, rows, tmp_path, full):
    settings = {"full": full, "dtype": "bfloat16", "accumulate": 2, "flip": True, "crop": 0.5}
    settings |= {"order": "random", "noise": 3, "noise_token": "<unk>"}
    whole = trained(model, rows, tmp_path / "whole", **settings)
    training = Training(
        str(model), rows, tmp_path / "parts", settings=Settings(**QUICK | settings), device="cpu"
    )

    def stop():
        if training.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.run(lambda line: None, stop)
    with pytest.raises(InputError, match="holds a training with other settings, rows or model"):
        trained(model, rows, tmp_path / "parts", **settings, seed=9)
    rest = trained(model, rows, tmp_path / "parts", **settings)
    assert [n["step"] for n in rest] == [5, 6]
    assert [n["loss"] for n in rest] == [n["loss"] for n in whole[4:]]
    name = SINGLE if full else "adapter_model.safetensors"
    same(weights_of(tmp_path / "whole", name), weights_of(tmp_path / "parts", name))
    log = [json.loads(row) for row in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [n["step"] for n in log] == [1, 2, 3, 4, 5, 6]


def test_a_model_with_noise_boxes_is_evaluated_with_full_answers(model, rows, tmp_path):
    settings = Settings(**QUICK | {"noise": 3, "noise_token": "<unk>", "steps": 3})
    training = Training(str(model), rows, tmp_path, rows.parent, rows, settings, device="cpu")
    asked = []
    generate = training._decoder.generate

    def spied(*given, **options):
        asked.extend(generate(*given, **options))
        return asked

    training._decoder.generate = spied
    seen = []
    training.run(seen.append)
    assert "bbox AP" in seen[-1]
    # Also the picture without an object has three boxes.
    assert [answer.text.count("<loc") for answer in asked] == [12, 12, 12]


def test_accumulated_batches_are_one_larger_batch(model, rows, tmp_path):
    one = trained(model, rows, tmp_path / "one", batch_size=4)
    two = trained(model, rows, tmp_path / "two", batch_size=2, accumulate=2)
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["norm"] == pytest.approx(b["norm"], rel=1e-3)


def test_whole_weights_are_an_ordinary_folder(model, rows, tmp_path):
    trained(model, rows, tmp_path / "out", full=True, rate=1e-3, targets=("projector",))
    before, after = weights_of(model, SINGLE), weights_of(tmp_path / "out", SINGLE)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if name.startswith("vision")]
    assert "multi_modal_projector.linear.weight" in changed
    assert "language_model.model.layers.1.mlp.down_proj.weight" in changed
    decoder = PaliDecoder.from_pretrained(tmp_path / "out", "float32", "cpu")
    assert decoder.generate(PICTURES[0], "detect cat", 4)[0].token_ids


def test_the_rate_rises_and_falls():
    settings = Settings(rate=1.0, warmup=0.1)
    rates = [settings.rate_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] == pytest.approx((1 + math.cos(math.pi * 89 / 90)) / 2)
    assert Settings(epochs=2, batch_size=8, accumulate=2).total(100) == 13
    assert (Settings().peak, Settings(full=True).peak) == (2e-4, 1e-5)


BAD = {
    "batch_size": (0, "batch_size must be at least 1"),
    "rate": (math.nan, "rate must be above 0"),
    "warmup": (1.0, "warmup must be from 0 up to 1"),
    "targets": (("eyes",), "targets must be some of attention, mlp, projector, vision"),
    "dtype": ("float16", "dtype must be one of bfloat16, float32"),
}


@pytest.mark.parametrize("name", BAD)
def test_settings_out_of_range(name):
    value, message = BAD[name]
    with pytest.raises(InputError, match=message):
        Settings(**{name: value})


def test_rows_that_can_not_be_used(model, tmp_path, capsys):
    bad = [
        {"image": "0.png", "prefix": "detect cat"},
        {"image": "gone.png", "prefix": "detect cat", "suffix": ""},
        {"image": "0.png", "prefix": "detect cat", "suffix": "cat " * 600},
    ]
    rows = write_rows(tmp_path, *bad)
    words = ["finetune", str(rows), "--model", str(model), "--steps", "1", "--batch-size", "2"]
    assert main([*words, "-o", str(tmp_path / "out"), "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "line 4: needs 'suffix', a text" in said
    assert "gone.png: no such picture" in said
    assert "1 row left out: over 512 tokens" in said
    assert "3 rows, 1 step," in said


def test_codes_of_another_codec_are_refused(model, tmp_path):
    row = {"image": "0.png", "prefix": "segment cat", "suffix": "", "codec": DEMO_ID}
    with pytest.raises(InputError, match=rf"line 4: its seg codes are {DEMO_ID}'s") as caught:
        trained(model, write_rows(tmp_path, row), tmp_path / "out")
    line(caught)
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number_stops(model, rows, tmp_path):
    training = Training(
        str(model), rows, tmp_path / "out", settings=Settings(**QUICK), device="cpu"
    )
    with torch.no_grad():
        training.weights.values[0].fill_(math.nan)
    with pytest.raises(InputError, match=r"step 1: the loss is nan \(line \d, \d.png; line"):
        training.run(lambda line: None)


def cut_short(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def test_a_picture_that_is_cut_short_is_left_out_and_listed(model, tmp_path, capsys):
    rows = write_rows(tmp_path)
    cut_short(tmp_path / "1.png")
    words = ["finetune", str(rows), "--model", str(model), "--steps", "4", "--batch-size", "2"]
    assert main([*words, "-o", str(tmp_path / "out"), "--device", "cpu", "--rank", "2"]) == 1
    said = capsys.readouterr().err
    assert "line 2: " in said
    assert "1.png: can't be read as a picture" in said
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 4


def test_a_picture_that_is_damaged_meanwhile_is_left_out(model, tmp_path):
    rows = write_rows(tmp_path)
    training = Training(
        str(model), rows, tmp_path / "out", settings=Settings(**QUICK), device="cpu"
    )
    cut_short(tmp_path / "1.png")
    seen = []
    training.run(seen.append)
    assert [line["step"] for line in seen] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(line["loss"]) for line in seen)
    assert list(training.unread) == [2]
    assert "1.png: can't be read as a picture" in training.unread[2]
    other = tmp_path / "other"
    other.mkdir()
    fresh = Training(
        str(model), write_rows(other), tmp_path / "none", settings=Settings(**QUICK), device="cpu"
    )
    for number in range(3):
        cut_short(other / f"{number}.png")
    with pytest.raises(InputError, match="step 1: none of its pictures can be read"):
        fresh.run(seen.append)


def test_rows_of_several_pictures(model, tmp_path, capsys):
    several = [
        {"images": ["0.png", "1.png"], "prefix": "are they alike?", "suffix": "no"},
        {"images": ["0.png", "1.png"], "prefix": "detect cat", "suffix": ""},
        {"images": ["0.png", "1.png"], "box_image": 1, "prefix": "detect cat", "suffix": ""},
        {"images": ["0.png"] * 2050, "prefix": "caption en", "suffix": "a cat"},
        {"images": [], "prefix": "caption en", "suffix": "a cat"},
    ]
    rows = write_rows(tmp_path, *several)
    words = ["finetune", str(rows), "--model", str(model), "--steps", "3", "--batch-size", "4"]
    words += ["--val", str(tmp_path / "val.jsonl"), "--device", "cpu", "--rank", "2"]
    (tmp_path / "val.jsonl").write_text(
        json.dumps({**several[2], "suffix": ANSWERS[0]}) + "\n" + rows.read_text().split("\n")[0]
    )
    assert main([*words, "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "line 5: names 2 pictures: 'box_image', from 0, says" in said
    assert "line 7: image (8200 tokens)" in said
    assert "line 8: 'images' is an empty list" in said
    assert "5 rows, 3 steps" in said


def test_a_full_disk_keeps_the_last_checkpoint(model, rows, tmp_path):
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from palidecode.trainer import training\n"
        "from palidecode.cli import main\n"
        "save, size = training.Training.save, []\n"
        "def limited(self):\n"
        "    if size:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (size[0] // 2, -1))\n"
        "    save(self)\n"
        "    size.append((self.out / training.STATE).stat().st_size)\n"
        "training.Training.save = limited\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["finetune", rows, "--model", model, "-o", tmp_path / "out", "--steps", "9"]
    words += ["--save-every", "2", "--device", "cpu", "--rank", "2", "--batch-size", "2"]
    words = list(map(str, words))
    run = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2, run.stderr
    assert "checkpoint.safetensors: can't be written: File too large" in run.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if "part" in path.name) == []
    settings = Settings(steps=9, save_every=2, rank=2, batch_size=2)
    assert Training(str(model), rows, tmp_path / "out", settings=settings, device="cpu").step == 2


def test_a_row_longer_than_the_trained_text_warns(tmp_path):
    model = write_folder(tmp_path / "paligemma-3b-pt-224")
    long = {"image": "0.png", "prefix": "detect cat", "suffix": "cat " * 200}
    with pytest.warns(LongTextWarning, match="the 128 that the model was trained with") as caught:
        trained(model, write_rows(tmp_path, long, long), tmp_path / "out", steps=1)
    assert len(caught) == 1
    notes = json.loads((tmp_path / "out" / "palidecode.json").read_text())
    assert 200 < notes["text_length"] <= 512


def test_validation_needs_prompts_for_boxes(model, rows, tmp_path):
    val = tmp_path / "val.jsonl"
    PICTURES[0].save(tmp_path / "0.png")
    val.write_text(json.dumps({"image": "0.png", "prefix": "caption en", "suffix": "a cat"}))
    with pytest.raises(InputError, match="'caption en' is neither a detect nor a segment prompt"):
        Training(str(model), rows, tmp_path / "out", rows.parent, val, device="cpu")


def write_referring(folder, masks):
    path = folder / "referring.jsonl"
    (codes,) = load_codec(DEMO_ID).encode(np.ones((1, 64, 64)))
    seg, lines = "".join(map(seg_token, codes)), []
    for number in range(3):
        PICTURES[number].save(folder / f"{number}.png")
        suffix = f"<loc0100><loc0{number}00><loc0700><loc0900>" + (seg if masks else "")
        row = {"image": f"{number}.png", "prefix": f"the cat number {number}", "suffix": suffix}
        lines.append(json.dumps(row | ({"codec": DEMO_ID} if masks else {})))
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("masks", [False, True])
def test_referring_expressions_have_iou(model, tmp_path, masks):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / NOTES).write_text(json.dumps({"codes": DEMO_ID}))
    path = write_referring(tmp_path, masks)
    settings = Settings(steps=40, batch_size=3, rank=8, rate=3e-2, evaluate_every=40)
    training = Training(str(folder), path, tmp_path / "out", None, path, settings, device="cpu")
    training.run(lambda line: None)
    assert training.best.keys() == {"step", "box accuracy"} | ({"mIoU"} if masks else set())
    # Learned by heart; a wrong answer has 0.
    assert training.best["box accuracy"] == 1.0
    assert not masks or training.best["mIoU"] == 1.0


def test_validation_of_two_kinds_is_refused(model, rows, tmp_path):
    path = write_referring(tmp_path, False)
    row = {"image": "0.png", "prefix": "detect cat", "suffix": ""}
    path.write_text(path.read_text() + "\n" + json.dumps(row))
    with pytest.raises(InputError, match="lines 1 and 4 of the validation rows: referring"):
        Training(str(model), rows, tmp_path / "out", tmp_path, path, device="cpu")


@pytest.mark.slow
def test_sigint_leaves_a_checkpoint(model, rows, tmp_path):
    out = tmp_path / "out"
    words = ["finetune", str(rows), "--model", str(model), "-o", str(out), "--steps", "5000"]
    words += ["--device", "cpu", "--save-every", "2"]
    run = subprocess.Popen(
        [sys.executable, "-m", "palidecode", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for _ in range(1200):
        if (out / STATE).exists():
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=120)[1]
    assert run.returncode == 130, said
    assert "run the same command again to resume" in said
    training = Training(str(model), rows, out, settings=Settings(steps=5000, save_every=2))
    assert 0 < training.step < 5000


@pytest.mark.slow
def test_the_tiny_model_learns_eight_pictures_by_heart(tmp_path, capsys):
    scenes = data_folder("palidecode.demo") / "scenes"
    every = tmp_path / "all.jsonl"
    assert main(["encode", str(scenes / "instances.json"), "-o", str(every)]) == 0
    rows = tmp_path / "eight.jsonl"
    rows.write_text("".join(every.read_text().splitlines(keepends=True)[:8]))
    out = tmp_path / "out"
    words = ["finetune", rows, "--images", scenes, "--val", rows, "--model", "demo", "-o", out]
    words += ["--rate", "4e-3", "--steps", "30", "--targets", "attention", "mlp", "projector"]
    assert main([*map(str, words), "vision", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "bbox AP 1, bbox AP50 1" in said
    # And it predicts at once, with its base's tokenizer and its own list of classes.
    predicted = tmp_path / "coco.json"
    words = ["predict", scenes, "--model", out, "--task", "detect", "--device", "cpu"]
    assert main([*map(str, words), "--dtype", "float32", "-o", str(predicted)]) == 0
    truth = json.loads((scenes / "instances.json").read_text())
    kept = truth["images"][:8]
    ids = {image["id"] for image in kept}
    truth["images"] = kept
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in ids]
    found = json.loads(predicted.read_text())
    names = {image["file_name"] for image in kept}
    found["images"] = [image for image in found["images"] if image["file_name"] in names]
    seen = {image["id"] for image in found["images"]}
    found["annotations"] = [a for a in found["annotations"] if a["image_id"] in seen]
    assert evaluate_coco(truth, found).metrics["AP"] > 0.99
