"""The exceptions of this package, and the place that its warnings name.

PalidecodeError
├── ParseError      an answer with a parse issue, under ``strict=True`` (also a ValueError)
├── InputError      an argument or a file that can't be used (also a ValueError)
├── WeightsError    weights that are missing, damaged or of another layout
└── ServerError     a server that answers prompts is gone, refuses, or sends something else
"""

from __future__ import annotations

import sys
import warnings


class PalidecodeError(Exception):
    """Base of all exceptions that this package raises on purpose."""


class ParseError(PalidecodeError, ValueError):
    """An answer has a parse issue and ``strict=True`` was given."""


class InputError(PalidecodeError, ValueError):
    """An argument or an input file can't be used; the message says why and what to do."""


class WeightsError(PalidecodeError):
    """Weights are missing, damaged, or not of the expected layout."""


class ServerError(PalidecodeError):
    """A server that answers prompts is gone, refuses, or sends something else."""


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called this package, however many of its functions lie between."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "palidecode":
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)
