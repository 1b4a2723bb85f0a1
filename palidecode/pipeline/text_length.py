"""The text length that a checkpoint was trained with: tokens of prompt and answer together."""

from __future__ import annotations

import re
from pathlib import Path

from palidecode.errors import warn
from palidecode.files import read_json
from palidecode.runtime.generate import POSITIONS

_TRAINED = {"pt": {"224": 128, "448": 512, "896": 512}, "mix": {"224": 256, "448": 512}}
"""By stage and image size (source: big_vision's README of PaliGemma). Those of checkpoints that
were transferred to one task (``ft``) differ from task to task, and aren't known."""
_NAME = re.compile(r"paligemma2?-\d+b-(pt|mix)-(\d{3})(?!\d)", re.IGNORECASE)
_HUB = "models--"  # a folder of the hub's cache


class LongTextWarning(UserWarning):
    """A prompt and its answer are longer than the text that the model was trained with."""


class TextLength:
    """The text length of a model, and a warning, given once, about longer texts.

    Parameters
    ----------
    known : int, optional
        Tokens of prompt and answer; None where nothing tells.
    """

    def __init__(self, known: int | None = None) -> None:
        self.known = known
        self._warned = False

    def check(self, prompt: int, answer: int) -> None:
        """Warn if a prompt and its answer, in tokens, are longer; once."""
        if self.known is None or self._warned or prompt + answer <= self.known:
            return
        self._warned = True
        warn(
            f"a prompt of {prompt} tokens and its answer of {answer} are more than the "
            f"{self.known} that the model was trained with: ask for fewer names at a time, or "
            "expect worse answers",
            LongTextWarning,
        )


def text_length(path: Path, notes: Path, config: Path) -> int | None:
    """Return the text length that a checkpoint was trained with; None where nothing tells.

    Parameters
    ----------
    path : Path
        Of the whole model; the last to be asked, for the name of one of Google's checkpoints.
    notes : Path
        Its ``palidecode.json``, whose ``text_length`` goes first.
    config : Path
        Its ``tokenizer_config.json``, with a ``model_max_length`` that is a length at all.
    """
    for file, key in ((notes, "text_length"), (config, "model_max_length")):
        found = _number(file, key)
        if found is not None:
            return found
    folders = [part for part in path.parts if part.startswith(_HUB)]
    for name in (path.name, *folders):
        match = _NAME.search(name)
        if match is not None:
            return _TRAINED[match[1].lower()].get(match[2])
    return None


def _number(file: Path, key: str) -> int | None:
    data = read_json(file) if file.exists() else None
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, int) and 0 < value <= POSITIONS else None
