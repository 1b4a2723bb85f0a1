"""Loss and gradients against transformers', and adapters against PEFT's, on random models."""

import json

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PaliGemmaForConditionalGeneration

from palidecode.pipeline.decoder import PaliDecoder
from palidecode.runtime.image import ImageConfig
from palidecode.runtime.opening import open_checkpoint
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.runtime.torch_weights import load_weights, state_to_hf
from palidecode.runtime.weights import OLDER_PREFIXES, parts
from palidecode.trainer.examples import make_batches, open_pixels, read_examples
from palidecode.trainer.lora import add_adapters, factors, write_adapter
from palidecode.trainer.loss import answer_loss
from palidecode.trainer.variation import Variation, Varying
from palidecode.trainer.weights import recompute_layers, thaw
from tests.runtime.tiny_models import PICTURES, one_thread, write_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:::peft"),
]
ROWS = [
    ("detect cat", "<loc0100><loc0200><loc0300><loc0400> cat"),
    (
        "detect cat ; dog",
        "<loc0001><loc0002><loc0700><loc0900> dog ; <loc0001><loc0002><loc0003><loc0004> cat",
    ),
    ("caption en", "a cat and a dog"),
]


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    transformers.logging.disable_progress_bar()
    with one_thread():
        yield


@pytest.fixture(scope="module", params=[1, 2], ids=["gemma", "gemma2"])
def folder(request, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("model"), request.param)


def write_rows(folder, rows=ROWS):
    lines = []
    for number, (prefix, suffix) in enumerate(rows):
        PICTURES[number % 3].save(folder / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "prefix": prefix, "suffix": suffix}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "rows.jsonl"


@pytest.fixture
def ours(folder, tmp_path):
    """The model in float32, and a batch of answers of different lengths."""
    checkpoint = open_checkpoint(folder)
    model = load_weights(checkpoint.source, checkpoint.config, torch.float32, torch.device("cpu"))
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    rows = read_examples(write_rows(tmp_path), None, tokenizer, 512, "google-oid").rows
    batch = batch_of(rows, model.config.pad)
    return model, batch, tokenizer.vocabulary


def batch_of(rows, pad):
    pixels = [open_pixels(row, ImageConfig(28)) for row in rows]
    (batch,) = make_batches(rows, pixels, pad, torch.device("cpu"))
    return batch


def for_transformers(batch, config):
    """The batch as a processor with ``suffix`` makes it, padded on the right."""
    tokens = config.vision.tokens * (len(batch.pixels) // len(batch.ids))
    ids = torch.cat([torch.full((len(batch.ids), tokens), config.image_token), batch.ids], 1)
    column = torch.arange(ids.shape[1]) - tokens
    real = column < batch.lengths[:, None]
    suffix = real & (column >= batch.prefix[:, None])
    return {
        "input_ids": ids,
        "pixel_values": batch.pixels,
        "attention_mask": real.long(),
        "token_type_ids": suffix.long(),
        "labels": torch.where(suffix, ids, -100),
    }


def test_noise_boxes_are_in_the_loss_as_labels_say(folder, ours, tmp_path):
    model, _, vocabulary = ours
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    rows = read_examples(write_rows(tmp_path), None, tokenizer, 512, "google-oid").rows[:2]
    varying = Varying(Variation(noise=5, noise_token="<unk>"), tokenizer, None, 512)
    rows = [varying.vary(row, np.random.default_rng(n)) for n, row in enumerate(rows)]
    batch = batch_of(rows, model.config.pad)
    theirs = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    given = for_transformers(batch, model.config)
    ids = given["input_ids"]
    # The four tokens before each noise token have the label -100.
    for row, column in (ids == tokenizer.token("<unk>")).nonzero().tolist():
        given["labels"][row, column - 4 : column] = -100
    assert int((given["labels"] == -100).sum()) > 2 * model.config.vision.tokens + 28
    assert int((given["labels"] != -100).sum()) == batch.targets()
    with torch.no_grad():
        close(answer_loss(model, batch, vocabulary) / batch.targets(), theirs(**given).loss)


def close(found, wanted, largest=0.0):
    """Compare numbers; one near 0 is a sum of larger ones that cancel."""
    atol = 3e-5 * max(float(wanted.abs().max()), largest)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("recompute", [False, True])
def test_loss_and_gradients_are_those_of_transformers(folder, ours, recompute):
    model, batch, vocabulary = ours
    thaw(model, ["projector", "vision"])
    recompute_layers(model, recompute)
    loss = answer_loss(model, batch, vocabulary) / batch.targets()
    loss.backward()
    theirs = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    wanted = theirs(**for_transformers(batch, model.config)).loss
    close(loss.detach(), wanted.detach())
    wanted.backward()
    recompute_layers(model, False)
    gradients = dict(theirs.named_parameters())
    newer = {
        "language_model.model.": "model.language_model.",
        "vision_tower.vision_model.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    }
    # A key's bias changes no attention: its gradient is 0 and rounding.
    largest = max(float(parameter.grad.abs().max()) for parameter in gradients.values()) / 100
    checked = 0
    for ours_name, part in parts(model.config).items():
        found = model.get_parameter(ours_name).grad
        for name, shape, rows in zip(
            part.names, part.shapes, found.split([s[0] for s in part.shapes]), strict=True
        ):
            tower, _, rest = name.partition(".")
            older = OLDER_PREFIXES[f"{tower}."] + rest
            old, new = next((o, n) for o, n in newer.items() if older.startswith(o))
            close(rows.reshape(shape), gradients[new + older.removeprefix(old)].grad, largest)
            checked += 1
    assert checked == len(state_to_hf(model))


def test_adapters_are_pefts(folder, ours, tmp_path):
    model, batch, vocabulary = ours
    adapted = add_adapters(model, ["attention", "mlp", "projector", "vision"], 4, 8.0)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for _, layer in adapted:
            for factor in layer.up:
                factor.copy_(torch.from_numpy(rng.standard_normal(factor.shape) * 0.05))
    loss = answer_loss(model, batch, vocabulary) / batch.targets()
    loss.backward()
    out = tmp_path / "adapter"
    write_adapter(out, adapted, str(folder), 4, 8.0)
    base = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, out, is_trainable=True)
    wanted = theirs(**for_transformers(batch, model.config)).loss
    close(loss.detach(), wanted.detach())
    wanted.backward()
    gradients = {
        name.replace(".default", ""): parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    found = {}
    for names, layer in adapted:
        for name, down, up in zip(names, layer.down, layer.up, strict=True):
            found[f"base_model.model.{name}.lora_A.weight"] = down.grad
            found[f"base_model.model.{name}.lora_B.weight"] = up.grad
    assert found.keys() == gradients.keys() == factors(adapted).keys()
    for name, gradient in found.items():
        close(gradient, gradients[name])
    # And our own reader merges what was trained.
    decoder = PaliDecoder.from_pretrained(out, "float32", "cpu")
    with torch.no_grad():
        merged = answer_loss(decoder.engine.model, batch, vocabulary) / batch.targets()
    close(merged, wanted.detach())


def test_new_adapters_change_nothing_and_begin_as_pefts(folder, ours):
    model, batch, vocabulary = ours
    with torch.no_grad():
        before = answer_loss(model, batch, vocabulary)
        torch.manual_seed(0)
        adapted = add_adapters(model, ["attention"], 4, 8.0)
        assert torch.equal(answer_loss(model, batch, vocabulary), before)
    base = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    theirs = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"]))
    spread = [
        p.detach().std() for n, p in theirs.named_parameters() if "lora_A" in n and "language" in n
    ]
    own = [layer.down[0].detach().std() for _, layer in adapted if layer.base.in_features == 128]
    assert float(torch.stack(own).mean()) == pytest.approx(
        float(torch.stack(spread).mean()), rel=0.1
    )


def test_the_loss_of_several_pictures_is_that_of_transformers(folder, ours, tmp_path):
    model, _, vocabulary = ours
    pairs = [
        {"images": ["0.png", "1.png"], "prefix": "are they alike?", "suffix": "no"},
        {
            "image": "2.png",
            "prefix": "detect cat",
            "suffix": "<loc0100><loc0200><loc0300><loc0400> cat",
        },
        {
            "images": ["2.png", "1.png"],
            "box_image": 1,
            "prefix": "detect cat ; dog",
            "suffix": "<loc0001><loc0002><loc0700><loc0900> dog",
        },
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    rows = read_examples(tmp_path / "pairs.jsonl", None, tokenizer, 512, "google-oid", 4).rows
    assert [row.size for row in rows] == [PICTURES[n].size for n in (0, 2, 1)]
    pixels = [open_pixels(row, ImageConfig(28)) for row in rows]
    batches = make_batches(rows, pixels, model.config.pad, torch.device("cpu"))
    assert [len(batch.ids) for batch in batches] == [2, 1]
    theirs = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    for batch in batches:
        with torch.no_grad():
            found = answer_loss(model, batch, vocabulary) / batch.targets()
            close(found, theirs(**for_transformers(batch, model.config)).loss)


def test_soft_loc_targets(ours):
    model, batch, vocabulary = ours
    with torch.no_grad():
        hard = answer_loss(model, batch, vocabulary)
        assert float(answer_loss(model, batch, vocabulary, 1e-3)) == pytest.approx(
            float(hard), rel=1e-5
        )
        assert float(answer_loss(model, batch, vocabulary, 3.0)) != pytest.approx(
            float(hard), rel=1e-3
        )
