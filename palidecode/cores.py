"""The number of CPU cores available to this process."""

from __future__ import annotations

import os


def cores() -> int:
    """Count the cores that this process may use, as limited by ``taskset`` or a batch system."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
