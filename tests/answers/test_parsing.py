import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palidecode import InputError, ParsedObject, ParseError, Vocabulary, format_objects, parse
from palidecode.answers.assembler import Assembler
from palidecode.answers.parsing import close_text, feed_text, result_of
from palidecode.vocab import loc_token, seg_token
from tests.references import parsed_answer
from tests.samples import CODES, answer

BOX = "<loc0001><loc0002><loc0300><loc0400>"
MASK = "".join(map(seg_token, CODES))
CAT = ParsedObject("cat", (1, 2, 300, 400))

WHOLE = (BOX, MASK, f"{BOX} cat", f"{BOX}{MASK} dog", "<loc0300><loc0400><loc0001><loc0002>")
BROKEN = ("<loc0001>", "<seg001>", "<loc1024>", "<seg128>", "<loc99999999>", "<seg0001>", "<loc12")
BETWEEN = (" ; ", " ;", ";", "\n", " ", "\t", "<eos>", "<pad>", "<bos>", "<", "<loc", ">", "l", "")
FOREIGN = ("<end_of_turn>", "</s>", "<|im_end|>", "<end_")
pieces = st.sampled_from([*WHOLE, *BROKEN, *BETWEEN, *FOREIGN, "  cat", "猫's, «é»/x"])
texts = st.lists(pieces, max_size=14).map("".join)


def slow(text):
    """Every event through the assembler, without the shortcut for clean text."""
    assembler = Assembler()
    feed_text(assembler, text, 0)
    close_text(assembler, text)
    return result_of(assembler, text)


def kinds(result):
    return [issue.kind.value for issue in result.issues]


DOG = CAT._replace(label="dog")
HUT = "fisherman's 小屋, é/ü & <3"
CASES = {
    "clean": (f"{BOX} cat", [CAT], []),
    "mask": (f"{BOX}{MASK} cat", [CAT._replace(seg=CODES)], []),
    "list": (f"{BOX} cat ; {BOX} dog", [CAT, DOG], []),
    "no label": (f"{BOX}{MASK}", [CAT._replace(label="", seg=CODES)], []),
    "eos": (f"{BOX} cat<eos>", [CAT], []),
    "eos and pad": (f"{BOX} cat<eos><pad><pad>", [CAT], []),
    "bos": (f"<bos>{BOX} cat", [CAT], []),
    "nothing": ("", [], []),
    "text": ("a cat", [], ["stray_text"]),
    "text first": (f"Sure: {BOX} cat", [CAT], ["stray_text"]),
    "space between blocks": (f"{BOX} {MASK} cat", [CAT._replace(seg=CODES)], ["spacing"]),
    "no space": (f"{BOX}cat", [CAT], ["missing_space"]),
    "tight separators": (f"{BOX} cat;{BOX} dog", [CAT, DOG], []),
    "newline": (f"{BOX} cat\n{BOX} dog", [CAT, DOG], ["missing_separator"]),
    "trailing separator": (f"{BOX} cat ; ", [CAT], ["extra_separator"]),
    "double separator": (f"{BOX} cat ; ; {BOX} dog", [CAT, DOG], ["extra_separator"]),
    "3 loc": ("<loc0001><loc0002><loc0003> cat", [], ["missing_loc"]),
    "5 loc": (f"{BOX}<loc0005> cat", [CAT], ["extra_loc"]),
    "8 loc": (f"{BOX}{BOX} cat", [CAT], ["extra_loc"]),
    "8 loc without a label": (
        f"{BOX}<loc0005><loc0006><loc0007><loc0008>",
        [CAT._replace(label=""), CAT._replace(label="", loc=(5, 6, 7, 8))],
        ["missing_separator"],
    ),
    "12 loc, one box out of range": (
        f"{BOX}<loc0005><loc1024><loc0007><loc0008>"
        f"<loc0009><loc0010><loc0011><loc0012> ; {BOX} cat",
        [CAT._replace(label=""), CAT._replace(label="", loc=(9, 10, 11, 12)), CAT],
        ["missing_separator", "out_of_range", "missing_separator"],
    ),
    "8 loc and a mask": (f"{BOX}{BOX}{MASK} cat", [CAT._replace(seg=CODES)], ["extra_loc"]),
    "end of turn": (f"{BOX} cat<end_of_turn>\n", [CAT], ["control_token"]),
    "end of a sequence": (f"{BOX} cat</s>", [CAT], ["control_token"]),
    "ChatML": (f"{BOX} cat<|im_end|> ; {BOX} dog", [CAT, DOG], ["control_token"]),
    "unk": (f"{BOX} cat<unk><unk>", [CAT], ["control_token"] * 2),
    "unused": (f"{BOX} cat<unused99>", [CAT], ["control_token"]),
    "text after a control token": (
        f"{BOX} cat<end_of_turn> Thanks",
        [CAT],
        ["control_token", "stray_text"],
    ),
    "a label in angle brackets is a label": (f"{BOX} <b>", [CAT._replace(label="<b>")], []),
    "15 seg": (f"{BOX}{MASK[:-8]} cat", [CAT], ["missing_seg"]),
    "broken last seg": (
        f"{BOX}{MASK[:-1]}] cat",
        [CAT._replace(label="<seg013] cat")],
        ["missing_seg", "missing_space"],
    ),
    "17 seg": (f"{BOX}{MASK}<seg001> cat", [CAT._replace(seg=CODES)], ["extra_seg"]),
    "seg without loc": (f"{MASK} cat", [ParsedObject("cat", None, CODES)], ["missing_loc"]),
    "loc 1024": ("<loc1024><loc0002><loc0300><loc0400> cat", [], ["out_of_range"]),
    "seg 128": (f"{BOX}{MASK[:-8]}<seg128> cat", [CAT], ["out_of_range"]),
    "inverted": (
        "<loc0300><loc0002><loc0001><loc0400> cat",
        [CAT._replace(loc=(300, 2, 1, 400))],
        ["inverted_box"],
    ),
    "empty": (
        "<loc0001><loc0002><loc0001><loc0400> cat",
        [CAT._replace(loc=(1, 2, 1, 400))],
        ["empty_box"],
    ),
    "duplicate": (f"{BOX} cat ; {BOX} cat", [CAT, CAT], ["duplicate"]),
    "cut in a token": (f"{BOX} cat ; <loc00", [CAT], ["truncated"]),
    "cut in a box": (f"{BOX} cat ; <loc0001><loc0002>", [CAT], ["truncated"]),
    "cut in a mask": (f"{BOX}{MASK[:40]}", [CAT._replace(label="")], ["truncated"]),
    "after the end": (f"{BOX} cat<eos> more", [CAT], ["after_end"]),
    "unicode": (f"{BOX} {HUT}", [CAT._replace(label=HUT)], []),
}


@pytest.mark.parametrize("name", CASES)
def test_what_models_emit(name):
    text, objects, issues = CASES[name]
    result = parse(text)
    assert [item._replace(span=(0, 0)) for item in result.objects] == objects
    assert kinds(result) == issues
    for item in result.objects:
        found = text[slice(*item.span)]
        assert found.startswith("<")
        assert found.endswith(item.label or ">")
    for issue in result.issues:
        assert issue.text == text[slice(*issue.span)]
    assert result == slow(text)


@pytest.mark.parametrize("name", CASES)
def test_strict_raises_what_is_odd(name):
    text, _, issues = CASES[name]
    if not issues:
        assert parse(text, strict=True) == parse(text)
        return
    with pytest.raises(ParseError, match=issues[0]) as error:
        parse(text, strict=True)
    assert isinstance(error.value, ValueError)


def test_spans_point_at_the_oddity():
    text = f"Sure: {BOX} cat ; {BOX}<loc0005> dog"
    result = parse(text)
    assert [issue.text for issue in result.issues] == ["Sure:", "<loc0005>"]
    assert [text[slice(*item.span)] for item in result.objects] == [
        f"{BOX} cat",
        f"{BOX}<loc0005> dog",
    ]


@settings(deadline=None, max_examples=300)
@given(texts)
def test_the_shortcut_and_the_assembler_agree(text):
    assert parse(text) == slow(text)


@settings(deadline=None, max_examples=300)
@given(texts)
def test_objects_are_those_of_the_reference(text):
    assert [item[:3] for item in parse(text).objects] == parsed_answer(text)


@pytest.mark.parametrize("tail", ["<loc00\n", "<loc123456789", "<eos> <loc00"])
def test_what_only_looks_cut_is_not_truncated(tail):
    text = f"{BOX} cat ; {tail}"
    assert "truncated" not in kinds(parse(text))
    assert parse(text).issues[-1].text == tail.removeprefix("<eos>").strip()


@settings(deadline=None, max_examples=300)
@given(texts)
def test_nothing_is_lost(text):
    """Every loc token of an answer is in an object or in an issue."""
    result = parse(text)
    covered = [item.span for item in result.objects] + [issue.span for issue in result.issues]
    for match in re.finditer(r"<loc[0-9]{1,8}>|<seg[0-9]{1,8}>", text):
        assert any(start <= match.start() and match.end() <= end for start, end in covered)


labels = st.text(max_size=20).map(str.strip).filter(lambda s: not re.search(r"[;\n<]", s))
bins = st.integers(0, 1023)
boxes = st.tuples(bins, bins, bins, bins).filter(lambda b: b[2] > b[0] and b[3] > b[1])
objects = st.builds(
    ParsedObject,
    labels,
    boxes,
    st.one_of(st.none(), st.tuples(*[st.integers(0, 127)] * 16)),
    st.just((0, 0)),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(objects, max_size=5, unique=True))
def test_parse_undoes_format(items):
    result = parse(format_objects(items))
    assert [item._replace(span=(0, 0)) for item in result.objects] == items
    assert result.issues == ()


@pytest.mark.parametrize(
    "item",
    [
        ParsedObject("a;b", (0, 0, 1, 1)),
        ParsedObject("a\nb", (0, 0, 1, 1)),
        ParsedObject(" a", (0, 0, 1, 1)),
        ParsedObject("<loc0001>", (0, 0, 1, 1)),
        ParsedObject("x <seg00", (0, 0, 1, 1)),
        ParsedObject("<eos>", (0, 0, 1, 1)),
        ParsedObject("a", (0, 0, 1, 1024)),
        ParsedObject("a", (0, 0, 1)),
        ParsedObject("a", (0, 0, 1, 1.5)),
        ParsedObject("a", 5),
        ParsedObject("a", (0, 0, 1, 1), (128,) * 16),
        ParsedObject("a", (0, 0, 1, 1), (1,) * 15),
        ParsedObject("a"),
    ],
)
def test_what_would_not_survive_is_not_written(item):
    with pytest.raises(InputError, match="object 0"):
        format_objects([item])


def test_every_real_answer_is_read(shared_data):
    rows = [json.loads(row) for row in (shared_data / "outputs.jsonl").read_text().splitlines()]
    assert len(rows) == 28
    for row in rows:
        result = parse(row["output"])
        complete = len(re.findall(r"(?:<loc\d{4}>){4}", row["output"]))
        assert len(result.objects) == complete
        if row["kind"] == "training_label":
            assert result.issues == ()


def test_the_published_answer_with_spaces_has_five_masks(shared_data):
    first = json.loads((shared_data / "outputs.jsonl").read_text().splitlines()[0])
    result = parse(first["output"])
    assert [item.label for item in result.objects] == ["wall", "car", *["david bowie"] * 3]
    assert all(item.seg is not None for item in result.objects)
    assert kinds(result) == ["spacing"] * 5
    assert result.objects[0].seg[:3] == (114, 74, 106)


# -- token ids ----------------------------------------------------------------------------

WORDS = {
    10: " cat",
    11: " dog",
    12: " ;",
    13: " big",
    14: "\n",
    15: " <loc0005>",
    16: " ",
    17: "s;",
    18: "<end_of_turn>",
}


def detokenize(run):
    return "".join(WORDS[token] for token in run)


def ids_of(*parts):
    """Bins and codes as ids: ("loc", 1, 2, 300, 400), 10, "eos" …"""
    names = {"eos": [1], "pad": [0], "bos": [2], "box": [256_001, 256_002, 256_300, 256_400]}
    names["mask"] = [257_024 + code for code in CODES]
    return [token for part in parts for token in (names[part] if isinstance(part, str) else [part])]


@pytest.mark.parametrize(
    ("ids", "objects", "issues"),
    [
        (ids_of("box", 10, "eos"), [CAT], []),
        (ids_of("bos", "box", 10, 12, "box", 11), [CAT, DOG], []),
        (ids_of("box", "mask", 10), [CAT._replace(seg=CODES)], []),
        (ids_of("box", 13, 10), [CAT._replace(label="big cat")], []),
        (ids_of("box", "box", 10), [CAT], ["extra_loc"]),
        (ids_of("box", 10, 18, 14), [CAT], ["control_token"]),
        (ids_of(10, "box", 10), [CAT], ["stray_text"]),
        (ids_of("box", 10, 14, "box", 11), [CAT, DOG], ["missing_separator"]),
        (ids_of("box", 10, "eos", "pad", "pad"), [CAT], []),
        (ids_of("box", 10, -1, -100), [CAT], []),
        (ids_of(256_001, 256_002, 10), [], ["missing_loc"]),
        (ids_of("box", 15), [CAT._replace(label="<loc0005>")], []),
        (ids_of("box", 10, 17), [CAT._replace(label="cats")], ["extra_separator"]),
        ([], [], []),
    ],
)
@pytest.mark.parametrize("kind", [list, np.array, lambda ids: np.array(ids, np.int32)])
def test_token_ids(ids, objects, issues, kind):
    given_ids = kind(ids) if ids else ids
    result = parse(given_ids, detokenize=detokenize)
    assert [item._replace(span=(0, 0)) for item in result.objects] == objects
    assert [kind for kind in kinds(result) if kind != "after_end"] == issues


def test_ids_without_a_detokenizer_keep_boxes_and_say_so():
    result = parse(ids_of("box", 10, 12, "box", 11, "eos"))
    assert [item.loc for item in result.objects] == [CAT.loc] * 2
    assert [item.label for item in result.objects] == ["", ""]
    assert "undecoded_label" in kinds(result)


def test_other_vocabularies():
    vocabulary = Vocabulary(loc_offset=1000, seg_offset=3000, pad=9, eos=8, bos=7)
    ids = [7, 1001, 1002, 1300, 1400, *[3000 + code for code in CODES], 10, 8, 9]
    result = parse(ids, vocabulary=vocabulary, detokenize=detokenize)
    assert result.objects[0][:3] == ("cat", CAT.loc, CODES)
    assert parse(ids, detokenize=lambda run: "x").objects == ()


@pytest.mark.parametrize(
    "bad", [3, None, 2.5, [1.5], [[1, 2]], ["a"], {"a": 1}, np.zeros((2, 2), int), [[1], [2, 3]]]
)
def test_what_is_no_answer_is_refused(bad):
    with pytest.raises(InputError, match="answer"):
        parse(bad)


@pytest.mark.parametrize(
    "text",
    [
        "<loc0000>" * 110_000,
        "<" * 1_000_000,
        ";" * 1_000_000,
        "<loc" * 250_000,
        " " * 1_000_000,
        "<seg000> " * 110_000,
        (answer("cat") + " ; ") * 20_000,
        "<loc1234567" * 90_000,
    ],
    ids=lambda text: text[:9],
)
@pytest.mark.slow
def test_a_hostile_megabyte_is_read(text):
    """Quadratic time would take hours here."""
    result = parse(text)
    assert len(result.objects) <= 27_500
    assert parse(text[:1000]) == slow(text[:1000])


def test_spellings():
    assert loc_token(7) == "<loc0007>"
    assert seg_token(127) == "<seg127>"
