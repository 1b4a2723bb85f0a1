"""Referring segmentation: big_vision's protocol to the letter, and the literature's numbers."""

import json
import math
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palidecode import InputError, evaluate_referring, load_codec
from palidecode.cli import main
from palidecode.geometry.masks import paste_big_vision
from palidecode.vocab import PALIGEMMA, loc_token, seg_token
from tests.evaluation.referring.masks import blob, encoded
from tests.references import box_accuracy, gres_numbers, referring_protocol


def spelled(tokens):
    return "".join(map(loc_token, tokens[:4])) + "".join(map(seg_token, tokens[4:]))


def as_ids(tokens):
    return [PALIGEMMA.loc_offset + t for t in tokens[:4]] + [
        PALIGEMMA.seg_offset + t for t in tokens[4:]
    ]


def fractions(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    h, w = mask.shape
    return [rows[0] / h, columns[0] / w, (rows[-1] + 1) / h, (columns[-1] + 1) / w]


def problem(rng, count, codec):
    """Rows and the same for the slow twin; some answers are invalid in every way there is."""
    rows, samples = [], []
    codes = rng.integers(0, 128, (count, 16))
    fields = codec.decode(codes)
    for number in range(count):
        width, height = (int(side) for side in rng.integers(20, 330, 2))
        truth = blob(rng, width, height)
        if not truth.any():
            truth[0, 0] = True
        low = rng.integers(0, 900, 2)
        high = np.minimum(low + rng.integers(0, 1000, 2), 1023)
        tokens = [*low.tolist(), *high.tolist(), *codes[number].tolist()]
        if number % 7 == 3:
            tokens[2] = tokens[0]  # empty
        row = {"size": [width, height], "segmentation": encoded(truth)}
        row |= {"output": spelled(tokens)} if number % 2 else {"token_ids": as_ids(tokens)}
        if number % 11 == 5:
            row.pop("token_ids", None)
            row["output"], tokens = spelled(tokens)[:-8] + " cat", None
        rows.append(row)
        samples.append((tokens, fields[number], truth, fractions(truth)))
    return rows, samples


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 30), divisor=st.sampled_from([1023, 1024]))
def test_numbers_are_those_of_the_slow_loop(seed, divisor, demo_codec):
    rows, samples = problem(np.random.default_rng(seed), 24, demo_codec)
    found = evaluate_referring(rows, codec=demo_codec, divisor=divisor)
    wanted = referring_protocol(samples, divisor)
    assert [sample.iou for sample in found.samples] == pytest.approx(wanted["ious"], abs=1e-12)
    assert found.miou == pytest.approx(wanted["miou"], abs=1e-12)
    assert found.ciou == pytest.approx(wanted["ciou"], abs=1e-12)
    assert found.giou == found.miou
    assert found.boxacc == pytest.approx(wanted["boxacc"])
    assert found.precision == pytest.approx(wanted["precision"])
    assert (found.invalid, found.total) == (wanted["invalid"], wanted["total"])


def test_multiplication_comes_before_truncation_as_in_big_vision(demo_codec):
    # For some bins v / 1023 · h falls short of the whole number that v · h / 1023 is.
    bins = [(v, h) for h in range(100, 200) for v in range(1, 1023)]
    short, height = next((v, h) for v, h in bins if int(v / 1023 * h) < v * h // 1023)
    tokens = [short, 0, 1023, 1023, *[1] * 16]
    row = {"segmentation": encoded(np.ones((height, 80), bool)), "output": spelled(tokens)}
    (sample,) = evaluate_referring([row], codec=demo_codec).samples
    field, size, whole = demo_codec.decode([[1] * 16])[0], (80, height), short * height // 1023
    areas = [
        paste_big_vision(field, (0, top, 80, height), size).mask.sum() for top in (whole - 1, whole)
    ]
    assert sample.intersection == areas[0] != areas[1]


FULL = [0, 0, 1023, 1023, *[0] * 16]


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("", "doesn't begin"),
        ("<eos>", "doesn't begin"),
        (spelled(FULL)[:-1], "doesn't begin"),
        ("a cat " + spelled(FULL), "doesn't begin"),
        (spelled(FULL).replace("<loc0000>", "<loc1024>", 1), "out of range"),
        (spelled(FULL).replace("<seg000>", "<seg128>", 1), "out of range"),
        (spelled([5, 0, 5, 9, *FULL[4:]]), "inverted or empty"),
        (spelled([9, 0, 5, 9, *FULL[4:]]), "inverted or empty"),
        (spelled([0, 0, 1, 1, *FULL[4:]]), "without a whole pixel"),
        (spelled(FULL) + " cat", ""),
        (" " + spelled(FULL).replace("><", "> <"), ""),
        (spelled(FULL) + "<seg001>" + spelled(FULL), ""),
    ],
)
def test_what_is_invalid(output, reason, demo_codec):
    row = {"output": output, "size": [64, 48], "segmentation": [[0, 0, 64, 0, 64, 48, 0, 48]]}
    found = evaluate_referring([row], codec=demo_codec)
    assert found.invalid == bool(reason)
    assert reason in found.samples[0].invalid
    assert (found.samples[0].iou == 0) == bool(reason)
    if reason == "without a whole pixel":
        assert found.samples[0].box_iou > 0  # the box counts all the same, as in big_vision


@pytest.mark.parametrize(
    "ids", [[], as_ids(FULL)[:19], [2, *as_ids(FULL)], [-5] * 20, [0, *as_ids(FULL)[1:]]]
)
def test_token_ids_are_taken_to_the_letter(ids, demo_codec):
    row = {"token_ids": ids, "size": [8, 8], "segmentation": [[0, 0, 8, 0, 8, 8]]}
    assert evaluate_referring([row], codec=demo_codec).invalid == 1


def test_no_target_follows_gres(demo_codec):
    everything = {"size": [64, 64], "output": spelled(FULL)}
    nothing = {"size": [64, 64], "output": "<eos>"}
    square = [[0, 0, 64, 0, 64, 64, 0, 64]]
    rows = [
        nothing | {"segmentation": None},
        nothing | {"segmentation": []},
        everything | {"segmentation": {"size": [64, 64], "counts": [4096]}},
        nothing | {"segmentation": square},
    ]
    found = evaluate_referring(rows, codec=demo_codec)
    predicted = found.samples[2].union
    assert predicted > 0
    assert found.giou == (1 + 1 + 0 + 0) / 4
    assert found.ciou == 0
    assert sum(sample.union for sample in found.samples) == predicted + 4096
    assert (found.no_target, found.invalid, found.total, found.miou) == (3, 1, 4, 0)
    alone = evaluate_referring(rows[:1], codec=demo_codec)
    assert alone.giou == 1
    assert math.isnan(alone.miou)
    assert alone.as_dict()["miou"] is None
    json.dumps(alone.as_dict(), allow_nan=False)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_samples_without_a_target_are_counted_as_gres_does(seed, demo_codec):
    rng = np.random.default_rng(seed)
    rows, samples = problem(rng, 24, demo_codec)
    for number in np.flatnonzero(rng.random(24) < 0.5).tolist():
        width, height = rows[number]["size"]
        rows[number]["segmentation"] = rng.choice([None, "empty"])
        if rows[number]["segmentation"]:
            rows[number]["segmentation"] = {"size": [height, width], "counts": [width * height]}
        samples[number] = (*samples[number][:2], np.zeros((height, width), bool))
    # The loops read an inverted or empty box as no prediction.
    plain = [
        (tokens if tokens and tokens[2] > tokens[0] and tokens[3] > tokens[1] else None, *rest[:2])
        for tokens, *rest in samples
    ]
    found, wanted = evaluate_referring(rows, codec=demo_codec).scores(), gres_numbers(plain)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, nan_ok=True)


def boxes(rng, count):
    """Answers of boxes alone (some of none), truths that are only a box, and both as corners."""
    rows, corners = [], []
    for number in range(count):
        width, height = (int(side) for side in rng.integers(20, 330, 2))
        low = rng.integers(0, 500, 2)
        high = low + rng.integers(1, 500, 2)
        bins = [*low.tolist(), *high.tolist()]
        scale = [width / 1023, height / 1023] * 2
        box = [bins[i] * scale[n] for n, i in enumerate((1, 0, 3, 2))]
        true = np.maximum(box + rng.normal(0, 8, 4), 0).tolist()
        true[2:] = max(true[0] + 1, true[2]), max(true[1] + 1, true[3])
        row = {"bbox": [*true[:2], true[2] - true[0], true[3] - true[1]], "size": [width, height]}
        text = "".join(map(loc_token, bins)) + " cup ; " * (number % 3 == 0)
        row |= {"output": text} if number % 2 else {"token_ids": [*as_ids(bins), 7439, 1]}
        if number % 5 == 4:
            row |= {"output": "no cup", "token_ids": None}
            box = None
        rows.append(row)
        corners.append((box, true))
    return rows, corners


def test_masks_are_decoded_in_float32(demo_codec, monkeypatch):
    monkeypatch.setenv("PALIDECODE_WEIGHTS", "palidecode-demo")
    rows, _ = problem(np.random.default_rng(3), 24, demo_codec)
    for row in rows:
        row["codec"] = "palidecode-demo"
    exact = load_codec("palidecode-demo", precision="float32")
    by_default, wanted, rough = (
        [sample.iou for sample in evaluate_referring(rows, codec=codec).samples]
        for codec in (None, exact, demo_codec)
    )
    assert by_default == wanted
    assert rough != wanted


@pytest.mark.parametrize("seed", range(4))
def test_boxes_alone_have_a_box_accuracy_and_nothing_of_masks(seed):
    rows, corners = boxes(np.random.default_rng(seed), 40)
    found = evaluate_referring(rows)  # loads no codec
    assert found.boxacc == {at: box_accuracy(corners, at) for at in (0.5, 0.75)}
    assert 0 < found.boxacc[0.75] <= found.boxacc[0.5] <= 0.8
    assert (found.masks, found.codec, found.invalid, found.total) == (0, "", 8, 40)
    assert found.t_acc == 32 / 40
    numbers = found.as_dict()
    assert {numbers[name] for name in ("miou", "ciou", "giou", "precision@0.5", "n_acc")} == {None}
    assert {row["iou"] for row in found.rows()} == {None}
    json.dumps(found.rows(), allow_nan=False)


def test_a_box_counts_beside_masks_and_its_missing_mask_too(demo_codec):
    square = [[0, 0, 64, 0, 64, 64, 0, 64]]
    truth = {"size": [64, 64], "segmentation": square}
    mask, box = {"output": spelled(FULL)}, {"output": spelled(FULL[:4]) + " cup"}
    found = evaluate_referring([mask | truth, box | truth], codec=demo_codec)
    assert found.boxacc[0.75] == 1
    assert (found.masks, found.invalid) == (2, 1)
    assert found.miou == found.samples[0].iou / 2
    assert found.samples[1].invalid == "a box without a mask"
    only_box = {"size": [64, 64], "bbox": [0, 0, 64, 64], "segmentation": None}
    found = evaluate_referring([mask | truth, mask | only_box, box | only_box], codec=demo_codec)
    assert found.boxacc[0.75] == 1
    assert (found.masks, found.invalid, found.no_target) == (1, 0, 0)
    assert found.miou == found.giou == found.samples[0].iou
    assert [sample.iou is None for sample in found.samples] == [False, True, True]


def test_boxes_of_expressions_without_a_target():
    nothing = {"size": [64, 64], "bbox": None}
    one = {"size": [64, 64], "bbox": [0, 0, 64, 64]}
    box, none = {"output": spelled(FULL[:4]) + " cup"}, {"output": ""}
    found = evaluate_referring([box | nothing, none | nothing, none | nothing, box | one])
    assert (found.n_acc, found.t_acc, found.boxacc[0.5]) == (2 / 3, 1, 1)
    assert (found.no_target, found.invalid, found.masks) == (3, 0, 0)


@pytest.mark.parametrize(
    ("output", "boxed"),
    [
        ("<loc0000><loc0000><loc1023><loc1023>", True),
        (" <loc0000> <loc0000> <loc1023> <loc1023> cup", True),
        ("<loc0000><loc0000><loc1023><loc1023> cup ; " + spelled(FULL[:4]) + " cat", True),
        ("<loc0000><loc0000><loc1023><loc1023>" + "<seg001>" * 15 + " cup", False),
        ("<loc0000><loc0000><loc1023><loc1023> <seg001> cup", False),
        ("<loc0000><loc0000><loc1023><loc1024> cup", False),
        ("<loc0000><loc0000><loc0000><loc1023> cup", False),
        ("<loc0000><loc0000><loc1023> cup", False),
        ("cup <loc0000><loc0000><loc1023><loc1023>", False),
    ],
)
def test_what_is_a_box_alone(output, boxed):
    rows = [
        {"output": text, "size": [8, 8], "bbox": [0, 0, 8, 8]}
        for text in (output, spelled(FULL[:4]))
    ]
    found = evaluate_referring(rows)
    assert (found.samples[0].box_iou == 1, found.samples[0].invalid == "") == (boxed, boxed)


def test_a_given_box_goes_before_the_tight_one(demo_codec):
    row = {
        "output": spelled(FULL),
        "size": [64, 64],
        "segmentation": [[0, 0, 8, 0, 8, 8, 0, 8]],
    }
    assert evaluate_referring([row], codec=demo_codec).boxacc[0.5] == 0
    row["bbox"] = [0, 0, 64, 64]
    assert evaluate_referring([row], codec=demo_codec).boxacc[0.75] == 1


SQUARE = [[0, 0, 8, 0, 8, 8, 0, 8]]
BAD_ROWS = [
    ("not a row", "not a JSON object"),
    ({"output": "", "size": [8, 8]}, "needs 'segmentation' (RLE or polygons, null for no target)"),
    ({"output": "", "segmentation": SQUARE}, "size of the picture"),
    ({"output": "", "size": [0, 8], "segmentation": SQUARE}, "a size must be"),
    ({"output": "", "size": [10**6, 10**6], "segmentation": SQUARE}, "more than a mask's"),
    ({"output": [1, "a"], "size": [8, 8], "segmentation": SQUARE}, "has 2 answers"),
    ({"token_ids": ["a"], "size": [8, 8], "segmentation": SQUARE}, "list of integers"),
    ({"output": "", "size": [8, 8], "segmentation": [[1, 2]]}, "three x, y pairs"),
    ({"output": "", "size": [8, 8], "segmentation": 7}, "polygons or an RLE"),
    (
        {"output": "", "size": [8, 8], "segmentation": {"size": [9, 8], "counts": [72]}},
        "an RLE of size",
    ),
    ({"output": "", "segmentation": {"size": [8, 8], "counts": "0é"}}, "ASCII"),
    ({"output": "", "size": [8, 8], "segmentation": {"size": [8, 8], "counts": "01"}}, "sum to"),
    (
        {"output": "", "size": [8, 8], "segmentation": {"size": [8, 8], "counts": "oooooooo0"}},
        "six characters",
    ),
    ({"output": "", "size": [8, 8], "segmentation": {"size": [8, 8], "counts": ""}}, "sum to 0"),
    ({"output": "", "size": [8, 8], "segmentation": SQUARE, "bbox": [0, 0, -1, 2]}, "bbox must"),
    ({"output": "", "size": [8, 8], "segmentation": SQUARE, "bbox": [0, math.nan, 1, 2]}, "bbox"),
    ({"output": "", "size": [8, 8], "segmentation": [[10**400, *SQUARE[0][1:]]]}, "got "),
    ({"output": "", "size": [8, 8], "segmentation": SQUARE, "bbox": [0, 0, 10**400, 2]}, "width"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS, ids=[reason for _, reason in BAD_ROWS])
def test_a_bad_row_is_listed_and_the_others_count(row, reason, demo_codec):
    good = {"output": spelled(FULL), "size": [8, 8], "segmentation": SQUARE}
    found = evaluate_referring([good, row, good], codec=demo_codec)
    assert found.total == 2
    ((line, said),) = found.problems
    assert line == 2
    assert reason in said
    with pytest.raises(InputError, match="no prediction to evaluate; line 1"):
        evaluate_referring([row], codec=demo_codec)


@pytest.mark.slow
def test_many_samples_are_counted_as_few_are(demo_codec):
    rows, _ = problem(np.random.default_rng(3), 24, demo_codec)
    for row in rows:
        row["codec"] = "palidecode-demo"
    once = evaluate_referring(rows, codec=demo_codec)
    many = [dict(row) for row in rows * 50]
    many[1150]["segmentation"] = {**many[1150]["segmentation"], "counts": "01"}
    found = evaluate_referring(many, codec=demo_codec)
    ((line, reason),) = found.problems
    assert (line, found.total) == (1151, 1199)
    assert "sum to" in reason
    numbers = [row[3:] for row in once.samples] * 50
    del numbers[1150]
    assert [row[3:] for row in found.samples] == numbers


def test_wrong_arguments(demo_codec, tmp_path):
    with pytest.raises(InputError, match="no prediction"):
        evaluate_referring([], codec=demo_codec)
    with pytest.raises(InputError, match="two files"):
        evaluate_referring([], refs=[], codec=demo_codec)
    with pytest.raises(InputError, match="divisor"):
        evaluate_referring([], divisor=1000, codec=demo_codec)
    with pytest.raises(InputError, match="missing must be"):
        evaluate_referring([], missing="drop", codec=demo_codec)
    with pytest.raises(InputError, match="can't be read"):
        evaluate_referring(tmp_path / "none.jsonl", codec=demo_codec)


def test_real_answers_against_a_real_mask(shared_data, demo_codec):
    lines = (shared_data / "outputs.jsonl").read_text().splitlines()
    refs = json.loads((shared_data / "tfds_refcoco_sample_460986.json").read_text())["ref"]
    refs = [ref for ref in refs if isinstance(ref["segmentation"], list)]
    assert len(refs) == 6
    answers = [json.loads(line)["output"] for line in lines]
    rows = [
        {"output": answer, "size": [640, 480], "segmentation": ref["segmentation"]}
        | {"bbox": ref["bbox"]}
        for answer in answers
        for ref in refs
    ]
    found = evaluate_referring(rows, codec=demo_codec)
    assert found.total == len(answers) * len(refs)
    usable = {sample.invalid for sample in found.samples}
    assert usable == {"", "a box without a mask"}
    whole = sum(bool(re.match(r"(<loc\d+>){4} ?(<seg\d+>){16}", answer)) for answer in answers)
    assert whole == 9
    assert found.invalid == (len(answers) - whole) * len(refs)


def test_memory_stays_with_the_chunk(demo_codec):
    side = 4000
    rle = encoded(np.ones((side, side), bool))
    rows = [{"output": spelled(FULL), "segmentation": rle}] * 64
    tracemalloc.start()
    found = evaluate_referring(rows, codec=demo_codec)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.total == 64
    assert peak < 64 * side * side / 3  # a stack of whole masks would be 64 · side²


@pytest.fixture
def files(tmp_path):
    rows = [
        {"output": spelled(FULL), "size": [64, 64], "segmentation": [[0, 0, 64, 0, 64, 64, 0, 64]]},
        {"output": "<eos>", "size": [64, 64], "segmentation": [[0, 0, 64, 0, 64, 64, 0, 64]]},
    ]
    path = tmp_path / "pred.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments):
    return main(["evaluate-referring", *map(str, arguments), "--weights", "palidecode-demo"])


def test_command(files, capsys, tmp_path):
    assert run(files, "--samples", tmp_path / "s" / "samples.jsonl") == 0
    said = capsys.readouterr().out
    assert "boxacc@0.5     0.5000" in said
    assert "1 × doesn't begin" in said
    samples = [json.loads(s) for s in (tmp_path / "s" / "samples.jsonl").read_text().splitlines()]
    assert [sample["invalid"] == "" for sample in samples] == [True, False]
    assert run(files, "--json", "--min", "boxacc@0.5=0.5") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["below"] == {}
    assert printed["miou"] == sum(sample["iou"] for sample in samples) / 2


def test_command_with_boxes_alone(tmp_path, capsys):
    path = tmp_path / "boxes.jsonl"
    row = {"output": spelled(FULL[:4]) + " cup", "size": [64, 64], "bbox": [0, 0, 64, 64]}
    path.write_text(json.dumps(row))
    assert main(["evaluate-referring", str(path), "--min", "boxacc@0.5=1", "--min", "t_acc=1"]) == 0
    printed, warned = capsys.readouterr()
    assert "miou           —" in printed
    assert "masks          not evaluated" in printed
    assert warned == ""
    assert main(["evaluate-referring", str(path), "--min", "miou=0.1"]) == 1
    assert "below 0.1" in capsys.readouterr().out
    path.write_text(json.dumps(row | {"bbox": None}))
    assert main(["evaluate-referring", str(path), "--min", "n_acc=0.5"]) == 1
    assert "n_acc          0.0000   below 0.5" in capsys.readouterr().out


def test_command_exit_codes(files, capsys):
    assert run(files, "--min", "boxacc@0.5=0.9", "--min", "miou=0") == 1
    assert "below 0.9" in capsys.readouterr().out
    with files.open("a") as file:
        file.write("{\n")
    assert run(files) == 1
    assert "line 3: not JSON" in capsys.readouterr().err
    assert run(files, "--min", "map=0.9") == 2
    assert "unknown number 'map'" in capsys.readouterr().err
    assert run(files, "--refs", "refs.p") == 2
    assert run(files, "--min", "miou") == 2
