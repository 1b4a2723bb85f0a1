"""Tokenize prompts and detokenize answers with the checkpoint's own ``tokenizer.json``.

The ids of loc, seg and control tokens are read from the file, never assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError
from palidecode.files import regular
from palidecode.vocab import LOC_COUNT, SEG_COUNT, Vocabulary, loc_token, seg_token

if TYPE_CHECKING:
    import tokenizers

FILE = "tokenizer.json"
IMAGE_TOKEN = "<image>"
_SPACE = "▁"  # how sentencepiece spells a space
_BREAKERS = (";", "<", "\n", "\r")  # they would end a label or begin a token


class LabelTokens(NamedTuple):
    """Ids of the tokens that a free label may contain, ascending.

    Attributes
    ----------
    first : ndarray of int64
        A space and the beginning of a word.
    inner : ndarray of int64
        The continuation of a word, or the beginning of one after `space`.
    later : ndarray of int64
        All that may follow the beginning: `first`, `inner`, bytes of longer characters.
    space : int or None
        A space alone.
    """

    first: npt.NDArray[np.int64]
    inner: npt.NDArray[np.int64]
    later: npt.NDArray[np.int64]
    space: int | None


class Tokenizer:
    """PaliGemma's tokenizer.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
    name : str
        For messages.

    Attributes
    ----------
    vocabulary : Vocabulary
        Ids of loc, seg and control tokens.
    image : int or None
        Id of ``<image>``, where there is one.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, name: str = FILE, ends: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._name = name
        self.vocabulary = Vocabulary(
            loc_offset=self._first_of(loc_token, LOC_COUNT),
            seg_offset=self._first_of(seg_token, SEG_COUNT),
            pad=self._id("<pad>"),
            eos=self._id("<eos>"),
            bos=self._id("<bos>"),
        )
        v = self.vocabulary
        self.image: int | None = tokenizer.token_to_id(IMAGE_TOKEN)
        self._bytes: dict[int, bytes] = {}
        self._control = {v.pad, v.eos, v.bos, self.image, *ends} - {None}

    @classmethod
    def from_file(cls, path: Path, ends: Sequence[int] = ()) -> Tokenizer:
        """Read a ``tokenizer.json``."""
        import tokenizers

        if not path.exists():
            raise InputError(f"{path}: no such file; put the checkpoint's tokenizer there")
        try:
            made = cls(tokenizers.Tokenizer.from_file(str(regular(path))), str(path), ends)
            made.decode(made.encode_prompt("detect cat ; dog"))
            return made
        except InputError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{path}: not a tokenizer file ({error})") from error

    def _id(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise InputError(f"{self._name}: {token} is missing; not a PaliGemma tokenizer")
        return int(number)

    def _first_of(self, spell: Callable[[int], str], count: int) -> int:
        first = self._id(spell(0))
        if any(self._id(spell(index)) != first + index for index in range(count)):
            raise InputError(f"{self._name}: {spell(0)} … {spell(count - 1)} are not in a row")
        return first

    @property
    def last_id(self) -> int:
        """The highest id that a prompt or an answer can contain."""
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        return max(number for number in ids if number != self.image)

    def token(self, text: str) -> int:
        """Return the id of a token by its exact text.

        Raises
        ------
        InputError
            If there is no such token.
        """
        number = self._tokenizer.token_to_id(text)
        if number is None:
            raise InputError(f"{self._name}: has no token {text!r}; name one that it has")
        return int(number)

    def encode(self, text: str) -> list[int]:
        """Convert text to ids; loc, seg and control tokens in it become their ids."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_prompt(self, prompt: str) -> list[int]:
        """Tokenize ``<bos>``, the prompt and a newline jointly, as transformers does."""
        ids = self.encode(f"{prompt}\n")
        if self._control & set(ids):
            raise InputError(
                f"the prompt {prompt!r} spells a control token (<bos>, <eos>, <pad> or <image>); "
                "remove it"
            )
        return [self.vocabulary.bos, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Convert ids to text: spell loc and seg tokens, omit control tokens."""
        kept = [token for token in ids if token not in self._control]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=False)
        return text

    def token_bytes(self, token: int) -> bytes:
        """Bytes that a token adds to an answer; some are a part of a character's."""
        if token not in self._bytes:
            piece = self._tokenizer.id_to_token(token) or ""
            byte = len(piece) == 6 and piece.startswith("<0x")
            self._bytes[token] = (
                bytes([int(piece[3:5], 16)]) if byte else self.decode([token]).encode()
            )
        return self._bytes[token]

    def is_separator(self, token: int) -> bool:
        """Return True if a token's text contains a ``;``."""
        return ";" in (self._tokenizer.id_to_token(token) or "")

    @cached_property
    def label_tokens(self) -> LabelTokens:
        """Tokens that a free label may contain.

        Excludes those that would be read as something else: separators, line breaks, control
        characters, anything with ``<``, tokens of a single low byte.
        """
        first, inner, later = [], [], []
        for token, number in self._tokenizer.get_vocab(with_added_tokens=False).items():
            byte = len(token) == 6 and token.startswith("<0x")
            if byte and int(token[3:5], 16) >= 0x80:
                later.append(number)
            if byte or any(mark in token for mark in _BREAKERS) or not token.isprintable():
                continue
            if self.vocabulary.is_special(number) or number in self._control:
                continue
            later.append(number)
            if not token.startswith(_SPACE):
                inner.append(number)
            elif token.strip(_SPACE):
                first.append(number)
        space = self._tokenizer.token_to_id(_SPACE)
        ids = [np.array(sorted(group), np.int64) for group in (first, inner, later)]
        return LabelTokens(ids[0], ids[1], ids[2], space if space in set(later) else None)
