"""Adapters that PEFT itself wrote, on random models: our answers against PEFT's and transformers'.

Everything is float32. Log-probabilities may be off by 1e-4 of themselves, and greedy tokens are
equal.
"""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PaliGemmaForConditionalGeneration

from palidecode.cli import main
from palidecode.errors import InputError, WeightsError
from palidecode.pipeline.adapting import merge
from palidecode.pipeline.decoder import PaliDecoder
from palidecode.pipeline.export import export
from palidecode.runtime.adapters import CONFIG, WEIGHTS
from palidecode.runtime.weights import SINGLE
from tests.runtime.tiny_models import PICTURES, line, one_thread, same_answers, write_folder

# PEFT uses names that transformers deprecates, and advises on tied weights.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:::peft"),
]
NEW = 16
PROMPTS = ["detect cat", "segment dog ; cat", "caption en"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LANGUAGE = r".*language_model.*\.({})".format("|".join([*ATTENTION, "up_proj", "down_proj"]))
CASES = {
    "attention": {"target_modules": LANGUAGE},
    "all-linear": {"target_modules": "all-linear", "lora_alpha": 24},
    "vision": {"target_modules": ["out_proj", "fc1", "linear", "patch_embedding"]},
    "rslora": {"target_modules": LANGUAGE, "use_rslora": True},
    "dora": {"target_modules": LANGUAGE, "use_dora": True},
    "patterns": {
        "target_modules": LANGUAGE,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 3},
        "alpha_pattern": {"down_proj": 32, r"layers\.0\.self_attn\.q_proj": 1},
    },
    "head": {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
    "lora-head": {"target_modules": ["q_proj", "lm_head"]},
    "table": {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]},
    "lora-table": {"target_modules": ["q_proj", "embed_tokens", "position_embedding"]},
    "projector": {"target_modules": ATTENTION, "modules_to_save": ["multi_modal_projector"]},
}


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    """None of transformers' advice and progress bars; one thread."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with one_thread():
        yield
    transformers.logging.set_verbosity(level)


@pytest.fixture(scope="module", params=[1, 2], ids=["gemma", "gemma2"])
def base(request, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("base"), request.param)


@pytest.fixture(scope="module")
def base2(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("base"), 2)


def trained(base, folder, seed=1, **options):
    """An adapter with random weights as PEFT saves it, and PEFT's model."""
    model = PaliGemmaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(r=4, **options)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * (0.02 if "embed" in name else 0.08))
    adapted.save_pretrained(folder)
    return adapted


def theirs(model, decoder, answers):
    """Log-probabilities of the answers' tokens, by PEFT's model on the whole text at once."""
    found = []
    for picture, prompt, answer in zip(PICTURES, PROMPTS, answers, strict=True):
        config = decoder.engine.config
        prefix = decoder.tokenizer.encode_prompt(prompt)
        ids = [config.image_token] * config.vision.tokens + prefix + answer.token_ids
        start = config.vision.tokens + len(prefix)
        types = torch.tensor([[int(column >= start) for column in range(len(ids))]])
        pixels = torch.from_numpy(decoder.shrink(picture).pixels)[None]
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([ids]),
                pixel_values=pixels,
                attention_mask=torch.ones_like(types),
                token_type_ids=types,
            ).logits[0, start - 1 : -1]
        assert logits.argmax(-1).tolist() == answer.token_ids
        rows = torch.arange(len(answer.token_ids))
        found.append(logits.log_softmax(-1)[rows, torch.tensor(answer.token_ids)].numpy())
    return found


def answers_of(decoder):
    return decoder.generate(PICTURES, PROMPTS, NEW)


def logprobs(answers):
    return [np.asarray(answer.logprobs) for answer in answers]


def close(found, wanted):
    for ours, others in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, others, rtol=1e-4, atol=1e-4)


def loaded(folder, engine="torch", **options):
    dtype = "float32" if engine == "torch" else None
    return PaliDecoder.from_pretrained(folder, dtype, "cpu", engine=engine, **options)


@pytest.mark.parametrize("case", CASES)
def test_answers_are_pefts(base, tmp_path, case):
    model = trained(base, tmp_path, **CASES[case])
    plain = answers_of(loaded(base))
    for engine in ("torch", "onnx"):
        decoder = loaded(tmp_path, engine)
        answers = answers_of(decoder)
        assert [answer.token_ids for answer in answers] != [answer.token_ids for answer in plain]
        close(logprobs(answers), theirs(model, decoder, answers))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
    ids=["table", "lora"],
)
def test_a_table_with_its_head_tied_to_it(base, tmp_path, options):
    # ensure_weight_tying: PEFT trains both as one.
    model = trained(base, tmp_path, ensure_weight_tying=True, **options)
    for engine in ("torch", "onnx"):
        decoder = loaded(tmp_path, engine)
        assert decoder.engine.config.text.tied_head
        answers = answers_of(decoder)
        close(logprobs(answers), theirs(model, decoder, answers))


def test_adapters_of_one_base_share_its_tokenizer(tmp_path):
    whole = write_folder(tmp_path / "base", 2)
    adapter = tmp_path / "a"
    trained(whole, adapter, **CASES["attention"])
    tokenizer = json.loads((whole / "tokenizer.json").read_text())
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer, indent=3))  # the same
    loaded(whole, "onnx", adapters={"a": adapter}).use("a")
    last = tokenizer["added_tokens"][-1]
    tokenizer["added_tokens"].append({**last, "id": last["id"] + 1, "content": "<extra>"})
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match=r"a: has a tokenizer of its own \(tokenizer.json\)"):
        loaded(whole, "onnx", adapters={"a": adapter})


def test_pictures_are_prepared_as_for_the_adapter(tmp_path):
    whole = write_folder(tmp_path / "base", 2)
    (whole / "preprocessor_config.json").write_text('{"resample": 3}')
    trained(whole, tmp_path / "a", **CASES["attention"])
    processor = {"image_processor": {"resample": 2, "image_mean": [0, 0, 0]}}
    (tmp_path / "a" / "processor_config.json").write_text(json.dumps(processor))
    base = loaded(whole, "onnx").image_config
    assert base.resample == "bicubic"
    wanted = replace(base, resample="bilinear", mean=(0.0, 0.0, 0.0))
    assert loaded(tmp_path / "a", "onnx").image_config == wanted
    merge(tmp_path / "a", tmp_path / "merged")
    assert loaded(tmp_path / "merged", "onnx").image_config == wanted
    with pytest.raises(InputError, match="prepared otherwise than the base's"):
        loaded(whole, "onnx", adapters={"a": tmp_path / "a"})


def rename(folder, old, new):
    state = load_file(folder / WEIGHTS)
    save_file({re.sub(old, new, name): tensor for name, tensor in state.items()}, folder / WEIGHTS)


def test_names_of_older_transformers_and_of_training_states(base2, tmp_path):
    trained(base2, tmp_path, target_modules=LANGUAGE)
    wanted = answers_of(loaded(tmp_path))
    rename(tmp_path, r"model\.language_model\.", "language_model.model.")
    same_answers(answers_of(loaded(tmp_path)), wanted)
    rename(tmp_path, r"(lora_[AB])\.weight", r"\1.default.weight")
    same_answers(answers_of(loaded(tmp_path)), wanted)


def test_several_adapters_apart(base2, tmp_path):
    for name, options in (("a", CASES["attention"]), ("b", CASES["head"]), ("c", CASES["vision"])):
        trained(base2, tmp_path / name, seed=ord(name), **options)
    folders = {name: tmp_path / name for name in "abc"}
    for engine in ("torch", "onnx"):
        wanted = {name: answers_of(loaded(folder, engine)) for name, folder in folders.items()}
        wanted[None] = answers_of(loaded(base2, engine))
        decoder = loaded(base2, engine, adapters=folders)
        engines = []
        for name in (None, "a", "b", "a", None, "c", "b", "a", None):
            decoder.use(name)
            engines.append(decoder.engine)
            same_answers(answers_of(decoder), wanted[name])
        assert engines[1] is engines[3]  # the last two stay
        assert engines[2] is not engines[6]
    with pytest.raises(InputError, match="no adapter 'd': there is 'a', 'b', 'c'"):
        decoder.use("d")
    with pytest.raises(InputError, match="there are no adapters"):
        loaded(base2).use("a")


@pytest.mark.parametrize("case", ["all-linear", "table", "vision"])
def test_merge_writes_what_transformers_reads(base2, tmp_path, case):
    adapter = tmp_path / "adapter"
    trained(base2, adapter, **CASES[case])
    merged = merge(adapter, tmp_path / "merged")
    assert merged.bytes == (tmp_path / "merged" / SINGLE).stat().st_size
    wanted = answers_of(loaded(adapter))
    decoder = loaded(tmp_path / "merged")
    same_answers(answers_of(decoder), wanted)
    model = PaliGemmaForConditionalGeneration.from_pretrained(
        tmp_path / "merged", dtype=torch.float32
    )
    close(logprobs(wanted), theirs(model.eval(), decoder, wanted))


def test_a_bfloat16_base_is_merged_in_float32_and_rounded_once(tmp_path):
    base = write_folder(tmp_path / "base")
    state = {name: tensor.bfloat16() for name, tensor in load_file(base / SINGLE).items()}
    save_file(state, base / SINGLE)
    trained(base, tmp_path / "adapter", **CASES["attention"])
    merge(tmp_path / "adapter", tmp_path / "merged")
    written = load_file(tmp_path / "merged" / SINGLE)
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    adapter = load_file(tmp_path / "adapter" / WEIGHTS)
    inner = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{}.weight"
    delta = 8 / 4 * adapter[inner.format("B")] @ adapter[inner.format("A")]
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(written[name], (state[name].float() + delta).bfloat16())


def test_the_commands(base2, tmp_path, capsys):
    trained(base2, tmp_path / "adapter", **CASES["attention"])
    assert main(["merge", str(tmp_path / "adapter"), "-o", str(tmp_path / "merged")]) == 0
    changed = 3 * 6  # layers, matrices
    assert f"{changed} tensors changed by the adapter" in capsys.readouterr().out
    words = ["--quantize", "int8", "-o", str(tmp_path / "small")]
    assert main(["export", str(tmp_path / "adapter"), *words]) == 0
    export(tmp_path / "merged", tmp_path / "same", "int8")
    weights = "onnx/weights.safetensors"
    same = (tmp_path / "same" / weights).read_bytes()
    assert (tmp_path / "small" / weights).read_bytes() == same
    PICTURES[0].save(tmp_path / "picture.png")
    files = []
    for model in ("adapter", "merged"):
        out = tmp_path / f"{model}.json"
        words = ["--prompt", "detect cat", "--engine", "onnx", "--max-new-tokens", "16", "-o"]
        main(
            [
                "predict",
                str(tmp_path / "picture.png"),
                "--model",
                str(tmp_path / model),
                *words,
                str(out),
            ]
        )
        data = json.loads(out.read_text())
        files.append((data["annotations"], data["categories"]))
    assert files[0] == files[1]


def broken(folder, **changes):
    data = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    base = write_folder(tmp_path_factory.mktemp("base"))
    folder = tmp_path_factory.mktemp("adapter")
    trained(base, folder, target_modules=ATTENTION)
    return SimpleNamespace(folder=folder, base=base)


REFUSED = {
    "another method": ({"peft_type": "IA3"}, "peft_type 'IA3': only LoRA is read; merge it"),
    "a start that changes the base": ({"init_lora_weights": "pissa"}, "changes the base's own"),
    "biases": ({"lora_bias": True}, "lora_bias: biases in LoRA's layers can't be read"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "single trained tokens can't be read"),
    "no alpha": ({"lora_alpha": "many"}, "lora_alpha and alpha_pattern must be numbers"),
    "no base": ({"base_model_name_or_path": None}, "names no base model; name it: base=, --base"),
    "a lost base": ({"base_model_name_or_path": "/gone"}, "base model: /gone: no such folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_named(adapter, tmp_path, case):
    changes, message = REFUSED[case]
    for name in (CONFIG, WEIGHTS):
        (tmp_path / name).write_bytes((adapter.folder / name).read_bytes())
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        loaded(broken(tmp_path, **changes))
    line(caught)
    if "base_model_name_or_path" in changes:
        loaded(tmp_path, base=adapter.base)


def damage(adapter, folder, change):
    """The adapter with other tensors."""
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_bytes((adapter.folder / CONFIG).read_bytes())
    save_file(change(load_file(adapter.folder / WEIGHTS)), folder / WEIGHTS)
    return folder


TENSORS = {
    "of another model": (
        lambda s: {n.replace("layers.2", "layers.9"): t for n, t in s.items()},
        "no place in",
    ),
    "half": (lambda s: {n: t for n, t in s.items() if "lora_A" in n}, "don't fit"),
    "other sizes": (lambda s: {n: t[..., :-1].contiguous() for n, t in s.items()}, "don't fit"),
    "none": (lambda s: {}, "holds no tensor"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused(adapter, tmp_path, case):
    change, message = TENSORS[case]
    with pytest.raises(WeightsError, match=message) as caught:
        loaded(damage(adapter, tmp_path / "bad", change))
    line(caught)


def test_files_that_are_missing_or_damaged(adapter, tmp_path):
    (tmp_path / CONFIG).write_bytes((adapter.folder / CONFIG).read_bytes())
    with pytest.raises(WeightsError, match=f"no {WEIGHTS}: download it"):
        loaded(tmp_path)
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(WeightsError, match="pickled and can run code"):
        loaded(tmp_path)
    (tmp_path / WEIGHTS).write_bytes((adapter.folder / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(WeightsError, match="cut short or damaged"):
        loaded(tmp_path)


def test_an_adapter_beside_base_weights_is_not_ignored(adapter, tmp_path):
    for name in (CONFIG, WEIGHTS):
        (tmp_path / name).write_bytes((adapter.folder / name).read_bytes())
    for name in (SINGLE, "config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((adapter.base / name).read_bytes())
    with pytest.raises(InputError, match="beside weights of a whole model, which may or may not"):
        loaded(tmp_path)


def test_a_base_is_for_adapters_alone(adapter, tmp_path):
    with pytest.raises(InputError, match="is a whole model, not an adapter: leave base out"):
        loaded(adapter.base, base=adapter.base)
    with pytest.raises(InputError, match="is a whole model, not an adapter: nothing to merge"):
        merge(adapter.base, tmp_path / "out")
    with pytest.raises(InputError, match="is an adapter itself; merge that one first"):
        loaded(adapter.folder, base=adapter.folder)
    with pytest.raises(InputError, match="exists; name a new folder"):
        merge(adapter.folder, tmp_path)
    with pytest.raises(InputError, match="holds no adapter"):
        loaded(adapter.base, adapters={"a": tmp_path})
    assert not (tmp_path / "out").exists()
