"""Input that fuzzing or reading the code found to crash, hang, cost or overwrite something."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image, features

import palidecode
from palidecode import InputError, WeightsError
from palidecode.answers.parsing import parse
from palidecode.answers.row_files import Problem
from palidecode.answers.rows import read_rows
from palidecode.cli import main
from palidecode.coco.detections import from_coco, from_coco_results
from palidecode.detections import draw
from palidecode.evaluation.coco.evaluate import evaluate_coco
from palidecode.evaluation.referring.refcoco import read_refcoco
from palidecode.files import open_picture, picture_size, png_names, read_json, replacing
from palidecode.geometry.rle import MAX_OUTLINE, rings_to_rle
from palidecode.prompts import asked_names, prompts_for
from palidecode.runs.answers import AnswerDecoder, decode_rows
from palidecode.runs.rows import detections_of
from palidecode.runtime.config import config_from_hf, config_to_hf
from palidecode.runtime.grammar import Grammar
from palidecode.runtime.image import to_pixels
from palidecode.runtime.weights import SafetensorsFolder
from tests.fuzzing import prompts, refused
from tests.fuzzing.bombs import dataset, laughs
from tests.fuzzing.guard import Forbidden, watched
from tests.fuzzing.pictures import saved
from tests.runtime.tiny_models import CONFIGS, write_folder
from tests.samples import CODES, DEMO, answer

RING = [8.0, 8.0, 30.0, 8.0, 30.0, 30.0, 8.0, 30.0]
HALF = "\ud800"  # of a surrogate pair: JSON can say it, no encoding can


@pytest.fixture
def picture():
    levels = np.random.default_rng(1).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    return Image.fromarray(levels)


# -- the guard itself ------------------------------------------------------------------------


def test_the_guard_sees_what_it_is_for(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    with watched(inside):
        (inside / "fine").write_text("x")
        (tmp_path / "inside" / ".." / "inside" / "also").mkdir()
    for act in (
        lambda: (tmp_path / "outside").write_text("x"),
        lambda: os.open(tmp_path / "outside", os.O_CREAT | os.O_WRONLY),
        lambda: os.rename(inside / "fine", tmp_path / "outside"),
        (tmp_path / "folder").mkdir,
        lambda: subprocess.run(["true"], check=True),
        lambda: pickle.loads(b"cos\nsystem\n."),
        lambda: exec("1 + 1"),
    ):
        with pytest.raises(Forbidden), watched(inside):
            act()
    assert not (tmp_path / "outside").exists()


# -- pictures --------------------------------------------------------------------------------


def test_a_pipe_or_a_folder_named_as_a_picture_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    code = (
        "import sys; from palidecode import InputError\n"
        "from palidecode.files import open_picture, picture_size\n"
        "for path in sys.argv[1:]:\n"
        "    for read in (open_picture, picture_size):\n"
        "        try: read(path)\n"
        "        except InputError as error: print(error)\n"
    )
    paths = [str(tmp_path / "pipe.jpg"), str(tmp_path / "folder.jpg"), "/dev/zero"]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        path for path in paths for _ in (1, 2)
    ]


MODEL_FILES = ("config.json", "tokenizer.json", "model.safetensors", "preprocessor_config.json")
MODEL_FILES += ("palidecode.json", "generation_config.json", "model.safetensors.index.json")
MODEL_FILES += ("adapter_config.json", "processor_config.json")


@pytest.mark.slow
def test_a_pipe_or_a_device_is_no_input_file(tmp_path, picture):
    for name in ("pipe.json", "pipe.npz", "pipe.p", "pipe.txt", "pipe.png"):
        os.mkfifo(tmp_path / name)
    for name in MODEL_FILES:
        shutil.copytree(DEMO / "model", tmp_path / f"of {name}")
        (tmp_path / f"of {name}" / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / f"of {name}" / name)
    (tmp_path / "pics").mkdir()
    picture.save(tmp_path / "pics" / "a.png")
    (tmp_path / "truth.json").write_text(json.dumps(dataset(RING)))
    row = {"image": "a.png", "output": answer("cat"), "width": 9, "height": 9}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row))
    predict = "predict pics -o out.json --prompt detect@circle --model"
    commands = [
        "evaluate pipe.json truth.json",
        "evaluate truth.json pipe.json",
        "evaluate /dev/zero truth.json",
        "encode pipe.json --task detect -o rows.jsonl",
        "draw pipe.json --images pics -o drawn",
        "view pipe.json --images pics -o page",
        "convert pipe.json --to yolo -o yolo",
        "draw pipe.png --text x -o drawn",
        "decode answers.jsonl -o coco.json --categories pipe.json",
        "decode answers.jsonl -o coco.json --categories pipe.txt",
        "decode answers.jsonl -o coco.json --tokenizer pipe.json",
        "evaluate-referring answers.jsonl --refs pipe.p --instances truth.json",
        *(f"{predict} of@{name}" for name in MODEL_FILES),
        f"{predict} pipe.npz",
        f"{predict} demo --tokenizer pipe.json",
    ]
    code = "import sys; from palidecode.cli import main\n"
    code += "for command in sys.argv[1:]:\n"
    code += "    print(main([part.replace('@', ' ') for part in command.split()]), flush=True)\n"
    done = subprocess.run(
        [sys.executable, "-c", code, *commands],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.split() == ["2"] * len(commands)
    lines = done.stderr.splitlines()
    assert len(lines) == len(commands)
    said = "is a pipe or device; save it as a file first"
    assert [line for line in lines if said not in line or "PALIDECODE_DEBUG" in line] == []


def test_answers_are_read_from_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "answers.jsonl")
    row = {"image": "a.png", "output": answer("cat"), "width": 9, "height": 9}
    writer = threading.Thread(
        target=(tmp_path / "answers.jsonl").write_text, args=(json.dumps(row),), daemon=True
    )
    writer.start()
    assert main(["decode", str(tmp_path / "answers.jsonl"), "-o", str(tmp_path / "c.json")]) == 0
    writer.join()
    assert len(json.loads((tmp_path / "c.json").read_text())["annotations"]) == 1


def test_a_picture_that_is_a_program_is_not_run(tmp_path, picture):
    """Pillow hands EPS, whatever it is called, to Ghostscript."""
    path = tmp_path / "x.jpg"
    path.write_bytes(saved(picture, "EPS"))
    with watched(tmp_path), pytest.raises(InputError, match="can't be read as a picture"):
        open_picture(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000"])
def test_pictures_cut_anywhere(tmp_path, picture, kind):
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    whole = saved(picture, kind)
    path = tmp_path / "x.jpg"
    path.write_bytes(whole)
    assert open_picture(path).size == picture_size(path) == picture.size
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        said = refused(open_picture, path)
        assert said is None or "\n" not in said
        assert said is not None or open_picture(path).size == picture.size


@pytest.mark.parametrize("size", [(1, 65_000), (65_000, 1), (1, 1)])
def test_thin_pictures_are_read_squeezed_and_drawn(tmp_path, size):
    path = tmp_path / "x.png"
    Image.new("RGB", size, "red").save(path)
    assert to_pixels([path]).shape == (1, 3, 224, 224)
    found = palidecode.decode(answer("a"), size)
    assert draw(path, found).size == size


def test_animations_show_their_first_picture(tmp_path, picture):
    for kind in ("GIF", "PNG", "WEBP"):
        path = tmp_path / f"x.{kind}"
        frames = [picture.rotate(180)]
        path.write_bytes(saved(picture, kind, save_all=True, append_images=frames))
        with Image.open(path) as opened:
            assert opened.n_frames == 2
            first = np.asarray(opened.convert("RGB"), int)
        assert np.abs(np.asarray(open_picture(path), int) - first).max() <= 1


def test_a_picture_with_damaged_exif_stays_readable(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "x.jpg"
    path.write_bytes(saved(picture, "JPEG", exif=exif).replace(b"Exif\0\0MM", b"Exif\0\0Mh"))
    opened = open_picture(path)
    assert open_picture(opened).tobytes() == opened.tobytes()
    assert to_pixels([opened]).shape == (1, 3, 224, 224)


def test_formats_that_are_not_read_are_said(tmp_path):
    for name, data in (
        ("heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)),
        ("psd", b"8BPS\0\1" + bytes(99)),
        ("text", b"no picture"),
    ):
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"{name}.jpg: can't be read as a picture"):
            open_picture(path)


# -- names -----------------------------------------------------------------------------------

STRANGE = [
    *("a.png", "a.jpg", "A.PNG", "line\nbreak.png", "quote'\".png", "<img src=x onerror=a()>.png"),
    *(
        "e\u0301.png",
        "\xe9.png",
        "-o.png",
        "%s.png",
        "sub/a.png",
        "x" * 251 + ".png",
        ".hidden.png",
    ),
    os.fsdecode(b"not-utf-8-\xff\xfe.png"),
]


@pytest.fixture
def strange(tmp_path, picture):
    """A folder of pictures with strange names."""
    folder = tmp_path / "pictures"
    for name in STRANGE:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    return folder


def test_predict_takes_every_name_that_a_file_can_have(tmp_path, strange, capsys):
    model = write_folder(tmp_path / "model")
    output = tmp_path / "out"
    output.mkdir()
    words = ["predict", str(strange), "--model", str(model), "-o", str(output / "coco.json")]
    words += ["--prompt", "detect cat", "--dtype", "float32", "--max-new-tokens", "14"]
    words += ["--overlay", str(output / "drawn")]
    with watched(output):
        assert main(words) == 0, capsys.readouterr()
    images = read_json(output / "coco.json")["images"]
    assert sorted(image["file_name"] for image in images) == sorted(STRANGE)
    drawn = [path for path in (output / "drawn").rglob("*") if path.is_file()]
    assert len(drawn) == len(STRANGE)
    assert not list(output.rglob("*.part"))


def test_draw_goes_on_after_names_that_lead_out_or_can_not_be(tmp_path, strange, capsys):
    names = [*STRANGE, "../x.png", "/etc/hostname", "", ".", "y" * 300, "a\0b", "loop.png", HALF]
    rows = [{"image": n, "width": 20, "height": 24, "output": answer(n or "cat")} for n in names]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "drawn"
    with watched(output):
        code = main(["draw", str(answers), "--images", str(strange), "-o", str(output), "--json"])
    assert code == 1
    said = json.loads(capsys.readouterr().out)
    assert said["written"] == len(STRANGE)
    assert len([path for path in output.rglob("*") if path.is_file()]) == len(STRANGE)


def test_nothing_is_drawn_over_the_picture_itself(tmp_path, picture, capsys):
    picture.save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    row = {"image": "a.png", "output": answer("cat")}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row))
    words = [
        "draw",
        str(tmp_path / "answers.jsonl"),
        "--images",
        str(tmp_path),
        "-o",
        str(tmp_path),
    ]
    assert main(words) == 1
    assert "drawn over" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_file_without_answers_is_said(tmp_path, capsys):
    (tmp_path / "answers.jsonl").write_text("\n")
    words = [
        "draw",
        str(tmp_path / "answers.jsonl"),
        "--images",
        str(tmp_path),
        "-o",
        str(tmp_path),
    ]
    assert main(words) == 2
    assert "no answers" in capsys.readouterr().err


def test_drawn_pictures_never_share_a_name():
    found = png_names(["a.jpg", "a.webp", "b.jpg", "c/a.jpg", "noend"])
    wanted = {"a.jpg": "a.jpg.png", "a.webp": "a.webp.png", "b.jpg": "b.png", "c/a.jpg": "c/a.png"}
    assert found == wanted | {"noend": "noend.png"}
    assert len(set(png_names(["a.jpg", "a.webp", "a.jpg.png"]).values())) == 3
    assert png_names(["v1.0/noend"]) == {"v1.0/noend": "v1.0/noend.png"}


def test_the_longest_name_there_is_can_be_written(tmp_path):
    path = tmp_path / ("é" * 125 + ".json")
    with replacing(path) as file:
        file.write("x")
    assert os.listdir(tmp_path) == [path.name]


def test_what_no_encoding_can_say_is_printed_all_the_same(tmp_path, capsys):
    row = {"width": 9, "height": 9, "output": answer(f"cat{HALF}")}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row))
    (tmp_path / "names.txt").write_text("dog")
    words = ["decode", str(tmp_path / "answers.jsonl"), "-o", str(tmp_path / "coco.json"), "--json"]
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        words += ["--categories", str(tmp_path / "names.txt"), "--unmapped", "drop"]
        assert main(words) == 0
        out.flush()
    said = json.loads(out.buffer.getvalue())
    assert said["left_out"]["unmapped_labels"] == {f"cat{HALF}": 1}


# -- answers, COCO files ---------------------------------------------------------------------


def decoded(tmp_path, **row):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"output": answer("a", codes=CODES), **row}))
    ((_, found, problems),) = decode_rows(read_rows(path), AnswerDecoder())
    return found, problems


@pytest.mark.parametrize("score", [10**400, 1e300, -1e39, float("inf"), float("nan"), "1", True])
def test_scores_that_are_no_scores(tmp_path, score):
    found, problems = decoded(tmp_path, width=9, height=9, scores=[score])
    assert np.isnan(found.scores).all()
    assert len(problems) == 1


def test_a_picture_too_large_for_a_mask_is_one_problem(tmp_path, demo_codec):
    found, problems = decoded(tmp_path, width=10**6, height=10**6)
    assert len(found) == 0
    assert isinstance(problems[0], Problem)
    assert "more than a mask's" in problems[0].reason
    large = palidecode.decode(answer("a", (0, 0, 1023, 1023), CODES), (10**6, 10**6), demo_codec)
    with pytest.raises(InputError, match="pixels"):
        large.to_rle()


def test_drawing_what_no_encoding_and_no_picture_can_hold(picture):
    found = palidecode.decode(answer(f"a{HALF}"), picture.size)
    assert draw(picture, found).size == picture.size
    far = dataset(RING)
    far["annotations"][0]["bbox"] = [-1e9, 5, 1e9, 1e9]
    assert draw(picture, from_coco(far)).size == picture.size


@pytest.mark.parametrize(
    "changed",
    [
        {"annotations": {"a": 1}},
        {"annotations": 5},
        {"annotations": ["x"]},
        {"annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1e300, 1]}]},
        {"annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10**400, 1]}]},
        {
            "annotations": [
                {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 10**400}
            ]
        },
        {"images": [{"id": 1, "width": float("inf"), "height": 9}]},
        {"images": [{"id": 1, "width": 10**30, "height": 9}]},
        {"images": [{"id": 1, "width": 0, "height": 9}]},
        {"images": [{"id": 1, "width": 1 << 20, "height": 1 << 20}]},
        {"images": [5]},
        {"categories": None},
    ],
)
def test_coco_files_that_are_none(changed):
    with pytest.raises(InputError):
        from_coco({**dataset(RING), **changed})


def test_results_need_a_dataset(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(InputError, match="is a results list, not a COCO dataset"):
        from_coco_results([], tmp_path / "x.json")


@pytest.mark.parametrize("text", ['"truth.json"', "null", "7", "true", "1e999"])
def test_json_of_one_value_is_no_file_of_names_and_no_path(tmp_path, capsys, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "truth.json").write_text(json.dumps(dataset(RING)))
    (tmp_path / "value.json").write_text(text)
    (tmp_path / "answers.jsonl").write_text(json.dumps({"output": answer("cat"), "size": [9, 9]}))
    for command in (
        "evaluate value.json truth.json",
        "evaluate truth.json value.json",
        "encode value.json --task detect -o rows.jsonl",
        "draw value.json --images . -o drawn",
        "decode answers.jsonl -o coco.json --categories value.json",
        "predict . --model demo --task detect -o coco.json --classes value.json",
        "evaluate-referring answers.jsonl --refs value.json --instances truth.json",
        "evaluate-referring answers.jsonl --refs truth.json --instances value.json",
    ):
        assert main(command.split()) == 2
        printed, error = capsys.readouterr()
        assert not printed
        assert error.startswith("palidecode: ")
        assert error.count("\n") == 1


def test_numbers_of_too_many_digits(tmp_path):
    (tmp_path / "x.json").write_text("1" * 5000)
    with pytest.raises(InputError, match=r"x.json: not JSON"):
        read_json(tmp_path / "x.json")


def test_outlines_have_a_longest_length():
    zigzag = [0.0, 0.0, 639.0, 0.0]
    fine = MAX_OUTLINE // 639 // 2
    assert rings_to_rle([zigzag * fine], (640, 480))["size"] == [480, 640]
    with pytest.raises(InputError, match="longer than"):
        rings_to_rle([zigzag * (fine + 2)], (640, 480))
    truth = dataset(RING)
    found = dataset(zigzag * (fine + 2))["annotations"][0] | {"score": 0.5}
    result = evaluate_coco(truth, [found, {**truth["annotations"][0], "score": 0.4}], "segm")
    assert [(skip.reason, skip.count) for skip in result.skipped] == [("bad_mask", 1)]
    assert result.rates.right == 1


@pytest.mark.parametrize("far", [1e5, 1e9, 1e300])
def test_far_outlines_are_read_as_one_reader_reads_them(far):
    ring = [0.0, 0.0, far, 0.0, far, far, 0.0, far]
    truth = dataset(ring)
    result = evaluate_coco(truth, [truth["annotations"][0] | {"score": 0.5}], "segm")
    assert result.rates.right == 1
    assert from_coco(truth).rles[0] == rings_to_rle([ring], (640, 480))


def test_names_that_no_encoding_can_say(tmp_path):
    truth = dataset(RING)
    truth["images"][0]["file_name"] = f"{HALF}.png"
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    found = [truth["annotations"][0] | {"score": 0.5}]
    (tmp_path / "found.json").write_text(json.dumps(found))
    words = ["evaluate", str(tmp_path / "truth.json"), str(tmp_path / "found.json")]
    assert main([*words, "-o", str(tmp_path)]) == 0
    assert "\\ud800.png" in (tmp_path / "index.html").read_text(encoding="utf-8")
    truth["categories"][0]["name"] = HALF
    with pytest.raises(InputError, match="category 0"):
        evaluate_coco(truth, found)


# -- models, journals, RefCOCO ---------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"hidden_size": float("inf")},
        {"num_hidden_layers": 10**9},
        {"rope_parameters": [1]},
        {"rope_theta": float("nan")},
        {"rms_norm_eps": -1.0},
        {"sliding_window": -5},
        {"final_logit_softcapping": 0.0},
    ],
)
def test_configs_that_no_model_has(changed):
    config = config_to_hf(CONFIGS[2])
    config["text_config"] |= changed
    with pytest.raises(InputError):
        config_from_hf(config)


def test_weights_that_are_whole_numbers_are_no_weights(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros((2, 2), np.int64)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="not float32 or bfloat16"):
        SafetensorsFolder(tmp_path).read("a")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"weight_map": {"a": "%s"}}' % ("x" * 300)])
def test_indexes_that_are_none(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match="not an index"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"rles": ["zz"]},
        {"rles": [None, None]},
        {"boxes": [[1, 2]]},
        {"labels": 5},
        {"issues": [["nothing", [0, 1], ""]]},
        {"issues": [{"kind": "nothing", "start": 0, "stop": 1, "text": ""}]},
        {"width": None},
    ],
)
def test_rows_that_no_run_wrote(changed):
    row = {"image": "a", "width": 64, "height": 48, "boxes": [[1, 2, 3, 4]], "labels": ["a"]}
    row |= {"scores": [0.5], "rles": [None], "issues": []}
    assert len(detections_of([row])) == 1
    with pytest.raises(InputError, match="a row is not one of palidecode's"):
        detections_of([row | changed])


@pytest.mark.parametrize("sentence", [["ha"] * 3, laughs(9), {"a": 1}, 5])
def test_sentences_that_are_no_text(tmp_path, sentence):
    said = [{"sent_id": 1, "sent": sentence}]
    ref = {"ref_id": 1, "ann_id": 1, "image_id": 1, "split": "val", "sentences": said}
    (tmp_path / "refs.p").write_bytes(pickle.dumps([ref], 2))
    with pytest.raises(InputError, match=r"must be text|contain each other"):
        read_refcoco(tmp_path / "refs.p", dataset(RING))


# -- prompts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", prompts._TYPED, ids=ascii)
def test_prompts_can_not_forge_structure(real_tokenizer, text):
    """The targets' checks of the small tokenizer also hold for PaliGemma's own."""
    prompts.check(real_tokenizer, text, random.Random(1))


FORGING = ["<loc0000>", "<seg000> cat", "<eos>", "<image>", "cat\ndog", "cat\u2028dog", "cat\r"]
FORGING += ["a;b", "cat ; dog", "", " ", "[@BOS@]"]


@pytest.mark.parametrize("name", FORGING, ids=ascii)
def test_class_names_can_not_forge_structure(name):
    with pytest.raises(InputError, match="can't be a label"):
        prompts_for(["cat", name])
    with pytest.raises(InputError, match="can't be a label"):
        prompts_for(["cat", name], 1)


def test_what_a_prompt_lists_is_what_was_meant():
    names = ["fisherman's hut", "猫", "t-shirt", "a, b"]
    (prompt,) = prompts_for(names)
    assert asked_names(f"segment {prompt}") == ("segment", names)


def test_a_label_longer_than_any_answer_is_refused(small_tokenizer):
    with pytest.raises(InputError, match="tokens long"):
        Grammar.of(small_tokenizer, "detect " + "x" * 5000)


def test_labels_that_are_markup_stay_labels():
    text = answer("</script><img src=x onerror=a()>")
    assert parse(text).objects[0].label == "</script><img src=x onerror=a()>"
    dataset = palidecode.to_coco(palidecode.decode(text, (9, 9)))
    assert json.loads(json.dumps(dataset))["categories"][0]["name"].startswith("</script>")
