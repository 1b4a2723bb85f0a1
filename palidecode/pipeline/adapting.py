"""Several adapters over one base model, and models with their adapter merged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from palidecode.errors import InputError
from palidecode.files import read_json
from palidecode.pipeline.checkpoint import NOTES, Place, find, new_folder, read_notes
from palidecode.runtime.adapters import AdaptedSource, is_adapter
from palidecode.runtime.engine import Engine
from palidecode.runtime.opening import adapted
from palidecode.runtime.tokenizer import FILE as TOKENIZER
from palidecode.runtime.weights import SINGLE, write_weights

_KEPT = 2  # models with an adapter merged that stay in memory


class Adapters:
    """The adapters of a base model, by name; see `PaliDecoder.use`.

    Parameters
    ----------
    base : Place
    engine : Engine
        The base model, loaded.
    folders : mapping of str to path

    Raises
    ------
    InputError, WeightsError
        For an adapter that can't be read, isn't supported or doesn't fit the base.
    """

    def __init__(
        self, base: Place, engine: Engine, folders: Mapping[str, str | os.PathLike[str]]
    ) -> None:
        self._engine = engine
        checkpoint = base.open()
        codes, classes = read_notes(base.file(NOTES))
        self._sources: dict[str, AdaptedSource] = {}
        self._made: dict[str, Engine] = {}  # the last used, the latest at the end
        self._classes: dict[str | None, tuple[str, ...]] = {None: tuple(classes)}
        for name, folder in folders.items():
            place = Place(base.path, name, Path(folder))
            if not is_adapter(Path(folder)):
                raise InputError(f"{folder}: holds no adapter (adapter_config.json)")
            made = adapted(checkpoint, base.path, Path(folder))
            source = made.source
            assert isinstance(source, AdaptedSource)
            if made.image_config != checkpoint.image_config:
                raise InputError(
                    f"{folder}: its pictures are prepared otherwise than the base's (size, filter, "
                    "mean or std): load it by itself"
                )
            _check_tokenizer(base, Path(folder))
            its_codes, its_classes = read_notes(place.file(NOTES))
            if its_codes != codes:
                raise InputError(
                    f"{folder}: its seg tokens belong to {its_codes}, the base's to {codes}: load "
                    "it by itself"
                )
            self._sources[name], self._classes[name] = source, tuple(its_classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters."""
        return tuple(self._sources)

    def classes(self, name: str | None) -> tuple[str, ...]:
        """Return the classes that an adapter, or with None the base, names for itself.

        Raises
        ------
        InputError
            For a name that isn't known.
        """
        if name not in self._classes:
            known = ", ".join(map(repr, self._sources))
            raise InputError(f"no adapter {name!r}: there is {known}")
        return self._classes[name]

    def use(self, name: str | None) -> tuple[Engine, tuple[str, ...]]:
        """Return the model with an adapter, or the base model; and the classes that it knows.

        Raises
        ------
        InputError
            For a name that isn't known.
        """
        classes = self.classes(name)
        if name is None:
            return self._engine, classes
        made = self._made.pop(name, None)
        if made is None:
            if len(self._made) == _KEPT:
                del self._made[next(iter(self._made))]
            made = self._merged(self._sources[name])
        self._made[name] = made
        return made, classes

    def _merged(self, source: AdaptedSource) -> Engine:
        config = self._engine.config
        text = replace(config.text, tied_head=source.tied_head)
        return self._engine.adapted(source, replace(config, text=text))


def _check_tokenizer(base: Place, folder: Path) -> None:
    """Refuse an adapter with another tokenizer than the base's: all of them share one."""
    own, shared = folder / TOKENIZER, base.file(TOKENIZER)
    if not own.exists() or (shared.exists() and own.read_bytes() == shared.read_bytes()):
        return
    if not shared.exists() or read_json(own) != read_json(shared):  # the same, written otherwise
        raise InputError(
            f"{folder}: has a tokenizer of its own ({TOKENIZER}), and adapters share the base's: "
            "load it by itself"
        )


class Merged(NamedTuple):
    """A folder that `merge` wrote: how many tensors the adapter changed, and its size in bytes."""

    folder: Path
    changed: int
    bytes: int


def merge(
    adapter: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    base: str | None = None,
    *,
    revision: str | None = None,
) -> Merged:
    """Write an adapter and its base as one ordinary model folder.

    Weights are merged in float32, one at a time, and stored as the base stores them.

    Parameters
    ----------
    adapter : str or path
        A folder as PEFT saves it, or a hub name.
    folder : str or path
        A new folder.
    base : str, optional
        The base model; by default the one that the adapter's config names.
    revision : str, optional
        Branch, tag or commit of an adapter on the hub.

    Raises
    ------
    InputError
        If the folder exists or can't be written, or `adapter` is none.
    WeightsError
        For weights that are missing, damaged or don't fit.
    """
    target = Path(folder)
    if target.exists():
        raise InputError(f"{target} exists; name a new folder")
    place = find(adapter, revision, base)
    checkpoint = place.open()
    if not isinstance(checkpoint.source, AdaptedSource):
        raise InputError(f"{place.name}: is a whole model, not an adapter: nothing to merge")
    with new_folder(target, place, checkpoint.config) as part:
        size = write_weights(part / SINGLE, checkpoint.source, checkpoint.source.stored_dtype)
    return Merged(target, len(checkpoint.source.changed), size)
