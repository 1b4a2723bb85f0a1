"""`palidecode --help`, the help of every command, its examples, and errors of arguments."""

import argparse
import re
import shlex
import subprocess
import sys
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from palidecode.answers.scoring import DEFAULT_SCORE
from palidecode.cli import COMMANDS, build_parser, main
from palidecode.cli.draw import _Style
from palidecode.cli.progress import ProgressLines
from palidecode.coco.writing import CocoOptions, MaskFormat
from palidecode.evaluation.coco.evaluate import EvaluateOptions
from palidecode.evaluation.coco.result import NUMBERS
from palidecode.evaluation.referring.evaluate import DIVISOR, SCORES
from palidecode.finetune.objects import RowOptions
from palidecode.pipeline import AskOptions, ModelOptions
from palidecode.pipeline.checkpoint import DTYPES
from palidecode.runs.answers import DecodeOptions
from palidecode.runs.pictures import PredictOptions

HEAVY = {"numpy", "PIL", "torch", "ray", "pyarrow", "transformers", "matplotlib", "onnxruntime"}
ACTIONS = [f"weights {action}" for action in ("list", "fetch", "verify", "convert")]


def subcommands(parser):
    """Return the parsers of a parser's commands by name; none if it has no commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


def parser_of(command):
    first, *rest = command.split()
    parser = subcommands(build_parser(first))[first]
    return subcommands(parser)[rest[0]] if rest else parser


def options_of(command):
    """Yield every option of a command, and of its actions."""
    parser = parser_of(command)
    for each in (parser, *subcommands(parser).values()):
        yield from (a for a in each._actions if not isinstance(a, argparse._SubParsersAction))


def help_of(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_with_its_default(command):
    options = list(options_of(command))
    assert len(options) > 1
    for option in options:
        assert option.help, option.option_strings
        if option.option_strings and option.default not in (None, False, [], argparse.SUPPRESS):
            assert "default" in option.help, option.option_strings


@pytest.mark.parametrize("command", [*COMMANDS, *ACTIONS])
def test_help_fits_80_columns_and_ends_with_examples(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(command, capsys)
    assert text.startswith(f"usage: palidecode {command} ")
    assert max(map(len, text.splitlines())) <= 80
    head, _, examples = text.rpartition("\n\nExamples:\n")
    assert "[--" not in head.partition("\n\n")[0]  # the usage is short
    for example in examples.replace("\\\n", "").strip().splitlines():
        program, *words = shlex.split(example.partition(" > ")[0])
        assert program == "palidecode"
        assert " ".join(words).startswith(command)
        assert build_parser(words[0]).parse_args(words)


def test_help_of_the_program_names_commands_and_exit_codes(capsys):
    text = help_of("", capsys)
    assert all(f"    {name}" in text for name in COMMANDS)
    assert "1        finished, but look: input was skipped" in text
    assert "Examples:\n  palidecode demo\n" in text


def test_without_arguments_a_short_guide_is_printed(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 12
    for line in re.findall(r"^  (palidecode .*)$", text, re.M):
        words = shlex.split(line.partition("   ")[0])[1:]
        assert build_parser(words[0]).parse_args(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("detect", "no command 'detect'; did you mean predict?"),
        ("evalute", "no command 'evalute'; did you mean evaluate?"),
        ("xyz", "no command 'xyz'"),
        ("predict x --modl y", "no option --modl; did you mean --model?"),
        ("decode x --bach 3", "no option --bach; did you mean --batch-size?"),
        ("decode x --zzz", "no option --zzz"),
        ("predict x", "the following arguments are required: --model, -o/--output"),
        ("predict x --model y -o z --dtype bfloat", "did you mean bfloat16?"),
        ("weights lst", "lst is none of list, fetch, verify, convert; did you mean list?"),
        ("evaluate a b c", "unexpected: c"),
        ("draw a -o b --text", "argument --text: expected one argument"),
    ],
)
def test_an_argument_error_is_one_line_and_a_pointer(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2
    line, pointer = capsys.readouterr().err.splitlines()
    assert line.endswith(said)
    assert re.fullmatch(r"See: palidecode( \w+)? --help", pointer)


CHOICES = {
    "predict": (PredictOptions, ModelOptions, AskOptions, MaskFormat),
    "decode": (DecodeOptions, CocoOptions, MaskFormat),
    "draw": (DecodeOptions, MaskFormat, _Style),
    "encode": (RowOptions,),
    "evaluate": (EvaluateOptions,),
    "compare": (EvaluateOptions,),
}


@pytest.mark.parametrize("command", CHOICES)
def test_choices_and_defaults_are_those_of_the_options(command):
    """They are written out in the command line, which imports nothing heavy."""
    options = {option.dest: option for option in options_of(command)}
    compared = set()
    for cls in CHOICES[command]:
        for name, hint in get_type_hints(cls).items():
            literal = next((h for h in (hint, *get_args(hint)) if get_origin(h) is Literal), None)
            if name in options and literal is not None:
                assert set(options[name].choices) == set(get_args(literal)), name
                compared.add(name)
    assert compared


def test_numbers_of_min_and_other_constants_are_those_of_the_library():
    named = {name: {o.dest: o for o in options_of(name)} for name in COMMANDS}
    for name, numbers in (
        ("evaluate", NUMBERS),
        ("evaluate-referring", SCORES),
    ):
        assert named[name]["min"].help.endswith(f"Numbers: {', '.join(numbers)}")
    assert named["evaluate-referring"]["divisor"].default == DIVISOR
    assert named["predict"]["dtype"].choices == DTYPES
    assert named["predict"]["score"].default == DEFAULT_SCORE
    assert named["decode"]["batch_size"].default == DecodeOptions().batch_size
    assert named["encode"]["absent"].default == RowOptions().absent
    assert named["decode"]["paste"].default == MaskFormat().paste


def loaded_by(code):
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_options_are_light():
    code = f"from palidecode.cli import build_parser; build_parser(*{[*COMMANDS]})"
    assert not loaded_by(code) & HEAVY


def test_completion_scripts_are_printed(capsys):
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert "evaluate-referring" in script
        assert "max-new-tokens" in script


def test_progress_in_a_log_is_a_line_every_half_minute(capsys):
    now = 0.0
    with ProgressLines("detecting", 100, "pictures", lambda: now) as progress:
        for _ in range(100):
            now += 1.0
            progress.update(1)
    assert capsys.readouterr().err.splitlines() == [
        "palidecode: detecting: 30 of 100 pictures, 1/s, 0:01:10 left",
        "palidecode: detecting: 60 of 100 pictures, 1/s, 0:00:40 left",
        "palidecode: detecting: 90 of 100 pictures, 1/s, 0:00:10 left",
    ]


def test_bash_completes_commands_options_and_choices(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    for words, wanted in (
        (["pre"], {"predict"}),
        (["decode", "--sim"], {"--simplify"}),
        (["draw", "--paste", ""], {"subpixel", "big_vision"}),
    ):
        code = f"""source {tmp_path}/script
            COMP_WORDS=(palidecode {shlex.join(words)}) COMP_CWORD={len(words)}
            $(complete -p palidecode | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
            printf '%s\\n' "${{COMPREPLY[@]}}" """
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) == wanted, done.stderr
