"""SAHI itself, in an environment of its own, slices pictures for `SahiDetectionModel`.

python tests/sahi_slices.py    # with the core, onnx and sahi installed
"""

from pathlib import Path

import numpy as np
from PIL import Image
from sahi.predict import get_prediction, get_sliced_prediction

from palidecode import from_coco
from palidecode.demo import __file__ as demo
from palidecode.geometry.boxes import box_iou, paired_iou
from palidecode.interop import SahiDetectionModel
from palidecode.pipeline import PaliDecoder

SIDE = 150


def composite(scenes, truth):
    """Four of the bundled scenes in one picture, and their objects."""
    picture = Image.new("RGB", (2 * SIDE, 2 * SIDE))
    boxes, labels = [], []
    for number in range(4):
        drawn = truth.image(number)
        corner = [side * SIDE for side in divmod(number, 2)][::-1]
        scene = Image.open(scenes / drawn.names[0]).convert("RGB")
        picture.paste(scene.resize((SIDE, SIDE)), tuple(corner))
        boxes += (drawn.xyxy * SIDE / drawn.sizes[0, 0] + np.tile(corner, 2)).tolist()
        labels += drawn.labels
    return picture, np.array(boxes), labels


def recall(objects, boxes, labels):
    """The share of the true objects that were found."""
    found = np.array([item.bbox.to_xyxy() for item in objects]).reshape(-1, 4)
    names = np.array([item.category.name for item in objects])
    alike = np.array(labels)[:, None] == names[None]
    return ((box_iou(boxes, found) * alike).max(axis=1, initial=0) > 0.5).mean()


def main():
    scenes = Path(demo).parent / "scenes"
    picture, boxes, labels = composite(scenes, from_coco(scenes / "instances.json"))
    decoder = PaliDecoder.from_pretrained("demo")
    for task in ("detect", "segment"):
        model = SahiDetectionModel(decoder, task=task)
        once = get_prediction(picture, model).object_prediction_list
        plain = getattr(decoder, task)(np.asarray(picture))
        assert len(once) == len(plain) > 0
        given = np.array([item.bbox.to_xyxy() for item in once])
        if task == "detect":
            assert np.allclose(given, plain.xyxy)
        assert np.allclose([o.score.value for o in once], plain.scores)
        assert [o.category.name for o in once] == plain.labels
        sliced = [
            get_sliced_prediction(
                picture, model, slice_height=180, slice_width=180, batch_size=size, verbose=0
            ).object_prediction_list
            for size in (1, 3)
        ]
        found = [[item.bbox.to_xyxy() for item in objects] for objects in sliced]
        assert np.allclose(*found, atol=1e-2)
        before, after = (recall(part, boxes, labels) for part in (once, sliced[0]))
        print(f"{task}: recall {before:.2f} at once, {after:.2f} in slices")
        assert after > before + 0.3
        if task == "segment":
            masks = plain.to_masks()
            large = [number for number, mask in enumerate(masks) if mask.sum() > 200]
            assert large
            for number in large:
                read, mask = once[number].mask.bool_mask, masks[number]
                assert (read & mask).sum() > 0.85 * (read | mask).sum()
                # SAHI takes the boxes of the masks.
                y, x = np.nonzero(mask)
                around = np.array([[x.min(), y.min(), x.max() + 1, y.max() + 1]], float)
                assert paired_iou(given[number : number + 1], around)[0] > 0.85
            assert all(item.mask.bool_mask.shape == mask.shape for item in sliced[0])
    sure = SahiDetectionModel(decoder, "star ; circle", confidence_threshold=0.99)
    assert sure.category_mapping == {"0": "star", "1": "circle"}
    every = SahiDetectionModel(decoder, "star ; circle")
    few, many = (get_prediction(picture, m).object_prediction_list for m in (sure, every))
    assert all(item.score.value >= 0.99 for item in few)
    assert len(few) <= len(many)
    print("SAHI reads what SahiDetectionModel finds")


if __name__ == "__main__":
    main()
