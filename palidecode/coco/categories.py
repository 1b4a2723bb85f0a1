"""Labels to COCO categories: exactly, or with case, plurals and aliases; never by guessing."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, cast

import numpy as np

from palidecode.coco.skips import Skips
from palidecode.errors import InputError, warn
from palidecode.files import read_json, regular

Match: TypeAlias = Literal["exact", "loose"]
Unmapped: TypeAlias = Literal["keep", "drop", "error"]
Categories: TypeAlias = Sequence[Mapping[str, Any]] | Sequence[str] | Mapping[str, Any]

UNLABELLED = "object"
"""The category of objects without a label (RefCOCO checkpoints answer none)."""

IRREGULAR = {
    "people": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
    "knives": "knife",
    "wolves": "wolf",
    "leaves": "leaf",
    "loaves": "loaf",
    "shelves": "shelf",
    "scarves": "scarf",
    "calves": "calf",
}

ALIASES = {
    "aeroplane": "airplane",
    "plane": "airplane",
    "motorbike": "motorcycle",
    "bike": "bicycle",
    "sofa": "couch",
    "television": "tv",
    "tvmonitor": "tv",
    "tv monitor": "tv",
    "cellphone": "cell phone",
    "mobile phone": "cell phone",
    "table": "dining table",
    "diningtable": "dining table",
    "plant": "potted plant",
    "pottedplant": "potted plant",
    "doughnut": "donut",
    "fridge": "refrigerator",
    "ski": "skis",
    "hairdryer": "hair drier",
    "hair dryer": "hair drier",
}
"""Names of PASCAL VOC, British English and everyday speech for COCO's eighty categories."""


class _Named(TypedDict):
    id: int
    name: str


class Category(_Named, total=False):
    """A COCO category; other keys of a file are kept."""

    supercategory: str
    frequency: str


class CategoryMap:
    """Finds the category of a label, and counts labels that have none.

    Parameters
    ----------
    categories : list of dict or of str, dict, or path, optional
        COCO categories (``id``, ``name``), bare names (ids from 1), or a COCO dataset that
        has them. Without it every new label becomes a category, in order of appearance.
    match : {"exact", "loose"}
        ``"loose"`` also folds case, spaces and underscores, undoes English plurals and looks
        into `aliases`. A label that fits several categories fits none.
    unmapped : {"keep", "drop", "error"}
        A label without a category becomes a new one, is skipped and counted, or raises.
    aliases : mapping of str to str, optional
        Other names of categories, added to `ALIASES`; they also work with ``"exact"``.

    Attributes
    ----------
    categories : list of dict
        The given and the new ones.
    left_out : Counter of str
        Labels without a category, and how often each came.
    """

    def __init__(
        self,
        categories: Categories | None = None,
        *,
        match: Match = "exact",
        unmapped: Unmapped = "keep",
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        if match not in ("exact", "loose"):
            raise InputError(f"match must be 'exact' or 'loose', got {match!r}")
        if unmapped not in ("keep", "drop", "error"):
            raise InputError(f"unmapped must be 'keep', 'drop' or 'error', got {unmapped!r}")
        self.categories = check_categories(categories)
        self.left_out: Counter[str] = Counter()
        self._given = categories is not None
        self._match = match
        self._unmapped = unmapped
        self._ids: dict[str, int | None] = {item["name"]: item["id"] for item in self.categories}
        self._loose: dict[str, set[int]] = {}
        for item in self.categories:
            for form in _forms(item["name"]):
                self._loose.setdefault(form, set()).add(item["id"])
        self._aliases = dict(aliases or {})
        self._folded = {fold(k): v for k, v in {**ALIASES, **self._aliases}.items()}

    def id_of(self, label: str) -> int | None:
        """Return the category's id; None for a label that is skipped.

        Raises
        ------
        InputError
            With ``unmapped="error"``, for a label without a category.
        """
        name = label or UNLABELLED
        if name not in self._ids:
            self._ids[name] = self._search(name)
        if self._ids[name] is None:
            self.left_out[label] += 1
        return self._ids[name]

    def _search(self, name: str) -> int | None:
        alias = self._aliases.get(name)
        if alias is not None and self._ids.get(alias) is not None:
            return self._ids[alias]
        if self._match == "loose":
            candidates = self._loose.get(fold(name)) or set().union(
                *(self._loose.get(form, set()) for form in _forms(name)),
                *(
                    self._loose.get(fold(self._folded.get(form, "")), set())
                    for form in _forms(name)
                ),
            )
            if len(candidates) == 1:
                return next(iter(candidates))
        if self._unmapped == "error":
            raise InputError(
                f"the label {name!r} is not among the categories ({len(self.categories)}); "
                "map it (match='loose', aliases=…) or choose unmapped='keep' or 'drop'"
            )
        if self._unmapped == "drop" and self._given:
            return None
        new = 1 + max((item["id"] for item in self.categories), default=0)
        self.categories.append(Category(id=new, name=alias or name, supercategory=""))
        self._ids[alias or name] = new
        return new


def check_categories(
    categories: Categories | None,
    skips: Skips | None = None,
    where: str = "",
    *,
    by_name: bool = True,
) -> list[Category]:
    """Return a checked copy of COCO categories: dicts, bare names, or those of a dataset.

    `skips` is filled with the categories that can't be used; without it the first of them is an
    error. `by_name` keeps one category of each name, as `one_per_name`; else only ids must be
    unique.
    """
    start = f"{where}: " if where else ""
    used: set[object] | None = None
    if isinstance(categories, Mapping):
        annotations = categories.get("annotations")
        if isinstance(annotations, list):
            ids = (row.get("category_id") for row in annotations if isinstance(row, Mapping))
            used = {number for number in ids if isinstance(number, (int, float))}
        categories = categories.get("categories")
        if not isinstance(categories, list):
            raise InputError(f"{start}this COCO dataset has no list of 'categories'")
    if isinstance(categories, str) or not hasattr(categories or (), "__len__"):
        raise InputError(
            f"{start}categories are a COCO dataset, a list of names, or a list of objects with "
            f"'id' and 'name', got {reprlib.repr(categories)}"
        )
    checked: list[Category] = []
    problem = ""
    for offset, item in enumerate(categories or ()):
        if isinstance(item, str):
            checked.append(Category(id=offset + 1, name=item, supercategory=""))
        elif (category := _as_category(item)) is not None:
            checked.append(category)
        else:
            needed = f"needs an integer 'id' and a 'name', got {reprlib.repr(item)}"
            problem = problem or f"{start}category {offset} {needed}"
            if skips is None:
                break
            skips.add("category", "unreadable", offset, f"categories[{offset}] {needed}")
    if problem and (skips is None or not checked):
        raise InputError(problem)
    check_unique([item["id"] for item in checked], f"{start}categories")
    checked = _stripped(checked, skips, start)
    return one_per_name(checked, used, start) if by_name else checked


def _stripped(categories: Sequence[Category], skips: Skips | None, start: str) -> list[Category]:
    """Strip white space around names, with a note, or without `skips` a warning."""
    names = [item["name"].strip() or item["name"] for item in categories]
    stripped = [
        Category(**item | {"name": name}) for item, name in zip(categories, names, strict=True)
    ]
    odd = [n for n, item in enumerate(stripped) if item["name"] != categories[n]["name"]]
    examples = [repr(categories[n]["name"]) for n in odd]
    if skips is not None:
        skips.note("category", "spaces", odd, examples)
    elif odd:
        warn(
            f"{start}white space around the names of categories was stripped: "
            f"{', '.join(examples[:5])}",
        )
    return stripped


def one_per_name(
    categories: Sequence[Category],
    used: Collection[object] | None,
    start: str = "",
    way_out: str = "rename or remove one of them",
) -> list[Category]:
    """Drop the unused ones of categories that share a name.

    `used` are the ids that have annotations, None all of them; `start` and `way_out` begin and
    end the error's message.
    """
    by_name: dict[str, list[Category]] = {}
    for item in categories:
        by_name.setdefault(item["name"], []).append(item)
    dropped = set()
    for name, items in by_name.items():
        kept = [item for item in items if used is None or item["id"] in used] or items[:1]
        if len(kept) > 1:
            ids = " and ".join(str(item["id"]) for item in kept)
            raise InputError(f"{start}the categories {ids} are both called {name!r}; {way_out}")
        dropped |= {item["id"] for item in items if item is not kept[0]}
    return [item for item in categories if item["id"] not in dropped]


def check_unique(ids: Sequence[int | str], what: str) -> None:
    """Raise `InputError` for an id that is repeated."""
    if len(set(ids)) != len(ids):
        twice, count = Counter(ids).most_common(1)[0]
        raise InputError(f"{what}: the id {twice!r} is there {count} times; it must be unique")


def read_categories(path: Path | None) -> list[Category] | None:
    """Read the categories of a COCO file, a JSON list, or a text file with one name per line.

    None for None. Categories that can't be read are skipped with a warning.
    """
    if path is None:
        return None
    if path.suffix == ".json":
        content, skips = read_json(path), Skips()
        if content is None:
            raise InputError(f"{path}: contains null, no categories")
        categories = check_categories(content, skips, str(path))
        skips.warn(str(path))
        return categories
    try:
        names = regular(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read: {error}") from error
    return check_categories([name.strip() for name in names if name.strip()], where=str(path))


def _as_category(item: object) -> Category | None:
    """Return a copy of a category with a whole number as id; None if it isn't one."""
    if not isinstance(item, Mapping):
        return None
    number, name = item.get("id"), item.get("name")
    # Half a surrogate pair is text in JSON and in no encoding.
    if not isinstance(name, str) or name != name.encode("utf-8", "ignore").decode():
        return None
    if isinstance(number, bool) or not isinstance(number, (int, float, np.integer)) or number % 1:
        return None
    return cast(Category, {**item, "id": int(number)})


def fold(name: str) -> str:
    """Lower the case; make underscores, hyphens and runs of spaces one space."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _forms(name: str) -> set[str]:
    """Return the folded name, and the singulars that its last word may be a plural of."""
    folded = fold(name)
    head, _, last = folded.rpartition(" ")
    ends = {last}
    if last in IRREGULAR:
        ends.add(IRREGULAR[last])
    elif last.endswith("ies") and len(last) > 4:
        ends.add(last[:-3] + "y")
    elif last.endswith("s") and not last.endswith(("ss", "us", "is")):
        ends.add(last[:-1])
        if last.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
            ends.add(last[:-2])
    return {f"{head} {end}".strip() for end in ends}


def category_names(categories: Categories | None) -> list[str] | None:
    """Return the names of categories, in order; None for None."""
    if categories is None:
        return None
    return [item["name"] for item in check_categories(categories)]
