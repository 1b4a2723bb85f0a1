"""Scripts, styles and data inside a page, so that it loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import json

from markupsafe import Markup

from palidecode.files import data_folder


def joined(*names: str) -> Markup:
    """Return files of the package, such as ``report/page.css``, one after the other."""
    folder = data_folder("palidecode")
    return Markup("\n".join((folder / name).read_text("utf-8").strip() for name in names))


def digest(text: str) -> str:
    """Return the hash by which a content security policy allows a script or a style."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def embedded(data: object) -> Markup:
    """Write JSON that can't close the element that contains it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))
