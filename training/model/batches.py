"""Batches for training the tiny model: scenes of a shard, each with a new prompt and answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from palidecode.runtime.config import PaliGemmaConfig, TextConfig, VisionConfig
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.vocab import LOC_COUNT, SEG_PER_MASK
from training.model.data import GRID, SIDE, Shard, read_shard
from training.scenes.draw import (
    COLOR_NAMES,
    Prompt,
    Scene,
    all_classes_prompt,
    one_phrase_prompt,
    prompt_for,
)
from training.scenes.shapes import CLASSES

CONFIG = PaliGemmaConfig(
    VisionConfig(width=192, layers=6, heads=4, mlp=576, image_size=SIDE, patch=10),
    TextConfig(
        width=192,
        layers=4,
        mlp=384,
        heads=4,
        kv_heads=1,
        head_size=48,
        query_scale=48.0,
        vocabulary=1537,
    ),
    image_token=1536,
)
CELLS = (GRID * CONFIG.vision.patch // SIDE) ** 2  # of the owner map in a patch
ALL_CLASSES = 0.4  # share of batches whose prompts list every class
ONE_PHRASE = 0.4  # share of the other prompts that have one phrase


@dataclass
class Batch:
    """Scenes with one prompt and answer each."""

    pixels: Tensor  # (B, 3, S, S)
    ids: Tensor  # (B, T)
    prefix: Tensor  # (B,)
    lengths: Tensor  # (B,)
    label: Tensor  # (B, P) 0 is background
    color: Tensor  # (B, P)
    box: Tensor  # (B, P, 4) y1 x1 y2 x2 in [0, 1]
    codes: Tensor  # (B, P, 16)
    owner: Tensor  # (B, P) number of the object in its scene, 0 is background
    cells: Tensor  # (B, P, cells) 1 where that object covers the cell
    asked: Tensor  # (B, P) True where the prompt asks for that object


class Words:
    """Token ids of the pieces of prompts and answers."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.vocabulary = tokenizer, tokenizer.vocabulary
        self._phrases: dict[str, list[int]] = {}
        self.separator = tokenizer.encode("<loc0000> cat ; <loc0000>")[2:-1]

    def phrase(self, text: str) -> list[int]:
        """Ids of a phrase with a space before it, `` red star``."""
        if text not in self._phrases:
            self._phrases[text] = self.tokenizer.encode(f"<loc0000> {text}")[1:]
        return self._phrases[text]

    def answer(self, objects: list[tuple[str, list[int], list[int] | None]]) -> list[int]:
        """Ids of the suffix, ``<eos>`` included."""
        ids: list[int] = []
        for label, loc, codes in objects:
            ids += self.separator if ids else []
            ids += [self.vocabulary.loc_offset + bin_ for bin_ in loc]
            ids += [self.vocabulary.seg_offset + code for code in codes or ()]
            ids += self.phrase(label)
        return [*ids, self.vocabulary.eos]


def make_batch(
    shard: Shard,
    rows: npt.NDArray[np.int64],
    rng: np.random.Generator,
    words: Words,
    masks: bool,
    everything: bool,
) -> Batch:
    """Make a batch of scenes of a shard, half of them mirrored, with a new prompt each.

    `masks`: segment instead of detect; `everything`: the prompt lists all classes.
    """
    grid = CONFIG.vision.image_size // CONFIG.vision.patch
    images = np.empty((len(rows), SIDE, SIDE, 3), np.uint8)
    label = np.zeros((len(rows), grid, grid), np.int64)
    color, box = np.zeros_like(label), np.zeros((*label.shape, 4), np.float32)
    owners, cells = np.zeros_like(label), np.zeros((*label.shape, CELLS), np.float32)
    codes = np.zeros((*label.shape, SEG_PER_MASK), np.int64)
    asked = np.zeros(label.shape, np.bool_)
    sequences, prefixes = [], []
    for i, row in enumerate(rows.tolist()):
        part = slice(int(shard.first[row]), int(shard.first[row + 1]))
        flip = rng.random() < 0.5
        image, owner = shard.images[row], shard.owner[row]
        loc, seg = shard.loc[part].astype(np.int64), shard.codes[part]
        if flip:
            image, owner, seg = image[:, ::-1], owner[:, ::-1], shard.mirrored[part]
            loc = loc[:, [0, 3, 2, 1]]
            loc[:, [1, 3]] = LOC_COUNT - loc[:, [1, 3]]
            loc = np.clip(loc, 0, LOC_COUNT - 1)
        images[i] = image
        own, covered = _patches(owner, grid)
        owners[i], cells[i] = own, covered
        seen = own > 0
        number = own[seen] - 1
        label[i][seen] = shard.label[part][number] + 1
        color[i][seen] = shard.color[part][number]
        box[i][seen] = loc[number] / LOC_COUNT
        codes[i][seen] = seg[number]
        prompt = _prompt(shard, part, rng, masks, everything)
        asked[i] = np.isin(own, [number + 1 for number, _ in prompt.objects()])
        order = sorted(prompt.objects(), key=lambda o: (loc[o[0], 1] + loc[o[0], 3], loc[o[0], 0]))
        objects = [(name, loc[n].tolist(), seg[n].tolist() if masks else None) for n, name in order]
        prefix = words.tokenizer.encode_prompt(prompt.text)
        prefixes.append(len(prefix))
        sequences.append(prefix + words.answer(objects))
    lengths = np.array([len(s) for s in sequences])
    ids = np.full((len(rows), lengths.max()), words.vocabulary.pad)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = sequence
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    flat = (len(rows), grid * grid)
    return Batch(
        pixels,
        torch.from_numpy(ids),
        torch.tensor(prefixes),
        torch.from_numpy(lengths),
        torch.from_numpy(label).reshape(flat),
        torch.from_numpy(color).reshape(flat),
        torch.from_numpy(box).reshape(*flat, 4),
        torch.from_numpy(codes).reshape(*flat, SEG_PER_MASK),
        torch.from_numpy(owners).reshape(flat),
        torch.from_numpy(cells).reshape(*flat, CELLS),
        torch.from_numpy(asked).reshape(flat),
    )


def _patches(
    owner: npt.NDArray[np.uint8], grid: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Find the object with most cells of each patch, if it has a third, and its cells."""
    step = GRID // grid
    cells = owner.reshape(grid, step, grid, step).transpose(0, 2, 1, 3).reshape(grid, grid, -1)
    votes = np.stack([(cells == n).sum(-1) for n in range(1, int(owner.max()) + 2)], -1)
    own = np.where(votes.max(-1) * 3 >= cells.shape[-1], votes.argmax(-1) + 1, 0)
    return own, (cells == own[..., None]) & (own[..., None] > 0)


def _prompt(
    shard: Shard, part: slice, rng: np.random.Generator, masks: bool, everything: bool
) -> Prompt:
    truth = Scene(
        np.zeros((0, 0, 3), np.uint8),
        np.zeros((0, 4), np.float32),
        [],
        [CLASSES[n] for n in shard.label[part]],
        [COLOR_NAMES[n] for n in shard.color[part]],
    )
    task = "segment" if masks else "detect"
    if everything:
        return all_classes_prompt(truth, task)
    if rng.random() < ONE_PHRASE:
        return one_phrase_prompt(truth, rng, task)
    return prompt_for(truth, rng, task)


def batches(
    data: Path,
    size: int,
    seed: int,
    words: Words,
    detect: float,
    all_classes: float = ALL_CLASSES,
) -> Iterator[Batch]:
    """Yield batches without end, also of shards that appear while it runs."""
    rng = np.random.default_rng(seed)
    while True:
        for path in rng.permutation(sorted(data.glob("*.npz"))).tolist():
            shard = read_shard(path)
            # Scenes with similar numbers of objects go together: their answers need less padding.
            order = np.argsort(np.diff(shard.first) + rng.normal(0, 0.3, len(shard.images)))
            starts = np.arange(rng.integers(size), len(order) - size + 1, size)
            for start in rng.permutation(starts).tolist():
                masks = bool(rng.random() >= detect)
                everything = bool(rng.random() < all_classes)
                rows = order[start : start + size]
                yield make_batch(shard, rows, rng, words, masks, everything)
