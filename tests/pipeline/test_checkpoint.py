"""Folders to a PaliDecoder: what is loaded, how exactly, and what is refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from palidecode.errors import InputError
from palidecode.pipeline.decoder import PaliDecoder
from palidecode.runtime.config import PRESETS
from palidecode.runtime.linear import Int8Linear, PackedLinear, WideningLinear
from palidecode.runtime.memory import check_memory
from tests.runtime.tiny_models import (
    CONFIGS,
    PICTURES,
    ids_of,
    line,
    relative_error,
    same_answers,
    write_folder,
)

PROMPT = "cat ; red star"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    return {version: write_folder(base / f"{version}", version) for version in (1, 2)}


@pytest.fixture
def folder(tmp_path):
    """One that a test may spoil."""
    return write_folder(tmp_path / "model")


def logits(decoder):
    """Logits of the first token of an answer, float32."""
    prompt = torch.tensor([decoder.tokenizer.encode_prompt("detect cat")])
    lengths = torch.tensor([prompt.shape[1]])
    pixels = torch.linspace(-1, 1, 3 * 28 * 28).reshape(1, 3, 28, 28)
    with torch.inference_mode():
        return decoder.engine.model(pixels, prompt, lengths, lengths)[0, -1]


@pytest.fixture(scope="module", params=[1, 2], ids=["gemma", "gemma2"])
def calm_folder(request, tmp_path_factory):
    """A model whose layers don't blow up rounding errors."""
    return write_folder(tmp_path_factory.mktemp("calm"), request.param, 0.05)


# Twice what was measured.
@pytest.mark.parametrize(
    ("dtype", "quantize", "bound"),
    [
        ("bfloat16", None, 0.02),
        ("float16", None, 0.0025),
        ("float32", "int8", 0.06),
        ("bfloat16", "int8", 0.06),
    ],
)
def test_lower_precision_gives_nearly_the_same_logits(calm_folder, dtype, quantize, bound):
    whole = PaliDecoder.from_pretrained(calm_folder, "float32", "cpu")
    rough = PaliDecoder.from_pretrained(calm_folder, dtype, "cpu", quantize, engine="torch")
    error = relative_error(logits(rough), logits(whole))
    assert 0 < error < bound
    found = rough.detect(PICTURES, PROMPT, max_new_tokens=24)
    assert found.issues == []
    assert len(found) > 0


def kinds_of_linear(decoder):
    return {
        type(module)
        for module in decoder.engine.model.modules()
        if "Linear" in type(module).__name__
    }


def test_what_stands_in_for_linear_layers(folders):
    def kinds(*options):
        return kinds_of_linear(PaliDecoder.from_pretrained(folders[1], *options, engine="torch"))

    assert kinds("float32", "cpu") == {torch.nn.Linear}
    packs = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert kinds("bfloat16", "cpu") == {PackedLinear if packs else WideningLinear}
    assert kinds("float32", "cpu", "int8") == {Int8Linear}


def test_dtypes_devices_and_quantising_that_are_unknown_are_refused(folders):
    def refused(*options, **named):
        with pytest.raises(InputError) as caught:
            PaliDecoder.from_pretrained(folders[1], *options, **named)
        return line(caught)

    known = "dtype must be one of bfloat16, float32, float16, got "
    assert refused("int8") == known + "'int8'"
    assert refused("fp32") == known + "'fp32'"
    assert refused("float32", "tpu").startswith("device must be cpu, cuda, cuda:1, mps")
    assert refused("float32", "cuda:77").startswith("device 'cuda:77' is not available (")
    assert refused("float32", "meta").startswith("device 'meta' is not available (")
    assert refused("float32", "cpu", "int3").startswith("quantize must be None, 'int8' or 'int4'")
    assert refused(resample="nearest").startswith("resample must be one of bicubic, bilinear, ")
    for cap in (0, -1.0, float("nan")):
        assert refused(final_softcap=cap).startswith("final_softcap must be above 0, or None")


def test_by_default_the_device_is_the_best_there_is(folders):
    decoder = PaliDecoder.from_pretrained(folders[1])
    best = "cuda" if torch.cuda.is_available() else "cpu"
    best = "mps" if torch.backends.mps.is_available() else best
    assert decoder.engine.model.vision.position.device.type == best
    assert decoder.engine.model.vision.position.dtype == torch.bfloat16
    assert decoder.source == str(folders[1])


def test_a_model_that_does_not_fit_in_memory_is_refused_before_it_is_made(folder):
    huge = PRESETS["paligemma2-28b-896"]
    huge = replace(huge, text=replace(huge.text, layers=46_000))
    with pytest.raises(InputError) as caught:
        check_memory(huge, torch.bfloat16, torch.device("cpu"), None)
    assert "GB in bfloat16" in line(caught)
    with pytest.raises(InputError, match=r"GB in float32 with int8, [0-9.]+ GB are free on cpu"):
        check_memory(huge, torch.float32, torch.device("cpu"), "int8")
    check_memory(CONFIGS[1], torch.float32, torch.device("cpu"), None)
    # Said before the weights are compared with it, which a model of that size would not survive.
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 10**9
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="choose a smaller model"):
        PaliDecoder.from_pretrained(folder, "float32", "cpu")


def test_a_hub_name_without_a_network_is_one_clear_line(tmp_path):
    # Its own process: the hub's library reads where to ask when it is imported.
    code = "from palidecode.pipeline.checkpoint import locate\nlocate('google/paligemma-3b-pt-224')"
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **hub},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(
        "palidecode.errors.InputError: google/paligemma-3b-pt-224: no such folder, and it can't "
        "be downloaded ("
    )
    assert said.endswith("`hf auth login`")


@pytest.mark.parametrize("name", ["nothing-here", "./a/b", "/no/such/folder", "a/b/c"])
def test_a_folder_that_is_not_there_is_refused(name):
    with pytest.raises(InputError) as caught:
        PaliDecoder.from_pretrained(name, "float32", "cpu")
    assert line(caught) == f"{name}: no such folder or file"


def test_the_mask_codec_a_folder_names_is_used(folder):
    assert PaliDecoder.from_pretrained(folder, "float32", "cpu").codec is None
    notes = folder / "palidecode.json"
    notes.write_text('{"codes": "palidecode-demo", "classes": ["cat", "dog"]}')
    decoder = PaliDecoder.from_pretrained(folder, "float32", "cpu")
    assert decoder.codes_id == "palidecode-demo"
    assert decoder.codec.id == "palidecode-demo"
    assert decoder.classes == ("cat", "dog")
    found = decoder.segment(PICTURES[0], "cat", max_new_tokens=60)
    assert found.has_mask.all()
    assert found.codes_id == "palidecode-demo"
    assert len(found.to_rle()) == len(found) > 0
    for wrong in ('{"codes": 3}', "[]", '{"codes": "palidecode-demo", "classes": "cat"}', "{"):
        notes.write_text(wrong)
        with pytest.raises(InputError, match=r"palidecode\.json"):
            PaliDecoder.from_pretrained(folder, "float32", "cpu")


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(folder, real_tokenizer_file):
    with pytest.raises(InputError) as caught:
        PaliDecoder.from_pretrained(folder, "float32", "cpu", tokenizer=real_tokenizer_file)
    assert line(caught) == (
        f"{folder}: the tokenizer has ids up to 257151, the model 2600 rows: "
        "they don't belong together"
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_token_index": 2599}))
    with pytest.raises(InputError, match="<image> is 1536 to the tokenizer and 2599 to the model"):
        PaliDecoder.from_pretrained(folder, "float32", "cpu")


def test_a_folder_without_a_tokenizer_takes_one_that_is_given(folder, tmp_path):
    path = (folder / "tokenizer.json").rename(tmp_path / "words.json")
    with pytest.raises(InputError, match=r"no tokenizer\.json; it comes with every PaliGemma"):
        PaliDecoder.from_pretrained(folder, "float32", "cpu")
    given = PaliDecoder.from_pretrained(folder, "float32", "cpu", tokenizer=path)
    assert given.generate(PICTURES[0], "detect cat", 4)[0].token_ids


def test_a_final_softcap_changes_probabilities_but_not_greedy_answers(folders):
    def answers(**cap):
        decoder = PaliDecoder.from_pretrained(folders[2], "float32", "cpu", **cap)
        return decoder.generate(PICTURES, "detect cat", 16)

    by_config, same, none, low = (
        answers(**cap)
        for cap in (
            {},
            {"final_softcap": 30.0},
            {"final_softcap": None},
            {"final_softcap": 2.0},
        )
    )
    same_answers(same, by_config)
    assert ids_of(none) == ids_of(low) == ids_of(by_config)
    sums = [sum(answer.logprobs[0] for answer in every) for every in (none, by_config, low)]
    # Bent logits lie nearer to each other: less is certain.
    assert sums[0] > sums[1] + 1e-4
    assert sums[1] > sums[2] + 1e-2


def test_pictures_are_squeezed_as_asked(folders):
    def squeezed(resample):
        return PaliDecoder.from_pretrained(folders[1], "float32", "cpu", resample=resample)

    assert squeezed(None).image_config.resample == "bicubic"
    assert squeezed("bilinear").image_config.resample == "bilinear"
    every = [squeezed(name).generate(PICTURES[0], "detect cat", 4) for name in (None, "bilinear")]
    assert every[0][0].logprobs != every[1][0].logprobs
