"""Length of prefixes in tokens: every row pays for its prefix, and some trainers cut it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

LONGEST = 512
"""Tokens of a prefix; longer ones are worth a warning."""
_LETTERS = 3  # per token: 2.5 in rare names such as LVIS's, 4 in everyday ones


@dataclass
class PrefixLengths:
    """Counts prefixes of more than `LONGEST` tokens.

    Attributes
    ----------
    count : callable, optional
        Number of tokens of a text. Without it the number is estimated, a token for three letters.
    rows : int
        Rows with such a prefix.
    longest : int
        Tokens of the longest prefix.
    """

    count: Callable[[str], int] | None = None
    rows: int = 0
    longest: int = 0
    _known: dict[str, int] = field(default_factory=dict)

    def add(self, prefix: str) -> None:
        """Add the prefix of a row."""
        if prefix not in self._known:
            if len(self._known) > LONGEST:
                self._known.clear()
            count = self.count or (lambda text: math.ceil(len(text) / _LETTERS))
            self._known[prefix] = count(prefix)
        tokens = self._known[prefix]
        self.rows += tokens > LONGEST
        self.longest = max(self.longest, tokens)

    def warning(self) -> str:
        """Return the warning about long prefixes; "" without any."""
        if not self.rows:
            return ""
        known = "counted" if self.count else "estimated from its length; --tokenizer FILE counts"
        return (
            f"warning: prefixes of more than {LONGEST} tokens: {self.rows}, the longest has "
            f"{self.longest:,} ({known}); --classes present+absent and --categories ask for fewer"
        )

    def as_dict(self) -> dict[str, object]:
        """Convert to JSON values."""
        return {
            "over_512": self.rows,
            "longest": self.longest,
            "counted": self.count is not None,
        }
