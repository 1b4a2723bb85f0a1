"""Exported folders: what they hold, how they load, and that they need no torch."""

import hashlib
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import load_file

from palidecode.cli import main
from palidecode.errors import InputError, WeightsError
from palidecode.pipeline.decoder import PaliDecoder
from palidecode.pipeline.export import export
from tests.runtime.tiny_models import PICTURES, line, same_answers, write_folder


@pytest.fixture(scope="module", params=[1, 2], ids=["gemma", "gemma2"])
def folder(request, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("model"), request.param)


def answers_of(decoder):
    return decoder.generate(PICTURES, "detect cat", 24, True)


def test_an_export_answers_as_the_model_in_torch(folder, tmp_path):
    written = export(folder, tmp_path / "out")
    assert written.precision == "float32"
    wanted = PaliDecoder.from_pretrained(folder, "float32", "cpu", engine="torch")
    found = PaliDecoder.from_pretrained(tmp_path / "out")
    assert found.engine.name == "onnxruntime, float32, cpu"
    same_answers(answers_of(found), answers_of(wanted))
    assert wanted.engine.name == "torch, float32, cpu"


def test_any_folder_runs_without_an_export(folder):
    wanted = PaliDecoder.from_pretrained(folder, "float32", "cpu", engine="torch")
    found = PaliDecoder.from_pretrained(folder, engine="onnx")
    same_answers(answers_of(found), answers_of(wanted))


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_quantize_exports_into_the_cache_once(folder, tmp_path, monkeypatch, bits):
    monkeypatch.setenv("PALIDECODE_CACHE", str(tmp_path))
    with pytest.warns(UserWarning, match=f"to {bits}, once, into {tmp_path}"):
        first = PaliDecoder.from_pretrained(folder, quantize=bits, device="cpu")
    assert first.engine.name == f"onnxruntime, {bits}, cpu"
    (kept,) = tmp_path.glob("exports-*/*")
    again = PaliDecoder.from_pretrained(folder, quantize=bits, device="cpu")  # no warning
    same_answers(answers_of(again), answers_of(first))
    export(folder, tmp_path / "out", bits)
    same_answers(answers_of(PaliDecoder.from_pretrained(tmp_path / "out")), answers_of(first))
    assert (kept / "onnx" / "weights.safetensors").read_bytes() == (
        tmp_path / "out" / "onnx" / "weights.safetensors"
    ).read_bytes()


def test_two_may_quantise_a_model_together(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PALIDECODE_CACHE", str(tmp_path))
    ready = threading.Barrier(2)

    def load(_):
        ready.wait()
        return PaliDecoder.from_pretrained(folder, quantize="int8", device="cpu")

    with pytest.warns(UserWarning, match="to int8, once"), ThreadPoolExecutor(2) as pool:
        one, other = pool.map(load, range(2))
    same_answers(answers_of(one), answers_of(other))
    (kept,) = tmp_path.glob("exports-*/*")
    assert not kept.name.startswith(".")


def test_the_manifest_and_the_weights_are_what_others_read(folder, tmp_path):
    export(folder, tmp_path / "out", "int4")
    inner = tmp_path / "out" / "onnx"
    manifest = json.loads((inner / "export.json").read_text())
    assert (manifest["precision"], manifest["made_from"]) == ("int4", str(folder))
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((inner / name).read_bytes()).hexdigest() == digest
    arrays = load_file(inner / "weights.safetensors")
    assert arrays["language.layers.0.mlp.down.levels"].dtype == np.uint8
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_an_export_of_another_version_is_refused(folder, tmp_path):
    export(folder, tmp_path / "out", "int8")
    path = tmp_path / "out" / "onnx" / "export.json"
    manifest = json.loads(path.read_text())
    for changed in ({**manifest, "graphs": 1}, {"precision": manifest["precision"]}):
        path.write_text(json.dumps(changed))
        with pytest.raises(InputError, match="another version of palidecode; export the model"):
            PaliDecoder.from_pretrained(tmp_path / "out")


def test_what_cannot_be_exported_is_refused_in_a_line(folder, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError) as caught:
        export(folder, tmp_path / "there")
    assert line(caught).endswith("there exists; name a new folder")
    with pytest.raises(InputError, match=r"other\.json: no such file"):
        export(folder, tmp_path / "out", tokenizer=tmp_path / "other.json")
    assert not (tmp_path / "out").exists()
    export(folder, tmp_path / "out", "int8")
    with pytest.raises(WeightsError, match="is an export itself"):
        export(tmp_path / "out", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    with pytest.raises(InputError, match="is exported in int8, not int4"):
        PaliDecoder.from_pretrained(tmp_path / "out", quantize="int4")
    with pytest.raises(InputError, match="runs with engine='onnx' only"):
        PaliDecoder.from_pretrained(tmp_path / "out", engine="torch")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"dtype": "bfloat16"}, "engine='onnx' computes in float32, not in bfloat16"),
        ({"device": "cuda"}, "engine='onnx' runs on the CPU, not on cuda"),
        ({"engine": "jax"}, "engine must be one of auto, torch, onnx, got 'jax'"),
    ],
)
def test_an_engine_that_lacks_something_says_so(folder, option, said):
    with pytest.raises(InputError, match=said):
        PaliDecoder.from_pretrained(folder, **{"engine": "onnx", **option})


@pytest.mark.parametrize("cut", [4, 200, -10])
def test_weights_that_are_cut_short_are_named(folder, tmp_path, cut):
    export(folder, tmp_path / "out")
    path = tmp_path / "out" / "onnx" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WeightsError, match=r"weights.safetensors: cut short or damaged .*again"):
        PaliDecoder.from_pretrained(tmp_path / "out")


def test_the_command_writes_a_folder_that_predict_takes(folder, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["export", str(folder), "-o", out, "--quantize", "int8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "int8"
    picture = tmp_path / "a.png"
    PICTURES[0].save(picture)
    coco = tmp_path / "coco.json"
    asked = ["--prompt", "detect cat", "--max-new-tokens", "24", "-o", str(coco)]
    assert main(["predict", str(picture), "--model", out, *asked]) == 0
    assert json.loads(coco.read_text())["info"]["model"] == out


def test_a_machine_without_torch_runs_the_bundled_model(tmp_path):
    """The demo's scenes, with every import of torch and onnx refused."""
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "import importlib.util, palidecode.cli as cli\n"
        "code = cli.main(['demo', '-o', sys.argv[1]])\n"
        "sys.exit(code)"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "demo")]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "coco.json").exists()
