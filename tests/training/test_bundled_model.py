"""The bundled model, which has really learned: what scores, grammar and sub-bin boxes are worth.

All on held-out scenes with fixed seeds; its figures stand in ``demo/model/manifest.json``.
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import palidecode
from palidecode.answers.scoring import DEFAULT_SCORE, RECIPES
from palidecode.codec import load_codec
from palidecode.detections import Detections
from palidecode.evaluation.coco.evaluate import evaluate_coco
from palidecode.geometry.boxes import box_iou
from palidecode.pipeline.checkpoint import locate
from palidecode.pipeline.decoder import PaliDecoder
from palidecode.pipeline.reading import Generated
from training.model.report import answers_of, colors_heeded
from training.scenes.draw import HELD_OUT_SEED, write_scenes
from training.scenes.shapes import CLASSES

pytestmark = pytest.mark.slow

COUNT = 300
FOLDER = locate("demo")[0]


@dataclass
class Answered:
    """Held-out scenes and the model's answers about them."""

    decoder: PaliDecoder
    truth: Path
    names: list[str]
    detect: list[Generated]

    def coco(self, found: Detections) -> dict[str, Any]:
        """COCO of detections, with all sixteen classes."""
        return palidecode.to_coco(
            found, categories=list(CLASSES), segmentation="none", file_names=self.names
        )

    def average_precision(self, found: Detections) -> npt.NDArray[np.float64]:
        """AP at IoU 0.5, 0.55 … 0.95, by pycocotools."""
        with redirect_stdout(io.StringIO()):
            truth = COCO(str(self.truth))
            ids = {image["file_name"]: image["id"] for image in truth.dataset["images"]}
            dataset = self.coco(found)
            names = {image["id"]: image["file_name"] for image in dataset["images"]}
            rows = [r | {"image_id": ids[names[r["image_id"]]]} for r in dataset["annotations"]]
            judge = COCOeval(truth, truth.loadRes(rows), "bbox")
            judge.evaluate()
            judge.accumulate()
        seen = judge.eval["precision"][:, :, :, 0, 2]
        return np.array([row[row > -1].mean() for row in seen])


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Answered:
    folder = tmp_path_factory.mktemp("held-out")
    write_scenes(folder, HELD_OUT_SEED, COUNT, 224)
    decoder = PaliDecoder.from_pretrained("demo", "float32", "cpu")
    detect, names = answers_of(decoder, folder, "detect")
    return Answered(decoder, folder / "instances.json", names, detect)


def test_its_figures_are_those_of_the_manifest(answered):
    """The manifest's are of 500 scenes, of which these are the first 300."""
    told = json.loads((FOLDER / "manifest.json").read_text())["held_out"]["boxes"]
    ap = answered.average_precision(answered.decoder.read(answered.detect))
    assert ap.mean() == pytest.approx(told["AP"], abs=0.03)
    assert ap[0] == pytest.approx(told["AP50"], abs=0.03)


def test_scores_rank_better_than_no_scores(answered):
    found = answered.decoder.read(answered.detect)
    result = evaluate_coco(answered.truth, answered.coco(found))
    without = evaluate_coco(answered.truth, answered.coco(found), scores="ignore")
    assert not result.unscored
    assert without.unscored
    # The model errs seldom, so little is left to gain: a tenth of that at least.
    assert 1 - result.stats[0] < 0.9 * (1 - without.stats[0])


def test_the_default_recipe_is_the_best(answered):
    ap = {
        name: answered.average_precision(answered.decoder.read(answered.detect, score=name)).mean()
        for name in RECIPES
    }
    assert max(ap, key=ap.__getitem__) == DEFAULT_SCORE, ap


def test_sub_bin_boxes_raise_ap_where_iou_is_strict(answered):
    whole = answered.average_precision(answered.decoder.read(answered.detect))
    fine = answered.average_precision(answered.decoder.read(answered.detect, sub_bin=True))
    assert fine[5:].mean() > whole[5:].mean()


def test_bins_are_read_with_the_divisor_they_were_written_with(answered):
    right = answered.average_precision(answered.decoder.read(answered.detect))
    other = answered.average_precision(answered.decoder.read(answered.detect, divisor=1023))
    # A thousandth of the side is nothing to a model of 112 px: neither is the better one by AP.
    assert abs(right.mean() - other.mean()) < 0.005
    edges = [answered.decoder.read(answered.detect, divisor=d).xyxy for d in (1024, 1023)]
    np.testing.assert_allclose(edges[0] * 1024 / 1023, edges[1], rtol=1e-5)


def test_the_grammar_makes_every_answer_well_formed_and_loses_nothing(answered):
    pictures = [answered.truth.parent / name for name in answered.names[:100]]
    prompt = f"detect {' ; '.join(CLASSES)}"
    free = answered.decoder.generate(pictures, prompt, grammar=False, batch_size=32)
    bound = answered.detect[:100]
    asked = set(CLASSES)
    for answer in bound:
        parsed = palidecode.parse(answer.text)
        assert not parsed.issues
        assert {item.label for item in parsed.objects} <= asked
    same = sum(a.text == b.text for a, b in zip(free, bound, strict=True))
    # A model that has learned the form needs no help with nearly all.
    assert same >= 90


def test_masks_are_the_same_by_onnxruntime_and_by_torch(answered):
    pictures = [answered.truth.parent / name for name in answered.names[:24]]
    answers = answered.decoder.generate(
        pictures, f"segment {' ; '.join(CLASSES)}", grammar=True, batch_size=24
    )
    found = answered.decoder.read(answers)
    assert found.has_mask.all()
    by = [
        replace(found, codec=load_codec("palidecode-demo", backend, precision="float32")).to_rle()
        for backend in ("onnx", "torch")
    ]
    areas = np.array([coco_mask.area(rles) for rles in by])
    ious = [
        coco_mask.iou([a], [b], [0])[0, 0]
        for a, b, some in zip(*by, areas.max(0) > 0, strict=True)
        if some  # a mask may have no pixel at all
    ]
    # A pixel at an edge of a small mask may fall on the other side.
    assert min(ious) > 0.98
    assert np.mean(ious) > 0.999


def test_a_prompt_for_one_class_of_several_finds_that_one(answered):
    truth = json.loads(answered.truth.read_text())
    names = {item["id"]: item["name"] for item in truth["categories"]}
    right = said = wanted = 0
    for image in truth["images"][:60]:
        inside = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        classes = sorted({names[a["category_id"]] for a in inside})
        if len(classes) < 2:
            continue
        boxes = np.array([a["bbox"] for a in inside if names[a["category_id"]] == classes[0]])
        boxes[:, 2:] += boxes[:, :2]
        found = answered.decoder.detect(answered.truth.parent / image["file_name"], classes[0])
        said, wanted = said + len(found), wanted + len(boxes)
        if len(found):
            right += int((box_iou(found.xyxy, boxes.astype(np.float32)).max(0) > 0.5).sum())
    assert wanted > 30
    assert right / said > 0.85
    assert right / wanted > 0.75


def test_it_heeds_colors(answered):
    heeded = colors_heeded(answered.decoder, answered.truth.parent)
    assert heeded["asked"] > 250
    # Who ignores them gets one of the two right.
    assert heeded["found_in_its_color"] > 0.75
    assert heeded["silent_in_another"] > 0.9


def test_it_knows_what_isnt_there(answered):
    """Asked for one class that a scene lacks, it mostly answers nothing."""
    truth = json.loads(answered.truth.read_text())
    ids = {item["id"]: item["name"] for item in truth["categories"]}
    quiet = 0
    images = truth["images"][:60]
    for image in images:
        here = {ids[a["category_id"]] for a in truth["annotations"] if a["image_id"] == image["id"]}
        absent = next(name for name in CLASSES if name not in here)
        found = answered.decoder.detect(answered.truth.parent / image["file_name"], absent)
        quiet += not len(found)
    assert quiet / len(images) > 0.8
