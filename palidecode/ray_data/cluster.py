"""Connection to Ray, which is imported when it is used, and the number of workers that fit."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from palidecode.cores import cores
from palidecode.errors import InputError, warn

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy, Dataset

LOCAL = "local"
_THREADS = ("StreamingExecutor", "iter_threaded")  # names of Ray Data's threads
_PATIENCE = 60  # seconds that they may take to end


@dataclass(frozen=True)
class Workers:
    """Number of actors, and the resources of each.

    Attributes
    ----------
    concurrency : int or (int, int), optional
        Number of actors, or the smallest and the largest number of a pool that grows with the
        cluster. By default as many as fit, with one CPU left for reading.
    num_cpus, num_gpus : float
        Of each. A CPU worker computes in ``num_cpus`` threads.
    """

    concurrency: int | tuple[int, int] | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        few, many = self._bounds() or (1, 1)
        if not 1 <= few <= many:
            raise InputError(f"concurrency must be at least 1, got {self.concurrency}")
        if self.num_cpus <= 0 or self.num_gpus < 0:
            raise InputError(
                f"a worker needs num_cpus above 0 and num_gpus from 0, got {self.num_cpus} and "
                f"{self.num_gpus}"
            )

    @property
    def threads(self) -> int:
        """Number of threads that a worker computes in."""
        return max(1, int(self.num_cpus))

    def strategy(self) -> ActorPoolStrategy:
        """Return the pool of actors for Ray Data."""
        from ray.data import ActorPoolStrategy

        bounds, fitting = self._bounds(), self._fitting()
        few, many = bounds or (max(1, fitting),) * 2
        if few > fitting:
            warn(
                f"{few} workers leave the readers no CPU, or don't fit at all: this waits until "
                f"the cluster grows; {fitting} would fit now",
            )
        # Two shards to each actor: one that it works on, one that waits.
        return ActorPoolStrategy(min_size=few, max_size=many, max_tasks_in_flight_per_actor=2)

    def remote_args(self) -> dict[str, Any]:
        """Return what each actor asks of the scheduler."""
        asked = {"num_cpus": self.num_cpus}
        return asked | ({"num_gpus": self.num_gpus} if self.num_gpus else {})

    def _bounds(self) -> tuple[int, int] | None:
        if self.concurrency is None:
            return None
        if isinstance(self.concurrency, int):
            return self.concurrency, self.concurrency
        return self.concurrency

    def _fitting(self) -> int:
        import ray

        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        # Actors keep their CPUs: without a free one, nothing would ever be read for them.
        fitting = (there.get("CPU", 1) - 1) / self.num_cpus
        if self.num_gpus:
            fitting = min(fitting, there.get("GPU", 0) / self.num_gpus)
        return int(fitting)


def need_ray() -> None:
    """Import Ray, and start one on this machine unless the process is connected.

    Raises
    ------
    InputError
        If Ray isn't installed.
    """
    ray = _import()
    if not ray.is_initialized():
        _start(None)  # until the process ends


def gpus_there() -> bool:
    """Return whether the cluster has GPUs."""
    return bool(_import().cluster_resources().get("GPU"))


def _import() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(f"this needs {error.name}: pip install 'palidecode[ray]'") from error
    return ray


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Connect to Ray for the ``with`` block: a running one, a cluster's, or one on this machine.

    Parameters
    ----------
    address : str, optional
        ``"auto"`` finds the cluster that this machine belongs to; ``"host:port"`` and
        ``"ray://host:port"`` name one. ``"local"``, the default, starts one with a CPU more
        than there are cores, for the readers; it ends with the block. A process that is
        connected already stays connected as it is.

    Raises
    ------
    InputError
        If Ray isn't installed, or the cluster can't be reached.
    """
    ray = _import()
    if ray.is_initialized():
        yield
        return
    _start(address)
    try:
        yield
    finally:
        ray.shutdown()


def _start(address: str | None) -> None:
    import ray

    # Disable usage reporting, and silence Ray's warnings about its own start.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"address": address or LOCAL, "log_to_driver": False}
    if options["address"] == LOCAL:
        options |= {"include_dashboard": False, "num_cpus": cores() + 1}
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"no Ray at {options['address']!r}: {reason}") from error


@contextmanager
def in_order() -> Iterator[None]:
    """Make Datasets in the ``with`` block read their files in order."""
    with warnings.catch_warnings():
        # About fields of Ray's own, which it fills in itself at the first call.
        warnings.simplefilter("ignore", DeprecationWarning)
        from ray.data import DataContext

        context = DataContext.get_current()
    options = context.execution_options
    before = options.preserve_order, context.use_datasource_v2
    # Ray 2.60's new Parquet reader lists files in threads that race for an optional import.
    options.preserve_order, context.use_datasource_v2 = True, False
    try:
        yield
    finally:
        options.preserve_order, context.use_datasource_v2 = before


def ordered(dataset: Dataset) -> Dataset:
    """Return the dataset, set to yield its rows in order and to show no progress bars."""
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    return dataset


@contextmanager
def reading(dataset: Dataset) -> Iterator[Iterator[dict[str, Any]]]:
    """Yield the rows; after the ``with`` block no thread of Ray Data works for them.

    Ray Data 2.60 doesn't wait for the threads of an iteration that ends early. A thread that
    calls Ray after `ray.shutdown` starts Ray again, or ends the process with exit code 1.
    """
    before = set(threading.enumerate())
    rows = cast("Generator[dict[str, Any], None, None]", iter(dataset.iter_rows()))
    try:
        yield rows
    finally:
        rows.close()
        for thread in set(threading.enumerate()) - before:
            if thread.name.startswith(_THREADS):
                thread.join(_PATIENCE)
