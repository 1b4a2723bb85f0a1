"""The output of a run: the COCO file that it writes, or the format that this becomes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from palidecode.cli.convert import Conversion, check_output, convert_coco
from palidecode.errors import InputError
from palidecode.files import writes_through


@dataclass(frozen=True)
class Target:
    """An output and its format; `coco` is the file that the run writes."""

    path: Path
    format: str
    coco: Path

    def convert(self) -> Conversion | None:
        """Convert the COCO file and delete it; None if it is the output itself.

        Raises
        ------
        InputError
            Naming the COCO file, which is kept.
        """
        if self.coco == self.path:
            return None
        try:
            done = convert_coco(self.coco, self.format, self.path)
        except InputError as error:
            if writes_through(self.path):
                raise
            raise InputError(f"{error}; {self._kept()}") from error
        self.coco.unlink()
        return done

    def _kept(self) -> str:
        convert = f"palidecode convert {self.coco} --to {self.format} -o {self.path}"
        return f"all objects are in {self.coco}: {convert}"


@contextmanager
def target(path: Path, form: str, inputs: Sequence[Path]) -> Iterator[Target]:
    """Yield the target of a run.

    Another format than COCO is made of ``OUT.coco.json``; if `path` is a pipe, a device or the
    standard output, of a temporary file.

    Raises
    ------
    InputError
        If the output can't be written in that format, or ``OUT.coco.json`` is there already.
    """
    if form == "coco":
        yield Target(path, form, path)
        return
    check_output(form, path, inputs)
    if writes_through(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Target(path, form, Path(folder, "coco.json"))
        return
    made = Target(path, form, path.with_name(f"{path.name}.coco.json"))
    if made.coco.exists():
        raise InputError(
            f"{made.coco}: is there already, and this run would write it; move it, or if an "
            f"earlier run left it, {made._kept()}"
        )
    yield made
