"""The grammar of a prompt's answers, for servers that constrain answers with llguidance."""

from __future__ import annotations

import os
from pathlib import Path

from palidecode.errors import InputError
from palidecode.pipeline.checkpoint import find, tokenizer_path
from palidecode.prompts import asked_names
from palidecode.runtime.grammar import Grammar
from palidecode.runtime.lark import lark_of_ids, lark_of_text
from palidecode.runtime.options import GrammarOptions
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.vocab import PALIGEMMA


def lark_grammar(
    prompt: str,
    options: GrammarOptions | None = None,
    *,
    model: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    any_corners: bool = False,
) -> str:
    """Write the grammar of the answers to a prompt in llguidance's dialect of Lark.

    Loc and seg tokens are named by their ids. With a tokenizer labels and separators are, too,
    and the grammar accepts the same tokens as `PaliDecoder` does; without one they are text, and
    it accepts the same answers in any tokens that spell them.

    Parameters
    ----------
    prompt : str
        ``"detect cat ; dog"``, ``"segment cat"``.
    options : GrammarOptions, optional
        Answers may have the same object twice, whatever `repeats` says: a grammar has no memory
        of what was written. The limit on tokens is the server's.
    model : str or path, optional
        Model whose tokenizer is used; see `PaliDecoder.from_pretrained`.
    tokenizer : str or path, optional
        A ``tokenizer.json``.
    any_corners : bool
        Accept any four loc tokens as a box: a grammar of a few lines, also for versions of
        llguidance without parametric rules. Boxes that end before they begin are left to
        `parse`, which lists them.

    Returns
    -------
    str

    Raises
    ------
    InputError
        For prompts without a verb, a tokenizer that can't be used, and free labels without one.
    """
    options = options or GrammarOptions()
    asked = asked_names(prompt)
    if asked is None:
        raise InputError(f"{prompt!r} has no grammar: only detect and segment prompts do")
    task, names = asked
    if model is None and tokenizer is None:
        masks = task == "segment"
        return lark_of_text(masks, names, options, PALIGEMMA, any_corners=any_corners)
    if tokenizer is not None:
        path = Path(tokenizer)
    else:
        assert model is not None
        path = tokenizer_path(find(model), None)
    grammar = Grammar.of(Tokenizer.from_file(path), prompt, options)
    assert grammar is not None
    return lark_of_ids(grammar, any_corners=any_corners)
