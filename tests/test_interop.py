"""Detections in supervision's, torchvision's and FiftyOne's formats."""

import importlib
import sys
from dataclasses import replace

import numpy as np
import pytest
import supervision
import torch

from palidecode import InputError, decode, from_coco
from palidecode.interop import SahiDetectionModel

SEG = "".join(f"<seg{code:03d}>" for code in range(16))
CAT = f"<loc0000><loc0000><loc0512><loc0512>{SEG} cat ; <loc0500><loc0500><loc0900><loc1000> dog"
FAR = "<loc0700><loc0700><loc0200><loc0200> dog"
SIZES = [(80, 60), (40, 30), (20, 20)]


@pytest.fixture
def found(demo_codec):
    return decode([CAT, FAR, ""], SIZES, demo_codec, scores=[[0.5, 0.25], None, None])


def test_supervision(found):
    first, second, third = found.to_supervision()
    assert all(isinstance(image, supervision.Detections) for image in (first, second, third))
    assert first.xyxy.tolist() == found.xyxy[:2].tolist()
    assert first.class_id.tolist() == [0, 1]
    assert first.data["class_name"].tolist() == ["cat", "dog"]
    assert first.confidence.tolist() == [0.5, 0.25]
    mask = found.to_masks()[0]
    assert (first.mask[0] == mask).all()
    assert first.mask.shape == (2, 60, 80)
    assert mask.any()
    assert not first.mask[1].any()
    assert second.confidence is None
    assert second.mask is None
    assert second.class_id.tolist() == [1]
    assert len(third) == 0
    assert len(first[first.confidence > 0.3]) == 1  # its own selecting works on it
    drawn = supervision.MaskAnnotator().annotate(np.zeros((60, 80, 3), np.uint8), first)
    assert (drawn.any(axis=2) == mask).all()


def test_torchvision(found):
    first, second, third = found.to_torchvision()
    assert torch.equal(first["boxes"], torch.from_numpy(found.xyxy[:2]))
    assert first["labels"].tolist() == [1, 2]
    assert first["labels"].dtype == torch.int64
    assert first["scores"].tolist() == [0.5, 0.25]
    assert second["scores"].tolist() == [1.0]
    assert found.to_torchvision(default_score=0.0)[1]["scores"].tolist() == [0.0]
    assert first["masks"].dtype == torch.bool
    assert (first["masks"][0].numpy() == found.to_masks()[0]).all()
    assert [image["masks"].shape for image in (first, second, third)] == [
        (2, 60, 80),
        (1, 30, 40),
        (0, 20, 20),
    ]
    assert third["boxes"].shape == (0, 4)
    assert "masks" not in found.select([1, 2]).to_torchvision()[0]


def test_tensors_are_copies(found):
    found.to_torchvision()[0]["boxes"].zero_()
    found.to_supervision()[0].xyxy[:] = 0
    assert found.xyxy[0, 2] == 40


@pytest.mark.parametrize("convert", ["to_supervision", "to_torchvision"])
def test_classes(found, convert):
    with pytest.raises(InputError, match="none of the classes: 'dog'"):
        getattr(found, convert)(["cat"])
    assert found.to_supervision(["dog", "", "cat"])[0].class_id.tolist() == [2, 0]
    assert found.to_torchvision(["dog", "", "cat"])[0]["labels"].tolist() == [3, 1]


def test_fiftyone_fields_are_as_its_documentation_says(found):
    cat, dog = found.image(0)._fiftyone_fields()
    assert cat["label"] == "cat"
    assert cat["bounding_box"] == [0, 0, 0.5, 0.5]
    assert cat["confidence"] == 0.5
    assert cat["mask"].dtype == bool
    assert (cat["mask"] == found.to_masks()[0][:30, :40]).all()
    assert dog["bounding_box"] == pytest.approx([500 / 1024, 500 / 1024, 500 / 1024, 400 / 1024])
    assert "mask" not in dog
    (inverted,) = found.image(1)._fiftyone_fields()
    assert inverted["bounding_box"][2:] == [0, 0]
    assert "confidence" not in inverted
    outside = replace(found.image(1), xyxy=np.array([[-9, -9, 99, 99]], np.float32))
    assert outside._fiftyone_fields()[0]["bounding_box"] == [0, 0, 1, 1]


def test_fiftyone_masks_of_a_coco_file_are_cropped_to_the_box():
    counts = [0, 8 * 4, 8 * 4]  # the left half of 8×8
    found = from_coco(
        {
            "images": [{"id": 1, "width": 8, "height": 8}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [
                {"image_id": 1, "category_id": 1, "bbox": [2, 1, 4, 5]}
                | {"segmentation": {"size": [8, 8], "counts": counts}}
            ],
        }
    )
    (cat,) = found._fiftyone_fields()
    assert cat["bounding_box"] == [0.25, 0.125, 0.5, 0.625]
    assert cat["mask"].tolist() == [[True, True, False, False]] * 5
    assert found.to_torchvision()[0]["masks"].sum() == 32


@pytest.mark.parametrize(
    ("convert", "package"),
    [("to_supervision", "supervision"), ("to_torchvision", "torch"), ("to_fiftyone", "fiftyone")],
)
def test_what_is_not_installed_names_the_way_out(found, convert, package, monkeypatch):
    def missing(name, *rest):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=f"pip install {package}"):
        getattr(found, convert)()


def test_a_model_for_sahi_asks_about_slices_together(found, monkeypatch):
    """tests/sahi_slices.py tries SAHI itself."""
    asked = []

    class Decoder:
        classes = ("cat", "dog")

        def segment(self, images, prompt, /, *, batch_size):
            asked.append((len(images), prompt, batch_size))
            return found

    model = SahiDetectionModel(Decoder(), task="segment", batch_size=5)
    assert model.category_mapping == {"0": "cat", "1": "dog"}
    assert model.object_prediction_list == []
    model.perform_batch_inference([np.zeros((60, 80, 3), np.uint8)] * 3)
    assert asked == [(3, "segment cat ; dog", 5)]
    monkeypatch.setitem(sys.modules, "sahi.prediction", None)
    with pytest.raises(InputError, match="this needs sahi: pip install sahi"):
        model.convert_original_predictions([[0, 0]] * 3, [[60, 80]] * 3)
    with pytest.raises(InputError, match="nothing to detect: give a prompt"):
        SahiDetectionModel(type("Nothing", (), {"classes": ()})())
    with pytest.raises(InputError, match="the task is to detect"):
        SahiDetectionModel(Decoder(), "segment cat")
