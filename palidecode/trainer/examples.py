"""Rows of prompts and answers (`prefix`, `suffix`, `image`) as batches of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from palidecode.answers.row_files import Problem, open_rows
from palidecode.errors import InputError
from palidecode.files import inside, open_picture, picture_size
from palidecode.runtime.image import ImageConfig, shrink
from palidecode.runtime.tokenizer import Tokenizer

_SHOWN = 5


@dataclass(frozen=True)
class Example:
    """One prompt, its answer, and the picture that it is about.

    Attributes
    ----------
    line : int
    picture : Path
    name : str
        The picture's name in the row.
    size : tuple of 2 int
    prefix, suffix : str
    prompt, answer : tuple of int
        Their tokens: ``<bos>``, prompt, newline; answer, ``<eos>``.
    silent : tuple of bool
        The tokens of the answer that aren't in the loss; empty for none.
    window : tuple of 4 int, optional
        The part of the picture that is used: x1, y1, x2, y2 in pixels.
    flipped : bool
        The picture is mirrored.
    """

    line: int
    picture: Path
    name: str
    size: tuple[int, int]
    prefix: str
    suffix: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    silent: tuple[bool, ...] = ()
    window: tuple[int, int, int, int] | None = None
    flipped: bool = False

    def open(self) -> Image.Image:
        """Open the picture, cut and mirrored."""
        image = open_picture(self.picture)
        if self.window is not None:
            image = image.crop(self.window)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flipped else image


@dataclass
class Examples:
    """The examples of a file, and the rows that were left out."""

    rows: list[Example] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    too_long: int = 0


def read_examples(
    path: Path, images: Path | None, tokenizer: Tokenizer, longest: int, codes_id: str
) -> Examples:
    """Read the rows of ``palidecode encode``.

    Parameters
    ----------
    path : Path
        JSON Lines with ``prefix``, ``suffix`` and ``image``.
    images : Path, optional
        The folder of the pictures; by default that of the file.
    tokenizer : Tokenizer
    longest : int
        Rows whose prompt and answer together have more tokens are left out and counted.
    codes_id : str
        Id of the mask codec whose codes the model writes.

    Raises
    ------
    InputError
        If the file can't be read, holds codes of another codec, or no row can be used.
    """
    found = Examples()
    folder = path.parent if images is None else images
    with open_rows(path) as file:
        for item in file.objects():
            if isinstance(item, Problem):
                found.problems.append(item)
                continue
            line, row = item
            codec = row.get("codec")
            if isinstance(codec, str) and codec != codes_id:
                raise InputError(
                    f"{path}: line {line}: its seg codes are {codec}'s, the model writes "
                    f"{codes_id}'s: encode the masks with the model's codec"
                )
            try:
                example = _example(line, row, folder, tokenizer)
            except InputError as error:
                found.problems.append(Problem(line, str(error)))
                continue
            if len(example.prompt) + len(example.answer) > longest:
                found.too_long += 1
            else:
                found.rows.append(example)
    if not found.rows:
        reasons = "; ".join(f"line {line}: {reason}" for line, reason in found.problems[:_SHOWN])
        long = f"{found.too_long} have more than {longest} tokens" if found.too_long else ""
        raise InputError(f"{path}: no usable row: {'; '.join(filter(None, (long, reasons)))}")
    return found


def _example(line: int, row: dict[str, object], folder: Path, tokenizer: Tokenizer) -> Example:
    texts = []
    for key in ("prefix", "suffix", "image"):
        value = row.get(key)
        if not isinstance(value, str) or (key == "image" and not value):
            raise InputError(f"needs {key!r}, a text: palidecode encode writes such rows")
        texts.append(value)
    prefix, suffix, name = texts
    picture = inside(folder, name)
    size = picture_size(picture)
    prompt = tokenizer.encode_prompt(prefix)
    answer = [*tokenizer.encode(suffix), tokenizer.vocabulary.eos]
    return Example(line, picture, name, size, prefix, suffix, tuple(prompt), tuple(answer))


@dataclass(frozen=True)
class Batch:
    """Tensors of some examples, padded on the right.

    Attributes
    ----------
    pixels : Tensor of float32, shape (B, 3, S, S)
    ids : Tensor of int64, shape (B, T)
        Prompts and answers.
    prefix, lengths : Tensor of int64, shape (B,)
        Tokens of each prompt, and of prompt and answer.
    in_loss : Tensor of bool, shape (B, T)
        Tokens that the loss is of: the answers', ``<eos>`` included, without silent ones.
    """

    pixels: Tensor
    ids: Tensor
    prefix: Tensor
    lengths: Tensor
    in_loss: Tensor

    def targets(self) -> int:
        """Count the tokens in the loss."""
        return int(self.in_loss.sum())


def make_batch(
    examples: Sequence[Example], image_config: ImageConfig, pad: int, device: torch.device
) -> Batch:
    """Open the pictures of some examples and pad their tokens.

    Raises
    ------
    InputError
        If a picture can't be read.
    """
    pixels = np.stack([shrink(e.open(), image_config).pixels for e in examples])
    lengths = [len(example.prompt) + len(example.answer) for example in examples]
    ids = torch.full((len(examples), max(lengths)), pad)
    in_loss = torch.zeros(ids.shape, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : lengths[row]] = torch.tensor((*example.prompt, *example.answer))
        silent = example.silent or (False,) * len(example.answer)
        in_loss[row, len(example.prompt) : lengths[row]] = ~torch.tensor(silent)
    return Batch(
        torch.from_numpy(pixels).to(device),
        ids.to(device),
        torch.tensor([len(example.prompt) for example in examples], device=device),
        torch.tensor(lengths, device=device),
        in_loss.to(device),
    )
