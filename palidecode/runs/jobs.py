"""Jobs of a run: the interface of `PredictJob`, `DecodeJob` and `RowsJob`.

A job is a few plain options that go to every process; what works there is loaded from it once.
One process works through a job's rows in a loop (`palidecode.runs.local`), Ray's actors share
them (`palidecode.ray_data`): everything that decides a number is in the job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar

from palidecode.coco.shards import Result

Record = Mapping[str, Any]
"""A row of a Ray Dataset; values that are null are missing."""
FailedBy = Literal["image", "line"]

Item = TypeVar("Item")
Worker: TypeAlias = Callable[[Sequence[Item]], Result]
"""Works on one batch with what was loaded; the result depends on its items alone."""


class Job(Protocol[Item]):
    """A job; small enough to be sent to every process.

    Attributes
    ----------
    command : str
        Of its header.
    columns : tuple of str
        Columns of a Dataset that decide the result.
    once : bool
        No picture may come twice.
    failed_by : {"image", "line"}
        How rows that failed are listed.
    batch_size : int
        Rows that are worked on together.
    names : tuple of str
        The names that are asked for, where these are known.
    """

    command: ClassVar[str]
    once: ClassVar[bool]
    failed_by: ClassVar[FailedBy]

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    def settings(self) -> dict[str, Any]:
        """Return the options that decide a number of the output."""
        return {}

    def files(self) -> dict[str, Path]:
        """Return the files that do, by a name for messages."""
        return {}

    def info(self) -> dict[str, Any]:
        """Return the entries of the COCO file's ``info``."""
        return {}

    def item(self, record: Record) -> Item:
        """Return the item of a row of a Dataset."""

    def key(self, item: Item) -> bytes:
        """Return the key of an item: other items, or changed ones, have other keys."""

    def mended(self, item: Item) -> bool:
        """Return whether an item that failed could be used now."""
        return False

    def loading(self) -> str:
        """Return what to say before `load`; nothing where it takes no time."""
        return ""

    def load(self, threads: int | None = None) -> Worker[Item]:
        """Load what it takes; by default with as many threads as there are cores."""
