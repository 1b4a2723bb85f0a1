"""Tables of objects and numbers: as text, HTML, CSV and rows."""

from __future__ import annotations

import base64
import csv
import html
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from palidecode.drawing import one_line
from palidecode.files import replacing
from palidecode.wording import aligned

Columns: TypeAlias = Mapping[str, Sequence[Any] | npt.NDArray[Any]]

_LONGEST_CELL = 40


def records(columns: Columns) -> list[dict[str, Any]]:
    """Return one dict per row."""
    values = (c.tolist() if isinstance(c, np.ndarray) else c for c in columns.values())
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def write_csv(columns: Columns, path: str | os.PathLike[str]) -> None:
    """Write a file with a header and one line per row; None and NaN are empty.

    Raises
    ------
    InputError
        If it can't be written.
    """
    with replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*map(_csv_cells, columns.values()), strict=True))


def _csv_cells(column: Sequence[Any] | npt.NDArray[Any]) -> Sequence[Any]:
    """Return the shortest text of each number: 0.9 for float32's 0.89999998."""
    if not isinstance(column, np.ndarray):
        return column
    cells: list[str] = column.astype(np.str_).tolist()
    return ["" if cell == "nan" else cell for cell in cells]


def as_text(title: str, cells: Sequence[Sequence[str]], count: int) -> str:
    """Return a title and a table; `cells` start with the head, `count` rows exist."""
    rows = [[one_line(cell, _LONGEST_CELL) for cell in row] for row in cells]
    more = count - len(rows) + 1
    return "\n".join([title, *(aligned(rows) if count else []), *_rest(more, "  ")])


def as_html(
    title: str,
    cells: Sequence[Sequence[str]],
    count: int,
    pictures: Iterable[tuple[str, Image.Image]] = (),
) -> str:
    """Return a title, named pictures and a table as HTML; see `as_text`."""
    head, *rows = (
        "".join(f"<{tag}>{html.escape(one_line(cell, _LONGEST_CELL))}</{tag}>" for cell in row)
        for tag, row in zip(["th", *["td"] * len(cells)], cells, strict=False)
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f"<div><p>{html.escape(title)}</p>{''.join(_figure(*item) for item in pictures)}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"{''.join(f'<p>{line}</p>' for line in _rest(count - len(rows)))}</div>"
    )


def _rest(more: int, indent: str = "") -> list[str]:
    return [f"{indent}… and {more:,} more"] if more > 0 else []


def _figure(name: str, picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    caption = html.escape(one_line(name))
    return (
        '<figure style="display: inline-block; margin: 0 1em 1em 0">'
        f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
