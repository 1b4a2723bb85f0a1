"""Parse an answer in pieces: each object is returned as soon as it is complete."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from palidecode.answers.assembler import Assembler, ParsedObject, ParseIssue
from palidecode.answers.parsing import (
    Answer,
    Detokenize,
    as_ids,
    close_text,
    feed_ids,
    feed_text,
    issues_of,
)
from palidecode.errors import InputError
from palidecode.vocab import PALIGEMMA, Vocabulary

# The start of a token at the end of a piece: wait for the rest before reading it.
_BEGUN = re.compile(r"<[/|]?[A-Za-z0-9_]{0,20}\|?\Z")
_BEGUN_LENGTH = 23


class StreamParser:
    """Parse an answer while it is being written.

    Feed it text split anywhere (even inside ``<loc00``) or token ids as they arrive; the
    objects and issues are those of `palidecode.parse` on the whole answer. An object is
    complete at its separator, at the next object's first token, at ``<eos>`` or at `close`;
    label token ids wait for the end of their run, because a tokenizer needs them together.

    Parameters
    ----------
    vocabulary : Vocabulary
        Token ids, when fed with ids.
    detokenize : callable, optional
        Turns a list of label token ids into text, when fed with ids.

    Examples
    --------
    >>> stream = StreamParser()
    >>> stream.feed("<loc0046><loc0538><loc07")
    []
    >>> [item.label for item in stream.feed("95><loc1022> cat ; <loc0")]
    ['cat']
    >>> stream.close()
    []
    >>> [issue.kind.value for issue in stream.issues]
    ['truncated']
    """

    def __init__(
        self, *, vocabulary: Vocabulary = PALIGEMMA, detokenize: Detokenize | None = None
    ) -> None:
        self._vocabulary = vocabulary
        self._detokenize = detokenize
        self._assembler: Assembler | None = None
        self._is_text = True
        self._text: list[str] = []  # the text so far, for the issues
        self._held = ""
        self._held_ids: list[int] = []
        self._position = 0
        self._given = 0
        self._closed = False

    @property
    def issues(self) -> tuple[ParseIssue, ...]:
        """The issues so far, in the order of the answer."""
        if self._assembler is None:
            return ()
        return issues_of(self._assembler, "".join(self._text) + self._held)

    def feed(self, piece: Answer) -> list[ParsedObject]:
        """Read the next piece and return the objects it completed.

        Parameters
        ----------
        piece : str, or sequence or 1-D array of int
            Text or token ids; one answer takes only one of the two.

        Raises
        ------
        InputError
            After `close`, if `piece` is neither text nor ids, or if text and ids are mixed.
        """
        if self._closed:
            raise InputError("this stream is closed; make a new StreamParser for each answer")
        new = piece if isinstance(piece, str) else as_ids(piece)
        is_text = isinstance(new, str)
        if self._assembler is None:
            self._is_text = is_text
            self._assembler = Assembler(spaces_known=is_text)
        if is_text != self._is_text:
            raise InputError("text and token ids can't be mixed in one stream")
        if isinstance(new, str):
            self._feed_text(self._assembler, new)
        else:
            self._feed_ids(self._assembler, new)
        return self._take()

    def close(self) -> list[ParsedObject]:
        """End the answer and return the objects that were still open."""
        if self._closed or self._assembler is None:
            self._closed = True
            return []
        self._closed = True
        assembler = self._assembler
        if self._is_text:
            held, self._held = self._held, ""
            feed_text(assembler, held, self._position)
            self._text.append(held)
            self._position += len(held)
            close_text(assembler, held, self._position - len(held))
        else:
            self._flush_ids(assembler)
            assembler.close()
        return self._take()

    def _feed_text(self, assembler: Assembler, piece: str) -> None:
        text = self._held + piece
        begun = _BEGUN.search(text, max(0, len(text) - _BEGUN_LENGTH))
        cut = begun.start() if begun else len(text)
        self._held = text[cut:]
        feed_text(assembler, text[:cut], self._position)
        self._text.append(text[:cut])
        self._position += cut

    def _feed_ids(self, assembler: Assembler, ids: npt.NDArray[np.int64]) -> None:
        """Send everything up to the last special token; label tokens after it wait."""
        held = len(self._held_ids)
        new = ids.tolist()
        self._held_ids.extend(new)
        special = [index for index, token in enumerate(new) if self._vocabulary.is_special(token)]
        if not special:
            return
        cut = held + special[-1] + 1
        head, self._held_ids = self._held_ids[:cut], self._held_ids[cut:]
        self._send_ids(assembler, head)

    def _flush_ids(self, assembler: Assembler) -> None:
        head, self._held_ids = self._held_ids, []
        self._send_ids(assembler, head)

    def _send_ids(self, assembler: Assembler, ids: list[int]) -> None:
        feed_ids(
            assembler,
            np.asarray(ids, np.int64),
            self._position,
            self._vocabulary,
            self._detokenize,
        )
        self._position += len(ids)

    def _take(self) -> list[ParsedObject]:
        assert self._assembler is not None
        new = self._assembler.objects[self._given :]
        self._given += len(new)
        return new
