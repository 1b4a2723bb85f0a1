"""The page of ``palidecode serve``: one self-contained file."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any


def page(info: Mapping[str, Any]) -> str:
    """Return the page; `info` is that of ``GET /v1/info``."""
    name = "no model" if info["model"] is None else info["model"]["name"]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>palidecode</title>"
        f"<p>palidecode {escape(info['version'])} serves {escape(name)}: "
        "<a href=/v1/info>/v1/info</a>"
    )
