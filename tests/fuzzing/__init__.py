"""Fuzzing: thousands of changed files, answers, names and prompts.

A target is a function of bytes that returns nothing. It raises nothing but a failed check: what
the package may refuse (`PalidecodeError`) is caught inside. Two drivers run the same targets:
``pytest tests/fuzzing`` a fixed number of seeded rounds of each, and
``python -m tests.fuzzing TARGET`` as many as one likes, guided by coverage (atheris).
"""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from palidecode.errors import PalidecodeError

Mutate = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True)
class Target:
    """One thing to fuzz.

    Attributes
    ----------
    run : callable
        Takes bytes; raises only when something is wrong with the package.
    seeds : callable
        Sound inputs, made when asked for.
    mutate : callable
        Changes one of them so that it gets past the first check of its format.
    rounds : int
        Of the tests.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    mutate: Mutate
    rounds: int


@cache
def folder() -> Path:
    """Folder for the targets' files, deleted when the process ends."""
    made = Path(tempfile.mkdtemp(prefix="palidecode-fuzzing-")).resolve()
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def written(name: str, data: bytes) -> Path:
    """The data as a file of that name in `folder`."""
    path = folder() / name
    path.write_bytes(data)
    return path


def refused(function: Callable[..., object], *args: object, **options: object) -> str | None:
    """Call a function and return the message if it refuses its input."""
    try:
        function(*args, **options)
    except PalidecodeError as error:
        said = str(error)
        assert said, "a refusal that says nothing"
        return said
    return None


def changed(target: Target, seed: int) -> bytes:
    """The input of round `seed`: always the same."""
    rng = random.Random(seed)
    data = rng.choice(target.seeds())
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = target.mutate(rng, data)
    return data


def targets() -> dict[str, Target]:
    """All targets by name."""
    from tests.fuzzing import answers, coco, files, models, names, pictures, prompts

    found: dict[str, Target] = {}
    for part in (answers, coco, files, models, names, pictures, prompts):
        found |= part.TARGETS
    return found
