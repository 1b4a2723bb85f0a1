"""The page of ``palidecode serve``: one document without any other file.

Its content security policy allows its own script and style by hash, and requests to its own
server only, so a label that is a script stays a label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import jinja2

from palidecode.files import data_folder
from palidecode.report.embedding import digest, embedded, joined
from palidecode.version import __version__

FIRST = "scene_000005.jpg"
"""The scene that the page opens with: five objects of four kinds, all found."""

_SAMPLES = ("objects with masks", "an odd answer")


def page(info: Mapping[str, object]) -> str:
    """Render the page for a server.

    Parameters
    ----------
    info : mapping
        Facts about the server, as ``GET /v1/info`` returns them.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("palidecode", "serve"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = joined("report/shared.js", "serve/tokens.js", "serve/page.js")
    style = joined("report/page.css", "serve/page.css")
    return environment.get_template("page.html").render(
        info=info,
        version=__version__,
        script=script,
        script_hash=digest(script),
        style=style,
        style_hash=digest(style),
        data=embedded({**info, "first": FIRST, "samples": _samples()}),
    )


def _samples() -> list[dict[str, str]]:
    """Return answers to read: the bundled ones about a drawn harbour."""
    rows = (data_folder("palidecode.demo") / "answers.jsonl").read_text("utf-8").splitlines()
    return [
        {"name": name, "answer": row["output"], "scene": row["image"]}
        for name, row in zip(_SAMPLES, map(json.loads, rows), strict=True)
    ]
