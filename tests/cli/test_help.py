"""`palidecode --help` and the help of every command."""

import subprocess
import sys

import pytest

from palidecode.cli import COMMANDS, build_parser

SLOW_TO_IMPORT = {"torch", "ray", "pyarrow", "transformers", "matplotlib", "onnxruntime"}


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
