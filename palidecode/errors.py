"""The exceptions of this package.

PalidecodeError
├── ParseError      an answer with a parse issue, under ``strict=True`` (also a ValueError)
├── InputError      an argument or a file that can't be used (also a ValueError)
└── WeightsError    weights that are missing, damaged or of another layout
"""


class PalidecodeError(Exception):
    """Base of all exceptions that this package raises on purpose."""


class ParseError(PalidecodeError, ValueError):
    """An answer has a parse issue and ``strict=True`` was given."""


class InputError(PalidecodeError, ValueError):
    """An argument or an input file can't be used; the message says why and what to do."""


class WeightsError(PalidecodeError):
    """Weights are missing, damaged, or not of the expected layout."""
