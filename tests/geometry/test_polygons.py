import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as coco_mask

from palidecode.errors import InputError
from palidecode.geometry.masks import MaskCrop, paste_subpixel
from palidecode.geometry.polygons import Polygons, exact_polygons, smooth_polygons
from tests.references import filled_holes, whole_image

MASKS = npst.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))
BOX = (20.25, 10.5, 220.75, 150.5)


def rasterised(polygons, size):
    """Rasterise polygons with COCO's own code."""
    rings = polygons.to_coco()
    if not rings:
        return np.zeros(size[::-1], bool)
    width, height = size
    merged = coco_mask.merge(coco_mask.frPyObjects(rings, height, width))
    return coco_mask.decode(merged).astype(bool)


def as_shapely(polygons):
    return [shapely.Polygon(part.exterior, part.holes) for part in polygons.parts]


def radius():
    yy, xx = np.mgrid[:64, :64]
    return np.hypot(yy - 31.5, xx - 31.5).astype(np.float32)


def disc():
    return np.tanh((24 - radius()) / 4)


def ring():
    return np.tanh((8 - abs(radius() - 18)) / 4)


def blob(rng):
    noise = rng.standard_normal((64, 64)).astype(np.float32)
    return np.tanh(cv2.GaussianBlur(noise, (0, 0), 5) * 10 + (20 - radius()) / 10)


@settings(deadline=None, max_examples=200)
@given(MASKS, st.integers(0, 3), st.integers(0, 3))
def test_exact_rings_rasterise_to_the_same_mask(mask, x, y):
    size = (mask.shape[1] + x + 2, mask.shape[0] + y + 2)
    (found,) = exact_polygons([MaskCrop(x, y, filled_holes(mask))])
    image = whole_image(MaskCrop(x, y, filled_holes(mask)), size)
    assert (rasterised(found, size) == image).all()
    assert sum(p.area for p in as_shapely(found)) == image.sum()


@settings(deadline=None, max_examples=200)
@given(MASKS)
def test_exact_rings_with_keyholes_rasterise_to_masks_with_holes(mask):
    (found,) = exact_polygons([MaskCrop(1, 1, mask)], holes="keyhole")
    size = (mask.shape[1] + 2, mask.shape[0] + 2)
    assert (rasterised(found, size) == whole_image(MaskCrop(1, 1, mask), size)).all()


@settings(deadline=None, max_examples=100)
@given(MASKS)
def test_holes_are_kept_as_rings_or_filled(mask):
    size = mask.shape[::-1]
    (kept,) = exact_polygons([MaskCrop(0, 0, mask)])
    (filled,) = exact_polygons([MaskCrop(0, 0, mask)], holes="drop")
    assert all(p.is_valid for p in as_shapely(kept))
    assert sum(p.area for p in as_shapely(kept)) == mask.sum()
    assert not any(part.holes for part in filled.parts)
    # Part by part: what two parts enclose between them, corner to corner, is a hole of neither.
    count, part = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    expected = np.any([filled_holes(part == n) for n in range(1, count)], axis=0)
    assert (rasterised(filled, size) == expected).all()


def test_a_frame_has_one_exterior_and_one_hole():
    mask = np.ones((5, 6), bool)
    mask[1:4, 2:4] = False
    crops = [MaskCrop(0, 0, mask)]
    (kept,), (keyholed,) = (exact_polygons(crops, holes=how) for how in ("keep", "keyhole"))
    assert len(kept.parts[0].exterior) == len(kept.parts[0].holes[0]) == 4
    # Two rings of four, and the two ends of the cut a second time.
    assert keyholed.parts[0].exterior.shape == (10, 2)
    assert keyholed.parts[0].holes == ()
    assert shapely.Polygon(keyholed.parts[0].exterior).area == mask.sum()


@pytest.mark.parametrize("seed", range(20))
def test_smooth_rings_lie_on_the_pasted_mask(seed):
    field, size = blob(np.random.default_rng(seed)), (240, 160)
    box = (20, 10, 220, 150)
    (found,) = smooth_polygons(field[None], [box], holes="keyhole")
    mask, drawn = whole_image(paste_subpixel(field, box, size), size), rasterised(found, size)
    assert (mask & drawn).sum() / (mask | drawn).sum() > 0.97
    (kept,) = smooth_polygons(field[None], [box])
    assert all(p.is_valid for p in as_shapely(kept))
    assert sum(p.area for p in as_shapely(kept)) == pytest.approx(mask.sum(), rel=0.02)


def test_a_smooth_disc_is_where_its_zero_line_is():
    (found,) = smooth_polygons(disc()[None], [(0, 0, 64, 64)])
    (part,) = found.parts
    assert np.hypot(*(part.exterior - 32).T) == pytest.approx(24, abs=0.05)
    (scaled,) = smooth_polygons(disc()[None], [BOX])
    expected = part.exterior * [200.5 / 64, 140 / 64] + BOX[:2]
    assert scaled.parts[0].exterior == pytest.approx(expected)


def test_a_smooth_ring_keeps_keyholes_or_fills_its_hole():
    area = {}
    for holes in ("keep", "keyhole", "drop"):
        (found,) = smooth_polygons(ring()[None], [BOX], holes=holes)
        assert len(found.parts[0].holes) == (holes == "keep")
        area[holes] = as_shapely(found)[0].area
    assert area["keyhole"] == pytest.approx(area["keep"])
    assert area["drop"] > 1.1 * area["keep"]


def test_fields_stay_apart_and_reach_the_edges_of_their_boxes():
    """Full fields of many boxes, more than one chunk of contours."""
    boxes = np.arange(40)[:, None] + [0, 0, 30.5, 20.25]
    found = smooth_polygons(np.ones((40, 64, 64), np.float32), boxes)
    for polygons, box in zip(found, boxes, strict=True):
        (shape,) = as_shapely(polygons)
        assert shape.bounds == pytest.approx(tuple(box))
        assert shape.area == pytest.approx(30.5 * 20.25)


def test_many_fields_give_what_each_gives_alone():
    rng = np.random.default_rng(1)
    fields = np.stack([blob(rng) for _ in range(35)])
    fields[[0, 20, 34]] = -1
    boxes = np.concatenate([xy := rng.uniform(0, 99, (35, 2)), xy + rng.uniform(1, 99, (35, 2))], 1)
    boxes[7, 2] = boxes[7, 0]
    together = smooth_polygons(fields, boxes)
    for row, polygons in enumerate(together):
        (alone,) = smooth_polygons(fields[row : row + 1], boxes[row : row + 1])
        assert len(alone.parts) == len(polygons.parts)
        for a, b in zip(alone.parts, polygons.parts, strict=True):
            assert a.exterior == pytest.approx(b.exterior)
    assert [len(together[row].parts) for row in (0, 7, 20, 34)] == [0, 0, 0, 0]


def test_parts_at_the_edge_of_a_field_are_its_own_to_the_last_digit():
    rng = np.random.default_rng(3)
    fields = rng.uniform(-1, -0.1, (400, 1, 1)) * np.ones((1, 64, 64))
    fields[:, :, :20] = rng.uniform(0.1, 1, (400, 1, 1))  # outlines cross edges between samples
    # Edges at eighths of a pixel, which two decimals split evenly.
    boxes = np.tile([[282.1875, 20.125, 374.5, 94.9375]], (400, 1))
    together = smooth_polygons(fields.astype(np.float32), boxes)
    for row, polygons in enumerate(together):
        (alone,) = smooth_polygons(fields[row : row + 1].astype(np.float32), boxes[:1])
        assert alone.to_coco() == polygons.to_coco()


@pytest.mark.parametrize("simplify", [0, 1, 5])
@pytest.mark.parametrize("levels", [(-1, 0, 1), (0, 1)])
def test_rings_that_touch_themselves_where_a_field_is_at_the_threshold_are_repaired(
    levels, simplify
):
    field = np.random.default_rng(0).choice(levels, (1, 64, 64)).astype(np.float32)
    (at,), (above,) = (
        smooth_polygons(field, [BOX], simplify=simplify, threshold=t) for t in (0, 1e-6)
    )
    assert all(p.is_valid and p.area > 0 for p in as_shapely(at))
    areas = [sum(p.area for p in as_shapely(found)) for found in (at, above)]
    assert areas[0] == pytest.approx(areas[1], rel=0.02)


@pytest.mark.parametrize("tolerance", [0.3, 1.0, 4.0])
def test_simplified_rings_stay_within_the_tolerance(tolerance):
    field = blob(np.random.default_rng(3))[None]
    (plain,), (simple,) = (smooth_polygons(field, [BOX], simplify=s) for s in (0, tolerance))
    assert len(simple.parts) == len(plain.parts)
    for before, after in zip(as_shapely(plain), as_shapely(simple), strict=True):
        assert after.is_valid
        assert len(after.exterior.coords) < len(before.exterior.coords) / 2
        away = shapely.distance(shapely.points(before.exterior.coords), after.exterior)
        assert away.max() <= tolerance + 1e-9


def test_small_parts_are_dropped_and_counted():
    mask = np.zeros((20, 20), bool)
    mask[0, 0] = mask[5:7, 5:7] = mask[10:20, 10:20] = True
    crops = [MaskCrop(3, 4, mask)]
    found = [exact_polygons(crops, min_area=area)[0] for area in (0, 2, 4, 5, 101)]
    assert [(len(p.parts), p.dropped) for p in found] == [(3, 0), (2, 1), (2, 1), (1, 2), (0, 3)]
    (found,) = smooth_polygons(disc()[None], [BOX], min_area=1e6)
    assert found == Polygons((), 1)


def test_objects_without_a_pixel_have_no_parts():
    empty = MaskCrop(4, 4, np.zeros((0, 0), bool))
    blank = MaskCrop(0, 0, np.zeros((3, 3), bool))
    full = MaskCrop(0, 0, np.ones((3, 3), bool))
    assert [len(p.parts) for p in exact_polygons([empty, full, blank])] == [0, 1, 0]
    boxes = [(5, 5, 5, 9), (9, 0, 3, 5), (0, 0, 9, 9)]
    found = smooth_polygons(np.repeat(disc()[None], 3, 0), boxes)
    assert [len(p.parts) for p in found] == [0, 0, 1]
    assert found[0].to_coco() == []


def test_nothing_gives_nothing():
    assert exact_polygons([]) == []
    assert smooth_polygons(np.zeros((0, 64, 64), np.float32), []) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"simplify": -1}, "0 or more"),
        ({"min_area": float("nan")}, "0 or more"),
        ({"holes": "fill"}, "'keep', 'keyhole' or 'drop', got 'fill'"),
        ({"fields": np.ones((2, 64, 64), np.float32)}, r"shape \(1, 64, 64\)"),
        ({"fields": np.full((1, 64, 64), np.nan, np.float32)}, "fields must be finite"),
        ({"xyxy": [[0, 0, np.inf, 1]]}, "boxes must be finite"),
    ],
)
def test_smooth_polygons_refuses_what_it_cannot_use(changed, message):
    given = {"fields": disc()[None], "xyxy": [BOX]} | changed
    with pytest.raises(InputError, match=message):
        smooth_polygons(given.pop("fields"), given.pop("xyxy"), **given)
