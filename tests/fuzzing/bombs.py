"""Small inputs that ask for much: run with little memory, ``python -m tests.fuzzing.bombs``.

Each must be refused, or read in the memory that is there: this process may take `ROOM` more
than it has when it starts, and `SECONDS` of a processor for all of them together, which nothing
here needs a tenth of.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from palidecode import parse_batch
from palidecode.answers.rows import read_rows
from palidecode.coco.detections import from_coco
from palidecode.codec.weights import load_weights
from palidecode.evaluation.coco.evaluate import evaluate_coco
from palidecode.evaluation.referring.refcoco import read_refcoco
from palidecode.files import open_picture, read_json
from palidecode.geometry.rle import check_rle
from palidecode.runs.answers import AnswerDecoder, decode_rows
from palidecode.runtime.big_vision import BigVisionNpz
from palidecode.runtime.config import config_from_hf
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.runtime.weights import SafetensorsFolder
from tests.fuzzing import folder, refused, written
from tests.samples import CODES, answer

ROOM = 1 << 30  # bytes
SECONDS = 600
FAR, MANY = 1 << 24, 1 << 22

Bomb = Callable[[], object]


def dataset(ring: list[float], width: int = 640, height: int = 480) -> dict[str, object]:
    """A COCO dataset of one polygon."""
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81.0}
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": width, "height": height}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [annotation | {"iscrowd": 0, "segmentation": [ring]}],
    }


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and has few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The start of an array of that shape."""
    out = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(out, header)
    return out.getvalue()


def zip_bomb(name: str, megabytes: int) -> Path:
    """An archive that unpacks to a thousand times its size."""
    path = folder() / name
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("params/a.npy", "w", force_zip64=True) as file,
    ):
        file.write(npy_header((megabytes << 18,)))
        for _ in range(megabytes):
            file.write(bytes(1 << 20))
    return path


def claim(name: str) -> Path:
    """An archive whose one array says that it is four terabytes."""
    path = folder() / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("params/a.npy", npy_header((1 << 40,)))
    return path


def laughs(depth: int) -> object:
    """Ten times the list before, in ten lists, in ten lists …"""
    found: object = ["ha"]
    for _ in range(depth):
        found = [found] * 10
    return found


def refs(sentence: object) -> Path:
    """RefCOCO's refs with one strange sentence."""
    said = [{"sent_id": 1, "sent": sentence}]
    ref = {"ref_id": 1, "ann_id": 1, "image_id": 1, "split": "val", "sentences": said}
    return written("refs.p", pickle.dumps([ref], 2))


def answers(**row: object) -> Path:
    """A file of one answer with a mask."""
    return written(
        "answers.jsonl", json.dumps({"output": answer("a", codes=CODES), **row}).encode()
    )


def decoded(path: Path) -> list[object]:
    """All of a file of answers, with masks."""
    parts = []
    for _, found, _ in decode_rows(read_rows(path), AnswerDecoder()):
        parts += found.to_rle()
    return parts


def safetensors(header: bytes, said: int) -> Path:
    """A file whose header has another length than it says."""
    place = folder() / "safetensors"
    place.mkdir(exist_ok=True)
    (place / "model.safetensors").write_bytes(struct.pack("<Q", said) + header)
    return place


def bombs() -> Iterator[tuple[str, Bomb, bool]]:
    """Name, what to do, and whether it must be refused."""
    zigzag = [0.0, 0.0, 639.0, 0.0] * 200_000
    far = [0.0, 0.0, 1e300, 0.0, 1e300, 1e300, 0.0, 1e300]
    for name, ring, wrong in (("zigzag", zigzag, True), ("far", far, False)):
        path = written(f"{name}.json", json.dumps(dataset(ring)).encode())
        row = dataset(ring)["annotations"][0] | {"score": 0.5}  # type: ignore[index]
        yield f"coco: {name}", lambda path=path: from_coco(path), wrong
        yield (
            f"evaluate: {name}",
            lambda path=path, row=row: evaluate_coco(path, [row], "segm"),
            False,
        )
    wide = written("wide.json", json.dumps(dataset([0, 0, 9, 0, 9, 9], 1 << 40, 1 << 40)).encode())
    yield "coco: wide", lambda: from_coco(wide), True
    yield "evaluate: wide", lambda: evaluate_coco(wide, [], "segm"), True
    yield "json: digits", lambda: read_json(written("x.json", b"1" * 5000)), True
    yield "json: deep", lambda: read_json(written("x.json", b"[" * FAR)), True
    yield "rows: wide", lambda: decoded(answers(width=10**6, height=10**6)), False
    yield "rows: digits", lambda: decoded(answers(width=9, height=9, scores=[10**400])), False
    yield "batch: opens", lambda: parse_batch(["<" * MANY]), False
    yield "batch: locs", lambda: parse_batch(["<loc0000>a" * (MANY // 40)]), False
    for counts in ("o" * MANY, "~" * 99, "0" * MANY, "`" * MANY + "0"):
        rle = {"size": [1 << 14, 1 << 15], "counts": counts}
        yield f"rle: {counts[:1]}", lambda rle=rle: check_rle(rle), True
    yield "refs: laughs", lambda: read_refcoco(refs(laughs(9)), dataset([])), True
    yield (
        "refs: long text often",
        lambda: read_refcoco(refs(["ha" * 9999] * 9999), dataset([])),
        True,
    )
    instances = dataset([0, 0, 9, 0, 9, 9])
    cyclic: list[object] = []
    cyclic.append(cyclic)
    yield "refs: round", lambda: read_refcoco(refs(cyclic), instances), True
    yield "codec: zip bomb", lambda: load_weights(zip_bomb("codec.npz", 300)), True
    yield "codec: claims", lambda: load_weights(claim("codec.npz")), True
    yield "big_vision: zip bomb", lambda: BigVisionNpz(zip_bomb("model.npz", 300)), True
    yield "big_vision: claims", lambda: BigVisionNpz(claim("model.npz")), True
    for said in (0, 1 << 20, 1 << 40, (1 << 64) - 1):
        place = safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', said)
        yield f"safetensors: {said}", lambda place=place: SafetensorsFolder(place), True
    for text in (
        '{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}',
        '{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        '"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    ):
        place = safetensors(text.encode() + bytes(4), len(text))
        yield f"safetensors: {text[5:40]}", lambda place=place: SafetensorsFolder(place), True
    layers = {
        "model_type": "paligemma",
        "text_config": {"num_hidden_layers": 10**9, "hidden_size": 1},
    }
    yield "config: layers", lambda: config_from_hf(layers), True
    yield "tokenizer: deep", lambda: Tokenizer.from_file(written("t.json", b"[" * FAR)), True
    for width, height in ((65_000, 65_000), (9_999, 9_000), (1 << 31, 1)):
        path = written(f"{width}.png", png(width, height))
        yield f"picture: {width}×{height}", lambda path=path: open_picture(path), True


def main() -> None:
    """All of them."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    for name, bomb, wrong in bombs():
        print(name, flush=True)
        said = refused(bomb)
        assert said is not None or not wrong, f"{name} was let through"


if __name__ == "__main__":
    main()
