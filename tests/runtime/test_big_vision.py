import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from palidecode.errors import WeightsError
from palidecode.runtime.big_vision import BigVisionNpz, config_of
from palidecode.runtime.config import PRESETS, PaliGemmaConfig, TextConfig, VisionConfig
from palidecode.runtime.paligemma import PaliGemma
from palidecode.runtime.torch_weights import load_weights, state_to_hf

VISION = VisionConfig(width=24, layers=2, heads=3, mlp=40, image_size=42)
GEMMA = TextConfig(
    width=20, layers=3, mlp=36, heads=4, kv_heads=1, head_size=8, vocabulary=90, query_scale=8.0
)
GEMMA2 = replace(
    GEMMA,
    kv_heads=2,
    post_norms=True,
    attention_softcap=50.0,
    final_softcap=None,  # big_vision's code has none
    sliding_window=4096,
)
TEXTS = {"paligemma": GEMMA, "paligemma2": GEMMA2}


@pytest.fixture(params=TEXTS)
def model(request):
    torch.manual_seed(1)
    made = PaliGemma(PaliGemmaConfig(VISION, TEXTS[request.param])).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return made


def exported(model):
    """A model's arrays as big_vision keeps them: one axis of layers, heads unfolded."""
    config, hf = model.config, {k: v.numpy() for k, v in state_to_hf(model).items()}
    v, t = config.vision, config.text
    tower, gemma = "vision_tower.vision_model.", "language_model.model."

    def stack(name, layers, make):
        return np.stack([make(hf[name.format(layer)]) for layer in range(layers)])

    def same(x):
        return x

    arrays = {
        "img/embedding/kernel": hf[f"{tower}embeddings.patch_embedding.weight"].transpose(
            2, 3, 1, 0
        ),
        "img/embedding/bias": hf[f"{tower}embeddings.patch_embedding.bias"],
        "img/pos_embedding": hf[f"{tower}embeddings.position_embedding.weight"][None],
        "img/Transformer/encoder_norm/scale": hf[f"{tower}post_layernorm.weight"],
        "img/Transformer/encoder_norm/bias": hf[f"{tower}post_layernorm.bias"],
        "img/head/kernel": hf["multi_modal_projector.linear.weight"].T,
        "img/head/bias": hf["multi_modal_projector.linear.bias"],
        "llm/embedder/input_embedding": hf[f"{gemma}embed_tokens.weight"],
        "llm/final_norm/scale": hf[f"{gemma}norm.weight"],
    }
    block, head = "img/Transformer/encoderblock", v.width // v.heads
    own = tower + "encoder.layers.{}."
    for key, name in (("LayerNorm_0", "layer_norm1"), ("LayerNorm_1", "layer_norm2")):
        arrays[f"{block}/{key}/scale"] = stack(f"{own}{name}.weight", v.layers, same)
        arrays[f"{block}/{key}/bias"] = stack(f"{own}{name}.bias", v.layers, same)
    for key, name in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
        weight = stack(f"{own}mlp.{name}.weight", v.layers, np.transpose)
        arrays[f"{block}/MlpBlock_0/{key}/kernel"] = weight
        arrays[f"{block}/MlpBlock_0/{key}/bias"] = stack(f"{own}mlp.{name}.bias", v.layers, same)
    attention = f"{block}/MultiHeadDotProductAttention_0"
    for key, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        arrays[f"{attention}/{key}/kernel"] = stack(
            f"{own}self_attn.{name}.weight",
            v.layers,
            lambda w: w.reshape(v.heads, head, v.width).transpose(2, 0, 1),
        )
        arrays[f"{attention}/{key}/bias"] = stack(
            f"{own}self_attn.{name}.bias", v.layers, lambda b: b.reshape(v.heads, head)
        )
    arrays[f"{attention}/out/kernel"] = stack(
        f"{own}self_attn.out_proj.weight", v.layers, lambda w: w.T.reshape(v.heads, head, v.width)
    )
    arrays[f"{attention}/out/bias"] = stack(f"{own}self_attn.out_proj.bias", v.layers, same)

    own = gemma + "layers.{}."

    def heads(w):  # (heads · size, in) to (heads, in, size)
        return w.reshape(-1, t.head_size, t.width).transpose(0, 2, 1)

    arrays["llm/layers/attn/q_einsum/w"] = stack(f"{own}self_attn.q_proj.weight", t.layers, heads)
    k, v_ = (stack(f"{own}self_attn.{x}_proj.weight", t.layers, heads) for x in "kv")
    arrays["llm/layers/attn/kv_einsum/w"] = np.stack([k, v_], axis=1)
    arrays["llm/layers/attn/attn_vec_einsum/w"] = stack(
        f"{own}self_attn.o_proj.weight",
        t.layers,
        lambda w: w.T.reshape(t.heads, t.head_size, t.width),
    )
    gate, up = (stack(f"{own}mlp.{x}_proj.weight", t.layers, np.transpose) for x in ("gate", "up"))
    arrays["llm/layers/mlp/gating_einsum"] = np.stack([gate, up], axis=1)
    down = stack(f"{own}mlp.down_proj.weight", t.layers, np.transpose)
    arrays["llm/layers/mlp/linear"] = down
    norms = {"pre_attention_norm": "input_layernorm", "pre_ffw_norm": "post_attention_layernorm"}
    if t.post_norms:
        norms = {
            "pre_attention_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "pre_ffw_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        }
    for key, name in norms.items():
        arrays[f"llm/layers/{key}/scale"] = stack(f"{own}{name}.weight", t.layers, same)
    return arrays


def bfloat16(array, kind):
    bits = torch.from_numpy(np.ascontiguousarray(array)).to(torch.bfloat16).view(torch.int16)
    return bits.numpy().view(kind)


def logits(model):
    torch.manual_seed(2)
    side = model.config.vision.image_size
    pixels, ids = torch.randn(2, 3, side, side), torch.randint(3, 80, (2, 7))
    with torch.no_grad():
        return model(pixels, ids, torch.tensor([4, 5]), torch.tensor([7, 6]))


def loaded(path, dtype=torch.float32):
    source = BigVisionNpz(path)
    return load_weights(source, source.config, dtype, torch.device("cpu"))


@pytest.mark.parametrize("prefix", ["", "params/"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_checkpoint_gives_the_models_own_logits(tmp_path, model, prefix, save):
    save(tmp_path / "x.npz", **{prefix + key: array for key, array in exported(model).items()})
    found = loaded(tmp_path / "x.npz")
    assert found.config == model.config
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["V2", "uint16", "float16"])
def test_two_byte_floats_keep_their_values(tmp_path, model, kind):
    arrays = exported(model)
    if kind == "float16":
        halves, dtype = {k: a.astype(np.float16) for k, a in arrays.items()}, torch.float16
    else:
        halves, dtype = {k: bfloat16(a, kind) for k, a in arrays.items()}, torch.bfloat16
    np.savez(tmp_path / "x.npz", **halves)
    source = BigVisionNpz(tmp_path / "x.npz")
    assert source.read("projector.weight").dtype == (np.float16 if kind == "float16" else np.uint16)
    found = loaded(tmp_path / "x.npz").state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value.to(dtype).float()), name
    same = loaded(tmp_path / "x.npz", dtype).state_dict()
    assert all(torch.equal(same[name], value.to(dtype)) for name, value in found.items())


def test_arrays_in_fortran_order_load(tmp_path, model):
    np.savez(tmp_path / "x.npz", **{k: np.asfortranarray(a) for k, a in exported(model).items()})
    torch.testing.assert_close(
        logits(loaded(tmp_path / "x.npz")), logits(model), rtol=1e-5, atol=1e-5
    )


def test_weights_that_are_changed_leave_the_file_alone(tmp_path, model):
    np.savez(tmp_path / "x.npz", **exported(model))
    before = (tmp_path / "x.npz").read_bytes()
    with torch.no_grad():
        loaded(tmp_path / "x.npz").language.embed.weight.zero_()
    assert (tmp_path / "x.npz").read_bytes() == before


def test_a_training_state_is_read_without_its_optimiser(tmp_path, model):
    arrays = {f"params/{key}": array for key, array in exported(model).items()}
    np.savez(tmp_path / "x.npz", **arrays, **{"opt/mu": np.zeros(3, np.float32)})
    source = BigVisionNpz(tmp_path / "x.npz")
    assert source.ignored == ("opt/mu",)
    assert source.config == model.config


class Shape:
    def __init__(self, *shape):
        self.shape = shape


@pytest.mark.parametrize("name", PRESETS)
def test_the_published_sizes_are_recognised(name):
    preset = PRESETS[name]
    v, t = preset.vision, preset.text
    arrays = {
        "img/embedding/kernel": Shape(v.patch, v.patch, 3, v.width),
        "img/pos_embedding": Shape(1, v.tokens, v.width),
        "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel": Shape(v.layers, v.width, v.mlp),
        "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel": Shape(
            v.layers, v.width, v.heads, v.width // v.heads
        ),
        "llm/embedder/input_embedding": Shape(257_152, t.width),
        "llm/layers/attn/q_einsum/w": Shape(t.layers, t.heads, t.width, t.head_size),
        "llm/layers/attn/kv_einsum/w": Shape(t.layers, 2, t.kv_heads, t.width, t.head_size),
        "llm/layers/mlp/linear": Shape(t.layers, t.mlp, t.width),
    }
    if t.post_norms:
        arrays["llm/layers/post_attention_norm/scale"] = Shape(t.layers, t.width)
    uncapped = replace(t, vocabulary=257_152, final_softcap=None)
    assert config_of(arrays) == replace(preset, text=uncapped)


def refused(path, arrays=None):
    if arrays is not None:
        np.savez(path, **arrays)
    with pytest.raises(WeightsError) as caught:
        loaded(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_missing_and_unexpected_arrays_are_listed(tmp_path, model):
    arrays, path = exported(model), tmp_path / "x.npz"
    less = {k: a for k, a in arrays.items() if not k.startswith("img/head")}
    assert refused(path, less).endswith("2 missing arrays: img/head/bias, img/head/kernel")
    more = arrays | {"img/extra": np.zeros(2, np.float32)}
    assert refused(path, more).endswith("1 unexpected array: img/extra")
    foreign = refused(path, {"a": np.zeros(3, np.float32)})
    assert "not a PaliGemma checkpoint of big_vision" in foreign


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("img/head/kernel", lambda a: a[:, :-1], r"projector.weight is \(19, 24\)"),
        ("llm/layers/mlp/gating_einsum", lambda a: a[:, :1], "gating_einsum"),
        ("llm/layers/attn/attn_vec_einsum/w", lambda a: a[:-1], "attn_vec_einsum"),
        ("llm/layers/attn/q_einsum/w", lambda a: a[0], "expected 4 axes"),
        ("llm/layers/mlp/linear", lambda a: np.concatenate([a, a]), r"expected \(3,\) as"),
        ("img/embedding/kernel", lambda a: a[:0], "none empty"),
        ("llm/final_norm/scale", lambda a: a.astype(np.int64), "holds int64"),
        ("llm/final_norm/scale", lambda a: a.astype(object), "holds object"),
        ("llm/final_norm/scale", lambda a: a[0], r"norm.weight is \(\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, model, key, change, message):
    arrays = exported(model)
    arrays[key] = change(arrays[key])
    assert re.search(message, refused(tmp_path / "x.npz", arrays))


def test_files_that_are_missing_cut_short_or_no_npz_are_named(tmp_path, model):
    np.savez(tmp_path / "x.npz", **exported(model))
    data = (tmp_path / "x.npz").read_bytes()
    assert "no such file" in refused(tmp_path / "missing.npz")
    for name, content in (
        ("cut.npz", data[: len(data) // 2]),
        ("empty.npz", b""),
        ("text.npz", b"no archive"),
        ("hole.npz", b"\0" * 5000 + data[5000:]),
    ):
        (tmp_path / name).write_bytes(content)
        assert "download it again" in refused(tmp_path / name) or "can't be read" in refused(
            tmp_path / name
        )
    refused(tmp_path)
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("img/embedding/kernel.npy", data[60:300])
    refused(tmp_path / "short.npz")
