"""``palidecode serve``: a model over HTTP, and its page."""

from __future__ import annotations

import argparse
import os

from palidecode.cli.options import fill
from palidecode.cli.output import DONE, Output
from palidecode.errors import InputError
from palidecode.pipeline import ModelOptions, PaliDecoder

NO_MODEL = "none"


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode serve``."""
    try:
        from palidecode.serve.server import serve
        from palidecode.serve.settings import LOOPBACK, Settings
    except ImportError as error:
        raise InputError(f"serve needs {error.name}: pip install 'palidecode[serve]'") from error
    output = fill(Output, args)
    settings = fill(
        Settings,
        args,
        allow_origin=tuple(args.allow_origin),
        label_studio_key=os.environ.get("LABEL_STUDIO_API_KEY"),
    )

    if settings.host not in LOOPBACK and settings.api_key is None:
        output.note(
            f"anyone who reaches {settings.host} may ask this server; --api-key asks for a key"
        )

    def load() -> PaliDecoder | None:
        if args.model == NO_MODEL:
            return None
        return PaliDecoder.from_options(fill(ModelOptions, args), adapters=_adapters(args.adapters))

    def started(address: str, decoder: PaliDecoder | None) -> None:
        what = "no model" if decoder is None else f"{args.model} ({decoder.engine.name})"
        output.result(
            {"address": address, "model": None if decoder is None else args.model},
            [f"palidecode serves {what} at {address}", "Ctrl-C stops it"],
        )

    serve(load, settings, started, open_browser=args.open, log=not args.quiet)
    return DONE


def _adapters(given: list[str]) -> dict[str, str]:
    adapters: dict[str, str] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder) or name in adapters:
            raise InputError(f"--adapter {text}: give NAME=DIR, each name once")
        adapters[name] = folder
    return adapters
