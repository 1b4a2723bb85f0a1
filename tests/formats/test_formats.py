"""Every format: written by `palidecode convert`, read by others, and read back."""

import csv
import json
from xml.etree import ElementTree as ET

import numpy as np
import pyarrow.parquet as pq
import pytest
import supervision as sv
from hotcoco import COCO

from palidecode.cli import main
from palidecode.coco.detections import from_coco
from palidecode.formats import ConvertReport, read_cvat, read_voc, read_yolo
from palidecode.formats.labelstudio import brush_rle
from palidecode.geometry.masks import MaskCrop
from palidecode.geometry.rle import crop_to_rle, rings_to_rle, rle_to_crop
from tests.formats.samples import CLASSES, RING, dataset, frame, write_samples

BOXES = [[10, 5, 40, 30], [23, 12, 58, 38], [4, 6, 14, 26]]
LABELS = [CLASSES[2], CLASSES[0], CLASSES[1]]
COLON = pytest.mark.filterwarnings("default:not in labelmap.txt:UserWarning")  # of CLASSES[2]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_samples(tmp_path)
    return tmp_path


def convert(*words):
    return main(["convert", *words])


def full(crop, width=80, height=60):
    """Paint a crop as a whole image."""
    mask = np.zeros((height, width), np.bool_)
    rows, columns = crop.mask.shape
    mask[crop.y0 : crop.y0 + rows, crop.x0 : crop.x0 + columns] = crop.mask
    return mask


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def boxes_of(read):
    return [list(item.box) for picture in read.pictures for item in picture.objects]


def labels_of(read):
    return [item.label for picture in read.pictures for item in picture.objects]


def supervision_yolo(place):
    return sv.DetectionDataset.from_yolo(
        images_directory_path=str(place / "images"),
        annotations_directory_path=str(place / "out/labels"),
        data_yaml_path=str(place / "out/data.yaml"),
    )


def test_yolo_is_read_by_supervision_and_hotcoco(place):
    assert convert("coco.json", "--to", "yolo", "-o", "out") == 0
    read = supervision_yolo(place)
    assert read.classes == CLASSES
    first, second, third = (read.annotations[f"{place}/images/{n}.png"] for n in "abc")
    np.testing.assert_allclose(first.xyxy, BOXES[:2], atol=1e-3)
    np.testing.assert_allclose(second.xyxy, BOXES[2:], atol=1e-3)
    assert [*first.class_id, *second.class_id, len(third)] == [2, 0, 1, 0]
    (place / "out/labels/data.yaml").write_bytes((place / "out/data.yaml").read_bytes())
    other = COCO.from_yolo(str(place / "out/labels"), str(place / "images")).dataset
    corners = [[x, y, x + w, y + h] for x, y, w, h in (r["bbox"] for r in other["annotations"])]
    np.testing.assert_allclose(corners, BOXES, atol=1e-3)


def test_yolo_outlines_keep_holes_parts_and_boxes(place):
    assert convert("coco.json", "--to", "yolo-seg", "-o", "out") == 0
    lines = (place / "out/labels/a.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["2", "0"]
    assert (place / "out/labels/b.txt").read_text().count(" ") == 8
    assert (place / "out/labels/c.txt").read_text() == ""
    found = supervision_yolo(place).annotations[f"{place}/images/a.png"]
    np.testing.assert_allclose(found.xyxy, BOXES[:2], atol=1e-3)
    # supervision fills the pixels that an outline touches, too.
    assert iou(found.mask[1], full(frame())) > 0.75
    assert not found.mask[1][20, 30]  # in the hole
    read = read_yolo("out", "images", ConvertReport())
    again = full(rle_to_crop(rings_to_rle(read.pictures[0].objects[1].mask, (80, 60))))
    np.testing.assert_array_equal(again, full(frame()))
    assert labels_of(read) == LABELS


def test_yolo_is_read_back(place):
    assert convert("coco.json", "--to", "yolo", "-o", "out") == 0
    words = ("out", "--from", "yolo", "--images", "images", "-o", "back.json")
    assert convert(*words) == 0
    back = from_coco(place / "back.json")
    np.testing.assert_allclose(back.xyxy, BOXES, atol=1e-3)
    assert back.labels == LABELS
    assert back.names == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("names", ["[a, 'b: c']", "{0: a, 1: 'b: c'}", "\n- a\n- 'b: c'"])
def test_yolo_of_others_is_read(place, names):
    (place / "data.yaml").write_text(f"names: {names}\n")
    (place / "classes.txt").write_text("a\n")
    (place / "a.txt").write_text("1 0.5 0.5 0.5 0.5 0.25\n\n0 0 0 0.5 0 0.5 0.5\nx\n5 0 0 1 1\n")
    (place / "b.txt").write_text("0 0 0 0.5 0 0.5 0.5 0.75\n")
    report = ConvertReport()
    read = read_yolo(place, place / "images", report)
    box, outline = read.pictures[0].objects
    assert (box.label, box.box, box.score) == ("b: c", (20, 15, 60, 45), 0.25)
    assert (outline.label, outline.mask) == ("a", [[0, 0, 40, 0, 40, 30]])
    (scored,) = read.pictures[1].objects
    assert (scored.mask, scored.score) == ([[0, 0, 25, 0, 25, 20]], 0.75)
    assert report.skipped == {"rows that can't be read": 2, "label files without a picture": 1}
    assert [len(picture.objects) for picture in read.pictures] == [2, 1, 0]


@COLON
def test_voc_is_read_by_supervision_and_hotcoco(place, capsys):
    assert convert("coco.json", "--to", "voc", "-o", "out") == 0
    assert f"not in labelmap.txt, whose fields colons separate: {CLASSES[2]!r}; " in (
        capsys.readouterr().err
    )
    read = sv.DetectionDataset.from_pascal_voc(
        images_directory_path=str(place / "images"),
        annotations_directory_path=str(place / "out/Annotations"),
    )
    found = read.annotations[f"{place}/images/a.png"]
    assert found.xyxy.tolist() == BOXES[:2]
    assert [read.classes[number] for number in found.class_id] == LABELS[:2]
    other = COCO.from_voc(str(place / "out")).dataset
    corners = [[x, y, x + w, y + h] for x, y, w, h in (r["bbox"] for r in other["annotations"])]
    assert corners == BOXES
    assert [image["file_name"] for image in other["images"]] == ["a.png", "b.png", "c.png"]
    assert (place / "out/ImageSets/Main/default.txt").read_text() == "a\nb\nc\n"
    assert (place / "out/labelmap.txt").read_text().splitlines()[1:] == [
        *(f"{name}:::" for name in CLASSES if ":" not in name)
    ]


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\u2028b"])
def test_voc_has_no_class_with_a_line_break(place, capsys, name):
    changed = dataset()
    changed["categories"][1]["name"] = name
    (place / "coco.json").write_text(json.dumps(changed))
    assert convert("coco.json", "--to", "voc", "-o", "out") == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "has a line break, and VOC lists classes in lines; rename it" in said
    assert not (place / "out").exists()


@COLON
def test_voc_is_read_back_and_of_hotcoco(place):
    assert convert("coco.json", "--to", "voc", "-o", "out") == 0
    read = read_voc("out", ConvertReport())
    assert boxes_of(read) == BOXES
    assert labels_of(read) == LABELS
    assert read.classes == CLASSES
    COCO(dataset()).to_voc("other")
    assert boxes_of(read_voc("other", ConvertReport())) == BOXES


def test_cvat_is_read_by_hotcoco_and_back(place):
    assert convert("coco.json", "--to", "cvat", "-o", "out") == 0
    root = ET.parse("out").getroot()
    assert [node.text for node in root.iterfind("meta/task/labels/label/name")] == CLASSES
    assert len(root.findall("image/polygon")) == 2
    other = COCO.from_cvat("out").dataset["annotations"]
    masks = [rle_to_crop(rings_to_rle(r["segmentation"], (80, 60))) for r in other[:2]]
    np.testing.assert_array_equal(full(masks[1]), full(frame()))
    assert other[2]["bbox"] == [4, 6, 10, 20]
    assert convert("out", "--from", "cvat", "--to", "coco", "-o", "back.json") == 0
    back = from_coco(place / "back.json")
    assert back.xyxy.tolist() == BOXES
    assert back.labels == LABELS
    assert back.sizes.tolist() == [[80, 60], [50, 40], [50, 40]]
    np.testing.assert_array_equal(full(rle_to_crop(back.rles[0])), rings_mask(RING))


def rings_mask(ring):
    return full(rle_to_crop(rings_to_rle([ring], (80, 60))))


def test_other_shapes_of_cvat_are_counted(place, capsys):
    shapes = '<points label="cat" points="1,2"/><tag label="cat"/><box label="cat" xtl="1"/>'
    shapes += '<box label="cat" xtl="1" ytl="1" xbr="5" ybr="5" rotation="45.00"/>'
    image = f'<image id="0" name="a.png" width="80" height="60">{shapes}</image>'
    (place / "in.xml").write_text(f"<annotations>{image}</annotations>")
    assert convert("in.xml", "--from", "cvat", "-o", "back.json") == 1
    report = ConvertReport()
    read = read_cvat("in.xml", report)
    assert boxes_of(read) == []
    assert report.skipped == {
        "shapes other than upright boxes and polygons": 2,
        "rows that can't be read": 1,
    }
    assert "shapes other than upright boxes and polygons: 2" in capsys.readouterr().err


def read_brush(values):
    """Decode Label Studio's RLE, written after its documentation of the head and the runs."""
    bits = "".join(f"{value:08b}" for value in values)
    at = 0

    def number(count):
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = number(32), number(5) + 1
    sizes = [number(4) + 1 for _ in range(4)]
    out = []
    while len(out) < total:
        same = number(1)
        length = number(sizes[number(2)]) + 1
        out += [number(word)] * length if same else [number(word) for _ in range(length)]
    return np.array(out)


@pytest.mark.parametrize("size", [(80, 60), (700, 300)])
def test_brush_strokes_hold_the_mask(size):
    width, height = size
    values = read_brush(brush_rle(crop_to_rle(frame(), size))).reshape(height, width, 4)
    expected = full(frame(), width, height)
    np.testing.assert_array_equal(values, np.repeat(expected[..., None] * 255, 4, axis=2))
    empty = MaskCrop(0, 0, np.zeros((0, 0), np.bool_))
    assert not read_brush(brush_rle(crop_to_rle(empty, size))).any()
    everything = MaskCrop(0, 0, np.ones((height, width), np.bool_))
    assert (read_brush(brush_rle(crop_to_rle(everything, size))) == 255).all()


def test_labelstudio_gets_predictions_and_a_config_that_fits(place):
    assert convert("coco.json", "--to", "labelstudio", "--url", "s3://b/", "-o", "t.json") == 0
    tasks = json.loads((place / "t.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [f"s3://b/{n}.png" for n in "abc"]
    polygon, brush = tasks[0]["predictions"][0]["result"]
    assert polygon["value"]["points"][2] == [50.0, 50.0]
    assert polygon["value"]["polygonlabels"] == [LABELS[0]]
    assert "score" not in polygon
    values = read_brush(brush["value"]["rle"]).reshape(60, 80, 4)[..., 3]
    np.testing.assert_array_equal(values > 0, full(frame()))
    assert brush["score"] == tasks[0]["predictions"][0]["score"] == 0.75
    (box,) = tasks[1]["predictions"][0]["result"]
    assert box["value"] == {
        **{"x": 8.0, "y": 15.0, "width": 20.0, "height": 50.0, "rotation": 0},
        "rectanglelabels": [LABELS[2]],
    }
    assert (box["original_width"], box["original_height"], box["score"]) == (50, 40, 0.5)
    view = ET.parse("t.json.config.xml").getroot()
    assert view.find("Image").get("value") == "$image"
    for shape in (polygon, brush, box):
        (tool,) = [node for node in view if node.get("name") == shape["from_name"]]
        assert (tool.tag.lower(), tool.get("toName")) == (shape["type"], shape["to_name"])
        assert [label.get("value") for label in tool] == CLASSES


def test_createml_has_centres_and_sizes(place):
    assert convert("coco.json", "--to", "createml", "-o", "out.x") == 0
    read = json.loads((place / "out.x").read_text())
    assert [item["image"] for item in read] == ["a.png", "b.png", "c.png"]
    assert read[1]["annotations"] == [
        {"label": LABELS[2], "coordinates": {"x": 9, "y": 16, "width": 10, "height": 20}}
    ]
    found = sv.DetectionDataset.from_createml(str(place / "images"), str(place / "out.x"))
    assert found.annotations[f"{place}/images/a.png"].xyxy.tolist() == BOXES[:2]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_have_a_row_per_object(place, kind):
    assert convert("coco.json", "--to", kind, "-o", kind) == 0
    assert convert("coco.json", "--to", kind, "-o", kind) == 0
    if kind == "csv":
        with open(kind, newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = pq.read_table(kind).to_pylist()
    assert [[float(row[name]) for name in ("x1", "y1", "x2", "y2")] for row in rows] == BOXES
    assert [row["label"] for row in rows] == LABELS
    assert [row["image"] for row in rows] == ["a.png", "a.png", "b.png"]
    assert [row["score"] or None for row in rows] == (
        [None, "0.75", "0.5"] if kind == "csv" else [None, 0.75, 0.5]
    )
    assert json.loads(rows[1]["segmentation"]) == dataset()["annotations"][1]["segmentation"]
    assert bool(int(rows[0]["crowd"])) is False


# -- hostile and damaged files -------------------------------------------------------------

VOC = """<annotation><filename>a.png</filename><size><width>{size}</width><height>60</height></size>
<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{xmax}</xmax><ymax>9</ymax>
</bndbox></object></annotation>"""
CVAT = """<annotations><image id="0" name="a.png" width="{size}" height="60"><box label="cat"
xtl="4" ytl="2" xbr="{xmax}" ybr="9"/></image></annotations>"""
LAUGHS = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 20))
LAUGHS = f'<!DOCTYPE a [<!ENTITY e0 "ha">{LAUGHS}]><annotation>&e19;</annotation>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'


@pytest.mark.parametrize(("kind", "text"), [("voc", VOC), ("cvat", CVAT)])
@pytest.mark.parametrize(
    ("size", "xmax", "boxes", "reason"),
    [
        (80, 20, 1, ""),
        (80, -5, 0, "boxes that end before they begin: 1"),
        (80, "nan", 0, "rows that can't be read: 1"),
        ("0.5", 20, None, "a width and a height in pixels, both ≥ 1, got (0, 60)"),
        (-80, 20, None, "got (-80, 60)"),
        ("1e300", 20, None, "a width and a height in pixels"),
        ("inf", 20, None, "size"),
    ],
)
def test_boxes_and_sizes_that_can_not_be_are_skipped_or_refused(
    place, capsys, kind, text, size, xmax, boxes, reason
):
    (place / "in").mkdir()
    (place / "in" / "a.xml").write_text(text.format(size=size, xmax=xmax))
    source = "in" if kind == "voc" else "in/a.xml"
    code = convert(source, "--from", kind, "--to", "coco", "-o", "coco.json")
    said = capsys.readouterr().err
    assert code == (2 if boxes is None else int(not boxes))
    assert reason in said
    assert len(said.splitlines()) == bool(reason)
    if boxes is not None:
        assert len(json.loads((place / "coco.json").read_text())["annotations"]) == boxes


@pytest.mark.parametrize("text", [LAUGHS, OUTSIDE, "<a>" * 100_000])
def test_xml_that_attacks_is_one_line(place, capsys, text):
    (place / "in").mkdir()
    (place / "in" / "a.xml").write_text(text)
    assert convert("in", "--from", "voc", "--to", "coco", "-o", "coco.json") == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("palidecode: in/a.xml: can't be read as XML: ")


@pytest.mark.parametrize("row", ["0 40 30 20 10", "0 0.5 0.5 -0.25 0.5", "0 0 0 1 0 1 1.1 0 1"])
def test_yolo_in_pixels_or_negative_is_counted(place, capsys, row):
    """Read as fractions they would be boxes of other places."""
    assert convert("coco.json", "--to", "yolo", "-o", "out") == 0
    (label, *_) = sorted((place / "out" / "labels").rglob("*.txt"))
    label.write_text(f"{row}\n0 0.5 0.5 0.25 0.5\n")
    report = ConvertReport()
    read = read_yolo(place / "out", place / "images", report)
    assert report.skipped == {"rows with numbers that aren't between 0 and 1": 1}
    assert len(read.pictures[0].objects) == 1


@pytest.mark.parametrize("names", ["[no, 1.5, 2001-13-45]", "{0: no, 1: 1.5, 2: 2001-13-45}"])
def test_yolo_classes_are_text(place, names):
    assert convert("coco.json", "--to", "yolo", "-o", "out") == 0
    (place / "out" / "data.yaml").write_text(f"names: {names}\n")
    assert read_yolo(place / "out", place / "images", ConvertReport()).classes == [
        "no",
        "1.5",
        "2001-13-45",
    ]
    (place / "out" / "data.yaml").write_text("names: " + "[" * 5000)
    assert convert("out", "--from", "yolo", "--images", "images", "--to", "csv", "-o", "x") == 2
