"""Connection to Ray, which is imported when it is used, and the number of workers that fit."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from palidecode.cores import cores
from palidecode.errors import InputError, warn

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import ActorPoolStrategy, Dataset

LOCAL = "local"
_THREADS = ("StreamingExecutor", "iter_threaded")  # names of Ray Data's threads
_PATIENCE = 60  # seconds that they may take to end
_CONNECTING = 10  # seconds until a machine must answer
_SETTINGS, _FRAME = 4, 9  # number of HTTP/2's frame of settings, and bytes of a frame's head
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0))
"""Bytes that a client sends first: the preface, and empty settings."""


@dataclass(frozen=True)
class Workers:
    """Number of actors, and the resources of each.

    Attributes
    ----------
    concurrency : int or (int, int), optional
        Number of actors, or the smallest and the largest number of a pool that grows with the
        cluster. By default as many as fit, with one CPU left for the driver.
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

    def number(self, *, spare: bool) -> int:
        """Return the number of actors that are useful now.

        With `spare`, as where tasks of Ray read the rows, they leave a CPU free. Without it more
        than fit may be asked for: the others start when the cluster grows.
        """
        fitting = max(1, self.fitting())
        few, many = self._bounds() or (fitting, fitting)
        return min(max(few, fitting), many, fitting if spare else many)

    def fitting(self, spare: float = 1.0) -> int:
        """Return the number of actors that the machines hold, with `spare` CPUs of one left."""
        fitting = 0
        for number, resources in enumerate(_machines()):
            here = (resources.get("CPU", 0) - (spare if number == 0 else 0)) / self.num_cpus
            if self.num_gpus:
                here = min(here, resources.get("GPU", 0) / self.num_gpus)
            fitting += max(0, int(here))
        return fitting

    def share(self, *, spare: bool) -> float:
        """Return the CPUs that an actor asks for: `num_cpus`, or what leaves some for `spare`."""
        if not spare or self.fitting():
            return self.num_cpus
        largest = max((resources.get("CPU", 0) for resources in _machines()), default=0)
        return min(self.num_cpus, largest / 2) or self.num_cpus

    def note(self, *, spare: bool) -> None:
        """Warn of workers that don't fit now."""
        few, _ = self._bounds() or (1, 1)
        now = max(1, self.fitting(1.0 if spare else 0.0))
        if not self.fitting(0.0):
            warn(
                f"no machine of the cluster has {self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs "
                "for a worker: this waits until it grows; Ctrl-C ends it"
            )
        elif few > now:
            warn(f"workers that fit now: {now} of {few}; the others start when the cluster grows")

    def strategy(self) -> ActorPoolStrategy:
        """Return the pool of actors for Ray Data."""
        from ray.data import ActorPoolStrategy

        # Two blocks to each actor: one that it works on, one that waits.
        return ActorPoolStrategy(size=self.number(spare=True), max_tasks_in_flight_per_actor=2)

    def remote_args(self, num_cpus: float | None = None) -> dict[str, Any]:
        """Return what each actor asks of the scheduler."""
        asked = {"num_cpus": self.num_cpus if num_cpus is None else num_cpus}
        return asked | ({"num_gpus": self.num_gpus} if self.num_gpus else {})

    def _bounds(self) -> tuple[int, int] | None:
        if self.concurrency is None:
            return None
        if isinstance(self.concurrency, int):
            return self.concurrency, self.concurrency
        return self.concurrency


def _machines() -> list[dict[str, float]]:
    """Resources of each machine, the one with most CPUs first."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return sorted(alive, key=lambda resources: -resources.get("CPU", 0))


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
    try:
        _start(address)
        yield
    finally:
        ray.shutdown()


def _start(address: str | None) -> None:
    import ray
    from ray.exceptions import RayError

    # Disable usage reporting, and silence Ray's warnings about its own start.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"address": address or LOCAL, "log_to_driver": False}
    if options["address"] == LOCAL:
        options |= {"include_dashboard": False, "num_cpus": cores() + 1}
    else:
        _check_address(options["address"])
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), _handlers(), _impatient(options["address"]):
            warnings.simplefilter("ignore")
            ray.init(logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        reason = str(error).strip().partition("\n")[0]
        if options["address"] != LOCAL:
            reason += (
                ". If its machines use a token, copy ~/.ray/auth_token of the head to this one and "
                "set RAY_AUTH_MODE=token; or start them all with RAY_AUTH_MODE=disabled"
            )
        raise InputError(f"no Ray at {options['address']!r}: {reason}") from error


def _check_address(address: str) -> None:
    """Raise `InputError` if no Ray answers at an address: Ray itself would try it for minutes.

    Every port of Ray speaks HTTP/2, whose server begins with a frame of settings.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        connection = socket.create_connection((host.strip("[]"), int(port)), _CONNECTING)
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray at {address!r}: nothing listens there ({error})") from error
    with connection:
        if os.environ.get("RAY_USE_TLS", "0") == "0" and not _greets(connection, address):
            raise InputError(
                f"no Ray at {address!r}: what listens there isn't Ray; is it another port?"
            )


def _greets(connection: socket.socket, address: str) -> bool:
    """Return True if the other side begins as a server of HTTP/2 does."""
    try:
        connection.sendall(_HTTP2)
        said = connection.recv(_FRAME, socket.MSG_WAITALL)
    except TimeoutError as error:
        raise InputError(f"no Ray at {address!r}: no answer in {_CONNECTING} s") from error
    except OSError:  # it was closed
        return False
    return len(said) == _FRAME and said[3] == _SETTINGS


@contextmanager
def _impatient(address: str) -> Iterator[None]:
    """Make Ray try an address once, for 40 s, unless the user has set for how long."""
    name = "RAY_gcs_server_port_wait_time_s"  # at an address it is a number of tries
    set_here = address != LOCAL and name not in os.environ
    try:
        if set_here:
            os.environ[name] = "1"
        yield
    finally:
        if set_here:
            del os.environ[name]


@contextmanager
def _handlers() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if main and callable(before):
            signal.signal(signal.SIGTERM, before)


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
def reading(dataset: Dataset, size: int) -> Iterator[Iterator[pa.Table]]:
    """Yield the rows, `size` at a time; after the ``with`` block no thread of Ray Data is left.

    Ray Data 2.60 doesn't wait for the threads of an iteration that ends early. A thread that
    calls Ray after `ray.shutdown` starts Ray again, or ends the process with exit code 1.
    """
    before = set(threading.enumerate())
    tables = dataset.iter_batches(batch_size=size, batch_format="pyarrow")
    rows = cast("Generator[pa.Table, None, None]", iter(tables))
    try:
        yield rows
    finally:
        rows.close()
        for thread in set(threading.enumerate()) - before:
            if thread.name.startswith(_THREADS):
                thread.join(_PATIENCE)
