"""Training of the tiny model: its data, words and losses, and resuming."""

import argparse

import numpy as np
import pytest
import tokenizers
import torch

from palidecode.answers.parsing import parse
from palidecode.pipeline.decoder import PaliDecoder
from palidecode.runtime.tokenizer import Tokenizer
from tests.runtime.tiny_models import one_thread
from tests.samples import TOKENIZER
from training.model import batches as model_batches
from training.model import report as model_report
from training.model import train as model
from training.model.data import (
    GRID,
    SIDE,
    Shard,
    closer,
    draw_shard,
    picture,
    read_shard,
    write_shards,
)
from training.model.questions import EVERYTHING, IDS, PER_TASK, SOME, TASKS, Words
from training.model.tokenizer import build
from training.scenes.draw import COLOR_NAMES, TRAIN_SEED, scene
from training.scenes.shapes import CLASSES


@pytest.fixture(scope="module")
def shard():
    return Shard(**draw_shard(TRAIN_SEED, 0, 40))


@pytest.fixture(scope="module")
def words():
    return Words(Tokenizer(build()))


def test_the_bundled_tokenizer_is_the_one_that_is_built():
    assert build().to_str() == tokenizers.Tokenizer.from_file(str(TOKENIZER)).to_str()


def a_batch(shard, question=0):
    pool = model_batches.Pool(40, torch.device("cpu"))
    pool.add(shard)
    rows = torch.arange(40)
    task = TASKS[question // PER_TASK]
    return pool.batch(rows, torch.full_like(rows, question), IDS[task])


def objects_of(shard, row):
    return slice(0, shard.count[row])


def test_a_shard_is_its_scenes(shard):
    assert shard.images.shape == (40, SIDE, SIDE, 3)
    assert shard.owner.shape == (40, GRID, GRID)
    cut = 0
    for row in range(40):
        truth = picture(TRAIN_SEED, row)
        height, width = truth.image.shape[:2]
        cut += (height, width) != (224, 224)
        part = objects_of(shard, row)
        assert [CLASSES[n] for n in shard.label[row, part]] == truth.labels
        assert [COLOR_NAMES[n] for n in shard.color[row, part]] == truth.colors
        wanted = truth.boxes[:, [1, 0, 3, 2]] * 1024 / [height, width, height, width]
        assert np.abs(np.clip(wanted, 0, 1023) - shard.loc[row, part]).max() <= 1
    assert 2 < cut < 20


def test_a_part_around_an_object_has_that_object_whole():
    for index in range(20):
        whole = scene(TRAIN_SEED, index, 224)
        part = closer(whole, np.random.default_rng(index))
        areas = [int(mask.sum()) for mask in whole.masks]
        assert max(areas) > 0
        assert part.image.shape[0] * part.image.shape[1] <= 224 * 224
        assert any(int(mask.sum()) in areas for mask in part.masks)
        for mask, box in zip(part.masks, part.boxes.astype(int), strict=True):
            assert mask.shape == part.image.shape[:2]
            assert mask[box[1] : box[3], box[0] : box[2]].sum() == mask.sum()


def test_shards_are_drawn_once_and_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("training.model.data.PER_SHARD", 3)
    write_shards(tmp_path, 5, 6)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["5-00000.npz", "5-00001.npz"]
    before = [(tmp_path / name).read_bytes() for name in files]
    (tmp_path / files[1]).unlink()
    write_shards(tmp_path, 5, 6)
    assert [(tmp_path / name).read_bytes() for name in files] == before
    assert len(read_shard(tmp_path / files[0]).images) == 3


@pytest.mark.parametrize("question", [0, 1, PER_TASK, PER_TASK + 1])
def test_an_answer_of_a_batch_is_what_the_prompt_asks_for(shard, words, question):
    batch = a_batch(shard, question)
    for row in range(len(batch.ids)):
        ids = batch.ids[row, batch.prefix[row] : batch.lengths[row]].tolist()
        assert ids[-1] == words.vocabulary.eos
        found = parse(ids, vocabulary=words.vocabulary, detokenize=words.tokenizer.decode)
        assert not found.issues
        labels = sorted(CLASSES[n] for n in shard.label[row, objects_of(shard, row)])
        assert sorted(item.label for item in found.objects) == labels
        assert all((item.seg is not None) == (question < PER_TASK) for item in found.objects)
        middles = [item.loc[1] + item.loc[3] for item in found.objects]
        assert middles == sorted(middles)  # from left to right
        boxes = {tuple(item.loc) for item in found.objects}
        patches = (batch.box[row][batch.owner[row] > 0] * 1024).round().int().tolist()
        assert {tuple(box) for box in patches} <= boxes


def test_every_second_question_is_about_the_mirror_image(shard):
    plain, mirrored = a_batch(shard, 0), a_batch(shard, 1)
    assert torch.equal(plain.pixels.flip(3), mirrored.pixels)
    side = model_batches.PATCHES
    for name in ("label", "color", "asked"):
        one, other = (getattr(b, name).view(-1, side, side) for b in (plain, mirrored))
        assert torch.equal(one.flip(2), other)
    assert not torch.equal(plain.codes, mirrored.codes)


def test_a_pool_reads_what_appears_and_replaces_the_oldest(tmp_path, monkeypatch):
    monkeypatch.setattr("training.model.data.PER_SHARD", 3)
    pool = model_batches.Pool(7, torch.device("cpu"))
    write_shards(tmp_path, 5, 3)
    pool.read(tmp_path)
    assert pool.size == 3
    write_shards(tmp_path, 5, 9)
    pool.read(tmp_path)
    assert pool.size == 6
    newest = torch.from_numpy(read_shard(tmp_path / "5-00002.npz").ids[:, 0].astype(np.int64))
    rows = torch.arange(3)
    assert torch.equal(pool.batch(rows, torch.zeros_like(rows), IDS["segment"]).ids, newest)


def test_patches_know_their_object(shard, words):
    batch = a_batch(shard)
    seen = batch.label > 0
    assert ((batch.owner > 0) == seen).all()
    assert (batch.cells[~seen] == 0).all()
    assert (batch.cells[seen].sum(-1) > 0).all()
    middle = model._centers(model_batches.CONFIG.vision, torch.device("cpu")).expand(
        len(seen), -1, -1
    )[seen]
    box = batch.box[seen]
    reach = model_batches.CONFIG.vision.patch / SIDE
    assert (middle[:, 0] > box[:, 0] - reach).all()
    assert (middle[:, 1] < box[:, 3] + reach).all()


def test_patches_know_whether_their_object_is_asked_for(shard, words):
    assert torch.equal(a_batch(shard).asked, a_batch(shard).owner > 0)
    batch = a_batch(shard, EVERYTHING + SOME - 1)
    some = (batch.asked & (batch.owner > 0)).any(1)
    assert 5 < some.sum() < len(some)
    for row in range(len(batch.ids)):
        ids = batch.ids[row, batch.prefix[row] : batch.lengths[row]].tolist()
        found = parse(ids, vocabulary=words.vocabulary, detokenize=words.tokenizer.decode)
        objects = set(batch.owner[row][batch.asked[row]].tolist())
        assert len(objects) <= len(found.objects)
        assert bool(objects) <= bool(found.objects)


def test_soft_targets_sum_to_one_and_prefer_the_truth():
    for table in (model.near_bins(40.0), model.near_bins(3.0), model.near_codes(8.0)):
        assert torch.allclose(table.sum(1), torch.ones(len(table)), atol=1e-4)
        assert (table.argmax(1) == torch.arange(len(table))).all()


@pytest.mark.slow
def test_training_learns_goes_on_and_is_exported(tmp_path, monkeypatch):
    monkeypatch.setattr("training.model.data.PER_SHARD", 32)
    monkeypatch.setattr(model, "VALIDATED", 16)
    write_shards(tmp_path / "data", TRAIN_SEED, 32)
    args = argparse.Namespace(
        data=tmp_path / "data",
        out=tmp_path,
        steps=16,
        seconds=None,
        scenes=64,
        batch=16,
        rate=1.5e-3,
        device="cpu",
        seed=0,
    )
    with one_thread():
        run = model.Run(args)
        with model.reading(run.pool, args.data, 0):
            run.train()
        assert run.step == 16
        again = model.Run(args)
        assert (again.step, again.done) == (16, 1.0)
        for one, other in zip(run.values, again.values, strict=True):
            assert torch.equal(one, other)
        for group in run.optimizer.param_groups:
            group["lr"] = 5e-4
        for stage in ("dense", "asked", "joint"):
            losses = [float(run.update(run.pool, stage, "segment").sum()) for _ in range(12)]
            assert sum(losses[-3:]) < sum(losses[:3])
        model_report.export(tmp_path, tmp_path / "model")
        decoder = PaliDecoder.from_pretrained(tmp_path / "model", "float32", "cpu")
        found = decoder.segment(scene(2, 0, 224).image, " ; ".join(decoder.classes))
    assert decoder.classes == CLASSES
    assert decoder.codes_id == "palidecode-demo"
    assert found.issues == []
    assert sum(p.stat().st_size for p in (tmp_path / "model").iterdir()) < 12_000_000
