"""What a prompt is: its verb, the names it asks for, and how it is written."""

import pytest

from palidecode.errors import InputError
from palidecode.prompts import (
    asked_for,
    asked_names,
    plain_expression,
    what_to_ask,
    with_verb,
    write_prompt,
)


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("detect cat", ("detect", ["cat"])),
        ("  detect   cat ;dog; cat ; ", ("detect", ["cat", "dog"])),
        ("segment red star;café;", ("segment", ["red star", "café"])),
        ("caption en", None),
        ("detectcat", None),
        ("the cat on the left", None),
        ("", None),
    ],
)
def test_what_a_prompt_asks_for(prompt, asked):
    assert asked_names(prompt) == asked


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("segment cow\\n", "cow\\n"),
        ("segment cow\n", "cow"),
        ("detect a ; b", ""),
        ("the cat", "the cat"),
        ("detect", "detect"),
        ("detect  x", "x"),
        ("detect segment of pipe", "segment of pipe"),
    ],
)
def test_the_one_thing_a_prompt_asks_for(prompt, label):
    assert asked_for(prompt) == label


@pytest.mark.parametrize("prompt", ["detect", "detect ", "detect ;", "segment ; ; ", " segment"])
def test_a_prompt_that_asks_for_nothing_is_refused(prompt):
    with pytest.raises(InputError, match="asks for nothing: name what to"):
        asked_names(prompt)


@pytest.mark.parametrize("prompt", ["detect <loc0001>", "detect cat ; a<b", "segment a\nb"])
def test_a_label_that_could_not_be_read_back_is_refused(prompt):
    with pytest.raises(InputError, match="can't be a label: it holds '<' or a line break"):
        asked_names(prompt)


def test_what_is_written_is_what_is_read():
    names = ["red star", "café"]
    assert asked_names(write_prompt("segment", names)) == ("segment", names)


def test_the_verb_is_added_where_it_is_missing():
    assert with_verb("detect", "cat ; dog") == with_verb("detect", "detect cat ; dog")
    with pytest.raises(InputError, match="asks to segment, the task is to detect"):
        with_verb("detect", "segment cat")


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("segment The  left cat", "the left cat"),
        ("the left cat", "the left cat"),
        ("detect cat", "detect cat"),
        ("Segment cat ", "cat"),
    ],
)
def test_referring_expressions_are_compared_without_verb_case_and_spaces(prompt, plain):
    assert plain_expression(prompt) == plain


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ((None, "segment cat;dog", None, ()), ("segment", ("segment cat;dog",), ["cat", "dog"])),
        (("detect", "cat", None, ["x"]), ("detect", ("cat",), ["cat"])),
        (("detect", None, ["a", "b"], ["x"]), ("detect", ("a ; b",), ["a", "b"])),
        (("segment", None, None, ["x", "y"], 1), ("segment", ("x", "y"), ["x", "y"])),
        (("detect", None, ["x", "y", "z"], (), 2), ("detect", ("x ; y", "z"), ["x", "y", "z"])),
        (
            (None, ["detect a;b ;c", "detect  d ;e"], None, (), 2),
            ("detect", ("a ; b", "c", "detect  d ;e"), ["a", "b", "c", "d", "e"]),
        ),
        (
            (None, ["detect a ; b", "c", "detect a ; b"], None, ["x"]),
            ("detect", ("detect a ; b", "c"), ["a", "b", "c"]),
        ),
    ],
)
def test_what_to_ask_comes_from_the_prompt_the_classes_or_the_model(given, asked):
    assert what_to_ask(*given) == asked


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, None, ["a"], ()), "nothing to look for: give --prompt .*, or --task"),
        (("detect", None, None, ()), "nothing to look for: give --prompt .*, or --classes"),
        ((None, "caption en", None, ()), "nothing to look for"),
        (("detect", "cat", ["a"], ()), "not both"),
        (("detect", "segment cat", None, ()), "asks to segment"),
        (("detect", None, ["a;b"], ()), "can't be a label"),
        ((None, ["detect a", "segment b"], None, ()), "one prompt asks to detect, another to segm"),
        (("segment", ["detect a", "b"], None, ()), "asks to detect, the task is to segment"),
        ((None, ["detect a ; b", "detect b"], None, ()), "two prompts ask for 'b'"),
        ((None, ["detect a", "detect "], None, ()), "asks for nothing"),
        ((None, "detect a ; b", None, (), 0), "classes_per_prompt must be at least 1, got 0"),
    ],
)
def test_requests_that_are_unclear_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        what_to_ask(*given)
