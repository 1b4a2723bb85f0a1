"""Tiles and a second look: boxes and masks in the picture, whatever was asked together."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from palidecode import Detections, evaluate_coco, from_coco, to_coco
from palidecode.cli import main
from palidecode.coco.categories import category_names, read_categories
from palidecode.detections.merging import Looks
from palidecode.errors import InputError
from palidecode.files import PictureBytes
from palidecode.geometry.boxes import box_iou
from palidecode.geometry.windows import tile_windows
from palidecode.pipeline import AskOptions, PaliDecoder, UnreadablePictureWarning
from tests.pipeline.servers import MODEL, answers_cat, serving
from tests.samples import DEMO

SCENES = DEMO / "scenes"
TRUTH = from_coco(SCENES / "instances.json")
CLASSES = category_names(read_categories(SCENES / "instances.json"))
SIDE = 150
ASKED = " ; ".join(CLASSES)


def composite(index, columns=2, rows=2):
    """Bundled scenes beside each other, and their objects."""
    picture = Image.new("RGB", (columns * SIDE, rows * SIDE))
    boxes, labels = [], []
    for number in range(columns * rows):
        drawn = TRUTH.image(index * columns * rows + number)
        corner = [side * SIDE for side in divmod(number, columns)][::-1]
        scene = Image.open(SCENES / drawn.names[0]).convert("RGB")
        picture.paste(scene.resize((SIDE, SIDE)), tuple(corner))
        boxes += (drawn.xyxy * SIDE / drawn.sizes[0, 0] + np.tile(corner, 2)).tolist()
        labels += drawn.labels
    return picture, np.array(boxes), labels


@pytest.fixture(scope="module", params=["torch", "onnx"])
def decoder(request):
    return PaliDecoder.from_pretrained("demo", "float32", engine=request.param)


@pytest.fixture(scope="module")
def pictures():
    """Two composites, and a small picture of odd sides."""
    small = composite(9, 1, 1)[0].resize((64, 64)).crop((0, 0, 61, 47))
    return [composite(0)[0], small, composite(1, 3, 1)[0]]


def same(found, wanted):
    assert found.labels == wanted.labels
    assert found.sizes.tolist() == wanted.sizes.tolist()
    assert found.image_index.tolist() == wanted.image_index.tolist()
    np.testing.assert_allclose(found.xyxy, wanted.xyxy, atol=1e-3)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)
    assert found.to_rle() == wanted.to_rle()


def recall(found, boxes, labels):
    overlaps = box_iou(boxes, found.xyxy)
    alike = np.array(labels)[:, None] == np.array(found.labels)[None]
    return ((overlaps * alike).max(axis=1, initial=0) > 0.5).mean()


def test_tiles_and_a_second_look_find_more(decoder):
    found_by = {}
    for options in ({}, {"tiles": "2x2"}, {"tiles": "2x2", "zoom": True}, {"tiles": "auto"}):
        shares = []
        for index in range(2):
            picture, boxes, labels = composite(index)
            shares.append(recall(decoder.detect(picture, ASKED, **options), boxes, labels))
        found_by[tuple(options)] = np.mean(shares)
    assert found_by[()] < 0.5
    assert min(list(found_by.values())[1:]) > found_by[()] + 0.3


def test_tiles_equal_what_is_asked_by_hand(decoder, pictures):
    windows, numbers, looks = [], [], []
    for number, picture in enumerate(pictures):
        cut = tile_windows(picture.size, "3x2", 0.3, 80)
        windows += [[0, 0, *picture.size], *cut.tolist()]
        numbers += [number] * (len(cut) + 1)
        looks += [picture, *(picture.crop(window) for window in cut.tolist())]
    by_hand = decoder.segment(looks, ASKED, batch_size=5)
    sizes = np.array([picture.size for picture in pictures])
    where = Looks(np.array(windows), np.array(numbers), sizes, [""] * 3)
    found = decoder.segment(pictures, ASKED, tiles="3x2", overlap=0.3)
    same(found, where.merge(by_hand))
    assert len(found) > 10


@pytest.mark.parametrize("options", [{"tiles": "2x2"}, {"zoom": True}, {"tiles": "2x1", "zoom": 1}])
def test_a_batch_finds_what_single_pictures_do(decoder, pictures, options):
    together = decoder.segment(pictures, ASKED, **options)
    alone = [decoder.segment(p, ASKED, batch_size=1, **options) for p in pictures]
    same(together, Detections.concat(alone))
    asked = decoder.segment(pictures, ["star ; circle", "tree"], **options)
    assert set(asked.labels) <= {"star", "circle", "tree"}


def test_a_second_look_keeps_every_object_in_its_picture(decoder, pictures):
    first = decoder.segment(pictures, ASKED)
    second = decoder.segment(pictures, ASKED, zoom=True)
    assert 0 < len(second) <= len(first)
    assert (second.xyxy >= 0).all()
    assert (second.xyxy <= second.sizes[second.image_index][:, [0, 1, 0, 1]]).all()
    assert not np.array_equal(first.xyxy, second.xyxy)
    assert (box_iou(second.xyxy, first.xyxy).max(axis=1) > 0.3).all()


def test_tokens_are_numbered_over_all_looks(decoder, pictures):
    seen = []
    options = {"tiles": "2x2", "zoom": True, "on_token": lambda *told: seen.append(told[0])}
    found = decoder.detect(pictures[:1], ASKED, **options)
    assert set(range(5)) < set(seen) == set(range(max(seen) + 1))
    assert max(seen) >= 4 + len(found)


def test_nothing_found_is_looked_at_once(decoder):
    plain = Image.new("RGB", (50, 40), (90, 90, 90))
    found = decoder.detect([plain], "star", zoom=True, tiles="2x2")
    assert found.sizes.tolist() == [[50, 40]]
    assert len(decoder.detect([], "star", zoom=True)) == 0


def test_a_picture_that_cannot_be_read_is_left_out(decoder, pictures, tmp_path):
    pictures[0].save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    paths = [tmp_path / "b.png", tmp_path / "a.png"]
    with pytest.warns(UnreadablePictureWarning, match=r"b\.png"):
        found = decoder.detect(paths, ASKED, tiles="2x2", zoom=True)
    assert found.names == [str(path) for path in paths]
    assert set(found.image_index.tolist()) == {1}
    data = PictureBytes(paths[1].read_bytes(), "a.png")
    options = AskOptions(tiles="2x2", zoom=True)
    again = decoder.find_closely("detect", [data], ASKED, options)
    assert again.detections.xyxy.tolist() == found.xyxy.tolist()
    assert again.errors == [""]


def test_what_cannot_be_cut_is_refused(decoder, pictures):
    with pytest.raises(InputError, match="are for prompts about one picture, got 2 pictures"):
        decoder.detect([pictures[:2]], "star", zoom=True, box_image=0)
    with pytest.raises(InputError, match="cut the picture itself"):
        decoder.detect([decoder.see(pictures[0])], "star", tiles="2x2")


def test_answers_without_a_grammar_are_looked_at_again_where_they_can_be(decoder, pictures):
    found = decoder.detect(pictures, ASKED, grammar=False, over="vocabulary", zoom=True)
    assert len(found) > 3


def test_a_server_is_asked_about_tiles_and_objects():
    picture = Image.new("RGB", (64, 48))
    with serving(*[answers_cat] * 20) as place:
        decoder = PaliDecoder.from_endpoint(place.url, MODEL)
        found = decoder.detect(picture, "cat", tiles="2x1", zoom=True)
        assert len(found) >= 1
        with pytest.raises(InputError, match="tiles='auto' needs the model's picture size"):
            decoder.detect(picture, "cat", tiles="auto")


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture
def folder(pictures, tmp_path):
    (tmp_path / "pictures").mkdir()
    for number, picture in enumerate([*pictures, *pictures]):
        picture.save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path / "pictures"


def words(folder, output, *more):
    options = ["--tiles", "2x2", "--zoom", "--dtype", "float32", "--batch-size", "2"]
    given = ["predict", folder, "--model", "demo", "--task", "segment", "-o", output]
    return [str(word) for word in (*given, *options, *more)]


def test_a_run_that_resumes_equals_one_run(folder, tmp_path, capsys):
    assert main(words(folder, tmp_path / "whole.json")) == 0
    held = tmp_path / "5.png"
    shutil.move(folder / "5.png", held)
    command = words(folder, tmp_path / "coco.json", "--keep-journal")
    assert main(command) == 0
    shutil.move(held, folder / "5.png")
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resumed"] == 4
    whole, parts = (json.loads((tmp_path / n).read_text()) for n in ("whole.json", "coco.json"))
    assert whole == parts
    assert len(whole["annotations"]) > 10
    assert main([*command, "--overlap", "0.1"]) == 2
    assert "overlap" in capsys.readouterr().err


def test_the_command_writes_what_python_finds(folder, tmp_path):
    assert main(words(folder, tmp_path / "coco.json", "--segmentation", "rle")) == 0
    paths = sorted(folder.iterdir())
    decoder = PaliDecoder.from_pretrained("demo", "float32")
    found = decoder.segment(paths, tiles="2x2", zoom=True, batch_size=2)
    names = [path.name for path in paths]
    wanted = to_coco(found, categories=list(CLASSES), segmentation="rle", file_names=names)
    result = evaluate_coco(wanted, tmp_path / "coco.json", "segm")
    assert result.stats[0] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--tiles", "2"], "--tiles must be 'auto', or columns and rows up to 16 as '2x2', got"),
        (["--overlap", "0.7"], "--overlap must be between 0 and 0.5, got 0.7"),
    ],
)
def test_bad_values_are_told_in_one_line(folder, tmp_path, capsys, more, said):
    command = ["predict", str(folder), "--model", "demo", "--prompt", "detect cat"]
    assert main([*command, "-o", str(tmp_path / "coco.json"), *more]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


def test_auto_is_refused_with_a_server_before_anything_is_asked(folder, tmp_path, capsys):
    with serving() as place:
        command = ["predict", str(folder), "--model", MODEL, "--endpoint", place.url]
        command += ["--prompt", "detect cat", "-o", str(tmp_path / "coco.json"), "--tiles", "auto"]
        assert main(command) == 2
    printed = capsys.readouterr().err
    assert "tiles can't be auto with an endpoint" in printed
    assert printed.count("\n") == 1


def test_rows_of_several_pictures_are_skipped(folder, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    lines = [{"images": ["0.png", "1.png"], "box_image": 0}, {"image": "2.png"}]
    rows.write_text("\n".join(json.dumps(row) for row in lines))
    for number in range(3):
        shutil.copy(folder / f"{number}.png", tmp_path)
    assert main(words(rows, tmp_path / "coco.json")) == 1
    assert "tiles and zoom are for prompts about one picture" in capsys.readouterr().err
    names = [row["file_name"] for row in json.loads((tmp_path / "coco.json").read_text())["images"]]
    assert names == ["2.png"]
