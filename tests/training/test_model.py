"""Training of the tiny model: its data, words and losses, and resuming."""

import argparse
import json

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
from training.model.data import GRID, SIDE, Shard, draw_shard, read_shard, write_shards
from training.model.tokenizer import build
from training.scenes.draw import COLOR_NAMES, TRAIN_SEED, scene
from training.scenes.shapes import CLASSES


@pytest.fixture(scope="module")
def shard():
    return Shard(**draw_shard(TRAIN_SEED, 0, 40))


@pytest.fixture(scope="module")
def words():
    return model_batches.Words(Tokenizer(build()))


def test_the_bundled_tokenizer_is_the_one_that_is_built():
    assert build().to_str() == tokenizers.Tokenizer.from_file(str(TOKENIZER)).to_str()


def a_batch(shard, words, masks=True, everything=True, seed=0):
    rng = np.random.default_rng(seed)
    return model_batches.make_batch(
        shard, np.arange(len(shard.images)), rng, words, masks, everything
    )


def test_a_shard_is_its_scenes(shard):
    assert shard.images.shape == (40, SIDE, SIDE, 3)
    assert shard.owner.shape == (40, GRID, GRID)
    for row in (0, 7, 39):
        truth = scene(TRAIN_SEED, row, 224)
        part = slice(shard.first[row], shard.first[row + 1])
        assert [CLASSES[n] for n in shard.label[part]] == truth.labels
        assert [COLOR_NAMES[n] for n in shard.color[part]] == truth.colors
        wanted = truth.boxes[:, [1, 0, 3, 2]] * 1024 / 224
        assert np.abs(np.clip(wanted, 0, 1023) - shard.loc[part]).max() <= 1


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


@pytest.mark.parametrize("masks", [True, False])
def test_an_answer_of_a_batch_is_what_the_prompt_asks_for(shard, words, masks):
    batch = a_batch(shard, words, masks)
    for row in range(len(batch.ids)):
        ids = batch.ids[row, batch.prefix[row] : batch.lengths[row]].tolist()
        assert ids[-1] == words.vocabulary.eos
        found = parse(ids, vocabulary=words.vocabulary, detokenize=words.tokenizer.decode)
        assert not found.issues
        part = slice(shard.first[row], shard.first[row + 1])
        labels = sorted(CLASSES[n] for n in shard.label[part])
        assert sorted(item.label for item in found.objects) == labels
        assert all((item.seg is not None) == masks for item in found.objects)
        middles = [item.loc[1] + item.loc[3] for item in found.objects]
        assert middles == sorted(middles)  # from left to right


def test_patches_know_their_object(shard, words):
    batch = a_batch(shard, words)
    seen = batch.label > 0
    assert ((batch.owner > 0) == seen).all()
    assert (batch.cells[~seen] == 0).all()
    assert (batch.cells[seen].sum(-1) > 0).all()
    middle = model._centers(model_batches.CONFIG.vision).expand(len(seen), -1, -1)[seen]
    box = batch.box[seen]
    reach = model_batches.CONFIG.vision.patch / SIDE
    assert (middle[:, 0] > box[:, 0] - reach).all()
    assert (middle[:, 1] < box[:, 3] + reach).all()


def test_patches_know_whether_their_object_is_asked_for(shard, words):
    batch = a_batch(shard, words, everything=False)
    assert torch.equal(a_batch(shard, words).asked, a_batch(shard, words).owner > 0)
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
    write_shards(tmp_path / "data", TRAIN_SEED, 32)
    args = argparse.Namespace(
        data=tmp_path / "data",
        out=tmp_path,
        dense_steps=6,
        asked_steps=4,
        steps=6,
        batch=16,
        rate=1.5e-3,
        detect=0.5,
        sharpness=8.0,
        seed=0,
    )
    with one_thread():
        run = model.Run(args)
        run.train()
        assert run.step == 16
        again = model.Run(args)
        assert again.step == 16
        for one, other in zip(run.values, again.values, strict=True):
            assert torch.equal(one, other)
        near, bins = model.near_codes(8.0), model.near_bins(40.0)
        batch = next(model_batches.batches(args.data, 16, 0, run.words, 1.0))
        before = run._update(batch, True, bins, near)
        for _ in range(5):
            after = run._update(batch, True, bins, near)
        assert sum(after) < sum(before)
        before = run._update_asked(batch)
        for _ in range(5):
            after = run._update_asked(batch)
        assert after < before
        (tmp_path / "log.jsonl").write_text(json.dumps({"step": 16}) + "\n")
        model_report.export(tmp_path, tmp_path / "model")
        decoder = PaliDecoder.from_pretrained(tmp_path / "model", "float32", "cpu")
        found = decoder.segment(scene(2, 0, 224).image, " ; ".join(decoder.classes))
    assert decoder.classes == CLASSES
    assert decoder.codes_id == "palidecode-demo"
    assert found.issues == []
    assert sum(p.stat().st_size for p in (tmp_path / "model").iterdir()) < 12_000_000
