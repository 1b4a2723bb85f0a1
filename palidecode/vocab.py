"""Loc and seg tokens: their number, spelling and ids.

The only module with these numbers. Source: the PaliGemma tokenizer, where
``<loc0000>`` is id 256,000 and ``<seg000>`` is id 257,024.
"""

from __future__ import annotations

from dataclasses import dataclass

LOC_COUNT = 1024
SEG_COUNT = 128
LOC_PER_BOX = 4
SEG_PER_MASK = 16
SEG_GRID = 4
"""The sixteen codes are a 4×4 grid, row by row."""
MASK_SIDE = 64
"""Side of the field a mask is decoded to."""

CONTROL_TOKENS = ("<eos>", "<pad>", "<bos>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Token ids of one tokenizer; the defaults are PaliGemma's (1 and 2).

    Attributes
    ----------
    loc_offset, seg_offset : int
        Ids of ``<loc0000>`` and ``<seg000>``; the others follow in order.
    pad, eos, bos : int
        Ids of the control tokens.
    """

    loc_offset: int = 256_000
    seg_offset: int = 257_024
    pad: int = 0
    eos: int = 1
    bos: int = 2

    def is_loc(self, token: int) -> bool:
        """True for ids of loc tokens."""
        return 0 <= token - self.loc_offset < LOC_COUNT

    def is_special(self, token: int) -> bool:
        """True for ids of loc, seg and control tokens; negative ids count as padding."""
        return (
            token < 0
            or self.is_loc(token)
            or 0 <= token - self.seg_offset < SEG_COUNT
            or token in (self.pad, self.eos, self.bos)
        )


PALIGEMMA = Vocabulary()


def loc_token(index: int) -> str:
    """Spell a location bin: ``loc_token(7)`` is ``"<loc0007>"``."""
    return f"<loc{index:04d}>"


def seg_token(index: int) -> str:
    """Spell a mask code: ``seg_token(7)`` is ``"<seg007>"``."""
    return f"<seg{index:03d}>"


LOC_BINS = {loc_token(index): index for index in range(LOC_COUNT)}
"""Spelling to bin."""

SEG_CODES = {seg_token(index): index for index in range(SEG_COUNT)}
"""Spelling to mask code."""
