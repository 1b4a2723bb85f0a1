import json
import pickle
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from palidecode.errors import InputError, WeightsError
from palidecode.runtime.config import (
    PRESETS,
    PaliGemmaConfig,
    TextConfig,
    VisionConfig,
    config_from_hf,
    config_to_hf,
)
from palidecode.runtime.opening import open_checkpoint
from palidecode.runtime.paligemma import PaliGemma
from palidecode.runtime.torch_weights import load_weights, state_to_hf
from palidecode.runtime.weights import INDEX, SINGLE

CONFIG = PaliGemmaConfig(
    VisionConfig(width=24, layers=2, heads=3, mlp=40, image_size=28),
    TextConfig(
        width=20, layers=2, mlp=36, heads=4, kv_heads=2, head_size=8, vocabulary=90, query_scale=8.0
    ),
    image_token=89,
)
NORM = "language_model.model.norm.weight"


def random_model(config):
    model = PaliGemma(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def write(folder, state, config=CONFIG):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.json").write_text(json.dumps(config_to_hf(config)))
    save_file(state, folder / SINGLE)
    return folder


@pytest.fixture
def state():
    return state_to_hf(random_model(CONFIG))


@pytest.fixture
def folder(tmp_path, state):
    return write(tmp_path / "model", state)


@pytest.fixture
def sharded(folder):
    """The same in two files and an index."""
    state = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = sorted(state)
    where = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(where.values()):
        save_file({n: state[n] for n in names if where[n] == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def load(folder, dtype=torch.float32, finish=None):
    source, config, *_ = open_checkpoint(folder)
    return load_weights(source, config, dtype, torch.device("cpu"), finish)


def refused(folder, kind=WeightsError):
    """The message of the error that loading gives: one line that names the folder."""
    with pytest.raises(kind) as caught:
        load(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def test_what_was_saved_is_loaded(folder):
    wanted = random_model(CONFIG).state_dict()
    found = load(folder)
    assert found.config == CONFIG
    assert not found.training
    assert found.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())
    half = load(folder, torch.bfloat16).state_dict()
    assert all(torch.equal(half[name], wanted[name].bfloat16()) for name in wanted)


def test_shards_are_the_same_weights(sharded):
    wanted = random_model(CONFIG).state_dict()
    assert all(torch.equal(v, wanted[n]) for n, v in load(sharded).state_dict().items())


def test_finish_sees_every_linear_layer_once_and_replaces_it(folder):
    seen = []

    def finish(linear):
        assert not linear.weight.is_meta
        seen.append(linear)
        return torch.nn.Sequential(linear)

    model = load(folder, finish=finish)
    left = [m for m in model.modules() if isinstance(m, torch.nn.Sequential)]
    assert len(seen) == len(left) == 1 + 1 + 2 * 4 + 2 * 4
    pixels, ids = torch.zeros(1, 3, 28, 28), torch.tensor([[2, 5, 7]])
    args = (pixels, ids, torch.tensor([2]), torch.tensor([3]))
    with torch.no_grad():
        assert torch.equal(model(*args), load(folder)(*args))


def test_a_tied_head_and_old_buffers_may_be_stored(tmp_path, state):
    embedding = state["language_model.model.embed_tokens.weight"]
    state["language_model.lm_head.weight"] = embedding.clone()
    state["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(4)[None]
    state["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    load(write(tmp_path / "m", state))


@pytest.mark.parametrize("name", ["language_model.lm_head.weight", "lm_head.weight"])
def test_a_head_of_its_own_gives_the_logits(tmp_path, state, name):
    embedding = state["language_model.model.embed_tokens.weight"]
    tied = load(write(tmp_path / "tied", state)).language
    state[name] = embedding.flip(0).clone()
    own = load(write(tmp_path / "own", state)).language
    hidden = torch.randn(2, embedding.shape[1], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(own.logits(hidden), tied.logits(hidden).flip(-1))
        rows = own.head_weight[[4, 7]]
        torch.testing.assert_close(own.logits(hidden, rows), own.logits(hidden)[:, [4, 7]])
    assert own.config == replace(tied.config, tied_head=False)
    saved = state_to_hf(load(tmp_path / "own"))
    assert torch.equal(saved["language_model.lm_head.weight"], embedding.flip(0))


def test_siglips_pooling_head_is_skipped(tmp_path, state):
    state["vision_tower.vision_model.head.probe"] = torch.zeros(1, 1, 24)
    state["vision_tower.vision_model.head.mlp.fc1.weight"] = torch.zeros(40, 24)
    load(write(tmp_path / "m", state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name: f"_orig_mod.{name}", "names begin with '_orig_mod.': weights of a compiled"),
        (lambda name: f"module.{name}", "save model.module instead"),
        (lambda name: f"base_model.model.{name}", "merge them before saving"),
        (lambda name: f"{name}.absmax", "quantised by bitsandbytes"),
        (lambda name: name.replace(".weight", ".qweight"), "quantised by GPTQ or AWQ"),
        (lambda name: name.replace(".weight", ".scales"), "quantised by MLX"),
    ],
)
def test_weights_that_another_library_wrapped_or_quantised_are_named(
    tmp_path, state, change, message
):
    changed = {change(name): tensor for name, tensor in state.items()}
    assert message in refused(write(tmp_path / "m", changed))


def test_channels_last_are_named(tmp_path, state):
    name = "vision_tower.vision_model.embeddings.patch_embedding.weight"
    state[name] = state[name].permute(0, 2, 3, 1).contiguous()
    assert "channels last, as MLX stores it" in refused(write(tmp_path / "m", state))


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    assert "no config.json" in refused(folder, InputError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a PaliGemma"),
        ('{"model_type": "llava"}', "model_type is 'llava', not 'paligemma'"),
        (
            '{"model_type": "paligemma", "text_config": {"model_type": "llama"}}',
            "'llama' is",
        ),
        (
            '{"model_type": "paligemma", "text_config": {"hidden_size": "x"}}',
            "a value can't be used: invalid literal",
        ),
        ('{"model_type": "paligemma", "text_config": {"hidden_size": 0}}', "at least 1"),
        ('{"model_type": "paligemma", "text_config": 7}', "text_config"),
        ('{"model_type": "paligemma", "vision_config": {"num_attention_heads": 7}}', "7 heads"),
        (
            '{"model_type": "paligemma", "text_config": {"num_key_value_heads": 3}}',
            "8 query heads on 3 key/value heads",
        ),
        ('{"model_type": "paligemma", "vision_config": {"image_size": 13}}', "13 pixels"),
        (
            '{"model_type": "paligemma", "text_config": {"model_type": "gemma2", '
            '"layer_types": ["full_attention", "full_attention"]}}',
            "layer_types must be",
        ),
        (
            '{"model_type": "paligemma", "text_config": {"layer_types": ["sliding_attention"]}}',
            "layer_types must be",
        ),
        (
            '{"model_type": "paligemma", "text_config": {"rope_scaling": {"type": "linear"}}}',
            "rope scaling 'linear', which isn't supported",
        ),
        (
            '{"model_type": "paligemma", "text_config": '
            '{"rope_parameters": {"rope_type": "yarn"}}}',
            "rope scaling 'yarn', which isn't supported",
        ),
        ('{"model_type": "paligemma", "text_config": {"rope_theta": 0}}', "must be above 0"),
        (
            '{"model_type": "paligemma", "text_config": {"model_type": "gemma2", '
            '"final_logit_softcapping": 0}}',
            "soft caps and the window must be above 0",
        ),
        (
            '{"model_type": "paligemma", "text_config": {"hidden_activation": "silu"}}',
            "the activation 'silu' is not gelu_pytorch_tanh",
        ),
        (
            '{"model_type": "paligemma", "vision_config": {"hidden_act": "gelu"}}',
            "the activation 'gelu' is not gelu_pytorch_tanh",
        ),
        (
            '{"model_type": "paligemma", "quantization_config": {"quant_method": "bitsandbytes"}}',
            "the weights are quantised by bitsandbytes",
        ),
        (
            '{"model_type": "paligemma", "quantization": {"bits": 4}}',
            "the weights are quantised by MLX",
        ),
        ('{"model_type": "paligemma", "eos_token_id": []}', "eos_token_id must be"),
        ('{"model_type": "paligemma", "eos_token_id": ["</s>"]}', "eos_token_id must be"),
    ],
)
def test_configs_that_are_no_paligemmas(folder, content, message):
    (folder / "config.json").write_text(content)
    assert message in refused(folder, InputError)


@pytest.mark.parametrize("name", PRESETS)
def test_published_configs_survive_the_round_trip(name):
    assert config_from_hf(json.loads(json.dumps(config_to_hf(PRESETS[name])))) == PRESETS[name]


@pytest.mark.parametrize(
    ("name", "billions"),
    [("paligemma-3b-224", 2.92), ("paligemma2-3b-224", 3.03), ("paligemma2-10b-448", 9.66)],
)
def test_parameters_are_as_many_as_the_published_models_have(name, billions):
    assert PRESETS[name].parameters() / 1e9 == pytest.approx(billions, abs=0.01)


def test_parameters_are_as_many_as_the_model_has():
    counted = sum(p.numel() for p in random_model(CONFIG).parameters())
    assert CONFIG.parameters() == counted


def test_missing_and_unexpected_tensors_are_listed(tmp_path, state):
    del state[NORM], state["multi_modal_projector.linear.bias"]
    state["language_model.model.extra"] = torch.ones(1)
    message = refused(write(tmp_path / "m", state))
    assert "2 missing (language.norm.weight; projector.bias)" in message
    assert "1 unexpected (language.extra)" in message


def test_a_tensor_that_is_there_twice(tmp_path, state):
    state["model.language_model.norm.weight"] = state[NORM].clone()
    assert "norm.weight appears twice" in refused(write(tmp_path / "m", state))


def test_long_lists_are_cut(tmp_path, state):
    few = {name: tensor for name, tensor in state.items() if not name.startswith("vision")}
    message = refused(write(tmp_path / "m", few))
    assert re.search(r"37 missing \(([^;]+; ){4}[^;]+ …\)", message)


def test_shapes_that_do_not_match_the_config(folder):
    config = replace(CONFIG, text=replace(CONFIG.text, vocabulary=91))
    (folder / "config.json").write_text(json.dumps(config_to_hf(config)))
    said = "1 mis-shaped (language.embed_tokens.weight is (90, 20), the config says (91, 20))"
    assert said in refused(folder)


def test_more_layers_than_there_are(folder):
    config = replace(CONFIG, text=replace(CONFIG.text, layers=3))
    (folder / "config.json").write_text(json.dumps(config_to_hf(config)))
    assert "9 missing (language.layers.2." in refused(folder)


def test_a_shard_is_missing(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    message = refused(sharded)
    assert "missing shards: 1 of 2: model-00002-of-00002.safetensors; download" in message


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_shard_is_cut_short(sharded, share):
    shard = sharded / "model-00002-of-00002.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * share)])
    message = refused(sharded)
    assert shard.name in message
    assert "cut short or damaged" in message


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/b", "..", 7, None])
def test_shards_outside_the_folder_are_not_followed(sharded, name):
    state = load_file(sharded / "model-00001-of-00002.safetensors")
    save_file(state, sharded.parent / "x.safetensors")
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["more"] = name
    (sharded / INDEX).write_text(json.dumps(index))
    assert "not an index of shards" in refused(sharded)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_an_index_that_is_none(sharded, content):
    (sharded / INDEX).write_text(content)
    assert "not an index of shards" in refused(sharded)


def test_every_end_of_a_config_ends_an_answer(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": [1, 7]}))
    assert open_checkpoint(folder)[1].eos == (1, 7)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert open_checkpoint(folder)[1].eos == (1, 7, 9)
    (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(InputError, match=r"generation_config.json: eos_token_id must be an id"):
        open_checkpoint(folder)


class Trap:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def test_pickled_weights_are_not_loaded(folder):
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    assert "pickled .bin weights, which can run code" in refused(folder)


def test_a_folder_without_weights(folder, tmp_path):
    (folder / SINGLE).unlink()
    assert f"has neither {SINGLE} nor {INDEX}" in refused(folder)
    assert "give a folder with config.json" in refused(tmp_path / "nowhere", InputError)


PEAK = """
import sys
from pathlib import Path
import torch
from palidecode.runtime.config import PaliGemmaConfig, read_config
from palidecode.runtime.paligemma import PaliGemma
from palidecode.runtime.torch_weights import load_weights
from palidecode.runtime.weights import SafetensorsFolder

def peak():
    # Not ru_maxrss: a child begins with its parent's.
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

with torch.device("meta"):
    PaliGemma(PaliGemmaConfig())  # torch imports what that takes
before = peak()
folder = Path(sys.argv[1])
config = read_config(folder / "config.json")
dtype = getattr(torch, sys.argv[2])
model = load_weights(SafetensorsFolder(folder), config, dtype, torch.device("cpu"))
for parameter in model.parameters():
    parameter.reshape(-1)[::512].sum()  # a mapped page counts when it is read
print(peak() - before, sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("stored", "wanted"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "bfloat16")],
)
@pytest.mark.slow
def test_loading_takes_little_more_memory_than_the_weights(tmp_path, stored, wanted):
    config = PaliGemmaConfig(
        VisionConfig(width=576, layers=8, heads=8, mlp=2152),
        TextConfig(width=768, layers=5, mlp=4096, heads=4, vocabulary=8000),
    )
    dtype = getattr(torch, stored)
    with torch.device("meta"):
        shapes = state_to_hf(PaliGemma(config))
    state = {name: torch.full(tensor.shape, 0.5, dtype=dtype) for name, tensor in shapes.items()}
    folder = write(tmp_path / "big", state, config)
    del state
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder), wanted],
        capture_output=True,
        text=True,
        check=True,
    )
    taken, weights = map(int, done.stdout.split())
    assert weights > 150e6
    # Less than nothing would mean that the measure is broken.
    assert 0.9 < taken / weights < 1.15
    (folder / SINGLE).unlink()
