"""COCO files, as ground truth, predictions and training data; RefCOCO's pickles; journals."""

from __future__ import annotations

import json
import pickle
import random
import warnings

import numpy as np
from PIL import Image

from palidecode.answers.parsing import parse
from palidecode.coco.detections import from_coco
from palidecode.coco.skips import SkippedRowsWarning
from palidecode.detections import draw
from palidecode.errors import InputError
from palidecode.evaluation.coco.evaluate import evaluate_coco
from palidecode.evaluation.referring.evaluate import evaluate_referring
from palidecode.evaluation.referring.refcoco import load_refs, read_refcoco
from palidecode.finetune.rows import to_finetuning_rows
from palidecode.runs.journal import Header, Journal, encode_row
from palidecode.runs.prediction import FinishedPictures, detections_of
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
    with watched(folder()):
        refused(load_refs, path)
        refused(read_refcoco, path, instances)


_HEADER = Header("predict", {"prompts": ["detect cat"], "min_score": 0.0}, {"model": "ab"})


def _journals() -> list[bytes]:
    row = {
        "image": "a.jpg",
        "width": 64,
        "height": 48,
        "boxes": [[1.0, 2.0, 3.0, 4.0]],
        "labels": ["cat"],
    }
    row |= {"scores": [0.5], "masks": ["00" * 16], "issues": [["truncated", [0, 5], "x"]]}
    rows = [
        row,
        row | {"image": "b.jpg", "masks": [_RLE], "scores": [None]},
        {"image": "c.jpg", "reason": "?"},
    ]
    return [b"".join(map(encode_row, [_HEADER.as_row(), *rows]))]


def _change_journal(rng: random.Random, data: bytes) -> bytes:
    """A row changed under a checksum that fits, as often as a byte."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    try:
        row = json.loads(lines[place])
        del row["crc"]
        row = changed_value(rng, row)
        lines[place] = encode_row(row)[:-1]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return change_bytes(rng, data)
    return change_bytes(rng, data) if rng.random() < 0.3 else b"\n".join(lines)


def run_journal(data: bytes) -> None:
    """A changed journal is refused with one line, or read."""
    path = written("out.json.journal.jsonl", data)
    with watched(folder()), Journal(path) as journal:
        if refused(journal.begin, _HEADER) is not None:
            return
        if refused(FinishedPictures, journal) is not None:
            return
        done = FinishedPictures(journal)
        rows = [journal.read(place) for place in done.places.values()]
        if refused(detections_of, rows) is None:
            detections_of(rows)


TARGETS = {
    "coco": Target(run_reading, _files, change_json, 500),
    "truth": Target(run_truth, _files, change_json, 250),
    "predictions": Target(
        run_predictions, lambda: [json.dumps(_results()).encode(), *_files()], change_json, 250
    ),
    "referring": Target(run_referring, _referring, change_rows, 300),
    "refs": Target(run_refs, _pickles, change_pickle, 1200),
    "journal": Target(run_journal, _journals, _change_journal, 500),
}
