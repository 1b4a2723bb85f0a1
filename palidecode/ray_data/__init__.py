"""The jobs of one machine on a Ray cluster: `predict` and `decode` millions of pictures.

Rows come from folders, COCO files, Parquet, JSON Lines or WebDataset, in order. Actors load their
model or mask codec once, and each works on one block of rows after the other. The output is the
file that one machine writes, and an interrupted run resumes with the rows that are missing.

Needs ``pip install 'palidecode[ray]'``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from palidecode.answers.scoring import DEFAULT_SCORE, Score
from palidecode.coco.categories import Match, Unmapped, category_names
from palidecode.coco.reading import Source
from palidecode.coco.writing import Categories, CocoOptions, MaskFormat, Segmentation
from palidecode.errors import InputError
from palidecode.evaluation.coco.engine import IouType
from palidecode.evaluation.coco.evaluate import evaluate_coco
from palidecode.evaluation.coco.result import CocoEvaluation
from palidecode.geometry.boxes import DEFAULT_DIVISOR
from palidecode.geometry.masks import DEFAULT_PASTE, Paste
from palidecode.pipeline import AskOptions, EndpointOptions, GrammarOptions
from palidecode.pipeline.checkpoint import EngineName, ModelOptions
from palidecode.pipeline.decoder import DEFAULT_TOKENS
from palidecode.pipeline.looking import DEFAULT_OVERLAP
from palidecode.prompts import Task
from palidecode.ray_data.cluster import Workers, connected
from palidecode.ray_data.running import DECODED, PREDICTED, Found, found_in, write
from palidecode.ray_data.sources import (
    DatasetRows,
    Paths,
    read_coco,
    read_jsonl,
    read_parquet,
    read_pictures,
    read_webdataset,
)
from palidecode.runs.answers import CHUNK, DecodeJob, DecodeOptions
from palidecode.runs.local import RunOptions, WrittenCoco
from palidecode.runs.pictures import PredictJob, predict_options
from palidecode.runs.rows import RowsJob

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


def predict(
    source: Paths | Dataset,
    *,
    model: str | os.PathLike[str] | EndpointOptions,
    prompt: str | Sequence[str] | None = None,
    task: Task | None = None,
    classes: Categories | None = None,
    per_class: bool = False,
    min_score: float = 0.0,
    images: str | os.PathLike[str] | None = None,
    batch_size: int | None = None,
    shard_size: int = PREDICTED,
    dtype: str | None = None,
    device: str | None = None,
    quantize: Literal["int8", "int4"] | None = None,
    weights: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float = 1.0,
    num_gpus: float | None = None,
    grammar: bool | GrammarOptions = True,
    over: Literal["vocabulary", "allowed"] = "allowed",
    score: Score = DEFAULT_SCORE,
    sub_bin: bool = False,
    divisor: int = DEFAULT_DIVISOR,
    clip: bool = False,
    max_new_tokens: int = DEFAULT_TOKENS,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    engine: EngineName = "auto",
    base: str | os.PathLike[str] | None = None,
    box_image: int | None = None,
    classes_per_prompt: int | None = None,
    past_end: float | None = None,
    samples: int = 1,
    tiles: str | None = None,
    overlap: float = DEFAULT_OVERLAP,
    zoom: bool = False,
) -> Found:
    """Ask a model about pictures.

    Parameters
    ----------
    source : path, sequence of paths, or ray.data.Dataset
        A folder of pictures; a COCO ``.json`` or a ``.jsonl`` about pictures in `images`;
        ``.parquet`` and WebDataset ``.tar`` files; or a Dataset of such rows.
    model, dtype, device, quantize, tokenizer, engine, base
        See `PaliDecoder.from_pretrained`. Files must be seen by every machine. `EndpointOptions`
        name a server that answers instead, which every machine must reach.
    prompt, task, classes
        ``"segment cat ; dog"``, several prompts that are all asked, or a task and names (or a COCO
        dataset that has them); by default all classes that the model's folder lists.
    per_class : bool
        As ``classes_per_prompt=1``.
    min_score : float
        Objects below it are skipped.
    batch_size : int
        Pictures that the model sees together; by default 8, or with a server four for each of
        its requests at a time.
    shard_size : int
        Pictures that are finished, and lost, together, fewer at the end; rounded up to whole
        batches.
    weights : path, optional
        Of the mask codec.
    box_image : int, optional
        Index of the picture that boxes are measured in, of rows that name several.
    concurrency, num_cpus, num_gpus
        Number of actors, and what each is given. By default as many actors as fit, with a GPU
        each where the cluster has any and `device` isn't ``"cpu"``.
    grammar, over, score, sub_bin, divisor, clip, max_new_tokens, temperature, top_p, seed, \
    classes_per_prompt, past_end, samples, tiles, overlap, zoom
        See `PaliDecoder.detect`.

    Returns
    -------
    Found
        Nothing is computed yet: see `write_coco`, `write_parquet` and `Found.dataset`.

    Raises
    ------
    InputError
        For a source, model or prompt that can't be used, and where Ray isn't installed.
    """
    options: ModelOptions | EndpointOptions
    if isinstance(model, EndpointOptions):
        if (dtype, device, quantize, tokenizer, engine, base) != (None,) * 4 + ("auto", None):
            raise InputError("EndpointOptions name a server: leave dtype, device … out")
        options = model if weights is None else replace(model, codec=_text(weights))
    else:
        options = ModelOptions(
            os.fspath(model),
            dtype,
            device,
            quantize,
            _text(tokenizer),
            _text(weights),
            engine=engine,
            base=_text(base),
        )
    ask = AskOptions(
        grammar=grammar,
        over=over,
        score=score,
        sub_bin=sub_bin,
        divisor=divisor,
        clip=clip,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        classes_per_prompt=1 if per_class else classes_per_prompt,
        past_end=past_end,
        samples=samples,
        tiles=tiles,
        overlap=overlap,
        zoom=zoom,
    )
    job = PredictJob(
        predict_options(
            options,
            prompt=prompt,
            task=task,
            classes=category_names(classes),
            min_score=min_score,
            ask=ask,
            batch_size=batch_size,
            box_image=box_image,
        )
    )
    return found_in(
        job,
        source,
        images=images,
        concurrency=concurrency,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        shard_size=shard_size,
    )


def decode(
    source: Paths | Dataset,
    *,
    images: str | os.PathLike[str] | None = None,
    size: tuple[int, int] | None = None,
    output_key: str | None = None,
    image_key: str | None = None,
    box_image: int | None = None,
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
) -> Found:
    """Decode answers of any runtime to boxes and masks.

    Parameters
    ----------
    source : path, sequence of paths, or ray.data.Dataset
        ``.jsonl``, ``.json``, ``.csv``, ``.parquet`` or WebDataset ``.tar`` files, or a Dataset
        of such rows.
    images, size, output_key, image_key, box_image
        Folder of the pictures, or a size for all, if rows have no sizes, the keys of answers and
        pictures, and which of several has the boxes: see `palidecode.answers.rows.read_rows`.
    batch_size : int
        Answers that are decoded together.
    shard_size : int
        Answers that are finished, and lost, together, fewer at the end; rounded up to whole
        batches.
    weights, backend, tokenizer, divisor, clip, label_from_prompt
        See `palidecode.runs.answers.DecodeOptions`. Files must be seen by every machine.
    concurrency, num_cpus
        Number of actors, and what each is given. By default as many actors as fit.

    Returns
    -------
    Found
        Nothing is computed yet: see `write_coco`, `write_parquet` and `Found.dataset`.

    Raises
    ------
    InputError
        For a source that can't be used, and where Ray isn't installed.
    """
    options = DecodeOptions(
        _text(weights),
        backend,
        divisor,
        clip,
        _text(tokenizer),
        label_from_prompt,
        _text(images),
        size,
        output_key,
        image_key,
        batch_size,
        box_image=box_image,
    )
    job = DecodeJob(options)
    return found_in(job, source, concurrency=concurrency, num_cpus=num_cpus, shard_size=shard_size)


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
    paste: Paste = DEFAULT_PASTE,
    drop_empty: bool = False,
    restart: bool = False,
    keep_journal: bool = False,
) -> WrittenCoco:
    """Run it, and write the COCO file that one machine would write.

    Workers write shards into ``<path>.shards``, which all machines must see; then they are
    merged, one in memory at a time. After an interruption the same call does the rows that are
    missing. Rows that could not be used are listed in ``failures.jsonl``.

    Parameters
    ----------
    found : Found, or ray.data.Dataset of the rows that `Found.dataset` gives
    path : path
    categories, match, unmapped, aliases, drop_empty
        As for `to_coco`; by default the names that were asked for.
    segmentation, simplify, min_area, paste
        How masks are written: see `MaskFormat`. Masks of a Dataset are RLE, so polygons follow
        their pixels' edges.
    restart : bool
        Discard what an earlier run has finished.
    keep_journal : bool
        Keep the shards when all is done: the next run then looks at new and changed rows only.

    Returns
    -------
    WrittenCoco

    Raises
    ------
    InputError
        For another run's shards, a full disk, and where nothing could be read.
    """
    if not isinstance(found, Found):
        found = Found(DatasetRows(found), RowsJob(), Workers(), DECODED)
    names = list(found.job.names) or None
    form = MaskFormat(segmentation, simplify, min_area, paste)
    options = CocoOptions(
        names if categories is None else categories, match, unmapped, aliases, form, drop_empty
    )
    written = write(found, Path(path), options, RunOptions(restart, keep_journal))
    if not written.report.images:
        raise InputError(f"nothing could be read; {path} was not written")
    return written


def write_parquet(found: Found | Dataset, path: str | os.PathLike[str]) -> None:
    """Run it, and write the rows of `Found.dataset`, RLE included, as Parquet files in a folder.

    Ray writes them; an interrupted run starts over.

    Raises
    ------
    InputError
        If the folder isn't empty: rows of two runs would be mixed.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists; name a new folder for Parquet files")
    rows = found.dataset() if isinstance(found, Found) else found
    rows.write_parquet(os.path.abspath(folder))


def evaluate(
    gt: Source,
    found: Found | Dataset,
    iou_type: IouType = "bbox",
    *,
    path: str | os.PathLike[str] | None = None,
    categories: Sequence[str | int] | None = None,
    match: Match = "exact",
    merge_duplicates: float | None = None,
    scores: Literal["file", "ignore"] = "file",
    orders: int = 10,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> CocoEvaluation:
    """Run it, and evaluate the predictions against COCO ground truth.

    Parameters
    ----------
    gt : path or dict
        A COCO dataset; its images are found by name.
    found : Found or ray.data.Dataset
    iou_type : {"bbox", "segm"}
    path : path, optional
        Keep the predictions there; an interrupted run then resumes.
    categories, match, merge_duplicates, scores, orders, bootstrap, confidence, seed
        See `evaluate_coco`.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = write_coco(found, Path(folder) / "coco.json" if path is None else path)
        return evaluate_coco(
            gt,
            written.path,
            iou_type,
            categories=categories,
            match=match,
            merge_duplicates=merge_duplicates,
            scores=scores,
            orders=orders,
            bootstrap=bootstrap,
            confidence=confidence,
            seed=seed,
        )


def _text(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)
