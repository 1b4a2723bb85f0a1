import numpy as np
import pytest
from pycocotools import mask as coco_mask

from palidecode import EncodeReport, decode
from palidecode.finetune.objects import GroundTruth, RowOptions
from palidecode.finetune.roundtrip import RoundTrip
from palidecode.finetune.rows import encode_images
from palidecode.geometry.boxes import paired_iou
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
