"""Convert masks to polygons.

*Exact* rings follow pixel edges: rasterised by pycocotools they reproduce the mask.
*Smooth* rings are the zero line of the 64×64 field, with sub-pixel precision, scaled to the
box.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias, cast

import contourpy
import numpy as np
import numpy.typing as npt
import shapely

from palidecode.errors import InputError
from palidecode.geometry.boxes import as_rows
from palidecode.geometry.masks import DEFAULT_THRESHOLD, MaskCrop
from palidecode.vocab import MASK_SIDE

Ring: TypeAlias = npt.NDArray[np.float64]
_Offsets: TypeAlias = npt.NDArray[np.uint32]
Holes: TypeAlias = Literal["keep", "keyhole", "drop"]

# Samples are at the centres of cells; the field is constant from there to the box's edge.
_AXIS = np.concatenate([[0.0], np.arange(MASK_SIDE) + 0.5, [MASK_SIDE]])
# Fields are contoured in vertical stacks, as a call costs more than a field.
_STACK = 16
_PITCH = 2.0 * MASK_SIDE  # distance of fields in a stack
_GRID = 2.0**24  # per unit of a field: bits beyond depend on the place in the stack
_NONE = np.zeros(0, object)


class Polygon(NamedTuple):
    """One part of an object, as in GeoJSON but without the repeated last point.

    Attributes
    ----------
    exterior : ndarray of float64, shape (M, 2)
        x, y in pixels of the image.
    holes : tuple of ndarray of float64, shape (K, 2)
    """

    exterior: Ring
    holes: tuple[Ring, ...] = ()


class Polygons(NamedTuple):
    """The parts of one object, and the number that was dropped as too small."""

    parts: tuple[Polygon, ...]
    dropped: int = 0

    def to_coco(self) -> list[list[float]]:
        """Convert to COCO's ``[[x1, y1, x2, y2, …], …]``, which fills holes.

        With ``holes="keyhole"`` they are cut into the exterior and kept.
        """
        return [np.round(part.exterior, 2).ravel().tolist() for part in self.parts]


def smooth_polygons(
    fields: npt.NDArray[np.float32],
    xyxy: npt.ArrayLike,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    simplify: float = 0.0,
    min_area: float = 0.0,
    holes: Holes = "keep",
) -> list[Polygons]:
    """Trace the lines where fields cross the threshold, and scale them to their boxes.

    Parameters
    ----------
    fields : ndarray of float32, shape (N, 64, 64)
    xyxy : array_like of float, shape (N, 4)
        Boxes in pixels; they aren't truncated.
    threshold : float
        A point is mask where the field is above it.
    simplify : float
        Tolerance in pixels (Douglas-Peucker, keeping validity); 0 keeps all points.
    min_area : float
        Parts of fewer square pixels are dropped and counted.
    holes : {"keep", "keyhole", "drop"}
        Keep holes as rings, cut them into the exterior, or fill them.

    Returns
    -------
    list of Polygons
        Without parts if the field is nowhere above the threshold or the box is empty.
    """
    boxes = as_rows(xyxy, 4, "xyxy")
    check_options(simplify, min_area, holes)
    if fields.shape != (len(boxes), MASK_SIDE, MASK_SIDE):
        raise InputError(
            f"fields must have shape ({len(boxes)}, 64, 64), as the boxes, got {fields.shape}"
        )
    if not np.isfinite(boxes).all():
        raise InputError("boxes must be finite numbers")
    if not np.isfinite(fields).all():
        raise InputError("fields must be finite numbers")
    sides = boxes[:, 2:] - boxes[:, :2]
    filled = np.flatnonzero(sides.min(axis=1) > 0)
    geometry, owners = [_NONE], [filled[:0]]
    for start in range(0, len(filled), _STACK):
        rows = filled[start : start + _STACK]
        points, rings, parts = _contours(fields[rows], threshold)
        if len(points) == 0:
            continue
        first = rings[parts]  # the parts' first points, and the end
        # A part at a field's edge may begin a last bit above it.
        middle = points[first[:-1], 1] + MASK_SIDE / 2
        level = (middle // _PITCH).astype(np.intp)  # of each part in its stack
        counts, owner = np.diff(first), rows[level]
        points[:, 1] -= np.repeat(level * _PITCH, counts)
        points = np.rint(points * _GRID) / _GRID
        points *= np.repeat(sides[owner] / MASK_SIDE, counts, axis=0)
        points += np.repeat(boxes[owner, :2], counts, axis=0)
        geometry.append(
            shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (rings, parts))
        )
        owners.append(owner)
    return _finish(geometry, owners, len(boxes), simplify, min_area, holes)


def exact_polygons(
    crops: Sequence[MaskCrop],
    *,
    simplify: float = 0.0,
    min_area: float = 0.0,
    holes: Holes = "keep",
) -> list[Polygons]:
    """Trace masks along their pixel edges; options as for `smooth_polygons`.

    Without `simplify` and `min_area`, pycocotools rasterises the exteriors to the same mask,
    pixel by pixel, if it has no holes.
    """
    check_options(simplify, min_area, holes)
    geometry, owners = [_NONE], [np.zeros(0, np.int64)]
    for row, crop in enumerate(crops):
        edges = _edges(crop.mask)
        if len(edges) == 0:
            continue
        origin = np.array([crop.x0, crop.y0])
        lines = shapely.linestrings(edges + origin)
        faces = shapely.get_parts(shapely.polygonize(lines))
        inside = shapely.get_coordinates(shapely.point_on_surface(faces)) - origin
        x, y = inside.astype(np.intp).T
        parts = faces[crop.mask[y, x]]  # without the faces that are holes
        geometry.append(parts)
        owners.append(np.full(len(parts), row))
    return _finish(geometry, owners, len(crops), simplify, min_area, holes)


def join_rings(rings: Sequence[Ring]) -> Ring:
    """Join rings (M, 2), at least one, to one by cuts without width at their closest points."""
    joined, *rest = rings
    for ring in rest:
        joined = _cut_to(joined, ring)
    return joined


def check_options(simplify: float, min_area: float, holes: str) -> None:
    """Raise `InputError` for invalid options."""
    if not (simplify >= 0 and min_area >= 0):
        raise InputError("simplify and min_area must be 0 or more (pixels, square pixels)")
    if holes not in ("keep", "keyhole", "drop"):
        raise InputError(f"holes must be 'keep', 'keyhole' or 'drop', got {holes!r}")


def _contours(fields: npt.NDArray[np.float32], threshold: float) -> tuple[Ring, _Offsets, _Offsets]:
    """Trace stacked fields: points, first point of each ring, first ring of each part.

    Field n extends over y from n · `_PITCH` to n · `_PITCH` + 64.
    """
    side = len(_AXIS)
    stacked = np.zeros((len(fields), side + 1, side))
    stacked[:, 1:-2, 1:-1] = fields
    stacked[:, 0], stacked[:, -2] = stacked[:, 1], stacked[:, -3]
    stacked[:, :, 0], stacked[:, :, -1] = stacked[:, :, 1], stacked[:, :, -2]
    x, y, apart = _grid(len(fields))
    generator = contourpy.SerialContourGenerator(
        x,
        y,
        stacked.reshape(-1, side),
        apart,
        corner_mask=False,
        line_type=contourpy.LineType.Separate,
        fill_type=contourpy.FillType.ChunkCombinedOffsetOffset,
        quad_as_tri=False,
        z_interp=contourpy.ZInterp.Linear,
    )
    filled = generator.filled(threshold, np.inf)
    # There is one chunk, so these are lists of one array, or of None below the threshold.
    points, rings, parts = cast("tuple[list[Ring], list[_Offsets], list[_Offsets]]", filled)
    if points[0] is None:
        return np.zeros((0, 2)), np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    return points[0], rings[0], parts[0]


@lru_cache(maxsize=2)  # the full stack and the last one
def _grid(
    count: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Build x and y of a stack's samples, and the mask of the rows that separate fields."""
    starts = np.arange(count)[:, None] * _PITCH
    x, y = np.meshgrid(_AXIS, (starts + np.append(_AXIS, MASK_SIDE + 1)).ravel())
    apart = np.zeros((count, len(_AXIS) + 1, len(_AXIS)), np.bool_)
    apart[:, -1] = True
    return x, y, apart.reshape(x.shape)


def _edges(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Trace the straight lines between mask and background, (M, 2, 2), from corner to corner.

    Where two pixels touch at a corner only, all four lines end.
    """
    padded = np.zeros(np.add(mask.shape, 2), np.int8)
    padded[1:-1, 1:-1] = mask
    across = _edges_along_rows(padded)
    down = _edges_along_rows(np.ascontiguousarray(padded.T))
    return np.concatenate([across, down[:, :, ::-1]]).astype(np.float64)


def _edges_along_rows(padded: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    # 1 where mask begins below a line, -1 where it ends; a line ends where this changes.
    step = np.diff(padded, axis=0).ravel()
    change = np.flatnonzero(step[1:] != step[:-1]) + 1
    begins = np.flatnonzero(step[change])
    y, x = np.divmod(change, padded.shape[1])
    ends = np.stack([x[begins], y[begins], x[begins + 1], y[begins]], axis=1)
    return ends.reshape(-1, 2, 2) - [1, 0]


def _finish(
    stacks: list[npt.NDArray[np.object_]],
    owner_stacks: list[npt.NDArray[np.int64]],
    count: int,
    simplify: float,
    min_area: float,
    holes: Holes,
) -> list[Polygons]:
    """Simplify parts, make them valid, drop small ones, and group them by object."""
    geometry, owners = np.concatenate(stacks), np.concatenate(owner_stacks)
    if simplify:
        geometry = shapely.simplify(geometry, simplify, preserve_topology=True)
    valid = shapely.is_valid(geometry)
    if not valid.all():
        geometry[~valid] = shapely.buffer(geometry[~valid], 0)
        geometry, index = shapely.get_parts(geometry, return_index=True)
        owners = owners[index]
    area = shapely.area(geometry)
    keep = (area >= min_area) & (area > 0)
    dropped = np.bincount(owners[~keep & (area > 0)], minlength=count).tolist()
    geometry, owners = geometry[keep], owners[keep]
    polygons: list[list[Polygon]] = [[] for _ in range(count)]
    if len(geometry):
        _, points, (rings, parts) = shapely.to_ragged_array(geometry)
        ends = rings.tolist()
        for row, first, last in zip(owners.tolist(), parts[:-1], parts[1:], strict=True):
            outlines = [points[ends[i] : ends[i + 1] - 1] for i in range(first, last)]
            polygons[row].append(_with_holes(outlines, holes))
    return [Polygons(tuple(p), lost) for p, lost in zip(polygons, dropped, strict=True)]


def _with_holes(outlines: list[Ring], holes: Holes) -> Polygon:
    exterior, *inner = outlines
    if holes == "keep":
        return Polygon(exterior, tuple(inner))
    if holes == "keyhole":
        for hole in inner:
            exterior = _cut_to(exterior, hole)
    return Polygon(exterior)


def _cut_to(exterior: Ring, hole: Ring) -> Ring:
    """Join two rings to one by a cut at their closest points: a hole, or another part."""
    dx, dy = (np.subtract.outer(exterior[:, axis], hole[:, axis]) for axis in (0, 1))
    apart = dx * dx + dy * dy
    outer, inner = np.unravel_index(int(apart.argmin()), apart.shape)
    walk = np.roll(hole, -int(inner), axis=0)
    return np.concatenate([exterior[: outer + 1], walk, walk[:1], exterior[outer:]])
