"""Prompts to token ids and answers back to text, with the checkpoint's own ``tokenizer.json``.

The ids of loc, seg and control tokens are read from the file, never assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from palidecode.errors import InputError
from palidecode.vocab import LOC_COUNT, SEG_COUNT, Vocabulary, loc_token, seg_token

FILE = "tokenizer.json"
IMAGE_TOKEN = "<image>"
_SPACE = "▁"  # how sentencepiece spells a space
_BREAKERS = (";", "<", "\n", "\r")  # what a label can't hold without meaning something else


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
    unknown : int or None
        What is written for characters the vocabulary doesn't have.

    Raises
    ------
    InputError
        If loc, seg or control tokens are missing or not in a row.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, name: str = FILE) -> None:
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
        self.unknown: int | None = tokenizer.token_to_id("<unk>")
        self._control = {v.pad, v.eos, v.bos, tokenizer.token_to_id(IMAGE_TOKEN)} - {None}

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Read a ``tokenizer.json``.

        Raises
        ------
        InputError
            If it is missing or damaged, or no PaliGemma tokenizer.
        """
        if not path.exists():
            raise InputError(f"{path} is missing: the tokenizer of the checkpoint goes there")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)), str(path))
        except InputError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{path}: no tokenizer file ({error})") from error

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise InputError(f"{self._name}: {token} is missing; not a PaliGemma tokenizer")
        return int(found)

    def _first_of(self, spell: object, count: int) -> int:
        assert callable(spell)
        first = self._id(spell(0))
        if any(self._id(spell(index)) != first + index for index in range(count)):
            raise InputError(f"{self._name}: {spell(0)} … {spell(count - 1)} are not in a row")
        return first

    def encode(self, text: str) -> list[int]:
        """Text to ids; loc, seg and control tokens in it become their ids."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_prompt(self, prompt: str) -> list[int]:
        """``<bos>``, the prompt and a newline, tokenised jointly as transformers does.

        Raises
        ------
        InputError
            If the prompt spells a control token: it would end or forge what the model reads.
        """
        ids = self.encode(f"{prompt}\n")
        if self._control & set(ids):
            raise InputError(
                f"the prompt {prompt!r} spells a control token (<bos>, <eos>, <pad> or <image>); "
                "leave it out"
            )
        return [self.vocabulary.bos, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text: loc and seg tokens spelled out, control tokens left out."""
        kept = [token for token in ids if token not in self._control]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=False)
        return text

    def is_separator(self, token: int) -> bool:
        """Whether a token is written with a ``;``."""
        return ";" in (self._tokenizer.id_to_token(token) or "")

    @cached_property
    def label_tokens(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Tokens that may begin a free label, and those that may go on with one.

        Left out is what could be read as something else: separators, line breaks, control
        characters, anything with ``<``, tokens of a single low byte.
        """
        first, later = [], []
        for token, number in self._tokenizer.get_vocab(with_added_tokens=False).items():
            byte = len(token) == 6 and token.startswith("<0x")
            if byte and int(token[3:5], 16) >= 0x80:
                later.append(number)
            if byte or any(mark in token for mark in _BREAKERS) or not token.isprintable():
                continue
            if self.vocabulary.is_special(number) or number in self._control:
                continue
            later.append(number)
            if token.startswith(_SPACE) and token.strip(_SPACE):
                first.append(number)
        return np.array(sorted(first), np.int64), np.array(sorted(later), np.int64)
