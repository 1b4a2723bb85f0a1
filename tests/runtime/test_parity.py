"""Both engines against transformers' on the same random weights, in float32.

Tolerances: rtol 1e-4; a number near 0 is a sum of larger ones that cancel, so it may be off
by 3e-5 of the largest number beside it.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma2Config,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
)

from palidecode.runtime.config import config_to_hf, read_config
from palidecode.runtime.gemma import Rope
from palidecode.runtime.onnx_engine import OnnxEngine
from palidecode.runtime.onnx_graphs import build_graphs
from palidecode.runtime.onnx_weights import onnx_weights
from palidecode.runtime.torch_engine import TorchEngine
from palidecode.runtime.torch_weights import load_weights
from palidecode.runtime.weights import SafetensorsFolder

VOCABULARY, IMAGE, PATCH = 300, 299, 14
LENGTHS = (4, 7, 5)  # tokens of three prompts
NEW = 40
ENGINES = ("torch", "onnx")

# PaliGemma 1 or 2, key/value heads of 4, pixels, and what differs from Gemma 2's defaults.
# The window of 6 or 9 tokens is shorter than any image and prompt here.
CASES = {
    "1-mqa-28px": (1, 1, 28, {}),
    "1-gqa-42px": (1, 2, 42, {}),
    "1-mha-56px": (1, 4, 56, {}),
    "2-gqa-28px": (2, 2, 28, {"sliding_window": 6}),
    "2-mqa-42px": (2, 1, 42, {"sliding_window": 9}),
    "2-gqa-56px-wide-window": (2, 2, 56, {"sliding_window": 4096}),
    "2-gqa-28px-no-caps": (
        2,
        2,
        28,
        {
            "sliding_window": 6,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    "2-gqa-42px-hard-caps": (
        2,
        2,
        42,
        {"sliding_window": 6, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
}


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """None of transformers' advice and progress bars."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(level)


def random_model(version, kv_heads, pixels, changes):
    vision = SiglipVisionConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=pixels,
        patch_size=PATCH,
        vision_use_head=False,
    )
    sizes = {
        "hidden_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "head_dim": 16,
        "intermediate_size": 64,
        "vocab_size": VOCABULARY,
    }
    if version == 1:
        text = GemmaConfig(**sizes)
    else:
        text = Gemma2Config(**sizes, query_pre_attn_scalar=24, **changes)
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        projection_dim=40,
        hidden_size=40,
    )
    torch.manual_seed(1)
    model = PaliGemmaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Layers outweigh the embedding: else the tied head repeats the last token.
            table = "embed_tokens" in name
            parameter.copy_(torch.randn_like(parameter) * (0.05 if table else 0.3))
            if "vision" in name and "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
        # Logits of the order of 3, so that the final soft cap bends them.
        model.model.language_model.norm.weight.add_(8.0)
    return model


def ours_from(folder):
    return load_weights(
        SafetensorsFolder(folder),
        read_config(folder / "config.json"),
        torch.float32,
        torch.device("cpu"),
    )


def onnx_from(folder):
    config = read_config(folder / "config.json")
    weights = dict(onnx_weights(SafetensorsFolder(folder), config, "float32"))
    return OnnxEngine(config, "float32", build_graphs(config, "float32"), weights, threads=1)


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    theirs = random_model(*CASES[request.param])
    theirs.save_pretrained(folder)
    ours = ours_from(folder)
    generator = torch.Generator().manual_seed(3)
    side = ours.config.vision.image_size
    return SimpleNamespace(
        theirs=theirs,
        ours=ours,
        engines={"torch": TorchEngine(ours), "onnx": onnx_from(folder)},
        folder=folder,
        pixels=torch.randn(len(LENGTHS), 3, side, side, generator=generator),
        prompts=[torch.randint(3, IMAGE, (n,), generator=generator) for n in LENGTHS],
    )


def close(found, wanted):
    atol = 3e-5 * float(wanted.abs().max())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=atol)


def right_padded(rows):
    lengths = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths


def for_transformers(pair, rows, prefix):
    """Image tokens and rows padded on the left, with what belongs to them."""
    images = pair.ours.config.vision.tokens
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest + images, dtype=torch.int64)
    mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
    for number, row in enumerate(rows):
        start = longest - len(row)
        ids[number, start:] = torch.cat([torch.full((images,), IMAGE), row])
        mask[number, start:] = 1
        types[number, start + images + prefix[number] :] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
        "pixel_values": pair.pixels,
    }


def test_the_vision_tower_and_the_projector(pair):
    with torch.no_grad():
        tower = pair.theirs.model.vision_tower(pair.pixels).last_hidden_state
        close(pair.ours.vision(pair.pixels), tower)
        wanted = pair.theirs.model.multi_modal_projector(tower)
    for engine in pair.engines.values():
        close(torch.stack(features_of(engine, pair.pixels)), wanted)


def test_one_decoder_layer(pair):
    config = pair.ours.config.text
    gemma = pair.theirs.model.language_model
    torch.manual_seed(4)
    x = torch.randn(2, 11, config.width)
    place = torch.arange(11)[None].expand(2, -1)
    rotary = gemma.rotary_emb(x, place)
    causal = (place[:, :, None] >= place[:, None, :]).clone()
    added = torch.zeros(causal.shape).masked_fill(~causal, torch.finfo(torch.float32).min)
    for number in (0, 3):
        with torch.no_grad():
            wanted = gemma.layers[number](
                x, position_embeddings=rotary, attention_mask=added[:, None], position_ids=place
            )
            wanted = wanted[0] if isinstance(wanted, tuple) else wanted
            rope = Rope.at(place, config, torch.float32)
            layer = pair.ours.language.layers[number]
            close(layer(x, rope, causal, None, number), wanted)
            close(layer(x, rope, causal, None, number, 3), wanted[:, -3:])


def with_answers(pair):
    """Prompts with answers of different lengths behind them."""
    generator = torch.Generator().manual_seed(5)
    answers = (torch.randint(3, IMAGE, (n,), generator=generator) for n in (9, 2, 6))
    return [torch.cat(both) for both in zip(pair.prompts, answers, strict=True)]


def test_logits_of_the_whole_model_for_rows_of_different_lengths(pair):
    rows = with_answers(pair)
    ids, lengths = right_padded(rows)
    with torch.no_grad():
        theirs = pair.theirs(**for_transformers(pair, rows, LENGTHS)).logits
        ours = pair.ours(pair.pixels, ids, torch.tensor(LENGTHS), lengths)
    for number, row in enumerate(rows):
        close(ours[number, : len(row)], theirs[number, -len(row) :])


def features_of(engine, pixels):
    return [torch.as_tensor(tokens) for tokens in engine.encode_image(pixels.numpy())]


def started(engine, rows, pixels, new):
    """A batch of answers with space for `new` tokens, and the logits of the first."""
    prompts = [row.tolist() for row in rows]
    length = engine.config.vision.tokens + max(map(len, prompts)) + new
    batch = engine.start(engine.encode_image(pixels.numpy()), prompts, length, None)
    return batch, torch.from_numpy(batch.prefill())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("together", [1, 5, 12])
def test_cached_decoding_gives_the_logits_of_reading_all_at_once(pair, engine, together):
    answer = torch.randint(3, IMAGE, (3, 12), generator=torch.Generator().manual_seed(6))
    rows = [torch.cat(both) for both in zip(pair.prompts, answer, strict=True)]
    with torch.no_grad():
        theirs = pair.theirs(**for_transformers(pair, rows, LENGTHS)).logits[:, -13:]
    batch, logits = started(pair.engines[engine], pair.prompts, pair.pixels, 12)
    close(logits, theirs[:, 0])
    for start in range(0, 12, together):
        part = slice(start, start + together)
        logits = torch.from_numpy(batch.step(answer[:, part].numpy()))
        close(logits, theirs[:, 1:][:, part])


def greedy(engine, rows, pixels):
    batch, logits = started(engine, rows, pixels, NEW)
    tokens = [logits.argmax(-1)]
    for _ in range(NEW - 1):
        logits = torch.from_numpy(batch.step(tokens[-1][:, None].numpy()))
        tokens.append(logits[:, 0].argmax(-1))
    return torch.stack(tokens, dim=1)


@pytest.fixture(scope="module")
def their_tokens(pair):
    return pair.theirs.generate(
        **for_transformers(pair, pair.prompts, LENGTHS),
        do_sample=False,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        eos_token_id=None,
    )[:, -NEW:]


@pytest.mark.parametrize("engine", ENGINES)
def test_forty_greedy_tokens_in_a_batch_and_alone(pair, their_tokens, engine):
    ours = greedy(pair.engines[engine], pair.prompts, pair.pixels)
    assert ours.shape == (3, NEW)
    # An answer that says one thing over and over, or the same of every picture, proves little.
    assert min(len(row.unique()) for row in ours) >= 5
    assert len({tuple(row.tolist()) for row in ours}) == 3
    assert torch.equal(ours, their_tokens)
    for number, prompt in enumerate(pair.prompts):
        pixels = pair.pixels[number : number + 1]
        assert torch.equal(greedy(pair.engines[engine], [prompt], pixels)[0], ours[number])


def test_our_config_is_one_that_transformers_reads(pair, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(pair.ours.config)))
    assert read_config(tmp_path / "config.json") == pair.ours.config
    (tmp_path / "model.safetensors").write_bytes((pair.folder / "model.safetensors").read_bytes())
    again = PaliGemmaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    batch = for_transformers(pair, pair.prompts, LENGTHS)
    with torch.no_grad():
        assert torch.equal(again.eval()(**batch).logits, pair.theirs(**batch).logits)


NAMINGS = {
    "older": {
        "model.language_model.": "language_model.model.",
        "model.vision_tower.vision_model.": "vision_tower.vision_model.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
    "newer": {
        "language_model.model.": "model.language_model.",
        "vision_tower.vision_model.": "model.vision_tower.vision_model.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    },
    "newest": {
        "language_model.model.": "model.language_model.",
        "vision_tower.vision_model.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    },
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_spelling_of_the_names_loads(pair, tmp_path, naming):
    renamed = {}
    for name, tensor in load_file(pair.folder / "model.safetensors").items():
        pairs = ((old, new) for old, new in NAMINGS[naming].items() if name.startswith(old))
        old, new = next(pairs, ("", ""))
        renamed[new + name.removeprefix(old)] = tensor
    first = "language_model.model." if naming == "older" else "model.language_model."
    assert f"{first}norm.weight" in renamed
    save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((pair.folder / "config.json").read_bytes())
    same_weights(ours_from(tmp_path), pair.ours)


def same_weights(found, wanted):
    state = found.state_dict()
    assert state.keys() == wanted.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in wanted.state_dict().items())


def test_shards_load(pair, tmp_path):
    size = Path(pair.folder / "model.safetensors").stat().st_size
    pair.theirs.save_pretrained(tmp_path, max_shard_size=int(size * 0.7))
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    same_weights(ours_from(tmp_path), pair.ours)
