import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from palidecode.cli import _Warnings, main
from palidecode.codec.weights import DEMO_ID, shipped_path
from palidecode.files import open_picture
from palidecode.version import __version__
from tests.samples import CODES, answer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three pictures, one of them cut short, and answers about them, one of them broken."""
    monkeypatch.setenv("PALIDECODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PALIDECODE_WEIGHTS", raising=False)
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    for name in ("a.jpg", "deep/b.png", "cut.jpg"):
        Image.effect_noise((160, 120), 60).convert("RGB").save(pictures / name)
    cut = pictures / "cut.jpg"
    cut.write_bytes(cut.read_bytes()[:900])
    rows = [
        {"image": "a.jpg", "prompt": "segment boat", "output": answer("boat", codes=CODES)},
        {"image": "deep/b.png", "output": f"{answer('Cats')} ;"},
        {"image": "cut.jpg", "output": answer("dog")},
        {"image": "missing.jpg", "output": answer("dog")},
        {"image": "../../secret.png", "output": answer("dog")},
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "answers.jsonl").write_text(text + "\n{broken\n")
    return tmp_path


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def decode_folder(capsys, folder, *options):
    return run(
        capsys,
        "decode",
        folder / "answers.jsonl",
        "--images",
        folder / "pictures",
        "-o",
        folder / "coco.json",
        "--weights",
        DEMO_ID,
        *options,
    )


def test_good_rows_are_written_and_bad_ones_named(capsys, folder):
    code, out, err = decode_folder(capsys, folder)
    assert code == 1
    assert out.startswith(f"3 objects of 3 pictures in {folder / 'coco.json'}\n")
    assert "extra_separator 1" in out
    lines = err.splitlines()
    assert [line.split(":")[1] for line in lines] == [f" line {n}" for n in (4, 5, 6, 2)]
    assert "no such picture" in lines[0]
    assert "leads out of the folder" in lines[1]
    assert lines[3].endswith("line 2: extra_separator at 42…43: ';'")
    coco = COCO(str(folder / "coco.json"))
    assert [image["file_name"] for image in coco.imgs.values()] == [
        "a.jpg",
        "deep/b.png",
        "cut.jpg",
    ]
    assert np.count_nonzero(coco.annToMask(coco.anns[1])) == pytest.approx(
        coco.anns[1]["area"], rel=0.1
    )


def test_issues_are_listed_with_their_lines(capsys, folder):
    rows = [{"output": f"{answer('cat')} ; hm", "image": "a.jpg"}] * 1200
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, _, err = decode_folder(capsys, folder, "--issues", folder / "issues.jsonl")
    assert code == 0
    assert err.count("stray_text at 43…45: 'hm'") == 10
    assert err.splitlines()[-1].endswith("and 1,190 more (--issues FILE writes all of them)")
    written = [json.loads(line) for line in (folder / "issues.jsonl").read_text().splitlines()]
    assert [issue["line"] for issue in written] == [*range(1, 1201)]
    assert written[7] == {"line": 8, "kind": "stray_text", "span": [43, 45], "text": "hm"}
    _, out, _ = decode_folder(capsys, folder, "--json")
    assert json.loads(out)["issue_rows"] == written[:1000]
    _, _, err = decode_folder(capsys, folder, "--verbose")
    assert err.count("stray_text") == 1000
    _, _, err = decode_folder(capsys, folder, "--quiet")
    assert err == ""


def test_machines_get_json(capsys, folder):
    code, out, err = decode_folder(capsys, folder, "--json")
    said = json.loads(out)
    assert (code, err) == (1, "")
    assert (said["images"], said["annotations"], said["issues"]) == (3, 3, {"extra_separator": 1})
    assert [problem["line"] for problem in said["problems"]] == [4, 5, 6]


def test_categories_from_a_file(capsys, folder):
    (folder / "names.txt").write_text("cat\nboat\n")
    options = ("--categories", folder / "names.txt", "--unmapped", "drop", "--json")
    _, out, _ = decode_folder(capsys, folder, *options)
    assert json.loads(out)["left_out"] == {"unmapped_labels": {"Cats": 1, "dog": 1}}
    _, out, _ = decode_folder(capsys, folder, *options, "--match", "loose")
    assert json.loads(out)["left_out"] == {"unmapped_labels": {"dog": 1}}
    code, _, err = decode_folder(capsys, folder, *options[:2], "--unmapped", "error")
    assert code == 2
    assert "'Cats'" in err


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("folder")
def test_google_answers_with_other_weights_warn(capsys):
    _, _, err = run(capsys, "decode", "--text", answer("a", codes=CODES), "--size", "64x64")
    assert err.startswith("palidecode: warning:")
    assert "palidecode weights fetch" in err


def test_one_text_is_a_table(capsys):
    text = f"well {answer('cat')} ; {answer('dog')}"
    code, out, err = run(capsys, "decode", "--text", text, "--size", "1024x1024")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["200.0", "100.0", "800.0", "700.0", "cat"],
        ["200.0", "100.0", "800.0", "700.0", "dog"],
    ]
    assert "stray_text at (0, 4): 'well'" in err


def test_one_text_as_coco(capsys, tmp_path):
    target = tmp_path / "coco.json"
    arguments = ("decode", "--text", answer("cat"), "--size", "64x64", "-o", target, "--json")
    _, out, _ = run(capsys, *arguments)
    assert json.loads(out)["coco"] == json.loads(target.read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("decode",), "either a file of answers or --text"),
        (("decode", "x", "--text", "y"), "either a file of answers or --text"),
        (("decode", "--text", "x"), "--size 640x480"),
        (("decode", "nowhere.jsonl"), "-o coco.json"),
        (("decode", "nowhere.jsonl", "-o", "x.json"), "nowhere.jsonl: can't be read"),
        (("decode", "x", "-o", "y", "--images", "nowhere"), "no such directory"),
        (("decode", "/dev/null", "-o", "y", "--weights", "nowhere.npz"), "no such weights"),
        (("decode", "/dev/null", "-o", "y", "--tokenizer", "nowhere.json"), "tokenizer.json"),
        (("decode", "x", "-o", "y", "--categories", "nowhere.txt"), "can't be read"),
        (("decode", "x", "-o", "y", "--simplify", "-1", "--size", "2x2"), "can't be read"),
        (("decode", "--text", "x", "--size", "2x2", "--issues", "i"), "files of answers"),
        (("decode", "x", "-o", "y", "--workers", "2"), "--workers can't be used without --ray"),
        (("predict", "nowhere", "--model", "demo", "-o", "y", "--shard-size", "2"), "--shard-size"),
        (("draw", "nowhere.png", "--text", "x", "-o", "y"), "no such picture"),
        (("draw", "x.jsonl", "-o", "y"), "--images DIR"),
        (("draw", "x.png", "--text", "x", "-o", "y", "--alpha", "7"), "--alpha"),
        (("decode", "x", "-o", "y", "--batch-size", "0"), "--batch-size must be at least 1"),
        (("draw", "x.png", "--text", "x", "-o", "y", "--line-width", "0"), "--line-width"),
        (("weights", "verify", "nowhere.npz"), "no such weights"),
        (("weights", "convert", DEMO_ID, "x.txt"), ".npz or .safetensors"),
        (("demo", "--answers", "-o", "/dev/null/x"), "can't be written"),
    ],
)
def test_what_can_not_be_done_is_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_model_is_named_before_there_is_anything_to_ask(capsys, folder):
    pictures = folder / "pictures"
    target = folder / "coco.json"
    code, _, err = run(
        capsys, "predict", pictures, "--model", pictures, "--task", "detect", "-o", target
    )
    assert code == 2
    assert f"{pictures}: no config.json" in err


def test_a_file_without_a_usable_row_writes_nothing(capsys, tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n[]\n" * 8)
    target = tmp_path / "coco.json"
    code, _, err = run(capsys, "decode", tmp_path / "a.jsonl", "-o", target)
    assert code == 2
    assert not target.exists()
    assert "no usable row" in err
    assert "6 more" in err


@pytest.mark.parametrize("size", ["640", "0x5", "axb", "4x-4"])
def test_sizes_are_checked(capsys, size):
    with pytest.raises(SystemExit) as stop:
        main(["decode", "--text", "x", "--size", size])
    assert stop.value.code == 2
    assert "640x480" in capsys.readouterr().err


def test_draw_a_folder_from_answers_and_from_coco(capsys, folder):
    decode_folder(capsys, folder)
    for source in ("answers.jsonl", "coco.json"):
        out = folder / f"drawn-{source.partition('.')[0]}"
        code, said, err = run(
            capsys, "draw", folder / source, "--images", folder / "pictures", "-o", out,
            "--weights", DEMO_ID, "--json",
        )  # fmt: skip
        assert (code, err) == (1, "")
        assert json.loads(said)["written"] == 2
        assert "cut.jpg" in json.dumps(json.loads(said)["problems"])
        before = np.asarray(Image.open(folder / "pictures/deep/b.png").convert("RGB"))
        after = np.asarray(Image.open(out / "deep/b.png"))
        assert 0.01 < (before != after).any(axis=2).mean() < 0.6


def test_draw_names_the_line_of_a_picture_that_is_gone(capsys, folder):
    rows = [
        {"image": name, "width": 20, "height": 24, "output": answer("cat")}
        for name in ("gone.png", "deep/b.png", "gone.png", "lost.png")
    ]
    (folder / "few.jsonl").write_text("\n".join(["{", *map(json.dumps, rows)]))
    words = ["draw", folder / "few.jsonl", "--images", folder / "pictures", "-o", folder / "few"]
    code, _, err = run(capsys, *words)
    assert code == 1
    assert [line.split(": ")[1] for line in err.splitlines()] == ["line 1", "line 2", "line 5"]
    _, said, _ = run(capsys, *words, "--json")
    assert [problem["line"] for problem in json.loads(said)["problems"]] == [1, 2, 5]


@pytest.mark.filterwarnings("default::palidecode.coco.skips.SkippedRowsWarning")
def test_draw_skips_annotations_that_can_not_be_read(capsys, folder):
    decode_folder(capsys, folder)
    dataset = json.loads((folder / "coco.json").read_text())
    dataset["annotations"].append(dataset["annotations"][0] | {"bbox": "all"})
    dataset["images"] = [image for image in dataset["images"] if image["file_name"] != "cut.jpg"]
    (folder / "odd.json").write_text(json.dumps(dataset))
    words = ["draw", folder / "odd.json", "--images", folder / "pictures", "-o", folder / "drawn"]
    code, said, err = run(capsys, *words, "--json")
    assert code == 1
    assert "1 annotation could not be read" in err
    summary = json.loads(said)
    assert (summary["written"], summary["problems"]) == (2, [])
    assert {skip["reason"] for skip in summary["skipped"]} >= {"unreadable"}


@pytest.mark.skipif(sys.platform == "win32", reason="limits files by POSIX means")
def test_draw_stops_at_a_full_disk(folder):
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000));"
    limit += "from palidecode.cli import main; sys.exit(main(sys.argv[1:]))"
    rows = [{"image": name, "output": answer("cat")} for name in ("deep/b.png", "a.jpg")]
    (folder / "two.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["draw", folder / "two.jsonl", "--images", folder / "pictures", "-o", folder / "drawn"]
    done = subprocess.run(
        [sys.executable, "-c", limit, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    copy = folder / "drawn" / "deep" / "b.png"
    assert done.stderr == f"palidecode: {copy}: can't be written: File too large\n"
    assert not [path for path in (folder / "drawn").rglob("*") if path.is_file()]


@pytest.mark.parametrize(("target", "kind"), [("x.png", "PNG"), ("x.jpg", "JPEG"), ("dir", "PNG")])
def test_draw_one_answer(capsys, folder, target, kind):
    picture = folder / "pictures" / "a.jpg"
    code, out, _ = run(capsys, "draw", picture, "--text", answer("cat"), "-o", folder / target)
    assert code == 0
    with Image.open(out.strip()) as image:
        assert (image.format, image.size) == (kind, (160, 120))


def test_draw_has_widths_colours_labels_and_crops(capsys, tmp_path):
    Image.new("RGB", (100, 80), "white").save(tmp_path / "a.png")
    boxes = ("<loc0128><loc0102><loc0512><loc0410>", "<loc0256><loc0614><loc0922><loc0922>")
    text = " ; ".join(f"{box} cat" for box in boxes)
    drawn = {}
    for name, options in {
        "thin": ["--line-width", "1"],
        "thick": ["--line-width", "7"],
        "instance": ["--color-by", "instance", "--line-width", "1"],
    }.items():
        path = tmp_path / f"{name}.png"
        words = ["draw", tmp_path / "a.png", "--text", text, "-o", path, "--no-labels", *options]
        assert run(capsys, *words, "--crops", tmp_path / "crops")[0] == 0
        drawn[name] = np.asarray(open_picture(path))
    inked = {name: (pixels < 250).any(axis=2).sum() for name, pixels in drawn.items()}
    assert inked["thick"] > 3 * inked["thin"]
    corners = [(10, 10), (20, 60)]  # y and x of the boxes' first corners
    assert (drawn["thin"][corners[0]] == drawn["thin"][corners[1]]).all()
    assert (drawn["instance"][corners[0]] != drawn["instance"][corners[1]]).any()
    crops = {path.name: open_picture(path) for path in (tmp_path / "crops").iterdir()}
    sizes = {name: crop.size for name, crop in crops.items()}
    assert sizes == {"a-1.png": (32, 30), "a-2.png": (32, 53)}
    assert np.asarray(crops["a-1.png"]).min() == 255  # of the picture, not of the drawing
    words = ["draw", tmp_path / "c.json", "--images", tmp_path, "-o", tmp_path / "d"]
    for target in (tmp_path / "d", tmp_path / "crops", tmp_path):
        code, _, err = run(capsys, *words, "--crops", target)
        assert (code, err.split(": ")[2]) == (2, "--crops needs a directory of its own\n")


def test_token_ids_with_a_tokenizer(capsys, tmp_path):
    from tokenizers import Tokenizer, models

    vocabulary = {"cat": 0, "<unk>": 1}
    Tokenizer(models.WordLevel(vocabulary, "<unk>")).save(str(tmp_path / "tokenizer.json"))
    row = {"token_ids": [256000, 256000, 256512, 256512, 0], "width": 8, "height": 8}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    # Id 0 is PaliGemma's padding: a label of it is left out, whatever the tokenizer says.
    arguments = ("decode", tmp_path / "a.jsonl", "-o", tmp_path / "coco.json")
    run(capsys, *arguments, "--tokenizer", tmp_path / "tokenizer.json")
    written = json.loads((tmp_path / "coco.json").read_text())
    assert [item["name"] for item in written["categories"]] == ["object"]


def test_weights_list_verify_and_convert(capsys, folder):
    code, out, _ = run(capsys, "weights", "list", "--json")
    listed = {item["id"]: item for item in json.loads(out)}
    assert code == 0
    assert listed["google-oid"]["here"] is False
    assert listed[DEMO_ID]["default"] is True
    assert listed[DEMO_ID]["path"] == str(shipped_path())
    _, out, _ = run(capsys, "weights", "list")
    assert "not fetched" in out
    code, out, _ = run(capsys, "weights", "verify", DEMO_ID)
    assert code == 1
    assert "palidecode's own codec, as it should be" in out
    assert "Google's checkpoints need Google's codec: palidecode weights fetch" in out
    code, out, _ = run(capsys, "weights", "convert", DEMO_ID, folder / "x.npz")
    assert code == 0
    _, out, _ = run(capsys, "weights", "verify", folder / "x.npz", "--json")
    assert json.loads(out)["passed"] is False


def test_help_version_and_exit_codes_in_a_real_process():
    command = [sys.executable, "-m", "palidecode"]
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    for name in ("decode", "draw", "weights", "demo", "exit codes"):
        assert name in helped.stdout
    shown = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"palidecode {__version__}\n"
    failed = subprocess.run([*command, "decode"], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr


@pytest.mark.filterwarnings("default")
def test_the_same_warning_is_printed_once(capsys):
    with warnings.catch_warnings():
        show = _Warnings(quiet=False).show
        for number in (1, 1, 2, 1):
            show(UserWarning(f"number {number}"), UserWarning)
        _Warnings(quiet=True).show(UserWarning("quiet"), UserWarning)
    lines = ["palidecode: warning: number 1", "palidecode: warning: number 2"]
    assert capsys.readouterr().err.splitlines() == lines
