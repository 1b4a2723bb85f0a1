"""Write the grammar of answers for llguidance, which servers such as vLLM constrain answers with.

Its dialect of Lark names tokens by their ids, and its rules take a number: the bins of a box's
top left corner, which the other corner's tokens depend on. It accepts what `Grammar` accepts with
``repeats=True`` and without a limit on tokens: which objects an answer has already can't be said
in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from palidecode.errors import InputError
from palidecode.prompts import SEPARATOR
from palidecode.runtime.grammar import Grammar, Node
from palidecode.runtime.options import GrammarOptions
from palidecode.vocab import LOC_COUNT, LOC_PER_BOX, SEG_COUNT, SEG_PER_MASK, Vocabulary

# Tokens that have no alternative are sampled like all others: llguidance spells them as text
# otherwise, and that text isn't always tokenized to the same ids.
_HEAD = '%llguidance {"no_forcing": true}'
_BITS = LOC_COUNT.bit_length() - 1  # of a bin


def lark_of_ids(grammar: Grammar, *, any_corners: bool = False) -> str:
    """Write a grammar that names every token by its id.

    It accepts exactly the tokens that `grammar` does.
    """
    if grammar.free:
        lines = [*_free_label(grammar), "end: label", f"between: label {_behind_label(grammar)}"]
    else:
        ends = (path for path, node in _paths(grammar.root) if node.complete)
        betweens = (path for path, node in _paths(grammar.root) if node.separated)
        lines = [f"end: {_or(map(_each, ends))}", f"between: {_or(map(_each, betweens))}"]
    return _whole(lines, grammar.vocabulary, bool(grammar.seg), grammar.options, any_corners)


def lark_of_text(
    masks: bool,
    names: Sequence[str],
    options: GrammarOptions,
    vocabulary: Vocabulary,
    *,
    any_corners: bool = False,
) -> str:
    """Write a grammar that names loc and seg tokens by their ids, and labels by their text.

    It accepts the same texts, in any tokens that spell them.

    Raises
    ------
    InputError
        For free labels.
    """
    if options.labels == "free":
        raise InputError("free labels depend on the tokenizer: give one (--tokenizer, --model)")
    words = [f" {name}" if options.labels == "prompt" else "" for name in names]
    words = list(dict.fromkeys(words))
    lines = [
        f"end: {_or(map(_text, words))}",
        f"between: {_or(_text(f'{word}{SEPARATOR}') for word in words)}",
    ]
    return _whole(lines, vocabulary, masks, options, any_corners)


def _whole(
    labels: Iterable[str], v: Vocabulary, masks: bool, options: GrammarOptions, any_corners: bool
) -> str:
    least, most = options.min_objects, options.max_objects
    before = "(box between) " * max(least - 1, 0)
    after = "(box between)* " if most is None else _up_to("(box between)", most - max(least, 1))
    first, last = v.loc_offset, v.loc_offset + LOC_COUNT - 1
    corners = f"<[{first}-{last}]>{{{LOC_PER_BOX}}}" if any_corners else "top::0"
    codes = f" <[{v.seg_offset}-{v.seg_offset + SEG_COUNT - 1}]>{{{SEG_PER_MASK}}}" if masks else ""
    boxes = [] if any_corners else _corners(first)
    start = ("start: " if least else 'start: "" | ') + f"{before}{after}box end"
    return "\n".join([_HEAD, start, f"box: {corners}{codes}", *labels, *boxes]) + "\n"


def _corners(first: int) -> Iterator[str]:
    """Yield the rules of a box's loc tokens; `first` is the id of bin 0.

    ``top`` and ``left`` put their bin into the rule's number; ``bottom`` and ``right`` take those
    above it.
    """
    for name, after, shift in (("top", "left", 0), ("left", "bottom", _BITS)):
        bins = range(LOC_COUNT - 1)  # the last leaves no room
        yield f"{name}::_: " + _or(f"<[{first + b}]> {after}::bit_or({b << shift})" for b in bins)
    yield "bottom::_: " + _or(f"{token} right::_ {when}" for token, when in _above(first, 0))
    yield "right::_: " + _or(f"{token} {when}" for token, when in _above(first, _BITS))


def _above(first: int, shift: int) -> Iterator[tuple[str, str]]:
    """Yield ranges of loc tokens and when all of their bins are above the one in the number.

    A bin above another has the same high bits, and then a 1 where the other has a 0: so many
    ranges are a power of two, and for each number at most ten of them fit.
    """
    for low in range(_BITS):
        for high in range(1, LOC_COUNT >> low, 2):
            begin, end = first + (high << low), first + ((high + 1) << low) - 1
            token = f"<[{begin}]>" if begin == end else f"<[{begin}-{end}]>"
            yield token, f"%if eq([{shift + low}:{shift + _BITS}], {high - 1})"


def _paths(root: Node) -> Iterator[tuple[list[int], Node]]:
    """Yield every node of a trie, and the tokens that lead to it."""
    waiting: list[tuple[list[int], Node]] = [([], root)]
    while waiting:
        path, node = waiting.pop()
        yield path, node
        waiting += [([*path, token], child) for token, child in sorted(node.next.items())]


def _free_label(g: Grammar) -> Iterator[str]:
    most = g.options.max_label_tokens
    forms = [f"first {_up_to('later', most - 1)}"]
    if g.space is not None and most > 1:
        forms.append(f"<[{g.space}]> inner {_up_to('later', most - 2)}")
    yield f"label: {_or(forms)}"
    for name, indices in (("first", g.first), ("inner", g.inner), ("later", g.later)):
        yield f"{name}: {_any(np.unique(g.tokens[indices]).tolist())}"


def _behind_label(grammar: Grammar) -> str:
    """Return the tokens between a free label and the next object."""
    (path,) = (path for path, node in _paths(grammar.separator) if node.separated)
    return _each(path)


def _up_to(what: str, times: int) -> str:
    return f"{what}{{0,{times}}} " if times else ""  # llguidance refuses {0,0}


def _any(ids: Sequence[int]) -> str:
    """Return any one of some ids, ascending, as ranges."""
    breaks = np.flatnonzero(np.diff(ids) != 1).tolist()
    starts, ends = [0, *(b + 1 for b in breaks)], [*breaks, len(ids) - 1]
    ranges = (
        f"{ids[a]}-{ids[b]}" if b > a else f"{ids[a]}" for a, b in zip(starts, ends, strict=True)
    )
    return f"<[{','.join(ranges)}]>"


def _each(ids: Iterable[int]) -> str:
    return " ".join(f"<[{number}]>" for number in ids) or '""'


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _or(alternatives: Iterable[str]) -> str:
    return "\n  | ".join(alternatives)
