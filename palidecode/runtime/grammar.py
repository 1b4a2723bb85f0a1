"""Grammar of the answers to ``detect …`` and ``segment …``: the tokens that may come next.

    answer = "" | object (" ; " object)*
    object = y1 x1 y2 x2 [16 seg] label        y2 > y1, x2 > x1

An automaton per answer. It also respects the limit on tokens: no token is allowed after which
the answer could not be finished within it, so no object is ever cut.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError
from palidecode.prompts import SEPARATOR, asked_names
from palidecode.runtime.options import GrammarOptions
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.vocab import LOC_COUNT, LOC_PER_BOX, SEG_COUNT, SEG_PER_MASK, loc_token

Ids: TypeAlias = npt.NDArray[np.int64]

_LONGEST_LABEL = 200  # tokens; no answer has room for more, and the trie is walked by recursion


@dataclass(eq=False)
class Node:
    """A node in the trie of labels and the separators that follow them."""

    next: dict[int, Node] = field(default_factory=dict)
    labels: int = 0  # bits of the labels below this node
    complete: int = 0  # bits of the labels that end here: <eos> may follow
    separated: bool = False  # the separator ends here: an object must follow
    to_end: int | None = None  # tokens to the end of a label, at most; None behind it
    to_next: int = 0  # tokens to the next object, at most


class Grammar:
    """The automaton of one prompt; `start` gives the state of one answer.

    Attributes
    ----------
    tokens : ndarray of int64, shape (U,)
        Every id the grammar can ever allow, ascending.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        masks: bool,
        names: Sequence[str],
        options: GrammarOptions | None = None,
    ) -> None:
        self.options = options or GrammarOptions()
        self.vocabulary = tokenizer.vocabulary
        self.seg = SEG_PER_MASK if masks else 0
        self.free = self.options.labels == "free"
        self.names = {"prompt": list(names), "free": ["a"], "none": [""]}[self.options.labels]
        self.root = _trie(tokenizer, self.names)
        self.every_label = (1 << len(self.names)) - 1
        v = self.vocabulary
        used = [np.arange(v.loc_offset, v.loc_offset + LOC_COUNT), np.array([v.eos])]
        if masks:
            used.append(np.arange(v.seg_offset, v.seg_offset + SEG_COUNT))
        if self.free:
            words = tokenizer.label_tokens
            self.separator = _after_label(self.root)
            # What begins a separator ends the label.
            later = np.setdiff1d(words.later, list(self.separator.next))
            self.space = words.space
            used += [words.first, words.inner, words.later]
        used.append(np.array(sorted(_tokens(self.root)), np.int64))
        self.tokens: Ids = np.unique(np.concatenate(used)).astype(np.int64)
        if self.free:
            self.first, self.inner = self.indices(words.first), self.indices(words.inner)
            self.later = self.indices(later)
        self._loc = int(np.searchsorted(self.tokens, v.loc_offset))
        self._seg = int(np.searchsorted(self.tokens, v.seg_offset))

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, prompt: str, options: GrammarOptions | None = None
    ) -> Grammar | None:
        """Return the grammar of a prompt; None for prompts without a verb."""
        asked = asked_names(prompt)
        return None if asked is None else cls(tokenizer, asked[0] == "segment", asked[1], options)

    @property
    def label_cost(self) -> int:
        """Number of tokens of the longest label (free ones can be short) and ``<eos>``."""
        return 2 if self.free else (self.root.to_end or 0) + 1

    @property
    def object_cost(self) -> int:
        """Number of tokens of the longest object and ``<eos>``."""
        return LOC_PER_BOX + self.seg + self.label_cost

    def start(self, limit: int, *, past_end: bool = False) -> AnswerState:
        """Return the state before the first of at most `limit` tokens.

        `past_end` lets an answer end only where no further object fits, as a `min_objects`
        without an end.
        """
        return AnswerState(self, limit, past_end)

    def indices(self, ids: Sequence[int] | Ids) -> Ids:
        """Return the indices of ids in `tokens`."""
        return np.searchsorted(self.tokens, np.asarray(ids, np.int64))

    def loc_slice(self, lowest: int) -> slice:
        """Indices of the loc tokens from a bin on."""
        return slice(self._loc + lowest, self._loc + LOC_COUNT)

    def seg_slice(self) -> slice:
        """Indices of the seg tokens."""
        return slice(self._seg, self._seg + SEG_COUNT)


def _trie(tokenizer: Tokenizer, names: Sequence[str]) -> Node:
    """Build the trie of labels as the tokenizer writes them between objects and at the end.

    The tokens between a label and the next object depend on the tokenizer, so whole answers
    are tokenised, and the tokens between their loc tokens taken.
    """
    root, loc = Node(), loc_token(0)
    for number, name in enumerate(names):
        words = f" {name}" if name else ""
        middle = tokenizer.encode(f"{loc}{words}{SEPARATOR}{loc}")[1:-1]
        ending = tokenizer.encode(f"{loc}{words}")[1:]
        if len(ending) > _LONGEST_LABEL:
            raise InputError(f"the label {name[:40]!r}… is {len(ending)} tokens long: too many")
        if tokenizer.decode(ending) != words:
            raise InputError(f"the label {name!r} has characters that this tokenizer can't write")
        _insert(root, ending, 1 << number).complete |= 1 << number
        _insert(root, middle, 1 << number).separated = True
    _measure(root)
    return root


def _insert(root: Node, path: Sequence[int], label: int) -> Node:
    node = root
    node.labels |= label
    for token in path:
        node = node.next.setdefault(token, Node())
        node.labels |= label
    return node


def _measure(node: Node) -> None:
    """Set the greatest number of tokens to a label's end and to the next object."""
    if node.complete:
        node.to_end = 0
    for child in node.next.values():
        _measure(child)
        node.to_next = max(node.to_next, child.to_next + 1)
        if child.to_end is not None:
            node.to_end = max(node.to_end or 0, child.to_end + 1)


def _tokens(node: Node) -> set[int]:
    return set(node.next).union(*map(_tokens, node.next.values()))


def _after_label(root: Node) -> Node:
    """Return the node at which a label ends, in the trie of one label."""
    node = root
    while not node.complete:
        (node,) = node.next.values()
    return node


class AnswerState:
    """State of one answer: `allowed` returns the possible tokens, `advance` takes one.

    Attributes
    ----------
    left : int
        Number of tokens that may still come.
    ended : bool
    objects : int
        Number of objects before the one that is being written.
    """

    def __init__(self, grammar: Grammar, limit: int, past_end: bool = False) -> None:
        self.grammar, self._past_end = grammar, past_end
        self.left = limit
        self.ended = False
        self.objects = 0
        self._box: list[int] = []
        self._segs = 0
        self._node: Node | None = None  # inside a label or behind it
        self._free = 0  # tokens of a free label so far
        self._space = False  # they are one space: a word must follow
        self._written: dict[tuple[int, ...], int] = defaultdict(int)  # box: bits of its labels
        self._full: Counter[tuple[int, ...]] = Counter()  # boxes with every label, by prefix

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return the tokens that may come next, as a mask over the grammar's `tokens`."""
        g = self.grammar
        mask = np.zeros(len(g.tokens), np.bool_)
        if self.ended:
            return mask
        if self._node is not None:
            self._allow_label(mask, self._node)
        elif len(self._box) < LOC_PER_BOX:
            self._allow_loc(mask)
        else:
            mask[g.seg_slice()] = True
        return mask

    def advance(self, token: int) -> None:
        """Take the next token, one of the allowed."""
        v = self.grammar.vocabulary
        self.left -= 1
        if token == v.eos:
            self.ended = True
            return
        if self._node is not None:
            self._advance_label(token, self._node)
            return
        if len(self._box) < LOC_PER_BOX:
            self._box.append(token - v.loc_offset)
        else:
            self._segs += 1
        if len(self._box) == LOC_PER_BOX and self._segs == self.grammar.seg:
            self._enter(self.grammar.root)

    def _allow_loc(self, mask: npt.NDArray[np.bool_]) -> None:
        g, written = self.grammar, len(self._box)
        if self._begins:
            room = self.left >= g.object_cost
            mask[g.indices([g.vocabulary.eos])] = not (room and self._must_go_on)
            if not room:
                return
        # A corner at the last bin leaves no room for the other one.
        lowest = 0 if written < 2 else self._box[written - 2] + 1
        allowed = mask[g.loc_slice(lowest)]
        allowed[:] = True
        if written < 2:
            allowed[-1] = False
        for start, count in self._full.items():
            here = len(start) == written + 1 and list(start[:-1]) == self._box
            if here and count >= _boxes_that_begin(start):
                allowed[start[-1] - lowest] = False

    @property
    def _begins(self) -> bool:
        """Return True before the first token."""
        return self._node is None and not self._box and self.objects == 0

    @property
    def _must_go_on(self) -> bool:
        """Return True where a whole answer must not end if another object fits."""
        whole = 0 if self._begins else self.objects + 1
        return self._past_end or whole < self.grammar.options.min_objects

    @property
    def in_label(self) -> bool:
        """Return True if the next token is one of a label, or follows it."""
        node = self._node
        return node is not None and (self._in_free_label(node) or node.to_end is not None)

    def going_on(self) -> list[int]:
        """Return the tokens that lead to another object where the answer could end, but must not.

        Empty where it may end or is not whole.
        """
        if self.ended or not self._must_go_on:
            return []
        g = self.grammar
        if self._begins:
            corners = g.tokens[g.loc_slice(0)].tolist()
            return corners[:-1] if self.left >= g.object_cost else []
        if self._node is None or not self._whole(self._node):
            return []
        return self._onward(self._node, self.left)

    def ends_object(self, token: int) -> bool:
        """Return True if the next token, which is allowed, ends the object being written."""
        if token == self.grammar.vocabulary.eos:
            return not self._begins
        if self._node is None or not self._whole(self._node):
            return False
        return token in self._onward(self._node, self.left)

    def forced(self) -> list[int]:
        """Return the next tokens of a label and separator, while each is the only one allowed."""
        forced: list[int] = []
        node, left = None if self.ended else self._node, self.left
        while node is not None and not node.separated and not self._in_free_label(node):
            choices = self._choices(node, left)
            asks = self._past_end and self._whole(node) and self._onward(node, left)
            if len(choices) != 1 or asks:
                break
            forced += choices
            node, left = node.next.get(choices[0]), left - 1  # <eos> has no node
        return forced

    def _in_free_label(self, node: Node) -> bool:
        return self._free > 0 or (self.grammar.free and node is self.grammar.root)

    def _allow_label(self, mask: npt.NDArray[np.bool_], node: Node) -> None:
        if self._in_free_label(node):
            self._allow_free(mask)
        else:
            mask[self.grammar.indices(self._choices(node, self.left))] = True

    def _choices(self, node: Node, left: int) -> list[int]:
        """Return the tokens that may follow a node of the trie, with `left` tokens to go."""
        following = self._following(node, left)
        ends = self._whole(node) and not (self._must_go_on and self._onward(node, left))
        return [self.grammar.vocabulary.eos, *following] if ends else following

    def _following(self, node: Node, left: int) -> list[int]:
        """Return the tokens but ``<eos>`` that may follow a node of the trie."""
        used = self._used
        return [
            token
            for token, child in node.next.items()
            if child.labels & ~used and self._can_finish(child, left)
        ]

    @property
    def _used(self) -> int:
        """Bits of the labels that the box can't have again."""
        repeats = self.grammar.options.repeats
        return 0 if repeats else self._written.get(tuple(self._box), 0)

    def _whole(self, node: Node) -> bool:
        """Return True if the label could end at this node."""
        if self._in_free_label(node):
            return self._free > 0 and not self._space
        return bool(node.complete & ~self._used)

    def _onward(self, node: Node, left: int) -> list[int]:
        """Return the tokens that may follow a whole label and lead to another object."""
        if self._in_free_label(node):
            after = self.grammar.separator.next
            return [token for token, child in after.items() if self._can_finish(child, left)]
        return [t for t in self._following(node, left) if node.next[t].to_end is None]

    def _allow_free(self, mask: npt.NDArray[np.bool_]) -> None:
        g = self.grammar
        if self._free == 0:
            mask[g.first] = True
            if g.space is not None and self.left > 2 and g.options.max_label_tokens > 1:
                mask[g.indices([g.space])] = True
            return
        if self._space:
            mask[g.inner] = True
            return
        if self._free < g.options.max_label_tokens and self.left > 1:
            mask[g.later] = True
        after = self._onward(g.root, self.left)
        mask[g.indices(after)] = True
        mask[g.indices([g.vocabulary.eos])] = not (after and self._must_go_on)

    def _can_finish(self, node: Node, left: int) -> bool:
        """Return True if an answer of `left` more tokens could end once this node is entered."""
        if node.to_end is not None:
            return left - 1 >= node.to_end + 1
        most = self.grammar.options.max_objects
        more = most is None or self.objects + 1 < most
        return more and left - 1 >= node.to_next + self.grammar.object_cost

    def _advance_label(self, token: int, node: Node) -> None:
        g = self.grammar
        if g.free and (node is g.root or self._free):
            if self._free == 0 or token not in g.separator.next:
                self._space = self._free == 0 and token == g.space
                self._free += 1
                return
            node = g.separator
            self._free = 0
        self._enter(node.next[token])

    def _enter(self, node: Node) -> None:
        self._node = node
        if node.separated:
            self._close_object(node.labels)

    def _close_object(self, label: int) -> None:
        """Record the object before a separator, and begin the next."""
        self.objects += 1
        box = tuple(self._box)
        if not self.grammar.options.repeats:
            self._written[box] |= label
            if self._written[box] == self.grammar.every_label:
                self._full.update(box[: length + 1] for length in range(LOC_PER_BOX))
        self._box, self._segs, self._node = [], 0, None


def _boxes_that_begin(start: tuple[int, ...]) -> int:
    """Count the boxes that begin with these bins."""
    last = LOC_COUNT - 1
    if len(start) == LOC_PER_BOX:
        return 1
    if len(start) == 3:
        return last - start[1]
    if len(start) == 2:
        return (last - start[0]) * (last - start[1])
    return (last - start[0]) * last * (last + 1) // 2
