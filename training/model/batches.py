"""Batches for training the tiny model, made on the device that trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from palidecode.runtime.config import PaliGemmaConfig, TextConfig, VisionConfig
from palidecode.vocab import LOC_COUNT
from training.model.data import GRID, SIDE, Shard, read_shard
from training.model.questions import EVERYTHING, IDS, PER_TASK, SOME, TASKS
from training.scenes.draw import MOST, Task

CONFIG = PaliGemmaConfig(
    VisionConfig(width=256, layers=6, heads=4, mlp=704, image_size=SIDE, patch=8),
    TextConfig(
        width=192,
        layers=4,
        mlp=384,
        heads=4,
        kv_heads=4,
        head_size=48,
        query_scale=48.0,
        vocabulary=1537,
    ),
    image_token=1536,
)
PATCHES = SIDE // CONFIG.vision.patch  # a side
STEP = GRID // PATCHES  # cells of the owner map a patch and side
CELLS = STEP**2  # of the owner map in a patch


@dataclass
class Batch:
    """Scenes with one prompt and answer each; their sizes don't depend on the scenes."""

    pixels: Tensor  # (B, 3, S, S)
    ids: Tensor  # (B, T)
    prefix: Tensor  # (B,)
    lengths: Tensor  # (B,)
    objects: Tensor  # (B, 5) class of each object, 0 is none
    label: Tensor  # (B, P) class of the patch's object, 0 is background
    color: Tensor  # (B, P)
    box: Tensor  # (B, P, 4) y1 x1 y2 x2 in [0, 1]
    codes: Tensor  # (B, P, 16)
    owner: Tensor  # (B, P) number of the object in its scene, 0 is background
    cells: Tensor  # (B, P, cells) 1 where that object covers the cell
    asked: Tensor  # (B, P) True where the prompt asks for that object


class Pool:
    """Scenes of shards on the device: at most `capacity`, of which the oldest are replaced."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity, self.device, self.size, self._next = capacity, device, 0, 0
        self._columns: dict[str, Tensor] = {}
        self._read: set[Path] = set()

    def read(self, folder: Path) -> None:
        """Add the shards that have appeared in a folder."""
        for path in sorted(set(folder.glob("*.npz")) - self._read):
            self._read.add(path)
            self.add(read_shard(path))

    def add(self, shard: Shard) -> None:
        """Add scenes."""
        columns = {name: torch.from_numpy(value) for name, value in vars(shard).items()}
        for name, value in columns.items():
            if name not in self._columns:
                shape = (self.capacity, *value.shape[1:])
                self._columns[name] = torch.empty(shape, dtype=value.dtype, device=self.device)
        count = min(len(shard.images), self.capacity)
        if self._next + count > self.capacity:
            self._next = 0
        for name, value in columns.items():
            self._columns[name][self._next : self._next + count].copy_(value[:count])
        self._next += count
        self.size = max(self.size, self._next)

    def draw(self, count: int, task: Task, all_classes: float, random: torch.Generator) -> Batch:
        """Choose scenes, and a question of a task about each.

        `all_classes` is the share of questions about every class.
        """
        where = {"device": self.device, "generator": random}
        rows = torch.randint(self.size, (count,), **where)  # type: ignore[call-overload]
        everything = torch.rand(count, **where) < all_classes
        question = torch.rand(count, **where)
        question = torch.where(everything, question * EVERYTHING, EVERYTHING + question * SOME)
        return self.batch(rows, question.long() + TASKS.index(task) * PER_TASK, IDS[task])

    def batch(self, rows: Tensor, question: Tensor, length: int) -> Batch:
        """Make the batch of scenes and their questions, both (B,); every second is mirrored."""
        of = self._columns
        mirrored = question % 2 == 1

        def side(plain: Tensor, flipped: Tensor) -> Tensor:
            return torch.where(mirrored.view(-1, *(1,) * (plain.ndim - 1)), flipped, plain)

        images, map_ = of["images"][rows], of["owner"][rows]
        images = side(images, images.flip(2))
        owner, cells = _patches(side(map_, map_.flip(2)))
        loc = of["loc"][rows].float()
        y1, x1, y2, x2 = loc.unbind(-1)
        flipped = torch.stack((y1, LOC_COUNT - x2, y2, LOC_COUNT - x1), -1)
        box = side(loc, flipped.clamp(0, LOC_COUNT - 1)) / LOC_COUNT
        codes = side(of["codes"][rows], of["mirrored"][rows])
        seen = owner > 0
        number = (owner - 1).clamp_min(0)
        scene = torch.arange(len(rows), device=rows.device)[:, None]
        label = of["label"][rows].long() + 1
        exists = torch.arange(MOST, device=rows.device) < of["count"][rows][:, None]
        return Batch(
            pixels=images.permute(0, 3, 1, 2).float() / 127.5 - 1,
            ids=of["ids"][rows, question, :length].long(),
            prefix=of["prefix"][rows, question].long(),
            lengths=of["lengths"][rows, question].long(),
            objects=label * exists,
            label=label[scene, number] * seen,
            color=of["color"][rows][scene, number].long(),
            box=box[scene, number],
            codes=codes[scene, number].long(),
            owner=owner,
            cells=cells.float(),
            asked=of["asked"][rows, question][scene, number] & seen,
        )


def _patches(owner: Tensor) -> tuple[Tensor, Tensor]:
    """Find the object with most cells of each patch, if it has a third, and its cells."""
    cells = owner.view(-1, PATCHES, STEP, PATCHES, STEP).transpose(2, 3)
    cells = cells.reshape(len(owner), PATCHES**2, CELLS)
    numbers = torch.arange(1, MOST + 1, device=owner.device)
    most, index = (cells[..., None] == numbers).sum(2).max(-1)
    own = torch.where(most * 3 >= CELLS, index + 1, 0)
    return own, (cells == own[..., None]) & (own[..., None] > 0)
