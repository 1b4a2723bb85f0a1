"""Arrow tables of `palidecode.runs.rows`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from palidecode.runs.rows import Row

if TYPE_CHECKING:
    import pyarrow as pa


def row_schema() -> pa.Schema:
    """Return the columns; their meaning is that of `palidecode.runs.rows`."""
    import pyarrow as pa

    rle = pa.struct({"size": pa.list_(pa.int64()), "counts": pa.string()})
    issue = {"kind": pa.string(), "start": pa.int64(), "stop": pa.int64(), "text": pa.string()}
    return pa.schema(
        {
            "image": pa.string(),
            "width": pa.int64(),
            "height": pa.int64(),
            "boxes": pa.list_(pa.list_(pa.float64())),
            "labels": pa.list_(pa.string()),
            "scores": pa.list_(pa.float64()),
            "codes": pa.list_(pa.string()),
            "rles": pa.list_(rle),
            "issues": pa.list_(pa.struct(issue)),
            "reason": pa.string(),
        }
    )


def to_table(rows: Iterable[Row]) -> pa.Table:
    """Return rows as an Arrow table."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), row_schema())
