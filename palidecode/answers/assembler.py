"""Assembles objects and issues from the tokens and labels of an answer, one after the other.

`parsing`, `batch` and `stream` find those in text and token ids, and use it for every answer that
isn't well-formed. It never looks ahead, so an answer in pieces gives the same result as the whole.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from palidecode.vocab import LOC_COUNT, LOC_PER_BOX, SEG_COUNT, SEG_PER_MASK

Loc = tuple[int, int, int, int]
Seg = tuple[int, ...]
Span = tuple[int, int]


class ParsedObject(NamedTuple):
    """One object of an answer, in integers, as the model wrote it.

    Attributes
    ----------
    label : str
        The class name, ``""`` if there is none (RefCOCO checkpoints).
    loc : tuple of 4 int or None
        Bins y1, x1, y2, x2 in 0 … 1023; None if the answer has no usable box.
    seg : tuple of 16 int or None
        Mask codes in 0 … 127, the 4×4 grid row by row; None if there is no mask.
    span : tuple of 2 int
        Start and end in the text, ``text[span[0]:span[1]]``, or in the token ids.
    """

    label: str
    loc: Loc | None = None
    seg: Seg | None = None
    span: Span = (0, 0)


class IssueKind(StrEnum):
    """Kinds of issues in an answer."""

    STRAY_TEXT = "stray_text"
    """Text that belongs to no object, for example before the first box."""
    MISSING_LOC = "missing_loc"
    """One to three loc tokens, or mask codes without a box."""
    EXTRA_LOC = "extra_loc"
    """More than four loc tokens in a row; the first four are the box. Eight, twelve … without a
    mask and a label are several boxes, with `MISSING_SEPARATOR` instead."""
    MISSING_SEG = "missing_seg"
    """Fewer than sixteen seg tokens; the object has no mask."""
    EXTRA_SEG = "extra_seg"
    """More than sixteen seg tokens in a row; the first sixteen are the mask."""
    OUT_OF_RANGE = "out_of_range"
    """A token such as ``<loc1024>`` or ``<seg128>``; that box or mask is skipped."""
    INVERTED_BOX = "inverted_box"
    """y2 < y1 or x2 < x1; the object is kept as written."""
    EMPTY_BOX = "empty_box"
    """A box without area; the object is kept as written."""
    DUPLICATE = "duplicate"
    """The same label, box and mask as an earlier object; kept."""
    SPACING = "spacing"
    """White space inside the token blocks; ignored."""
    MISSING_SPACE = "missing_space"
    """No space between the tokens and the label; the label is kept."""
    MISSING_SEPARATOR = "missing_separator"
    """The next object began without `` ; ``."""
    EXTRA_SEPARATOR = "extra_separator"
    """A ``;`` with no object after it, or none before it."""
    TRUNCATED = "truncated"
    """The answer ends inside a box, a mask or a token."""
    CONTROL_TOKEN = "control_token"
    """A token that a chat template leaves, such as ``<end_of_turn>``; it ends a label."""
    AFTER_END = "after_end"
    """Text or tokens after ``<eos>``; not parsed."""
    UNDECODED_LABEL = "undecoded_label"
    """Label tokens in an answer of token ids for which no ``detokenize`` was given."""


class ParseIssue(NamedTuple):
    """An issue of an answer: its kind, its span and the text there ("" for ids)."""

    kind: IssueKind
    span: Span
    text: str


class Assembler:
    """Builds objects from loc, seg, text, separator and control events.

    Every event comes with its offsets ``start, end`` in the answer, in increasing order.
    `objects` holds the finished objects, `issues` the issues; `close` ends the answer.
    """

    def __init__(self, *, spaces_known: bool = True) -> None:
        self.objects: list[ParsedObject] = []
        self.issues: list[tuple[IssueKind, int, int]] = []
        self._spaces_known = spaces_known  # tokenizers swallow the space before a label
        self._seen: set[tuple[str, Loc | None, Seg | None]] = set()
        self._ended = False
        self._separated = True  # nothing to separate before the first object
        self._separator: Span | None = None  # a ``;`` that waits for its object
        self._reset()

    def _reset(self) -> None:
        self._locs: list[int] = []
        self._loc_spans: list[Span] = []
        self._segs: list[int] = []
        self._start = self._tokens_end = 0
        self._extra_seg = False
        self._text: list[str] = []
        self._text_start = self._text_end = 0
        self._has_words = False

    # -- events ---------------------------------------------------------------------

    def loc(self, value: int, start: int, end: int) -> None:
        """Add a loc token; `value` may be out of range."""
        if not self._alive(start, end):
            return
        inside = not self._segs and not self._has_words
        if inside and self._text and len(self._locs) >= LOC_PER_BOX:
            inside = False  # a box, white space, the next box
        self._open(inside and bool(self._locs), start, end)
        self._locs.append(value)
        self._loc_spans.append((start, end))

    def seg(self, value: int, start: int, end: int) -> None:
        """Add a seg token; `value` may be out of range."""
        if not self._alive(start, end):
            return
        in_object = bool(self._locs or self._segs) and not self._has_words
        self._open(in_object, start, end)
        if len(self._segs) < SEG_PER_MASK:
            self._segs.append(value)
        else:
            self._extend_issue(IssueKind.EXTRA_SEG, start, end, self._extra_seg)
            self._extra_seg = True

    def text(self, text: str, start: int, end: int) -> None:
        """Add a piece of text without ``;``, newline and tokens."""
        if not text:
            return
        if self._ended:
            self._text_after_end(text, start, end)
            return
        if not self._text:
            self._text_start = start
        self._text.append(text)
        self._text_end = end
        self._has_words = self._has_words or not text.isspace()

    def newline(self, start: int, end: int) -> None:
        """Add a line break: it ends a label and is white space elsewhere."""
        if self._has_words:
            self._finish()
        else:
            self.text("\n", start, end)

    def separator(self, start: int, end: int) -> None:
        """Add a ``;``."""
        if not self._alive(start, end):
            return
        had_object = bool(self._locs or self._segs)
        stray = self._has_words and not had_object
        self._finish()
        if self._separator is not None or (self._separated and not had_object and not stray):
            self._issue(IssueKind.EXTRA_SEPARATOR, start, end)
        else:
            self._separator = (start, end)
        self._separated = True

    def foreign(self, start: int, end: int) -> None:
        """Add a control token of another format: it ends the object before it."""
        if self._alive(start, end):
            self._finish()
            self._issue(IssueKind.CONTROL_TOKEN, start, end)

    def control(self, token: str, start: int, end: int) -> None:
        """Add a control token: ``<eos>`` ends the answer, the others end the object before them."""
        self._finish()
        if token == "<eos>":
            self._ended = True

    def undecoded(self, start: int, end: int) -> None:
        """Add label tokens that can't be decoded."""
        if not self._alive(start, end):
            return
        if self._locs or self._segs:
            self._issue(IssueKind.UNDECODED_LABEL, start, end)
            self._tokens_end = end
            self._finish()
            self._separated = True  # the separator is among those tokens
        else:
            self._issue(IssueKind.STRAY_TEXT, start, end)

    def drop_text_from(self, offset: int) -> None:
        """Remove text that turned out to be a truncated token."""
        if self._text and self._text_end > offset:
            kept = self._text[-1][: offset - self._text_end]
            self._text[-1:] = [kept] if kept else []
            self._text_end = offset
            self._has_words = any(not piece.isspace() for piece in self._text)

    def close(self, partial: Span | None = None) -> None:
        """End the answer; `partial` is the span of a truncated token at its end."""
        cut = not self._ended
        if partial is not None and cut:
            self._issue(IssueKind.TRUNCATED, *partial)
            self._separator = None  # something did follow it
        self._finish(cut_at_end=cut)
        if self._separator is not None:
            self._issue(IssueKind.EXTRA_SEPARATOR, *self._separator)
            self._separator = None

    # -- inside ---------------------------------------------------------------------

    def _issue(self, kind: IssueKind, start: int, end: int) -> None:
        self.issues.append((kind, start, end))

    def _extend_issue(self, kind: IssueKind, start: int, end: int, started: bool) -> None:
        """Report one issue for a whole run of superfluous tokens."""
        if started and self.issues and self.issues[-1][0] is kind:
            start = self.issues.pop()[1]
        self._issue(kind, start, end)

    def _text_after_end(self, text: str, start: int, end: int) -> None:
        """Report words only, so that text in other pieces reports the same span."""
        words = text.strip()
        if words and self._spaces_known:
            start += len(text) - len(text.lstrip())
            end = start + len(words)
        if words:
            self._alive(start, end)

    def _alive(self, start: int, end: int) -> bool:
        if self._ended:
            after = bool(self.issues) and self.issues[-1][0] is IssueKind.AFTER_END
            self._extend_issue(IssueKind.AFTER_END, start, end, after)
        return not self._ended

    def _open(self, inside: bool, start: int, end: int) -> None:
        """Continue the current object, or finish it and begin one at `start`."""
        if inside:
            if self._text:
                self._issue(IssueKind.SPACING, self._text_start, self._text_end)
                self._text.clear()
        else:
            self._finish()
            if not self._separated:
                self._issue(IssueKind.MISSING_SEPARATOR, start, start)
            self._start = start
            self._separator = None
        self._tokens_end = end

    def _finish(self, *, cut_at_end: bool = False) -> None:
        """Turn the collected tokens into an object, and their oddities into issues."""
        label, label_end = self._take_label()
        if not (self._locs or self._segs):
            if label:
                begin = label_end - len(label) if self._spaces_known else self._text_start
                self._issue(IssueKind.STRAY_TEXT, begin, label_end)
                self._separator = None
            self._reset()
            return
        span = (self._start, label_end if label else self._tokens_end)
        cut = cut_at_end and not label
        if not label and not self._segs and len(self._locs) % LOC_PER_BOX == 0:
            span = self._split_boxes()
        loc = self._take_loc(span, cut and not self._segs)
        seg = self._take_seg(span, cut)
        if loc is not None or seg is not None:
            self._add(ParsedObject(label, loc, seg, span))
        self._separated = False
        self._reset()

    def _add(self, item: ParsedObject) -> None:
        self._check_box(item.loc, item.span)
        key = (item.label, item.loc, item.seg)
        if key in self._seen:
            self._issue(IssueKind.DUPLICATE, *item.span)
        self._seen.add(key)
        self.objects.append(item)

    def _split_boxes(self) -> Span:
        """Add all boxes of a run of loc tokens but the last one, which stays; its span."""
        locs, spans = self._locs, self._loc_spans
        last = len(locs) - LOC_PER_BOX
        for first in range(0, last, LOC_PER_BOX):
            stop = first + LOC_PER_BOX
            span = (spans[first][0], spans[stop - 1][1])
            self._locs = locs[first:stop]
            loc = self._take_loc(span, False)
            if loc is not None:
                self._add(ParsedObject("", loc, None, span))
            self._issue(IssueKind.MISSING_SEPARATOR, spans[stop][0], spans[stop][0])
        self._locs, self._loc_spans = locs[last:], spans[last:]
        return spans[last][0], self._tokens_end

    def _take_label(self) -> tuple[str, int]:
        """The stripped label and the offset of its end."""
        if not self._has_words:
            return "", 0
        text = "".join(self._text)
        kept = text.rstrip()
        label = kept.lstrip()
        if self._spaces_known:
            if len(label) == len(kept) and (self._locs or self._segs):
                self._issue(IssueKind.MISSING_SPACE, self._text_start, self._text_start)
            return label, self._text_start + len(kept)
        return label, self._text_end

    def _take_loc(self, span: Span, cut: bool) -> Loc | None:
        locs = self._locs
        if len(locs) < LOC_PER_BOX:
            self._issue(IssueKind.TRUNCATED if cut else IssueKind.MISSING_LOC, *span)
            return None
        if len(locs) > LOC_PER_BOX:
            extra = self._loc_spans[LOC_PER_BOX:]
            self._issue(IssueKind.EXTRA_LOC, extra[0][0], extra[-1][1])
            locs = locs[:LOC_PER_BOX]
        if not all(0 <= value < LOC_COUNT for value in locs):
            self._issue(IssueKind.OUT_OF_RANGE, *span)
            return None
        return (locs[0], locs[1], locs[2], locs[3])

    def _take_seg(self, span: Span, cut: bool) -> Seg | None:
        if not self._segs:
            return None
        if len(self._segs) < SEG_PER_MASK:
            self._issue(IssueKind.TRUNCATED if cut else IssueKind.MISSING_SEG, *span)
            return None
        if not all(0 <= value < SEG_COUNT for value in self._segs):
            self._issue(IssueKind.OUT_OF_RANGE, *span)
            return None
        return tuple(self._segs)

    def _check_box(self, loc: Loc | None, span: Span) -> None:
        if loc is None:
            return
        y1, x1, y2, x2 = loc
        if y2 < y1 or x2 < x1:
            self._issue(IssueKind.INVERTED_BOX, *span)
        elif y2 == y1 or x2 == x1:
            self._issue(IssueKind.EMPTY_BOX, *span)
