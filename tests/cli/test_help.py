"""`palidecode --help` and the help of every command."""

import argparse
import subprocess
import sys

import pytest

from palidecode.cli import COMMANDS, build_parser

SLOW_TO_IMPORT = {"torch", "ray", "pyarrow", "transformers", "matplotlib", "onnxruntime"}


def subcommands(parser):
    """Return the parsers of a parser's commands by name; none if it has no commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


def options_of(command):
    """Yield every option of a command, and of its actions."""
    parser = subcommands(build_parser(command))[command]
    for each in (parser, *subcommands(parser).values()):
        yield from (a for a in each._actions if not isinstance(a, argparse._SubParsersAction))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_with_its_default(command):
    options = list(options_of(command))
    assert len(options) > 1
    for option in options:
        assert option.help, option.option_strings
        if option.option_strings and option.default not in (None, False, [], argparse.SUPPRESS):
            assert "default" in option.help, option.option_strings


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_printed(command, capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser(command).parse_args([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: palidecode {command} " in capsys.readouterr().out


def loaded_by(code):
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_list_of_commands_is_light():
    loaded = loaded_by("from palidecode.cli import build_parser; build_parser()")
    assert not loaded & {*SLOW_TO_IMPORT, "numpy", "PIL"}


def test_options_are_light():
    code = f"from palidecode.cli import build_parser\nfor name in {[*COMMANDS]}: build_parser(name)"
    assert not loaded_by(code) & SLOW_TO_IMPORT
