"""A fixed number of rounds of every fuzzing target; bombs; the parser's time.

``python -m tests.fuzzing TARGET --minutes 10`` goes on from there, guided by coverage.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palidecode.answers import parsing, stream
from palidecode.answers.batch import parse_batch
from palidecode.answers.parsing import parse
from palidecode.answers.stream import StreamParser
from palidecode.vocab import loc_token
from tests.fuzzing import changed, targets
from tests.samples import CODES, answer

TARGETS = targets()
FEW = 20  # rounds that also run among the fast tests
WRONG = 3  # inputs that are shown

GUIDED = {"parser": 800, "rows": 800, "coco": 300, "refs": 800, "rle": 1500}
"""Targets, and rounds, that run under atheris in the tests, too."""

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.mark.parametrize("name", TARGETS)
def test_first_rounds(name):
    target = TARGETS[name]
    for seed in target.seeds():
        target.run(seed)
    go_rounds(target, range(FEW))


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_rounds(name):
    go_rounds(TARGETS[name], range(FEW, TARGETS[name].rounds))


def go_rounds(target, numbers):
    failed = []
    for number in numbers:
        data = changed(target, number)
        try:
            target.run(data)
        except BaseException as error:
            if not isinstance(error, Exception | AssertionError) and len(failed) == 0:
                raise
            failed.append(f"round {number}: {type(error).__name__}: {error}: {data[:400]!r}")
        if len(failed) == WRONG:
            break
    assert not failed, "\n".join(failed)


def test_rounds_are_always_the_same_and_differ_from_each_other():
    for target in TARGETS.values():
        some = [changed(target, number) for number in range(12)]
        assert some == [changed(target, number) for number in range(12)]
        assert len(set(some)) > 8


PIECES = st.sampled_from(
    [
        *(
            loc_token(0),
            loc_token(1023),
            "<loc1024>",
            "<seg000>",
            "<seg128>",
            " ; ",
            ";",
            "\n",
            " ",
        ),
        *(
            "<eos>",
            "<pad>",
            "<bos>",
            "cat",
            "<",
            ">",
            "<loc",
            "<seg00",
            answer("a"),
            answer("b", codes=CODES),
        ),
    ]
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.lists(PIECES | st.text(max_size=3), max_size=24).map("".join))
def test_texts_of_tokens(text):
    TARGETS["parser"].run(text.encode("utf-8", "surrogatepass"))


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.binary(max_size=80))
@pytest.mark.parametrize("name", ["parser", "ids", "rle", "rows", "refs", "codec", "pictures"])
def test_any_bytes(name, data):
    TARGETS[name].run(data)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["images", "annotations", "categories", "id"]), inner)
        ),
        max_leaves=8,
    )
)
@pytest.mark.parametrize("name", ["coco", "truth", "predictions", "config"])
def test_any_json(name, value):
    from tests.fuzzing.mutation import as_json

    TARGETS[name].run(as_json(value))


@pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64") or sys.version_info >= (3, 14),
    reason="atheris has wheels for CPython 3.11 to 3.13 on Linux (x86-64, glibc) only",
)
@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.slow
def test_guided_rounds(name, tmp_path):
    arguments = [name, "--rounds", str(GUIDED[name]), "--corpus", str(tmp_path / "corpus")]
    said = run("tests.fuzzing", *arguments)
    assert f"number_of_executed_units: {GUIDED[name]}" in said
    # Else nothing of the package was watched, and the rounds were blind.
    assert int(re.findall(r"new_units_added: +([0-9]+)", said)[0]) > 3
    assert not list(tmp_path.glob("crash-*"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux counts it")
@pytest.mark.slow
def test_little_that_asks_for_much():
    said = run("tests.fuzzing.bombs")
    assert "picture: 65000×65000" in said  # it came to the last ones


def run(*arguments):
    """A module in a process of its own; what it said, if it went well."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


# -- linear time --------------------------------------------------------------------------

HOSTILE = {
    "locs": "<loc0000>",
    "locs and spaces": "<loc0000> ",
    "locs in lines": "<loc0001>\n",
    "segs": "<seg000>",
    "separators": ";",
    "separators and words": "a;",
    "spaces": " ",
    "breaks": "\n",
    "opened": "<",
    "tokens begun": "<loc",
    "long numbers": "<loc1234567",
    "ends": "<eos>",
    "after the end": "<eos>a\n",
    "the same object": answer("a", codes=CODES) + " ; ",
    "words": "a ",
    "inverted": answer("a", (900, 900, 1, 1)) + "\n",
}


class Counted(str):
    """Text that counts the letters that are copied out of it."""

    copied = 0

    def __getitem__(self, place):
        found = super().__getitem__(place)
        Counted.copied += len(found)
        return found


def work(function, text):
    """Lines of Python that ran, and letters that were copied."""
    lines = 0

    def count(frame, event, _):
        nonlocal lines
        lines += event == "line"
        return count

    Counted.copied = 0
    before = sys.gettrace()
    sys.settrace(count)
    try:
        function(Counted(text))
    finally:
        sys.settrace(before)
    return lines + Counted.copied


def streamed(text):
    parser = StreamParser()
    for start in range(0, len(text), 50):
        parser.feed(text[start : start + 50])
    parser.close()


@pytest.mark.parametrize("function", [parse, streamed], ids=["parse", "stream"])
@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
def test_four_times_the_text_is_four_times_the_work(function, piece):
    """Counts are the same on every machine; quadratic work would be sixteen times as much."""
    # Four, so that loc tokens make whole boxes in both.
    small = piece * 4 * (1024 // len(piece))
    assert work(function, small * 4) < 5 * work(function, small) + 1000


def test_what_one_letter_costs_a_regular_expression_is_bounded():
    """None can match, or look ahead, further than a token is long, so none can backtrack more."""
    found = [value for part in (parsing, stream) for value in vars(part).values()]
    patterns = [value for value in found if isinstance(value, re.Pattern)]
    assert len(patterns) >= 4
    for pattern in patterns:
        assert longest(pattern) <= 24, pattern


def longest(pattern):
    from re import _parser as parser

    return parser.parse(pattern.pattern).getwidth()[1]


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
def test_a_batch_takes_memory_by_the_letter(piece):
    """Python objects for oddities are the most of it."""
    text = piece * ((1 << 15) // len(piece))
    parse_batch([text])
    tracemalloc.start()
    parse_batch([answer("a"), text])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 * len(text)
