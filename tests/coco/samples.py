"""A small COCO dataset that several test files use."""

from __future__ import annotations

import pytest

SIZE = (640, 480)


def square(x, y, side):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def annotation(image, category, x, y, side, **changed):
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [x, y, side, side],
        "segmentation": square(x, y, side),
        **changed,
    }


@pytest.fixture
def dataset():
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 640, "height": 480},
            {"id": 5, "file_name": "b.jpg", "width": 640, "height": 480},
            {"id": 9, "file_name": "none.jpg", "width": 640, "height": 480},
        ],
        "annotations": [
            annotation(7, 3, 300, 40, 64, id=1),
            annotation(7, 1, 32, 100, 200, id=2),
            annotation(5, 3, 10, 20, 100, id=3),
            annotation(7, 3, 160, 30, 32, id=4),
        ],
        "categories": [
            {"id": number, "name": name}
            for number, name in ((3, "cat"), (1, "dog"), (4, "traffic light"), (8, "bird"))
        ],
    }
