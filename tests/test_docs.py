"""Run the code and check the links of the docs."""

import contextlib
import doctest
import importlib
import importlib.util
import io
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import palidecode
from palidecode import cli, ray_data, serve
from palidecode.cli import main

ROOT = Path(__file__).parents[1]
COMMANDS = rf"`?palidecode ({'|'.join(sorted(cli.COMMANDS, reverse=True))})\b"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
REFERENCE = ROOT / "docs" / "reference"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
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


SMALLER = {
    "--count 360": "--count 12",
    "--count 200": "--count 4",
    "--count 600": "--count 6",
    "--batch-size 16 --steps 600": "--batch-size 2 --steps 4",
}
"""Numbers of the page that trains, and those of its test."""


@pytest.mark.parametrize(
    ("page", "written"),
    [
        pytest.param(
            "your_own_classes.md",
            ("adapter/adapter_model.safetensors", "adapter/index.html", "comparison/index.html"),
            marks=pytest.mark.slow,
        ),
        ("to_label_studio.md", ("page/index.html", "tasks.json", "tasks.json.config.xml")),
        ("folder_to_yolo.md", ("page/index.html", "dataset/data.yaml", "dataset/images")),
    ],
)
def test_the_commands_of_a_job_run(page, written, tmp_path):
    """As in a clone: one shell runs all blocks, and stops at the first exit code that isn't 0."""
    for folder in ("palidecode", "training"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    text = (ROOT / "docs" / page).read_text()
    for large, small in SMALLER.items():
        assert page != "your_own_classes.md" or large in text
        text = text.replace(large, small)
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euc", "".join(blocks)], cwd=tmp_path, env=os.environ | {"PATH": path}, check=True
    )
    for name in written:
        assert (tmp_path / name).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
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


def test_every_public_name_has_one_entry_in_the_reference():
    text = "".join(page.read_text() for page in REFERENCE.glob("*.md"))
    public = [f"palidecode.{name}" for name in palidecode.__all__]
    public += [f"palidecode.ray_data.{name}" for name in ray_data.__all__]
    public += [f"palidecode.serve.{name}" for name in serve.__all__]
    assert sorted(re.findall(r"^::: (\S+)$", text, re.M)) == sorted(public)


def test_every_command_has_its_help_in_the_reference(capsys):
    text = (REFERENCE / "command_line.md").read_text()
    shown = re.findall(r"^```help\npalidecode ?(.*)$", text, re.M)
    for command in shown:
        with pytest.raises(SystemExit) as stop:
            main([*command.split(), "--help"])
        assert stop.value.code == 0
        listed = re.findall(r"^    ([a-z-]+)(?:  |$)", capsys.readouterr().out, re.M)
        assert {f"{command} {name}".strip() for name in listed} <= set(shown)
    assert "weights fetch" in shown


def test_every_page_is_in_the_navigation():
    pages = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    docs = ROOT / "docs"
    assert sorted(pages) == sorted(str(page.relative_to(docs)) for page in docs.rglob("*.md"))


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
