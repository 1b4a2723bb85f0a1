"""``palidecode grammar``: write the grammar of a prompt's answers for other servers."""

from __future__ import annotations

import argparse

from palidecode.cli.options import fill
from palidecode.cli.output import DONE
from palidecode.files import replacing
from palidecode.pipeline import GrammarOptions
from palidecode.pipeline.lark import lark_grammar


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode grammar``."""
    text = lark_grammar(
        args.prompt,
        fill(GrammarOptions, args),
        model=args.model,
        tokenizer=args.tokenizer,
        any_corners=args.any_corners,
    )
    with replacing(args.output) as file:
        file.write(text)
    return DONE
