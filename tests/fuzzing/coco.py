"""COCO files, as ground truth, predictions and training data; RefCOCO's pickles; journals."""

from __future__ import annotations

import json
import pickle
import random
import warnings
import zlib

import numpy as np
from PIL import Image

from palidecode.answers.parsing import parse
from palidecode.coco.detections import from_coco
from palidecode.coco.shards import Merger, Result, ShardBuilder, key_of
from palidecode.coco.skips import SkippedRowsWarning
from palidecode.coco.writing import CocoOptions, MaskFormat
from palidecode.codec import load_codec
from palidecode.codec.weights import DEMO_ID
from palidecode.detections import decode, draw
from palidecode.errors import InputError
from palidecode.evaluation.coco.evaluate import evaluate_coco
from palidecode.evaluation.referring.evaluate import evaluate_referring
from palidecode.evaluation.referring.refcoco import load_refs, read_refcoco
from palidecode.finetune.rows import to_finetuning_rows
from palidecode.runs.finished import Finished, Segment
from palidecode.runs.journal import HEADER, Header, Journal, encode_row
from palidecode.runs.local import merge
from tests.fuzzing import Target, folder, refused, written
from tests.fuzzing.guard import watched
from tests.fuzzing.mutation import (
    change_bytes,
    change_json,
    change_pickle,
    change_rows,
    changed_value,
)
from tests.samples import CODES, answer

_RLE = {"size": [48, 64], "counts": "`0`2"}
_RING = [8.0, 8.0, 30.0, 8.0, 30.0, 30.0, 8.0, 30.0]


def _dataset() -> dict[str, object]:
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in (1, 2)]
    categories = [
        {"id": n, "name": name, "supercategory": ""} for n, name in ((1, "cat"), (3, "dog"))
    ]
    masks = (
        [_RING],
        {"size": [48, 64], "counts": [1000, 50, 2022]},
        [[*_RING], [1, 1, 5, 1, 5, 5]],
    )
    annotations = [
        {"id": n, "image_id": 1 + n % 2, "category_id": 1 + 2 * (n % 2), "bbox": [8, 8, 22, 22]}
        | {"area": 484, "iscrowd": n // 3, "segmentation": masks[n % 3]}
        for n in range(4)
    ]
    return {
        "images": images,
        "categories": categories,
        "annotations": annotations,
        "info": {"asked": ["cat"]},
    }


def _results() -> list[dict[str, object]]:
    rows = [
        {
            "image_id": 1,
            "category_id": 1,
            "bbox": [8, 8, 22, 22],
            "score": 0.9,
            "segmentation": [_RING],
        }
    ]
    return [*rows, {**rows[0], "image_id": 2, "category_id": 3, "score": 0.4}]


def _files() -> list[bytes]:
    return [json.dumps(_dataset()).encode()]


def run_reading(data: bytes) -> None:
    """`from_coco`, drawn; and rows to fine-tune on, which read as what they say."""
    path = written("dataset.json", data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedRowsWarning)
        if refused(from_coco, path) is None:
            found = from_coco(path)
            assert np.isfinite(found.xyxy).all()
            if len(found.sizes) and found.sizes.max() < 4096:
                draw(Image.new("RGB", (40, 30)), found)
    for options in ({"classes": "present+absent"}, {"boxes": "masks", "order": "area"}):
        try:
            rows = list(to_finetuning_rows(path, **options))  # type: ignore[arg-type]
        except InputError:
            continue
        for row in rows:
            asked = row["prefix"].removeprefix("detect ").split(" ; ")
            result = parse(row["suffix"])
            assert {item.label for item in result.objects} <= set(asked)
            assert {issue.kind.value for issue in result.issues} <= {"duplicate"} or not row[
                "suffix"
            ]
            assert "\n" not in row["prefix"] + row["suffix"]
            assert not any(
                mark in row["prefix"] for mark in ("<eos>", "<bos>", "<loc", "<seg", "<image>")
            )


def run_truth(data: bytes) -> None:
    """A COCO file as ground truth."""
    path = written("truth.json", data)
    for kind in ("bbox", "segm"):
        _evaluate(path, _results(), kind)


def run_predictions(data: bytes) -> None:
    """A results list, or a dataset, as predictions."""
    path = written("predictions.json", data)
    for kind in ("bbox", "segm"):
        _evaluate(_dataset(), path, kind)


def _evaluate(truth: object, predictions: object, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = evaluate_coco(truth, predictions, kind, orders=2)  # type: ignore[arg-type]
        except InputError:
            return
    json.dumps(result.as_dict(), allow_nan=False)


def _referring() -> list[bytes]:
    row = {"output": answer("", (1, 2, 900, 1000), CODES), "width": 64, "height": 48}
    rows = [row | {"segmentation": [_RING]}, row | {"segmentation": None}]
    rows += [
        row | {"segmentation": {"size": [48, 64], "counts": [1000, 50, 2022]}, "bbox": [8, 8, 9, 9]}
    ]
    return ["\n".join(json.dumps(row) for row in rows).encode()]


class _Codec:
    """Fields without a network: what matters here is how rows are read."""

    id = "google-oid"

    def decode(self, codes: object) -> np.ndarray:
        return np.ones((len(codes), 64, 64), np.float32)  # type: ignore[arg-type]


def run_referring(data: bytes) -> None:
    """Rows of referring answers that bring their truth."""
    path = written("referring.jsonl", data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(evaluate_referring, path, codec=_Codec())


def _refs() -> list[dict[str, object]]:
    said = [{"sent_id": 10, "sent": "the left cup", "raw": "", "tokens": ["the"]}]
    ref = {
        "ref_id": 1,
        "ann_id": 1,
        "image_id": 9,
        "split": "val",
        "sentences": said,
        "category_id": 2,
    }
    return [
        ref,
        {**ref, "ref_id": 2, "split": "testA", "sentences": [{"sent_id": 11, "sent": "cup"}]},
    ]


def _pickles() -> list[bytes]:
    return [pickle.dumps(_refs(), protocol) for protocol in (0, 1, 2, 4, 5)]


def run_refs(data: bytes) -> None:
    """RefCOCO's pickle: plain values, and nothing run."""
    path = written("refs.p", data)
    instances = {
        "images": [{"id": 9, "file_name": "9.jpg", "width": 64, "height": 48}],
        "annotations": [{"id": 1, "segmentation": [_RING], "bbox": [8, 8, 22, 22]}],
    }
    # Once outside of the guard: msgspec evaluates the annotations of its structs at first use.
    read_refcoco(_refs(), instances)
    with watched(folder()):
        refused(load_refs, path)
        refused(read_refcoco, path, instances)


_HEADER = Header("predict", {"prompts": ["detect cat"], "min_score": 0.0}, {"model": "ab"})
_OPTIONS = CocoOptions(["cat"], form=MaskFormat("rle"))
_INFO = b',\n"info": '


def _journals() -> list[bytes]:
    """A header, and a shard of four rows: odd, broken, of an empty box, and without a mask."""
    texts = [
        f"{answer('cat', codes=CODES)} ; oh",
        f"{answer('dog', (9, 9, 3, 3))} ; {answer('cat')}",
        answer("dog"),
    ]
    builder = ShardBuilder(_OPTIONS)
    found = decode(texts, (64, 48), load_codec(DEMO_ID))
    names = ["a.jpg", "b.jpg", "c.jpg", "a.jpg"]
    builder.add([key_of(row) for row in range(4)], Result(found, [0, 2, 3], names, {1: "cut"}))
    shard = builder.take()
    shard.save(folder())
    data = (folder() / shard.name).read_bytes()
    (folder() / shard.name).unlink()
    return [encode_row(_HEADER.as_row()) + data]


def _change_journal(rng: random.Random, data: bytes) -> bytes:
    """The header, or what the shard says of its rows, changed under a checksum that fits."""
    header, _, shard = data.partition(b"\n")
    try:
        if rng.random() < 0.3:
            row = json.loads(header)
            del row["crc"]
            return encode_row(changed_value(rng, row)) + shard
        body, _, info = shard.rpartition(b",\n")[0].rpartition(_INFO)
        if rng.random() < 0.8:
            info = json.dumps(changed_value(rng, json.loads(info))).encode()
        else:
            body = change_bytes(rng, body)
        body += _INFO + info
        return header + b"\n" + body + b',\n"crc32": "%08x"}\n' % zlib.crc32(body)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return change_bytes(rng, data)


def run_journal(data: bytes) -> None:
    """A changed header is refused with one line; a changed shard too, or done again, or merged."""
    output = folder() / "out.json"
    with watched(folder()), Journal(output) as journal:
        for path in journal.shards():
            path.unlink()
        header, _, shard = data.partition(b"\n")
        (journal.folder / HEADER).write_bytes(header + b"\n")
        (journal.folder / "0123.json").write_bytes(shard)
        if refused(journal.begin, _HEADER) is not None:
            return
        finished = Finished.read(journal.shards())
        segments = [
            Segment(finished.shards[shard].decode(), row, row + 1)
            for shard, row in zip(finished.shard.tolist(), finished.row.tolist(), strict=True)
        ]
        with Merger(output, _OPTIONS, {}) as merger, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refused(merge, merger, journal, segments)


TARGETS = {
    "coco": Target(run_reading, _files, change_json, 500),
    "truth": Target(run_truth, _files, change_json, 250),
    "predictions": Target(
        run_predictions, lambda: [json.dumps(_results()).encode(), *_files()], change_json, 250
    ),
    "referring": Target(run_referring, _referring, change_rows, 300),
    "refs": Target(run_refs, _pickles, change_pickle, 1200),
    "journal": Target(run_journal, _journals, _change_journal, 400),
}
