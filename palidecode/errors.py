"""The exception tree.

PalidecodeError
├── ParseError      an answer that ``strict=True`` refuses (also a ValueError)
├── InputError      an argument or a file that can't be used (also a ValueError)
└── WeightsError    weights that are missing, damaged or of another layout
"""


class PalidecodeError(Exception):
    """Base of everything this package raises on purpose."""


class ParseError(PalidecodeError, ValueError):
    """An answer has an oddity and ``strict=True`` was asked for."""


class InputError(PalidecodeError, ValueError):
    """An argument or an input file can't be used; the message names it and the way out."""


class WeightsError(PalidecodeError):
    """Weights are missing, damaged, or not of the expected layout."""
