"""RefCOCO's files: read without running anything, and what they say."""

import contextlib
import json
import os
import pickle
import pickletools
import random
import subprocess
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from palidecode import InputError, evaluate_referring
from palidecode.cli import main
from palidecode.evaluation.referring.refcoco import load_refs, read_refcoco

WHOLE = "<loc0000><loc0000><loc1023><loc1023>" + "<seg001>" * 16
INSTANCES = {
    "images": [{"id": 9, "width": 64, "height": 48, "file_name": "COCO_train2014_0009.jpg"}],
    "annotations": [
        {"id": 1, "bbox": [0, 0, 20, 10], "segmentation": [[0, 0, 20, 0, 20, 10, 0, 10]]},
        {"id": 2, "segmentation": {"size": [48, 64], "counts": [1440, 48, 1584]}},
    ],
}


def ref(number, ann_id, split, *sentences, **more):
    first = 10 * number
    said = [
        {"sent_id": first + i, "sent": s, "raw": s.title(), "tokens": s.split()}
        for i, s in enumerate(sentences)
    ]
    return {
        "ref_id": number, "ann_id": ann_id, "image_id": 9, "split": split, "category_id": 1,
        "sent_ids": [s["sent_id"] for s in said], "sentences": said,
        "file_name": f"COCO_train2014_0009_{ann_id}.jpg",
    } | more  # fmt: skip


REFS = [
    ref(1, 1, "val", "left cup", "the cup"),
    ref(2, 2, "val", "right one"),
    ref(3, 1, "testA", "cup"),
]


@pytest.fixture
def files(tmp_path):
    refs, instances = tmp_path / "refs(unc).p", tmp_path / "instances.json"
    refs.write_bytes(pickle.dumps(REFS, protocol=2))
    instances.write_text(json.dumps(INSTANCES))
    return refs, instances


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol(tmp_path, protocol):
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(REFS, protocol=protocol))
    assert load_refs(path) == REFS


def test_text_that_python_2_wrote(tmp_path):
    path = tmp_path / "refs.p"
    # Python 2's str, with and without UTF-8, as its pickle wrote it.
    path.write_bytes(b"(lp0\n(dp1\nS'raw'\np2\nS'caf\\xc3\\xa9 \\xff'\np3\nsa.")
    assert load_refs(path) == [{"raw": "café �"}]


class Runs:
    """A pickle of this runs a program when it is loaded without care."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "make",
    [
        lambda path: Runs(os.system, f"touch {path}"),
        lambda path: Runs(subprocess.check_call, ["touch", str(path)]),
        lambda path: Runs(eval, f"open({str(path)!r}, 'w')"),
        lambda path: Runs(getattr, "x", "join"),
        lambda path: OrderedDict(a=1),
        lambda path: np.float64(1),
        lambda path: random.Random(1),
    ],
    ids=["os.system", "subprocess", "eval", "getattr", "OrderedDict", "numpy", "Random"],
)
def test_a_pickle_that_asks_for_more_is_refused(tmp_path, make, protocol):
    touched, path = tmp_path / "touched", tmp_path / "refs.p"
    path.write_bytes(pickle.dumps([{"ref_id": make(touched)}], protocol=protocol))
    with pytest.raises(InputError, match=r"it asks for .*nothing of it was run"):
        load_refs(path)
    assert not touched.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\x80", b"hello", b"\x80\x04.", b"\x80\x7f.", b"Pid\n.", b"(lp0\n0.",
        b"cos\nsystem\n.",
        b"\x80\x04\x8d" + b"\xff" * 8,  # text of 2⁶⁴ bytes
        b"\x80\x04\x95" + b"\xff" * 8,  # a frame as long
        b"\x80\x02\x82\x01.",  # from the extension registry
        b"(S'a'\ni__builtin__\neval\n.", b"(cos\nsystem\nS'true'\no.", b"I" + b"9" * 5000 + b"\n.",
        b"(" * 100_000 + b"l" * 100_000 + b".",
    ],
)  # fmt: skip
def test_damaged_pickles(tmp_path, raw):
    path = tmp_path / "refs.p"
    path.write_bytes(raw)
    with pytest.raises(InputError, match="refs"):
        load_refs(path)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x02]r\xff\xff\xff\x7f.",  # an empty list, in place 2³¹ of the memo
        b"\x80\x05]\x96\x00\x00\x00\x20\x00\x00\x00\x00.",  # a bytearray of 2²⁹
    ],
)
def test_few_bytes_do_not_reserve_much_memory(tmp_path, raw):
    path = tmp_path / "refs.p"
    path.write_bytes(raw)
    tracemalloc.start()
    with contextlib.suppress(InputError):
        assert load_refs(path) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@given(st.data())
def test_no_change_of_a_byte_brings_out_more_than_plain_values(tmp_path_factory, data):
    raw = bytearray(pickle.dumps(REFS[:1], protocol=data.draw(st.sampled_from([0, 2, 4]))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("refs") / "refs.p"
    path.write_bytes(raw)
    try:
        refs = load_refs(path)
    except InputError:
        return
    assert not {op.name for op, _, _ in pickletools.genops(bytes(raw))} & {"GLOBAL", "STACK_GLOBAL"}
    assert isinstance(refs, list)


def test_no_refs(tmp_path):
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match="list of dicts"):
        load_refs(path)
    with pytest.raises(InputError, match="can't be read"):
        load_refs(tmp_path / "none.p")
    with pytest.raises(InputError, match="can't be read"):
        load_refs(tmp_path)


def test_expressions_of_a_split(files):
    found = read_refcoco(*files)
    assert list(found.truths) == [10, 11, 20]
    assert found.other_splits == {30: "testA"}
    cup = found.truths[11]
    assert (cup.expression, cup.size, cup.bbox) == ("the cup", (64, 48), (0, 0, 20, 10))
    assert cup.image == "COCO_train2014_0009.jpg"
    assert cup.rle is found.truths[10].rle  # a mask is read once
    assert coco_mask.decode(cup.rle).sum() == 200
    assert coco_mask.decode(found.truths[20].rle).sum() == 48


def test_grefcoco_has_several_targets_or_none(tmp_path, demo_codec):
    refs = tmp_path / "grefs(unc).json"
    more = [ref(1, [1, 2], "val", "both"), ref(2, [-1], "val", "no one", no_target=True)]
    refs.write_text(json.dumps(more))
    found = read_refcoco(refs, INSTANCES)
    assert coco_mask.decode(found.truths[10].rle).sum() == 248
    assert found.truths[10].bbox is None
    assert coco_mask.decode(found.truths[20].rle).sum() == 0
    rows = [{"sent_id": 10, "output": WHOLE}, {"sent_id": 20, "output": "<eos>"}]
    result = evaluate_referring(rows, refs, INSTANCES, codec=demo_codec)
    assert (result.no_target, result.samples[1].invalid != "") == (1, True)
    assert result.giou == (result.samples[0].iou + 1) / 2


def test_a_missing_prediction_is_never_right(tmp_path, demo_codec):
    refs = [ref(1, 1, "val", "cup"), ref(2, [-1], "val", "no one", no_target=True)]
    result = evaluate_referring(
        [{"sent_id": 10, "output": WHOLE}], refs, INSTANCES, codec=demo_codec
    )
    assert (result.missing, result.n_acc, result.t_acc) == (1, 0, 1)
    assert result.giou == result.samples[0].iou / 2


def test_objects_that_are_only_a_box(demo_codec):
    instances = json.loads(json.dumps(INSTANCES))
    for row, box in zip(instances["annotations"], ([0, 0, 20, 10], [40, 20, 10, 10]), strict=True):
        row |= {"segmentation": [], "bbox": box}
    more = [ref(1, 1, "val", "cup"), ref(2, [1, 2], "val", "both"), ref(3, 2, "val", "other")]
    found = read_refcoco(more, instances)
    boxes = {number: truth.bbox for number, truth in found.truths.items()}
    assert boxes == {10: (0, 0, 20, 10), 20: (0, 0, 50, 30), 30: (40, 20, 10, 10)}
    assert {truth.rle for truth in found.truths.values()} == {None}
    # 20 / 64 · 1023 and 10 / 48 · 1023, as a detect prompt is answered
    rows = [{"sent_id": 10, "output": "<loc0000><loc0000><loc0213><loc0320> cup"}]
    result = evaluate_referring(rows, more[:1], instances)
    assert (result.boxacc[0.75], result.masks) == (1, 0)
    del instances["annotations"][0]["bbox"]
    with pytest.raises(InputError, match="annotation 1: no segmentation, and not every object"):
        read_refcoco(more[:1], instances)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r, i: r[0].pop("sentences"), "ref 0: no 'sentences'"),
        (lambda r, i: r[0].update(image_id=5), "ref 0: no 5"),
        (lambda r, i: r[1].update(ann_id=5), "ref 1: no 5"),
        (lambda r, i: r[1].update(sentences=r[0]["sentences"]), "sent_id 10 is there twice"),
        (lambda r, i: r[0].update(sentences=[3]), "ref 0"),
        (lambda r, i: i.pop("annotations"), "no list of 'annotations'"),
        (lambda r, i: i["images"][0].pop("width"), "no image has a width"),
        (lambda r, i: i["images"][0].update(width=1 << 40), "width must be a whole number"),
        (lambda r, i: r.clear(), "no expression of split 'val'; there are: none"),
        (lambda r, i: [x.update(split="test") for x in r], r"there are: test \(4\)"),
    ],
)
def test_files_that_do_not_fit(change, said):
    refs, instances = json.loads(json.dumps([REFS, INSTANCES]))
    change(refs, instances)
    with pytest.raises(InputError, match=said):
        read_refcoco(refs, instances)


@pytest.mark.parametrize(
    ("change", "offset", "said"),
    [
        ({"segmentation": [[1]]}, 0, "a polygon"),
        ({"segmentation": 7}, 0, "polygons or an RLE"),
        ({"bbox": [1]}, 0, "bbox must be four"),
        ({"bbox": [0, 0, -1, 5]}, 0, "from 0 up"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, 0, "an RLE of size"),
    ],
)
def test_objects_that_can_not_be_read_are_skipped(change, offset, said, demo_codec):
    refs, instances = json.loads(json.dumps([REFS, INSTANCES]))
    instances["annotations"][0] |= change
    found = read_refcoco(refs, instances)
    assert list(found.truths) == [20]
    (skip,) = [skip for skip in found.skipped if skip.side == "ref"]
    assert (skip.reason, skip.count) == ("bad_target", 1)
    assert said in skip.examples[0]
    assert skip.examples[0].startswith(f"refs[{offset}]: annotation 1: ")
    rows = [{"sent_id": number, "output": WHOLE} for number in (10, 20)]
    result = evaluate_referring(rows, refs, instances, codec=demo_codec)
    assert (result.total, result.skipped) == (1, found.skipped)
    assert "sent_id 10 was skipped" in result.problems[0].reason
    assert result.as_dict()["skipped"][-1]["side"] == "ref"
    with pytest.raises(InputError, match="no expression of split 'val' can be used"):
        read_refcoco(refs[:1], instances)


def test_predictions_by_sentence(files, demo_codec):
    rows = [
        {"sent_id": 10, "output": WHOLE},
        {"ref_id": 1, "prompt": "segment The cup", "output": WHOLE},
        {"ref_id": 2, "prompt": "left", "output": WHOLE},
        {"sent_id": 10, "output": WHOLE},
        {"sent_id": 30, "output": WHOLE},
        {"sent_id": 77, "output": WHOLE},
        {"output": WHOLE},
    ]
    found = evaluate_referring(rows, *files, codec=demo_codec)
    assert [sample.id for sample in found.samples] == [10, 11, 20]
    assert (found.total, found.missing, found.invalid) == (3, 1, 1)
    assert found.samples[2].invalid == "no prediction"
    reasons = [reason for _, reason in found.problems]
    assert [line for line, _ in found.problems] == [3, 4, 5, 6, 7]
    for reason, said in zip(
        reasons,
        ["0 expressions of ref_id 2", "second prediction", "split testA", "no sent_id 77", "needs"],
        strict=True,
    ):
        assert said in reason
    skipped = evaluate_referring(rows, *files, codec=demo_codec, missing="skip")
    assert found.codec == "palidecode-demo"
    assert (skipped.total, skipped.missing, skipped.invalid) == (2, 1, 0)
    assert skipped.miou == pytest.approx(found.miou * 3 / 2)


def test_command_with_refcoco_files(files, tmp_path, capsys):
    predictions = tmp_path / "pred.jsonl"
    rows = [{"sent_id": number, "output": WHOLE} for number in (10, 11, 20)]
    predictions.write_text("\n".join(map(json.dumps, rows)))
    command = ["evaluate-referring", str(predictions), "--weights", "palidecode-demo"]
    command += ["--refs", str(files[0]), "--instances", str(files[1])]
    assert main(command) == 0
    assert "total          3" in capsys.readouterr().out
    predictions.write_text(json.dumps(rows[0]))
    assert main(command) == 1
    assert "missing        2" in capsys.readouterr().out
    assert main([*command, "--split", "testB"]) == 2
    assert "there are" in capsys.readouterr().err
