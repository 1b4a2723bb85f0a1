"""Text for the terminal: nothing that comes from a file can steer it."""

from __future__ import annotations

import json
import sys
from unicodedata import category

_JOINERS = "\u200c\u200d"  # within words and emoji


def escaped(text: str) -> str:
    r"""Return text with control, direction and other invisible characters as JSON escapes.

    ``"\x1b]0;"`` becomes ``\u001b]0;``, a line break ``\n``. The text of a JSON document keeps its
    meaning. Idempotent.
    """
    if text.isprintable():
        return text
    return "".join(char if _harmless(char) else json.dumps(char)[1:-1] for char in text)


def message(text: str) -> None:
    """Print a line on stderr."""
    print(f"palidecode: {escaped(text)}", file=sys.stderr)


def _harmless(char: str) -> bool:
    return char.isprintable() or category(char) == "Zs" or char in _JOINERS
