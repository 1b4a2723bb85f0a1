"""What the docs say is run, and is there."""

import contextlib
import doctest
import importlib
import importlib.util
import io
import pkgutil
import re
from pathlib import Path

import pytest

import palidecode
from palidecode.cli import main

ROOT = Path(__file__).parents[1]
COMMANDS = (
    r"`?palidecode (predict|decode|draw|weights|demo|encode|evaluate-referring|evaluate|compare)\b"
)
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for block in blocks:
            exec(compile(block, str(page), "exec"), names)
    for block in blocks:
        for said in re.findall(r"print\(.*\)\s+# (.+)$", block, re.M):
            first = said.split("  ")[0]
            if not first.startswith(("boxes in", "cat (")):
                assert first in printed.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page, capsys):
    for command in re.findall(COMMANDS, page.read_text()):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
    helped = capsys.readouterr().out
    for command, rest in re.findall(COMMANDS + r"([^\n`]*)", page.read_text()):
        line = f"{command}{rest}"
        for option in re.findall(r"--[a-z-]+", line):
            assert option in helped, line


def test_the_api_page_is_what_the_docstrings_say():
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    make_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_api)
    assert (ROOT / "docs" / "api.md").read_text() == make_api.page(), "run: python docs/make_api.py"
    assert {name for names in make_api.GROUPS.values() for name in names} == set(palidecode.__all__)


def modules_with_examples():
    for found in pkgutil.walk_packages(palidecode.__path__, "palidecode."):
        source = Path(importlib.util.find_spec(found.name).origin)
        if ">>> " in source.read_text():
            yield found.name


@pytest.mark.parametrize("name", sorted(modules_with_examples()))
def test_examples_in_docstrings_run(name, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
