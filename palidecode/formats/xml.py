"""XML with indents, written and read by the standard library."""

from __future__ import annotations

import math
import os
import re
from xml.etree import ElementTree as ET

from palidecode.errors import InputError
from palidecode.files import check_size, regular

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def legal(value: object) -> str:
    """Return a value as text; characters that XML can't hold become U+FFFD."""
    return _FORBIDDEN.sub("\ufffd", str(value))


def add(parent: ET.Element, tag: str, text: object = None, **attributes: object) -> ET.Element:
    """Add an element with a text and attributes, and return it."""
    node = ET.SubElement(parent, tag, {name: legal(value) for name, value in attributes.items()})
    if text is not None:
        node.text = legal(text)
    return node


def xml_text(root: ET.Element) -> str:
    """Return the text of a document, without a declaration, which not every reader takes."""
    ET.indent(root)
    return f"{ET.tostring(root, encoding='unicode')}\n"


def read_xml(path: str | os.PathLike[str]) -> ET.Element:
    """Read a document; an `InputError` names the file."""
    try:
        return ET.fromstring(regular(path).read_bytes())
    except (OSError, ET.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path}: can't be read as XML: {error}") from error


def text_in(node: ET.Element, path: str) -> str | None:
    """Return the text of an element below; None without one."""
    return (node.findtext(path) or "").strip() or None


def number_in(node: ET.Element, path: str) -> float | None:
    """Return the number in an element below; None without a finite one."""
    return number(node.findtext(path))


def number(text: str | None) -> float | None:
    """Return a text as a finite number; None for anything else."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def sides(width: float, height: float, where: object) -> tuple[int, int]:
    """Return a picture's size in whole pixels; an `InputError` says where it is none."""
    try:
        return check_size((int(width), int(height)))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
