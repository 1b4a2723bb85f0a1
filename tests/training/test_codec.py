"""Training of the shipped weights: the stream of masks, the training step, the manifest."""

import itertools

import numpy as np
import pytest
import torch
from PIL import ImageFont

from palidecode import load_codec
from palidecode.codec.weights import content_hash, load_weights, manifest, sha256_of, shipped_path
from palidecode.geometry.masks import shrink
from training.codec import masks
from training.codec import report as codec_report
from training.codec import train as codec


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    """Pillow's own font, written to a file."""
    path = tmp_path_factory.mktemp("fonts") / "font.ttf"
    path.write_bytes(ImageFont.load_default(20).font_bytes)
    return masks.load_fonts([str(path)])


def drawn(fonts, seed, count):
    return np.stack(list(itertools.islice(masks.stream(seed, fonts, []), count)))


def test_the_stream_is_seeded_and_in_range(fonts):
    first = drawn(fonts, 3, 40)
    assert first.shape == (40, 64, 64)
    assert (first == drawn(fonts, 3, 40)).all()
    assert (first != drawn(fonts, 4, 40)).any()
    assert 0 <= first.min() < first.max() <= 1
    assert all((mask > 0.5).any() for mask in first)


@pytest.mark.slow
def test_training_learns_and_goes_on_where_it_stopped(fonts, tmp_path):
    batch = torch.from_numpy(drawn(fonts, 0, 64))
    state = codec.new_state(0, "cpu")
    codec.first_codebook(state, batch)
    losses = []
    for step in range(8):
        losses.append(codec.train_step(state, batch, False)["loss"])
        state.step = step + 1
    assert losses[-1] < 0.95 * losses[0]
    codec.save_state(state, tmp_path / "state.safetensors")
    again = codec.new_state(1, "cpu")
    codec.load_state(again, tmp_path / "state.safetensors")
    assert again.step == 8
    for one, other in ((state.network, again.network), (state.average, again.average)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])
    same = [codec.train_step(each, batch, True)["loss"] for each in (state, again)]
    assert same[0] == pytest.approx(same[1], rel=1e-4)


def test_dead_codes_are_revived():
    state = codec.new_state(0, "cpu")
    latents = torch.randn(256, 512)
    codec.first_codebook(state, torch.rand(16, 64, 64))
    state.counts[:10] = 0
    dead = codec.follow_latents(state, latents, torch.randint(10, 128, (16, 16)))
    assert dead >= 10
    for row in range(10):
        assert (state.network.codebook[row] - latents).abs().sum(1).min() < 1e-2


def test_the_manifest_is_of_the_shipped_file():
    said = manifest()
    path = shipped_path()
    assert said["sha256"] == sha256_of(path)
    assert said["bytes"] == path.stat().st_size <= 9_000_000
    assert said["content_sha256"] == content_hash(load_weights(path).arrays)
    assert said["figures"]["codebook_on_real"]["used"] == 128
    assert said["curve"][-1]["step"] == said["steps"]


def test_the_manifests_figures_come_out_again(shared_data):
    coco = shared_data / "coco100/instances_val2014_100.json"
    items = masks.load_coco(coco, 1)
    assert not {i.image_id for i in items} & {i.image_id for i in masks.load_coco(coco, 0)}
    crops = np.stack([shrink(item.mask) for item in items])
    shipped = load_codec("palidecode-demo")
    ious, codes = codec_report.at_64(shipped, crops)
    said = manifest()["figures"]
    assert codec_report.summary(ious) == pytest.approx(said["real_held_out_64"], abs=2e-3)
    full = codec_report.at_full_size(shipped.decode(codes), items)
    assert codec_report.summary(full) == pytest.approx(said["real_held_out_full_size"], abs=2e-3)
    assert ious.mean() >= 0.93
    assert np.quantile(ious, 0.1) >= 0.86
