"""RF100-VL: a hundred datasets as Roboflow exports them (Robicheaux et al. 2025).

A dataset is a folder with ``test/_annotations.coco.json`` and the pictures beside it. A model is
asked for all of its classes, each dataset is evaluated on its own, and the benchmark's numbers are
means over the datasets.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from palidecode.coco.categories import Category
from palidecode.coco.reading import BoxRow, read_dataset
from palidecode.coco.skips import Skips, needs_a_look
from palidecode.errors import InputError
from palidecode.evaluation.coco.engine import JsonRow
from palidecode.evaluation.coco.evaluate import EvaluateOptions, evaluate
from palidecode.files import read_json, replacing
from palidecode.pipeline import PaliDecoder
from palidecode.runs.jobs import Worker
from palidecode.runs.pictures import PredictJob, Predictor
from palidecode.runs.sources import PictureFile, Unread

ANNOTATIONS = "_annotations.coco.json"
SHOWN = ("AP", "AP50", "F1", "F1@mean")
"""The numbers of the table; results.json has every number."""

_SPLITS = ("train", "valid", "test")
_NO_PARENT = (None, "", "none")


@dataclass(frozen=True)
class Dataset:
    """A dataset of the benchmark.

    Attributes
    ----------
    name : str
        Its path within the benchmark's folder: ``bees``, ``Sport/ball``.
    group : str
        Its domain; ``""`` if that is unknown.
    folder : Path
        The folder of its test pictures.
    """

    name: str
    group: str
    folder: Path

    @property
    def truth(self) -> Path:
        """Path of its ground truth."""
        return self.folder / ANNOTATIONS


@dataclass(frozen=True)
class Questions:
    """Pictures of a dataset, and the names of its classes to ask for."""

    pictures: list[PictureFile | Unread]
    names: list[str]


@dataclass(frozen=True)
class Score:
    """The result of a dataset.

    Attributes
    ----------
    dataset, group : str
    pictures, classes, objects : int
        Numbers of what was evaluated.
    numbers : dict of str to (float or None)
        Every number of `CocoEvaluation.numbers`.
    notes : list of str
        What needs a look: pictures without an answer, rows that were skipped.
    """

    dataset: str
    group: str
    pictures: int
    classes: int
    objects: int
    numbers: dict[str, float | None]
    notes: list[str]


@dataclass(frozen=True)
class SharedJob(PredictJob):
    """A prediction whose model is loaded once for several datasets."""

    loader: Callable[[], PaliDecoder]

    def loading(self) -> str:
        return ""

    def load(self, threads: int | None = None) -> Worker[PictureFile | Unread]:
        return Predictor(self.loader(), self.options)


def find_datasets(folder: Path, groups: Path | None, names: Sequence[str] | None) -> list[Dataset]:
    """List the datasets of a folder: ``DATASET/test`` or ``GROUP/DATASET/test``, by name.

    Parameters
    ----------
    folder : Path
    groups : Path, optional
        A JSON file of the groups by the datasets' names, as rf100-vl's
        ``dataset_name_to_category.json``.
    names : sequence of str, optional
        Only these.

    Raises
    ------
    InputError
        If there is none, or none of a name.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of datasets")
    group_of = {} if groups is None else _read_groups(groups)
    found = [
        Dataset(name, group_of.get(name.rpartition("/")[2], name.rpartition("/")[0]), path / "test")
        for name, path in _dataset_folders(folder)
    ]
    if names is not None:
        known = {dataset.name: dataset for dataset in found}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InputError(f"{folder}: no dataset {unknown[0]!r}; it has {_few(known)}")
        found = [known[name] for name in dict.fromkeys(names)]
    if not found:
        raise InputError(f"{folder}: no dataset in it: folders with test/{ANNOTATIONS}")
    return found


def _dataset_folders(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and path of datasets; a folder without any is one too, and broken."""
    if _is_dataset(folder):
        yield folder.resolve().name, folder
        return
    for path in _folders(folder):
        inner = [] if _is_dataset(path) else [one for one in _folders(path) if _is_dataset(one)]
        yield from [(f"{path.name}/{one.name}", one) for one in inner] or [(path.name, path)]


def _folders(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir())
    return [path for path in entries if path.is_dir() and not path.name.startswith(".")]


def _is_dataset(path: Path) -> bool:
    return any((path / split).is_dir() for split in _SPLITS)


def _read_groups(path: Path) -> dict[str, str]:
    try:
        data = read_json(path)
    except ValueError as error:
        raise InputError(f"{path}: is no JSON: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(name, str) for name in data.values()):
        raise InputError(f'{path}: must be an object of groups by dataset: {{"bees": "Fauna"}}')
    return data


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (" …" if len(listed) > 8 else "")


def read_questions(dataset: Dataset) -> Questions:
    """Read the pictures and classes of a dataset.

    Raises
    ------
    InputError
        If its ground truth isn't there, can't be read, or has no picture or object.
    """
    if not dataset.truth.is_file():
        raise InputError(f"{dataset.truth}: no such file")
    read = read_dataset(dataset.truth, BoxRow, Skips(), unused=("score",))
    if not read.images.rows or not read.annotations.rows:
        what = "object" if read.images.rows else "picture"
        raise InputError(f"{dataset.truth}: has no {what} to evaluate")
    pictures = [_picture(dataset.folder, image.file_name or "") for image in read.images.rows]
    used = {row.category_id for row in read.annotations.rows}
    return Questions(pictures, class_names(read.categories, used))


def _picture(folder: Path, name: str) -> PictureFile | Unread:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return Unread(name, f"{name!r} leads out of the folder {folder}")
    if not path.is_file():
        return Unread(name, f"{path}: no such picture")
    return PictureFile(os.fspath(path), name)


def class_names(categories: Sequence[Category], used: set[int]) -> list[str]:
    """Return the names to ask for: all but those that only group others.

    Roboflow's exports begin with a category 0 that no object has: the others name it as their
    ``supercategory``, and its own is ``none``. rf100-vl's download removes it.
    """
    parents = {item.get("supercategory") for item in categories}
    names = [
        item["name"]
        for item in categories
        if item["id"] in used
        or item["name"] not in parents
        or item.get("supercategory") not in _NO_PARENT
    ]
    return list(dict.fromkeys(names))


def score(
    dataset: Dataset, questions: Questions, predictions: Path, unread: Sequence[str]
) -> Score:
    """Evaluate the predictions of a dataset; `unread` says why pictures have none."""
    result = evaluate(dataset.truth, predictions, "bbox", EvaluateOptions())
    looks = [*result.skipped, *result.noted]
    notes = [*unread, *(str(skip) for skip in looks if needs_a_look([], [skip]))]
    notes += [f"skipped: {skip}" for skip in result.skipped if needs_a_look([skip], [])]
    if result.unscored:
        notes.append("the predictions have no scores: AP is a mean of random orders")
    if not result.objects:
        raise InputError(f"{dataset.truth}: has no object to evaluate")
    known = {name: None if np.isnan(value) else value for name, value in result.numbers.items()}
    return Score(
        dataset.name,
        dataset.group,
        result.images,
        len(questions.names),
        result.objects,
        known,
        notes,
    )


def means(scores: Sequence[Score]) -> dict[str, dict[str, float]]:
    """Mean of each number over the datasets of each group, then over ``all``.

    Without groups there is only ``all``.
    """
    groups = sorted({one.group for one in scores if one.group})
    members = {group: [one for one in scores if one.group == group] for group in groups}
    return {
        group: {"datasets": len(some), **{name: _mean(some, name) for name in SHOWN}}
        for group, some in (members | {"all": list(scores)}).items()
    }


def _mean(scores: Sequence[Score], name: str) -> float:
    values = [one.numbers[name] for one in scores]
    return float(np.mean([value for value in values if value is not None]))


def write_results(
    folder: Path, scores: Sequence[Score], broken: Mapping[str, str], info: Mapping[str, object]
) -> JsonRow:
    """Write results.json and results.csv; return what is in the first.

    Returns
    -------
    dict
        `info`, ``means``, ``datasets`` (the scores) and ``broken`` (reasons by dataset).
    """
    data, table = folder / "results.json", folder / "results.csv"
    rows = [asdict(one) for one in scores]
    content = {**info, "means": means(scores), "datasets": rows, "broken": dict(broken)}
    with replacing(data) as file:
        json.dump(content, file, ensure_ascii=False, indent=1, allow_nan=False)
    columns = ("dataset", "group", "pictures", "classes", "objects")
    with replacing(table) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*columns, *SHOWN])
        for row in rows:
            writer.writerow([row[name] for name in columns] + [row["numbers"][n] for n in SHOWN])
    return content
