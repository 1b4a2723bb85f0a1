"""The processes of a training: the share of each, and sums over all of them.

``torchrun`` tells each process its number in the environment (source: torch's documentation of
``torch.distributed.run``); without it there is one. CPUs talk over gloo, CUDA over NCCL.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

from palidecode.errors import InputError

_PATIENCE = timedelta(days=1)  # the others wait while the first process evaluates


class Ranks:
    """One process among those of a training.

    Attributes
    ----------
    number, count : int
        This process, from 0, and how many there are. The first one writes the files.
    device : torch.device
    """

    def __init__(self, number: int, count: int, device: torch.device) -> None:
        self.number, self.count, self.device = number, count, device

    @property
    def first(self) -> bool:
        """True in the process that evaluates and writes files."""
        return self.number == 0

    def share(self, batches: int) -> Iterable[int]:
        """Return the numbers of this process's batches, of a step with `batches` a process."""
        return range(self.number, batches * self.count, self.count)

    def sum(self, *numbers: float) -> list[float]:
        """Add numbers up over all processes."""
        if self.count == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        with _answering():
            distributed.all_reduce(values)
        found: list[float] = values.tolist()
        return found

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Add tensors up over all processes, in place."""
        if self.count > 1:
            with _answering():
                for tensor in tensors:
                    distributed.all_reduce(tensor)

    def gather(self, text: dict[int, str]) -> dict[int, str]:
        """Join what every process has, by line."""
        if self.count == 1:
            return text
        found: list[dict[int, str]] = [{} for _ in range(self.count)]
        with _answering():
            distributed.all_gather_object(found, text)
        return {line: part[line] for part in found for line in part}


def join_ranks(device: torch.device) -> Ranks:
    """Join the processes that torchrun started; a process alone is the only one.

    Raises
    ------
    InputError
        If they can't reach each other.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks(0, 1, device)
    if not distributed.is_initialized():
        try:
            backend = "nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"the {count} processes can't reach each other: {reason}") from error
        atexit.register(_leave)
    return Ranks(distributed.get_rank(), distributed.get_world_size(), device)


def _leave() -> None:
    """Leave the group before the interpreter ends: its threads still let go of tensors there.

    A thread that asks for the interpreter while it ends is cut off, and C++ aborts the process:
    5 of 40 pairs of processes that had only added a number up and ended.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()


def own_device(name: str | None) -> str | None:
    """Return the device of this process: among several, each has a GPU of its own."""
    local = os.environ.get("LOCAL_RANK")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if local is None or not several or name not in (None, "cuda") or not torch.cuda.is_available():
        return name
    torch.cuda.set_device(int(local))
    return f"cuda:{local}"


@contextmanager
def _answering() -> Iterator[None]:
    """Turn the end of another process into one line."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            "another process of this training has ended; run the same command again to resume "
            "from the last checkpoint"
        ) from error
