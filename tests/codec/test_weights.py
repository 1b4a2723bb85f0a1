import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from palidecode.cli import main
from palidecode.codec import fetch, load_codec, weights
from palidecode.codec.weights import (
    CODEBOOK,
    DEMO_ID,
    GOOGLE_FILE,
    GOOGLE_ID,
    SHAPES,
    CodecWeights,
    content_hash,
    convert,
    find_weights,
    load_weights,
    manifest,
    remember,
    save_safetensors,
    sha256_of,
    shipped_path,
)
from palidecode.errors import WeightsError

FORMATS = (".npz", ".safetensors")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """No weights of this machine's user: neither fetched nor named."""
    monkeypatch.delenv("PALIDECODE_WEIGHTS", raising=False)
    monkeypatch.setenv("PALIDECODE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def arrays(random_weights):
    return dict(random_weights.arrays)


def write(path, arrays, metadata=None):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path, metadata)
    return path


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def header_only(shape, dtype="<f4"):
    """A .npy file that claims a shape and brings sixteen bytes."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + b"\0" * 16


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def refused(path):
    """The message of the error that loading gives: one line that names the file."""
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_the_layout_is_the_official_files():
    with_averages = sum(map(np.prod, SHAPES.values())) + 128 * 512 + 128
    assert (len(SHAPES) + 2, with_averages) == (49, 2_116_593)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_files_of_either_format_and_any_float_load(tmp_path, arrays, suffix, dtype):
    path = write(tmp_path / f"w{suffix}", {k: v.astype(dtype) for k, v in arrays.items()})
    loaded = load_weights(path)
    assert loaded.arrays.keys() == SHAPES.keys()
    assert all(a.dtype == np.float32 and a.flags.c_contiguous for a in loaded.arrays.values())
    name = "decoder.6.weight"
    assert (loaded.arrays[name] == arrays[name].astype(dtype).astype(np.float32)).all()
    assert loaded.ignored == ()
    assert loaded.id == f"custom:{content_hash(loaded.arrays)[:8]}"
    assert load_codec(path).id == loaded.id


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("names", [("a", "b"), ("_vq_vae._ema_cluster_size", "_vq_vae._ema_w")])
def test_the_two_moving_averages_are_ignored_whatever_they_are_called(
    tmp_path, arrays, suffix, names
):
    averages = {names[0]: np.ones(128, np.float32), names[1]: np.ones((128, 512), np.float32)}
    loaded = load_weights(write(tmp_path / f"w{suffix}", arrays | averages))
    assert sorted(loaded.ignored) == sorted(names)
    assert loaded.arrays.keys() == SHAPES.keys()


def test_anything_else_is_listed(tmp_path, arrays):
    more = {"noise": np.ones(3, np.float32), "step": np.ones(1, np.float32)}
    average = {"average": np.ones(128, np.float32)}
    message = refused(write(tmp_path / "w.npz", arrays | more | average))
    assert message.endswith("unknown arrays: noise, step")
    three = {name: np.ones(128, np.float32) for name in "abc"}
    assert refused(write(tmp_path / "w.npz", arrays | three)).endswith("unknown arrays: a, b, c")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (CODEBOOK, None, "missing arrays: 1 of 47, first '_vq_vae._embedding'"),
        ("decoder.12.bias", np.zeros(2, np.float32), r"has shape (2,), not (1,)"),
        ("decoder.12.bias", np.zeros((), np.float32), r"has shape (), not (1,)"),
        ("decoder.12.bias", np.zeros(1, np.int64), "(int64) must hold finite floats"),
        ("decoder.12.bias", np.array([np.nan], np.float32), "must hold finite floats"),
        ("decoder.12.bias", np.array([np.inf], np.float16), "must hold finite floats"),
        ("decoder.12.bias", np.array([1e300]), "(float64) must hold finite floats"),
    ],
)
def test_an_array_that_does_not_fit_is_named(tmp_path, arrays, suffix, name, value, message):
    changed = {k: v for k, v in (arrays | {name: value}).items() if v is not None}
    found = refused(write(tmp_path / f"w{suffix}", changed))
    assert message in found
    assert name in found


@pytest.mark.parametrize(
    "member",
    [
        header_only((10**12,)),
        header_only((10**30,)),
        header_only((2**31, 2**31, 2**31)),
        header_only((-5,)),
        header_only((4,), "|O"),
        header_only((400,)),
        npy(np.zeros(1)).replace(b"{'descr'", b"{{{{[(((", 1),
        npy(np.zeros(1)).replace(b"'<f8'", b"'??!'", 1),
    ],
    ids=["huge", "beyond-int64", "product", "negative", "objects", "short", "syntax", "dtype"],
)
def test_hostile_array_headers_are_a_weights_error(tmp_path, member):
    refused(zipped(tmp_path / "w.npz", {"decoder.12.bias.npy": member}))


def test_an_archive_that_unpacks_to_far_too_much_is_refused_unread(tmp_path):
    path = tmp_path / "w.npz"
    zeros = bytes((1 << 28) + 1)
    zipped(path, {"a.npy": zeros}, zipfile.ZIP_DEFLATED)
    assert "unpacks to more" in refused(path)


def test_pickles_are_never_loaded(tmp_path, arrays):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    np.savez(tmp_path / "w.npz", **arrays | {CODEBOOK: np.array([Bomb()], object)})
    assert "allow_pickle=False" in refused(tmp_path / "w.npz")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("content", [b"", b"hello\nworld\n", npy(np.zeros(4)), b"\xff" * 4096])
def test_other_files_are_a_weights_error(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert "can't be read as" in refused(path)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_truncated_files_are_a_weights_error(tmp_path, arrays, suffix, share):
    path = write(tmp_path / f"w{suffix}", arrays)
    os.truncate(path, int(path.stat().st_size * share))
    refused(path)


def test_damaged_archives_are_a_weights_error(tmp_path, arrays):
    path = tmp_path / "w.npz"
    np.savez_compressed(path, **arrays)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = b"\0" * 64
    path.write_bytes(content)
    assert "can't be read" in refused(path)


def test_an_archive_with_other_files_is_a_weights_error(tmp_path):
    assert "'readme.txt' is not an array" in refused(
        zipped(tmp_path / "w.npz", {"readme.txt": "hello"})
    )


def test_wrong_suffixes_directories_and_absent_files_are_a_weights_error(tmp_path):
    (tmp_path / "w.pt").touch()
    assert "must be a .npz or .safetensors" in refused(tmp_path / "w.pt")
    (tmp_path / "d.npz").mkdir()
    assert "no such weights file" in refused(tmp_path / "d.npz")
    assert "no such weights file" in refused(tmp_path / "absent.npz")


def test_an_unknown_dtype_of_safetensors_is_a_weights_error(tmp_path):
    from safetensors.torch import save_file as save_torch

    save_torch({"a": torch.zeros(3, dtype=torch.bfloat16)}, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors")


def test_google_is_known_by_the_files_hash_alone(tmp_path, arrays, monkeypatch):
    path = write(tmp_path / "w.npz", arrays)
    assert load_weights(path).id.startswith("custom:")
    monkeypatch.setattr(weights, "GOOGLE_BYTES", path.stat().st_size)
    assert load_weights(path).id.startswith("custom:")
    monkeypatch.setattr(weights, "GOOGLE_SHA256", sha256_of(path))
    assert load_weights(path).id == GOOGLE_ID


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_convert_keeps_values_and_id(tmp_path, arrays, source, target):
    save_safetensors(arrays, tmp_path / "first.safetensors")
    remember(arrays)
    start, end = tmp_path / f"a{source}", tmp_path / f"b{target}"
    convert(tmp_path / "first.safetensors", start)
    convert(start, end)
    loaded = load_weights(end)
    assert loaded.id == GOOGLE_ID
    assert content_hash(loaded.arrays) == content_hash(arrays)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {"cache", "first.safetensors", start.name, end.name}
    )


@pytest.mark.parametrize("target", FORMATS)
def test_the_demo_codec_is_known_by_its_values(tmp_path, target):
    assert convert(DEMO_ID, tmp_path / f"w{target}").id == DEMO_ID
    assert load_weights(tmp_path / f"w{target}").id == DEMO_ID
    assert not (tmp_path / "cache").exists()


def test_a_converted_file_of_googles_is_known_afterwards(tmp_path, arrays, monkeypatch):
    source = write(tmp_path / "w.npz", arrays)
    monkeypatch.setattr(weights, "GOOGLE_BYTES", source.stat().st_size)
    monkeypatch.setattr(weights, "GOOGLE_SHA256", sha256_of(source))
    convert(source, tmp_path / "w.safetensors")
    assert load_weights(tmp_path / "w.safetensors").id == GOOGLE_ID


@pytest.mark.parametrize("id_", [GOOGLE_ID, DEMO_ID, "mine"])
def test_what_a_file_says_of_itself_is_not_believed(tmp_path, arrays, id_):
    digest = content_hash(arrays)
    says = {"id": id_, "content": digest}
    write(tmp_path / "w.safetensors", arrays, says)
    write(tmp_path / "w.npz", arrays)
    with zipfile.ZipFile(tmp_path / "w.npz", "a") as archive:
        archive.comment = json.dumps(says).encode()
    for suffix in FORMATS:
        assert load_weights(tmp_path / f"w{suffix}").id == f"custom:{digest[:8]}"


def test_weights_that_were_verified_are_remembered_by_their_values(
    tmp_path, arrays, monkeypatch, capsys
):
    path = write(tmp_path / "w.npz", arrays)
    assert main(["weights", "verify", str(path)]) == 1
    assert load_weights(path).id.startswith("custom:")
    monkeypatch.setattr(fetch, "_PASS", -1.0)
    assert main(["weights", "verify", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-3] == GOOGLE_ID
    assert load_weights(path).id == GOOGLE_ID
    changed = arrays | {CODEBOOK: arrays[CODEBOOK] + 1}
    assert load_weights(write(path, changed)).id == f"custom:{content_hash(changed)[:8]}"


def test_a_cache_that_can_not_be_written_is_said(tmp_path, arrays, monkeypatch):
    (tmp_path / "cache").write_text("a file, no folder")
    with pytest.warns(UserWarning, match="can't be written, so this is forgotten"):
        remember(arrays)
    assert load_weights(write(tmp_path / "w.npz", arrays)).id.startswith("custom:")


@pytest.mark.parametrize("target", ["w.pt", "absent/w.npz", "absent/w.safetensors", "d.npz"])
def test_convert_leaves_nothing_where_it_cannot_write(tmp_path, arrays, target):
    source = write(tmp_path / "source.npz", arrays)
    (tmp_path / "d.npz").mkdir()
    with pytest.raises(WeightsError, match=Path(target).name):
        convert(source, tmp_path / target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.npz", "source.npz"]


def test_where_weights_are_looked_for(tmp_path, monkeypatch, arrays):
    assert find_weights() == find_weights(DEMO_ID) == shipped_path()
    with pytest.raises(WeightsError, match="palidecode weights fetch"):
        find_weights(GOOGLE_ID)
    fetched = tmp_path / "cache" / GOOGLE_FILE
    fetched.parent.mkdir()
    fetched.touch()
    assert find_weights() == find_weights(GOOGLE_ID) == fetched
    named = write(tmp_path / "named.npz", arrays)
    monkeypatch.setenv("PALIDECODE_WEIGHTS", str(named))
    assert find_weights() == named
    assert find_weights(DEMO_ID) == shipped_path()
    assert load_weights().id.startswith("custom:")
    monkeypatch.setenv("PALIDECODE_WEIGHTS", DEMO_ID)
    assert find_weights() == shipped_path()


def test_the_cache_is_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("PALIDECODE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.cache_dir() == tmp_path / "palidecode"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert weights.cache_dir() == tmp_path / "home" / ".cache" / "palidecode"


def test_weights_load_without_a_home_directory_and_with_a_closed_one(tmp_path, monkeypatch, arrays):
    path = write(tmp_path / "w.npz", arrays)
    monkeypatch.setenv("PALIDECODE_CACHE", f"{tmp_path}/{'x' * 300}")  # any OSError will do
    assert load_weights(path).id.startswith("custom:")
    monkeypatch.delenv("PALIDECODE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home():
        raise RuntimeError

    monkeypatch.setattr(Path, "home", no_home)
    assert load_weights(path).id.startswith("custom:")
    with pytest.warns(UserWarning, match="no home directory"):
        remember(arrays)


def test_the_manifest_stands_beside_the_shipped_weights(tmp_path, monkeypatch):
    (tmp_path / "manifest.json").write_text(json.dumps({"made": "here"}))
    monkeypatch.setattr(weights, "shipped_path", lambda: tmp_path / "w.safetensors")
    assert manifest() == {"made": "here"}


def test_weights_in_memory_are_used_as_they_are(arrays):
    assert load_codec(CodecWeights(arrays, "custom:mine")).id == "custom:mine"
