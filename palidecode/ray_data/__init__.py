"""The same jobs on a Ray cluster: `predict` and `decode` a million pictures, shard by shard.

Rows come from folders, COCO files, Parquet, JSON Lines or WebDataset, in order; actors that load
their model or mask codec once do one shard after the other; what is written is what a single
machine writes, and a run that died goes on with the shards that are missing.

Needs ``pip install 'palidecode[ray]'``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from palidecode.coco.categories import Match, Unmapped, category_names
from palidecode.coco.reading import Source
from palidecode.coco.writing import Categories, MaskFormat, Segmentation
from palidecode.codec.weights import find_weights
from palidecode.errors import InputError, WeightsError
from palidecode.evaluation.coco.engine import IouType
from palidecode.evaluation.coco.evaluate import evaluate_coco
from palidecode.evaluation.coco.result import CocoEvaluation
from palidecode.geometry.boxes import DEFAULT_DIVISOR
from palidecode.pipeline.checkpoint import describe
from palidecode.pipeline.decoder import AskOptions
from palidecode.prompts import Task, what_to_ask
from palidecode.ray_data.cluster import Workers, connected, gpus_there, need_ray
from palidecode.ray_data.jobs import DecodeJob, PredictJob, RowsJob
from palidecode.ray_data.running import CocoOptions, Found, WrittenCoco, write
from palidecode.ray_data.sources import (
    Paths,
    read_any,
    read_coco,
    read_jsonl,
    read_parquet,
    read_pictures,
    read_webdataset,
)
from palidecode.runs.answers import CHUNK
from palidecode.runs.journal import Header, hash_files
from palidecode.runs.prediction import PredictOptions, coco_info, header_of

if TYPE_CHECKING:
    from ray.data import Dataset

__all__ = [
    "Found",
    "WrittenCoco",
    "connected",
    "decode",
    "evaluate",
    "predict",
    "read_coco",
    "read_jsonl",
    "read_parquet",
    "read_pictures",
    "read_webdataset",
    "write_coco",
    "write_parquet",
]

PREDICTED = 64  # pictures in a shard: what is lost when an actor dies
DECODED = 1024  # answers


def predict(
    source: Paths | Dataset,
    *,
    model: str | os.PathLike[str],
    prompt: str | None = None,
    task: Task | None = None,
    classes: Categories | None = None,
    per_class: bool = False,
    min_score: float = 0.0,
    images: str | os.PathLike[str] | None = None,
    batch_size: int = 8,
    shard_size: int = PREDICTED,
    dtype: str = "bfloat16",
    device: str | None = None,
    quantize: Literal["int8", "int4"] | None = None,
    weights: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float = 1.0,
    num_gpus: float | None = None,
    memory: float | None = None,
    **ask: Any,
) -> Found:
    """Ask a model about pictures.

    Parameters
    ----------
    source : path, sequence of paths, or ray.data.Dataset
        A folder of pictures; a COCO ``.json`` or a ``.jsonl`` about pictures in `images`;
        ``.parquet`` and WebDataset ``.tar`` files; or a Dataset of such rows.
    model, dtype, device, quantize, tokenizer
        See `PaliDecoder.from_pretrained`. Files must be seen by every machine.
    prompt, task, classes, per_class
        What to look for: ``"segment cat ; dog"``, or a task and names (or a COCO dataset that
        has them), in one prompt or one each; by default all that the model is known to find.
    min_score : float
        Objects below it are left out.
    batch_size : int
        Pictures that the model sees at once.
    shard_size : int
        Pictures that are finished, and lost, together; rounded up to whole batches.
    weights : path, optional
        Of the mask codec.
    concurrency, num_cpus, num_gpus, memory
        Actors and what each is given. By default as many actors as fit, with a GPU each where
        the cluster has any and `device` isn't ``"cpu"``.
    **ask
        More options: see `palidecode.pipeline.AskOptions`.

    Returns
    -------
    Found
        Nothing is computed yet: see `write_coco`, `write_parquet` and `Found.dataset`.

    Raises
    ------
    InputError
        For a source, model or prompt that can't be used, and where Ray isn't installed.
    """
    need_ray()
    if num_gpus is None:
        num_gpus = float(gpus_there() and device != "cpu")
    workers = Workers(concurrency, num_cpus, num_gpus, memory)
    notes = describe(model)
    wanted = category_names(classes)
    task, prompts, names = what_to_ask(task, prompt, wanted, notes.classes, per_class)
    options = PredictOptions(task, prompts, min_score, AskOptions(**ask))
    _, _, commit = notes.source.rpartition("@") if notes.source != os.fspath(model) else ("",) * 3
    job = PredictJob(
        os.fspath(model),
        options,
        _checked("batch_size", batch_size),
        dtype,
        device,
        quantize,
        _text(weights),
        _text(tokenizer),
        commit or None,
    )
    return Found(
        source=read_any(source, images, pictures=True),
        job=job,
        workers=workers,
        header=header_of(
            notes,
            options,
            model,
            tokenizer=tokenizer,
            weights=weights,
            dtype=dtype,
            quantize=quantize,
        ),
        shard_size=_whole(shard_size, batch_size),
        info=coco_info(notes.source, options, names),
        categories=names or None,
    )


def decode(
    source: Paths | Dataset,
    *,
    images: str | os.PathLike[str] | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int = CHUNK,
    shard_size: int = DECODED,
    weights: str | os.PathLike[str] | None = None,
    backend: Literal["auto", "onnx", "torch"] = "auto",
    divisor: int = DEFAULT_DIVISOR,
    clip: bool = False,
    tokenizer: str | os.PathLike[str] | None = None,
    label_from_prompt: bool = False,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float = 1.0,
    memory: float | None = None,
) -> Found:
    """Answers of any runtime to boxes and masks.

    Parameters
    ----------
    source : path, sequence of paths, or ray.data.Dataset
        ``.jsonl``, ``.parquet`` or WebDataset ``.tar`` files, or a Dataset of such rows.
    images, size
        Where the pictures' sizes come from, if rows don't say them: see `read_jsonl`.
    batch_size : int
        Answers that are decoded together.
    shard_size : int
        Answers that are finished, and lost, together; rounded up to whole batches.
    weights, backend, tokenizer
        See `palidecode.runs.answers.load_options`. Files must be seen by every machine.
    divisor, clip
        See `palidecode.decode`.
    label_from_prompt : bool
        Objects without a label get what the prompt asked for.
    concurrency, num_cpus, memory
        Actors and what each is given. By default as many actors as fit.

    Returns
    -------
    Found
        Nothing is computed yet: see `write_coco`, `write_parquet` and `Found.dataset`.

    Raises
    ------
    InputError
        For a source that can't be used, and where Ray isn't installed.
    """
    need_ray()
    workers = Workers(concurrency, num_cpus, 0.0, memory)
    job = DecodeJob(
        _text(images),
        size,
        _checked("batch_size", batch_size),
        _text(weights),
        backend,
        divisor,
        clip,
        _text(tokenizer),
        label_from_prompt,
    )
    files = {} if tokenizer is None else {"tokenizer": Path(tokenizer)}
    with suppress(WeightsError):  # which is only an error when there is a mask
        files["mask codec"] = find_weights(weights)
    said = ("images", "size", "backend", "divisor", "clip", "label_from_prompt")
    settings = {name: getattr(job, name) for name in said}
    return Found(
        source=read_any(source, images, size),
        job=job,
        workers=workers,
        header=Header("decode", settings, hash_files(files)),
        shard_size=_whole(shard_size, batch_size),
    )


def write_coco(
    found: Found | Dataset,
    path: str | os.PathLike[str],
    *,
    categories: Categories | None = None,
    match: Match = "exact",
    unmapped: Unmapped = "keep",
    aliases: Mapping[str, str] | None = None,
    segmentation: Segmentation = "rle",
    simplify: float = 0.0,
    min_area: float = 0.0,
    restart: bool = False,
    keep_journal: bool = False,
) -> WrittenCoco:
    """Run it, and write the COCO file that one machine would write.

    Workers write shards, COCO files themselves, into ``<path>.shards``, which all machines must
    see; then they are merged, one in memory at a time. ``<path>.journal.jsonl`` says which run
    it is. If anything dies, the same call does the shards that are missing. What could not be
    read is listed in ``failures.jsonl``.

    Parameters
    ----------
    found : Found, or ray.data.Dataset of the rows that `Found.dataset` gives
    path : path
    categories, match, unmapped, aliases
        As for `to_coco`; by default the names that were asked for.
    segmentation, simplify, min_area
        How masks are written: see `MaskFormat`. Masks of a Dataset are RLE, so polygons follow
        their pixels' edges.
    restart : bool
        Forget what an earlier run has finished.
    keep_journal : bool
        Leave shards and journal when all is done: then only new pictures are looked at.

    Returns
    -------
    WrittenCoco

    Raises
    ------
    InputError
        For another run's journal, a disk that is full, and where nothing could be read.
    """
    if not isinstance(found, Found):
        found = Found(found, RowsJob(), Workers(), Header("rows", {}, {}), DECODED)
    options = CocoOptions(
        found.categories if categories is None else categories,
        match,
        unmapped,
        aliases,
        MaskFormat(segmentation, simplify, min_area),
    )
    return write(found, path, options, restart=restart, keep_journal=keep_journal)


def write_parquet(found: Found | Dataset, path: str | os.PathLike[str]) -> None:
    """Run it, and write the rows of `Found.dataset`, RLE included, as Parquet files in a folder.

    Ray writes them; a run that dies begins anew.

    Raises
    ------
    InputError
        If the folder isn't empty: rows of two runs would be mixed.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there; name a new folder for Parquet files")
    rows = found.dataset() if isinstance(found, Found) else found
    rows.write_parquet(os.path.abspath(folder))


def evaluate(
    gt: Source,
    found: Found | Dataset,
    iou_type: IouType = "bbox",
    *,
    path: str | os.PathLike[str] | None = None,
    **options: Any,
) -> CocoEvaluation:
    """Run it, and evaluate what was found against COCO ground truth.

    Parameters
    ----------
    gt : path or dict
        A COCO dataset; its images are found by name.
    found : Found or ray.data.Dataset
    iou_type : {"bbox", "segm"}
    path : path, optional
        Keep the predictions there; a run that died then goes on.
    **options
        More of `evaluate_coco`.
    """
    if path is not None:
        return evaluate_coco(gt, write_coco(found, path).path, iou_type, **options)
    with tempfile.TemporaryDirectory() as folder:
        return evaluate_coco(
            gt, write_coco(found, Path(folder) / "coco.json").path, iou_type, **options
        )


def _text(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def _checked(name: str, value: int) -> int:
    if value < 1:
        raise InputError(f"{name} must be at least 1, got {value}")
    return value


def _whole(shard_size: int, batch_size: int) -> int:
    """As many as asked for, rounded up to whole batches."""
    return -(-_checked("shard_size", shard_size) // batch_size) * batch_size
