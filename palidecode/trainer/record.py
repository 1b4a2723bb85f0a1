"""Records that a training keeps of itself: its log, its card and its page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from palidecode.files import replacing
from palidecode.report.training import write_training
from palidecode.trainer.settings import Settings
from palidecode.version import __version__
from palidecode.wording import many

LOG, CARD, PAGE = "log.jsonl", "README.md", "index.html"
Line = Mapping[str, float]


@dataclass(frozen=True)
class Data:
    """A file of rows: its path, the number of rows that are used, and its hash."""

    path: Path
    rows: int
    sha256: str

    @classmethod
    def of(cls, path: Path, rows: int) -> Data:
        """Hash a file."""
        return cls(path, rows, hashlib.sha256(path.read_bytes()).hexdigest())

    def __str__(self) -> str:
        return f"{many(self.rows, 'row')} of {self.path.name}"


@dataclass(frozen=True)
class Record:
    """Writes what a training is and what came out.

    Attributes
    ----------
    folder : Path
    model : str
        Path or hub name of the base model.
    settings : Settings
    total : int
        Steps of the whole training.
    rows : Data
    val : Data, optional
    """

    folder: Path
    model: str
    settings: Settings
    total: int
    rows: Data
    val: Data | None

    def add(self, line: Line) -> None:
        """Add a line to the log."""
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self) -> list[Line]:
        """Read the log's whole lines."""
        path = self.folder / LOG
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def cut(self, step: int) -> None:
        """Drop the log's lines of steps that are done again."""
        kept = [line for line in self.lines() if line["step"] <= step]
        with replacing(self.folder / LOG) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept))

    def write_card(self, step: int, best: Line) -> None:
        """Write ``README.md``, as model hubs show it."""
        what = "weights" if self.settings.full else "adapter"
        lines = [
            "---",
            f"base_model: {json.dumps(self.model)}",
            f"library_name: {'transformers' if self.settings.full else 'peft'}",
            "tags: [paligemma, palidecode]",
            "---",
            "",
            f"# {self.folder.name}",
            "",
            f"A PaliGemma {what}, trained with palidecode {__version__} from `{self.model}`.",
            "",
            f"- trained on {_named(self.rows)}, {step:,} of {many(self.total, 'step')}",
        ]
        if self.val is not None:
            lines.append(f"- evaluated on {_named(self.val)}")
        numbers = [f"{name} {value:.3f}" for name, value in best.items() if name != "step"]
        if numbers:
            lines.append(f"- there, after {many(int(best['step']), 'step')}: {', '.join(numbers)}")
        use = f"palidecode predict pictures/ --model {self.folder.name} --task detect -o coco.json"
        lines += ["", "```bash", use, "```", "", "| setting | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in self._settings().items()]
        with replacing(self.folder / CARD) as file:
            file.write("\n".join(lines) + "\n")

    def write_page(self, best: Line) -> None:
        """Write the page of the log so far, if there is any."""
        log = self.lines()
        if not log:
            return
        facts = [("model", self.model), ("rows", str(self.rows))]
        facts += [("held back", str(self.val))] if self.val is not None else []
        write_training(
            self.folder / PAGE,
            log,
            name=self.folder.name,
            total=self.total,
            best=best,
            settings=self._settings(),
            facts=[*facts, ("made by", f"palidecode {__version__}")],
        )

    def _settings(self) -> dict[str, str]:
        """Return the settings for people; `epochs` counts without `steps` alone."""
        unused = () if self.settings.steps is None else ("epochs",)
        values = asdict(self.settings).items()
        return {name: _plain(value) for name, value in values if name not in unused}


def _named(data: Data) -> str:
    return f"{many(data.rows, 'row')} of `{data.path.name}` (sha256 `{data.sha256}`)"


def _plain(value: object) -> str:
    """Write a setting for people."""
    if value is None:
        return "default"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
