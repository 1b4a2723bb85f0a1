"""The tiny model's tokenizer: PaliGemma's loc, seg and control tokens, and a few words.

Words of the scenes are one token each; everything else is spelled in letters or bytes, so that
any prompt and label can be written. Spaces are ``▁`` as in Gemma's.
"""

from __future__ import annotations

import string

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from palidecode.vocab import CONTROL_TOKENS, LOC_COUNT, SEG_COUNT, loc_token, seg_token
from training.scenes.draw import COLOR_NAMES
from training.scenes.shapes import CLASSES

SPACE, IMAGE = "▁", "<image>"
_VERBS = ("detect", "segment")


def build() -> tokenizers.Tokenizer:
    """Build the tokenizer; ids are control tokens, words, letters, bytes, loc, seg, image."""
    eos, pad, bos = CONTROL_TOKENS
    control = [pad, eos, bos, "<unk>"]
    words = [*_VERBS, *(SPACE + word for word in (";", *COLOR_NAMES, *_class_words()))]
    letters = ["\n", SPACE, *string.ascii_letters, *string.digits, *string.punctuation]
    pieces = [(token, 0.0) for token in control]
    pieces += [(word, -1.0) for word in words]
    pieces += [(letter, -10.0) for letter in letters]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in control[:3]])
    bins = [loc_token(index) for index in range(LOC_COUNT)]
    codes = [seg_token(index) for index in range(SEG_COUNT)]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in bins + codes])
    tokenizer.add_special_tokens([AddedToken(IMAGE, normalized=False)])
    return tokenizer


def _class_words() -> list[str]:
    return sorted({word for name in CLASSES for word in name.split()})
