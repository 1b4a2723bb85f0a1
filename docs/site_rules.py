"""The site's own rules, which `mkdocs.yml` names: links, command help, grouped parameters."""

from __future__ import annotations

import html
import io
import logging
import os
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from xml.etree.ElementTree import Element

import griffe
from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor
from zensical.extensions.context import ContextPreprocessor

from palidecode.cli import main

DOCS = Path(__file__).parent


class Links(Treeprocessor):
    """Check relative links; turn those that leave docs/ into links to the repository."""

    def run(self, root: Element) -> None:
        context = ContextPreprocessor.from_markdown(self.md)
        page, config = DOCS / context.page.path, context.config
        for link in root.iter("a"):
            target = urlsplit(link.get("href", ""))
            if target.scheme or target.netloc or not target.path:
                continue
            file = (page.parent / target.path).resolve()
            if not file.exists():
                name = page.relative_to(DOCS.parent)
                raise FileNotFoundError(f"{name}: no file for the link {target.geturl()!r}")
            if not file.is_relative_to(DOCS):
                base = f"{config['repo_url'].rstrip('/')}/{config['edit_uri'].strip('/')}/"
                link.set("href", urljoin(urljoin(base, context.page.path), target.geturl()))


class Refuse(logging.Handler):
    """Make mkdocstrings' and griffe's warnings errors: ``--strict`` doesn't count them."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError(record.getMessage())


class GroupedParameters(griffe.Extension):
    """Give parameters that share an entry (``match, aliases``) their own types and defaults."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        for section in func.docstring.parsed if func.docstring else ():
            if section.kind is not griffe.DocstringSectionKind.parameters:
                continue
            for entry in section.value:
                if entry.name in func.parameters:
                    own = func.parameters[entry.name]
                    others = (other.annotation for other in func.parameters)
                    if any(entry.annotation is annotation for annotation in others):
                        entry.annotation = own.annotation
                    entry.value = own.default


class SiteRules(Extension):
    """The extension that mkdocs.yml names."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.treeprocessors.register(Links(md), "links", 15)


logging.getLogger("mkdocs").addHandler(Refuse(logging.WARNING))


def makeExtension(**options: Any) -> Extension:
    return SiteRules(**options)


def show_help(source: str, *_: Any, **__: Any) -> str:
    """Render the help of the command in a ```` ```help ```` block."""
    os.environ["COLUMNS"] = "88"
    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        main([*source.split()[1:], "--help"])
    return f"<pre><code>{html.escape(printed.getvalue())}</code></pre>"
