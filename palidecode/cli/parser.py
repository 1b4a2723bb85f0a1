"""The parser of a command: short usage, examples, and errors of one line that suggest."""

from __future__ import annotations

import argparse
import difflib
import sys
import textwrap
from collections.abc import Collection, Sequence
from typing import NoReturn

from palidecode.cli.terminal import escaped

_FAILED = 2
_NEAR = 0.7  # of 1, which is equal


class Formatter(argparse.HelpFormatter):
    """Wraps text of one line, and keeps the lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return textwrap.indent(text, indent)
        return super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """An argument parser; an error is the line that matters, and where to find help."""

    def __init__(self, **settings: object) -> None:
        super().__init__(formatter_class=Formatter, **settings)  # type: ignore[arg-type]
        self._given: Sequence[str] = ()

    def format_usage(self) -> str:
        """Return what a command needs; the other options stand in its help."""
        formatter = self._get_formatter()
        formatter.add_usage(self._short_usage(), [], [])
        return formatter.format_help()

    def format_help(self) -> str:
        """Return the help with the short usage."""
        self.usage = self._short_usage()
        return super().format_help()

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the arguments of a command, all of which it must know."""
        self._given = sys.argv[1:] if args is None else args
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unexpected: {' '.join(rest)}")
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        """Print the one line that matters and a pointer to the help, and exit with 2."""
        message = self._unknown_option() or message
        self.exit(_FAILED, f"{self.prog}: {escaped(message)}\nSee: {self.prog} --help\n")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            text = f"{value} is none of {', '.join(known)}{suggestion(str(value), known)}"
            raise argparse.ArgumentError(action, text)

    def _unknown_option(self) -> str:
        """Return the message for the first option that isn't one; "" without any."""
        known = self._option_string_actions
        for text in self._given:
            option = text.partition("=")[0]
            if text == "--":
                break
            if option.startswith("--") and not any(name.startswith(option) for name in known):
                return f"no option {option}{suggestion(option, known)}"
        return ""

    def _short_usage(self) -> str:
        needed = [action for action in self._actions if action.required]
        needed += [action for action in self._get_positional_actions() if not action.required]
        formatter = self._get_formatter()
        formatter.add_usage(None, needed, [], prefix="")
        others = " [options]" if len(self._actions) > len(needed) else ""
        return f"{' '.join(formatter.format_help().split())}{others}"


def suggestion(given: str, known: Collection[str], meant: str | None = None) -> str:
    """Return ``; did you mean …?``, or "" where nothing is near."""
    near = {name: max(_ratio(given, name), _ratio(given, name[: len(given)])) for name in known}
    best = meant or max(near, key=near.__getitem__, default="")
    return f"; did you mean {best}?" if meant or near.get(best, 0) >= _NEAR else ""


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
