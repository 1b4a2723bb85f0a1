import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from palidecode import (
    Detections,
    EncodeReport,
    decode,
    encode_masks,
    evaluate_coco,
    load_codec,
    to_coco_results,
)
from palidecode.finetune.objects import GroundTruth, RowOptions
from palidecode.finetune.roundtrip import RoundTrip
from palidecode.finetune.rows import encode_images
from palidecode.geometry.boxes import loc_to_xyxy, paired_iou
from palidecode.geometry.rle import rle_to_crop
from tests.coco.samples import SIZE


def test_round_trip_equals_the_long_way(dataset, demo_codec):
    truth = GroundTruth(dataset, RowOptions("segment", divisor=1023), EncodeReport())
    trip = RoundTrip(demo_codec, 1023)
    boxes, masks = [], []
    for chunk in encode_images(truth, demo_codec):
        trip.add(chunk)
        for image in chunk:
            found = decode(image.row["suffix"], SIZE, demo_codec, 1023)
            for number, mask in enumerate(found.to_masks()):
                true = coco_mask.decode(image.rles[number]) > 0
                masks.append((mask & true).sum() / (mask | true).sum())
                boxes.append(paired_iou(found.xyxy[[number]], image.xyxy[[number]])[0])
    found = trip.as_dict()
    assert found["overall"]["objects"] == len(masks) == 4
    assert found["overall"]["mask_iou"] == pytest.approx(np.mean(masks))
    assert found["overall"]["box_iou"] == pytest.approx(np.mean(boxes))
    assert found["classes"]["dog"]["mask_iou"] == pytest.approx(masks[1])
    assert trip.table().splitlines()[-1].split()[:3] == ["all", "classes", "4"]


def test_round_trip_of_nothing_and_of_boxes(dataset):
    trip = RoundTrip()
    trip.add([])
    assert trip.as_dict()["overall"] == {"objects": 0, "box_iou": None, "mask_iou": None}
    for chunk in encode_images(GroundTruth(dataset, RowOptions(), EncodeReport()), None):
        trip.add(chunk)
    assert trip.overall.means()["mask_iou"] is None
    assert trip.overall.means()["box_iou"] > 0.97


def centre(rle):
    """Mean x and y of a mask's pixels."""
    crop = rle_to_crop(rle)
    y, x = np.nonzero(crop.mask)
    return np.array([crop.x0 + x.mean(), crop.y0 + y.mean()])


def faultless(images, codec):
    """Detections of an answer without a mistake for every image, and the true masks."""
    index = np.repeat(np.arange(len(images)), [len(image.labels) for image in images])
    sizes = np.array([(image.row["width"], image.row["height"]) for image in images])
    labels = [label for image in images for label in image.labels]
    detections = Detections(
        xyxy=loc_to_xyxy(np.concatenate([image.loc for image in images]), sizes[index]),
        labels=labels,
        scores=np.ones(len(labels), np.float32),
        image_index=index,
        sizes=sizes,
        codes=np.concatenate([image.codes for image in images if image.codes is not None]),
        has_mask=np.ones(len(labels), bool),
        codec=codec,
        codes_id=codec.id,
    )
    return detections, [rle for image in images for rle in image.rles]


def test_masks_are_where_they_were(demo_codec):
    """Ellipses, encoded and decoded: no shift of the whole, unlike big_vision's paste."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:200, :300]
    masks, boxes = [], []
    for _ in range(150):
        (a, b), (u, v) = rng.uniform(8, 60, 2), rng.uniform([70, 70], [230, 130])
        mask = ((x - u) / a) ** 2 + ((y - v) / b) ** 2 < 1
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        masks.append(coco_mask.encode(np.asfortranarray(mask, np.uint8)))
        masks[-1]["counts"] = masks[-1]["counts"].decode()
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    detections = Detections(
        xyxy=np.array(boxes, np.float32),
        labels=["ellipse"] * len(boxes),
        scores=np.ones(len(boxes), np.float32),
        image_index=np.zeros(len(boxes), np.int64),
        sizes=np.array([(300, 200)]),
        codes=encode_masks(masks, boxes, demo_codec),
        has_mask=np.ones(len(boxes), bool),
        codec=demo_codec,
        codes_id=demo_codec.id,
    )
    # A third of a pixel off the grid, as boxes out of loc bins are.
    detections.xyxy[:] += rng.uniform(-0.5, 0.5, detections.xyxy.shape)
    true = [centre(rle) for rle in masks]
    for paste, limits in (("subpixel", (-0.05, 0.05)), ("big_vision", (-0.7, -0.3))):
        offsets = np.array([centre(r) for r in detections.to_rle(paste=paste)]) - true
        low, high = offsets.mean(axis=0).min(), offsets.mean(axis=0).max()
        assert limits[0] <= low <= high <= limits[1], (paste, offsets.mean(axis=0))


def test_faultless_masks_of_coco(shared_data, demo_codec):
    path = shared_data / "coco100" / "instances_val2014_100.json"
    truth = GroundTruth(path, RowOptions("segment"), EncodeReport())
    images = [image for chunk in encode_images(truth, demo_codec) for image in chunk]
    detections, true = faultless(images, demo_codec)
    given = np.concatenate([image.xyxy for image in images])
    big = (given[:, 2:] - given[:, :2]).min(axis=1) >= 8
    exact = load_codec("palidecode-demo", precision="float32").decode(detections.codes) > 0
    assert ((demo_codec.decode(detections.codes) > 0) == exact).mean() >= 0.999
    masks = detections.to_rle()
    iou = np.array([coco_mask.iou([a], [b], [0])[0, 0] for a, b in zip(masks, true, strict=True)])
    small = big & (np.array([coco_mask.area(rle) for rle in true]) < 32**2)
    assert big.sum() == 775
    assert iou[big].mean() >= 0.933
    assert iou[small].mean() >= 0.928
    pairs = [(a, b) for a, b, wanted in zip(masks, true, big, strict=True) if wanted]
    offsets = np.mean([centre(a) - centre(b) for a, b in pairs], axis=0)
    assert np.abs(offsets).max() <= 0.05
    dataset = json.loads(path.read_text())
    ids = {image["file_name"]: image["id"] for image in dataset["images"]}
    results = to_coco_results(
        detections, categories=dataset, image_ids=[ids[image.row["image"]] for image in images]
    )
    # Of every object, the smallest and those that couldn't be encoded included.
    with pytest.warns(UserWarning, match="score"):
        assert evaluate_coco(path, results, "segm").stats[0] >= 0.905
