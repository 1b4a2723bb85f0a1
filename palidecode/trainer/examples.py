"""Rows of prompts and answers (`prefix`, `suffix`, `image`) as batches of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from palidecode.answers.row_files import Problem, open_rows
from palidecode.answers.rows import RowReader
from palidecode.errors import InputError
from palidecode.files import inside, open_picture, picture_size
from palidecode.prompts import split_verb
from palidecode.runtime.generate import cache_length
from palidecode.runtime.image import ImageConfig, shrink
from palidecode.runtime.tokenizer import Tokenizer

Pixels = npt.NDArray[np.float32]
_SHOWN = 5
_READER = RowReader(pictures=("image", "images"))


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
    others : tuple of Path
        The pictures after the first one, of a prompt about several; `name` and `size` are those
        of the picture that boxes are measured in.
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
    others: tuple[Path, ...] = ()

    @property
    def pictures(self) -> list[Path]:
        """All pictures that the prompt is about."""
        return [self.picture, *self.others]

    def open(self) -> list[Image.Image]:
        """Open the pictures; the first one cut and mirrored."""
        return [self._open_first(), *map(open_picture, self.others)]

    def _open_first(self) -> Image.Image:
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
    path: Path,
    images: Path | None,
    tokenizer: Tokenizer,
    longest: int,
    codes_id: str,
    image_tokens: int = 0,
) -> Examples:
    """Read the rows of ``palidecode encode``.

    Parameters
    ----------
    path : Path
        JSON Lines with ``prefix``, ``suffix`` and ``image``, or ``images``, a list, where the
        prompt is about several; a prompt for boxes then needs ``box_image``, the index of the
        picture that they are measured in.
    images : Path, optional
        The folder of the pictures; by default that of the file.
    tokenizer : Tokenizer
    longest : int
        Rows whose prompt and answer together have more tokens are left out and counted.
    codes_id : str
        Id of the mask codec whose codes the model writes.
    image_tokens : int
        Tokens of a picture, which count for Gemma's context.

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
                pictures, answer = len(example.pictures), len(example.answer)
                cache_length(pictures * image_tokens, len(example.prompt), answer)
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
    for key in ("prefix", "suffix"):
        value = row.get(key)
        if not isinstance(value, str):
            raise InputError(f"needs {key!r}, a text: palidecode encode writes such rows")
        texts.append(value)
    prefix, suffix = texts
    names = [picture.name for picture in _READER.named(row)]
    boxed = _READER.box_index(row, len(names))
    if boxed is None and split_verb(prefix)[0] is not None:
        raise InputError(
            f"names {len(names)} pictures: 'box_image', from 0, says whose size the boxes have"
        )
    paths = [inside(folder, name) for name in names if name]
    if len(paths) < len(names):
        raise InputError("needs 'image', a file name, or 'images', a list of them")
    sizes = [picture_size(path) for path in paths]
    prompt = tokenizer.encode_prompt(prefix)
    answer = [*tokenizer.encode(suffix), tokenizer.vocabulary.eos]
    return Example(
        line,
        paths[0],
        str(names[boxed or 0]),
        sizes[boxed or 0],
        prefix,
        suffix,
        tuple(prompt),
        tuple(answer),
        others=tuple(paths[1:]),
    )


@dataclass(frozen=True)
class Batch:
    """Tensors of some examples, padded on the right.

    Attributes
    ----------
    pixels : Tensor of float32, shape (B · k, 3, S, S)
        The k pictures of each example, one after another.
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


def open_pixels(example: Example, image_config: ImageConfig) -> Pixels:
    """Open the pictures of an example, (k, 3, S, S).

    Raises
    ------
    InputError
        If one of them can't be read.
    """
    return np.stack([shrink(image, image_config).pixels for image in example.open()])


def make_batches(
    examples: Sequence[Example],
    pixels: Sequence[Pixels],
    pad: int,
    device: torch.device,
) -> list[Batch]:
    """Put examples into batches, those with as many pictures into the same.

    `pixels` are those of `open_pixels`.
    """
    by_count: dict[int, list[int]] = {}
    for row, several in enumerate(pixels):
        by_count.setdefault(len(several), []).append(row)
    return [
        _batch([examples[row] for row in rows], [pixels[row] for row in rows], pad, device)
        for rows in by_count.values()
    ]


def _batch(
    examples: Sequence[Example],
    pixels: Sequence[Pixels],
    pad: int,
    device: torch.device,
) -> Batch:
    lengths = [len(example.prompt) + len(example.answer) for example in examples]
    ids = torch.full((len(examples), max(lengths)), pad)
    in_loss = torch.zeros(ids.shape, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : lengths[row]] = torch.tensor((*example.prompt, *example.answer))
        silent = example.silent or (False,) * len(example.answer)
        in_loss[row, len(example.prompt) : lengths[row]] = ~torch.tensor(silent)
    return Batch(
        torch.from_numpy(np.concatenate(pixels)).to(device),
        ids.to(device),
        torch.tensor([len(example.prompt) for example in examples], device=device),
        torch.tensor(lengths, device=device),
        in_loss.to(device),
    )
