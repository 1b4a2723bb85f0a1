"""Train the tiny model: ``python -m training.model.train --data DIR --out DIR``.

A run has three stages, is resumable and seeded:

1. *dense*: the vision tower alone. Every patch predicts class, colour, box and mask codes of
   the object that covers it. This replaces SigLIP's pre-training.
2. *asked*: the decoder alone reads prompts. Every patch predicts if its object is asked for.
   Without this stage classes are learned but colours are not.
3. *joint*: the whole model learns to answer. The loss covers the suffix, ``<eos>`` included,
   with objects from left to right, not the prefix (image, ``<bos>``, prompt, newline). Loc
   targets are Gaussians over the bins that narrow from σ = 40 to 3, and seg targets are spread
   over similar codes, so that near misses teach the model, unlike with one-hot targets.

The weights of the model are a moving average over the run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from palidecode.codec.weights import CODEBOOK, DEMO_ID, load_weights
from palidecode.runtime.config import VisionConfig
from palidecode.runtime.paligemma import PaliGemma
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.vocab import LOC_COUNT, SEG_COUNT, SEG_PER_MASK
from training.model.batches import CELLS, CONFIG, Batch, Words, batches
from training.model.tokenizer import build
from training.scenes.draw import COLOR_NAMES
from training.scenes.shapes import CLASSES

BINS_WIDE, BINS_NARROW = 40.0, 3.0  # σ of loc targets, in bins
DENSE_WEIGHT = 0.5  # of the dense loss in the joint stage
SEG_WEIGHT = 0.8  # of a mask token; a loc token has 1
TEXT_BY_MASKS = 3.0  # of a label's or separator's token in answers with masks
ASKED_WEIGHT = 0.5  # of `_patches_asked` in the joint stage
ASKED_AFTER = (1, 2)  # layers of the decoder
AVERAGE = 0.999  # share of the moving average that each step keeps
DECAY = 0.02


class DenseHeads(nn.Module):
    """Predictions of each patch about the object that covers it; used in training only.

    `cells` predicts the parts of the patch that the object covers; without it edges, and so
    silhouettes, are learned slowly. `asked` predicts after some layers of the decoder if the
    prompt asks for the object; without it colours aren't learned.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.label = nn.Linear(width, 1 + len(CLASSES))
        self.color = nn.Linear(width, len(COLOR_NAMES))
        self.box = nn.Linear(width, 4)
        self.codes = nn.Linear(width, SEG_PER_MASK * SEG_COUNT)
        self.cells = nn.Linear(width, CELLS)
        self.asked = nn.ModuleList(nn.Linear(width, 1) for _ in ASKED_AFTER)


def dense_loss(heads: DenseHeads, features: Tensor, batch: Batch, near: Tensor) -> Tensor:
    """Loss of every patch's class, colour, box and codes."""
    seen = batch.label > 0
    loss = F.cross_entropy(heads.label(features).float().flatten(0, 1), batch.label.flatten())
    inside = features[seen]
    # Most patches are background, so objects' classes have a term of their own.
    loss = loss + F.cross_entropy(heads.label(inside).float(), batch.label[seen])
    loss = loss + F.cross_entropy(*_whole_objects(heads, inside, batch, seen))
    loss = loss + 2 * F.binary_cross_entropy_with_logits(
        heads.cells(inside).float(), batch.cells[seen]
    )
    loss = loss + 0.2 * F.cross_entropy(heads.color(inside).float(), batch.color[seen])
    guess, truth = heads.box(inside).float(), batch.box[seen]
    guess = guess + _centers(CONFIG.vision).repeat(len(batch.label), 1, 1)[seen]
    loss = loss + 6 * (guess - truth).abs().mean() + (1 - _iou(guess, truth)).mean()
    # The head of the codes is wide, so only a quarter of the patches predict them.
    some = torch.rand(len(inside)) < 0.25
    logits = heads.codes(inside[some]).float().view(-1, SEG_COUNT)
    return loss + 0.2 * F.cross_entropy(logits, near[batch.codes[seen][some].flatten()])


def _whole_objects(
    heads: DenseHeads, inside: Tensor, batch: Batch, seen: Tensor
) -> tuple[Tensor, Tensor]:
    """Class logits of each object's mean feature, and its class."""
    number = torch.arange(len(batch.owner))[:, None] * 8 + batch.owner
    objects, index = number[seen].unique(return_inverse=True)
    count = torch.bincount(index).to(inside.dtype)[:, None]
    mean = torch.zeros(len(objects), inside.shape[1], dtype=inside.dtype)
    mean = mean.index_add(0, index, inside) / count
    label = torch.zeros(len(objects), dtype=torch.int64).scatter(0, index, batch.label[seen])
    return heads.label(mean).float(), label


def _centers(config: VisionConfig) -> Tensor:
    side = config.image_size // config.patch
    middle = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    return torch.stack((y, x, y, x), -1).reshape(1, side * side, 4)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    top, bottom = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (bottom - top).clamp_min(0).prod(1)
    areas = [(box[:, 2:] - box[:, :2]).clamp_min(0).prod(1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared).clamp_min(1e-6)


def near_codes(sharpness: float) -> Tensor:
    """For each seg code, a distribution over similar codes, (128, 128)."""
    codebook = torch.from_numpy(load_weights(DEMO_ID).arrays[CODEBOOK].copy())
    distance = torch.cdist(codebook, codebook).square()
    return (-sharpness * distance / distance.mean()).softmax(1)


def near_bins(sigma: float) -> Tensor:
    """For each loc bin, a Gaussian over the bins, (1024, 1024)."""
    bins = torch.arange(LOC_COUNT, dtype=torch.float32)
    return (-(bins[:, None] - bins).square() / (2 * sigma**2)).softmax(1)


def answer_loss(
    model: PaliGemma,
    heads: DenseHeads,
    batch: Batch,
    image: Tensor,
    words: Words,
    bins: Tensor,
    near: Tensor,
) -> Tensor:
    """Cross entropy of the suffix against soft targets, plus the loss of `_patches_asked`."""
    whole = model.embed_prefix(image, batch.ids, batch.lengths)
    tokens = CONFIG.vision.tokens
    with hidden_states(model) as states:
        hidden = model.language(whole.embeddings, whole.position, batch.prefix + tokens)
    hidden = hidden[:, tokens:]
    position = torch.arange(batch.ids.shape[1])
    in_loss = (position >= batch.prefix[:, None] - 1) & (position < batch.lengths[:, None] - 1)
    logits = model.language.logits(hidden[in_loss])
    target = batch.ids.roll(-1, 1)[in_loss]
    v = words.vocabulary
    logp = logits.log_softmax(1)
    loss = -logp.gather(1, target[:, None])[:, 0]
    is_loc = (target >= v.loc_offset) & (target < v.loc_offset + LOC_COUNT)
    soft = bins[target[is_loc] - v.loc_offset]
    loc = -(logp[is_loc][:, v.loc_offset : v.loc_offset + LOC_COUNT] * soft).sum(1)
    is_seg = (target >= v.seg_offset) & (target < v.seg_offset + SEG_COUNT)
    similar = near[target[is_seg] - v.seg_offset]
    seg = -(logp[is_seg][:, v.seg_offset : v.seg_offset + SEG_COUNT] * similar).sum(1)
    text = loss[~is_loc & ~is_seg]
    # Labels have few tokens beside the sixteen of each mask.
    weight = TEXT_BY_MASKS if len(seg) else 1.0
    total = weight * text.sum() + loc.sum() + SEG_WEIGHT * seg.sum()
    count = weight * len(text) + len(loc) + SEG_WEIGHT * len(seg)
    return total / count + ASKED_WEIGHT * _patches_asked(heads, states, batch)


def asked_loss(model: PaliGemma, heads: DenseHeads, batch: Batch, image: Tensor) -> Tensor:
    """Loss of `_patches_asked` for prompts without answers."""
    prompts = batch.ids[:, : int(batch.prefix.max())]
    whole = model.embed_prefix(image, prompts, batch.prefix)
    with hidden_states(model) as states:
        model.language(whole.embeddings, whole.position, whole.length)
    return _patches_asked(heads, states, batch)


@contextmanager
def hidden_states(model: PaliGemma) -> Iterator[list[Tensor]]:
    """Collect the outputs of the layers `ASKED_AFTER`."""
    states: list[Tensor] = []
    layers = [model.language.layers[number] for number in ASKED_AFTER]
    hooks = [layer.register_forward_hook(lambda *of: states.append(of[2])) for layer in layers]
    yield states
    for hook in hooks:
        hook.remove()


def _patches_asked(heads: DenseHeads, states: list[Tensor], batch: Batch) -> Tensor:
    """Loss of each patch's prediction if the prompt asks for its object."""
    seen = batch.owner > 0
    patches = [state[:, : CONFIG.vision.tokens][seen] for state in states]
    logits = [head(x)[:, 0].float() for head, x in zip(heads.asked, patches, strict=True)]
    asked = batch.asked[seen].float()
    return torch.stack([F.binary_cross_entropy_with_logits(x, asked) for x in logits]).mean()


def new_model(seed: int, words: Words) -> tuple[PaliGemma, DenseHeads]:
    """Initialise weights from a seed; loc embeddings are smooth Fourier features of their bin."""
    torch.manual_seed(seed)
    model, heads = PaliGemma(CONFIG), DenseHeads(CONFIG.vision.width)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 2 and "embed" not in name and "position" not in name:
                nn.init.xavier_uniform_(value)
        model.vision.position.copy_(_waves(CONFIG.vision))
        for layer in model.vision.layers:
            _look_nearby(layer.attention.qkv.weight, CONFIG.vision.heads)
        width = CONFIG.text.width
        embedding = model.language.embed.weight
        embedding.normal_(std=width**-0.5)
        v = words.vocabulary
        middle = (torch.arange(LOC_COUNT) + 0.5) / LOC_COUNT
        waves = torch.arange(width // 2) + 1
        angle = math.pi * middle[:, None] * waves / 2
        falloff = 1 / (1 + waves / 8)  # fine waves are small
        smooth = torch.cat((angle.cos() * falloff, angle.sin() * falloff), 1)
        smooth *= width**-0.5 / smooth.square().mean().sqrt()
        embedding[v.loc_offset : v.loc_offset + LOC_COUNT] = smooth
    return model, heads


def _waves(config: VisionConfig) -> Tensor:
    """Sines and cosines of row and column, (tokens, width), similar for patches that are near."""
    side, quarter = config.image_size // config.patch, config.width // 4
    middle = (torch.arange(side) + 0.5) / side
    angle = middle[:, None] * math.pi * torch.logspace(-0.5, 0.9, quarter)
    one = torch.cat((angle.sin(), angle.cos()), 1)
    rows, columns = one[:, None].expand(side, side, -1), one[None].expand(side, side, -1)
    return 0.5 * torch.cat((rows, columns), -1).reshape(side * side, config.width)


def _look_nearby(qkv: Tensor, heads: int) -> None:
    """Initialise half of the heads with equal queries and keys, to attend to similar patches.

    As near patches have similar positions, these are their neighbours.
    """
    q, k = qkv[: len(qkv) // 3], qkv[len(qkv) // 3 : 2 * len(qkv) // 3]
    size = len(q) // heads
    for head in range(0, heads, 2):
        rows = slice(head * size, (head + 1) * size)
        nn.init.orthogonal_(q[rows], gain=1.5)
        k[rows] = q[rows]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """A short warm-up, then a cosine to a fiftieth."""
    if step < 200:
        return peak * (step + 1) / 200
    return peak * (0.02 + 0.98 * (1 + math.cos(math.pi * min(step / steps, 1))) / 2)


class Run:
    """A training and its state on disk."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.step, self.seconds = args, 0, 0.0
        self.tokenizer = build()
        self.words = Words(Tokenizer(self.tokenizer))
        self.model, self.heads = new_model(args.seed, self.words)
        # Forward and backward passes use a bfloat16 copy; updates go to the float32 weights.
        self.work, self.work_heads = new_model(args.seed, self.words)
        self.work.bfloat16()
        self.work_heads.bfloat16()
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.values = [*self.model.parameters(), *self.heads.parameters()]
        self.copies = [*self.work.parameters(), *self.work_heads.parameters()]
        matrices = [p for p in self.values if p.ndim == 2]
        rest = [p for p in self.values if p.ndim != 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}],
            lr=args.rate,
            betas=(0.9, 0.98),
        )
        self.path = args.out / "state.safetensors"
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        tensors = load_file(self.path)

        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(under("model."))
        self.heads.load_state_dict(under("heads."))
        self.average = under("average.")
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in under("optimizer.").items():
            index, field = key.split(".")
            moments.setdefault(int(index), {})[field] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step, self.seconds = int(tensors["step"]), float(tensors["seconds"])

    def save(self) -> None:
        """Write the whole state to one file, atomically."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"heads.{k}": v for k, v in self.heads.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in values.items()}
        tensors |= {"step": torch.tensor(self.step), "seconds": torch.tensor(self.seconds)}
        part = self.path.with_suffix(".part")
        save_file({k: v.contiguous() for k, v in tensors.items()}, part)
        os.replace(part, self.path)

    def train(self) -> None:
        """Run until the last step; log one JSON line every 100 steps."""
        args = self.args
        joint_from = args.dense_steps + args.asked_steps
        total = joint_from + args.steps
        near = near_codes(args.sharpness)
        seed = args.seed + 1000 + self.step
        data = batches(args.data, args.batch, seed, self.words, args.detect)
        questions = batches(args.data, args.batch, seed, self.words, 1.0, all_classes=0.0)
        began, sums = time.perf_counter(), [0.0, 0.0]
        before = self.seconds
        while self.step < total:
            joint = self.step - joint_from
            dense_only = self.step < args.dense_steps
            done = max(0.0, joint / args.steps)
            sigma = max(BINS_NARROW, BINS_WIDE * (BINS_NARROW / BINS_WIDE) ** (done / 0.7))
            bins = near_bins(sigma)
            asked_only = joint < 0 and not dense_only
            stage = (self.step, args.dense_steps) if dense_only else (joint, args.steps)
            if asked_only:
                stage = (joint + args.asked_steps, args.asked_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(*stage, args.rate)
            if asked_only:
                dense, answer = 0.0, self._update_asked(next(questions))
            else:
                dense, answer = self._update(next(data), joint >= 0, bins, near)
            sums = [sums[0] + dense, sums[1] + answer]
            self.step += 1
            self.seconds = before + time.perf_counter() - began
            if self.step % 100 == 0:
                line = {
                    "step": self.step,
                    "seconds": round(self.seconds),
                    "dense": round(sums[0] / 100, 4),
                    "answer": round(sums[1] / 100, 4),
                    "sigma": round(sigma, 1),
                }
                with (args.out / "log.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
                sums = [0.0, 0.0]
            if self.step % 500 == 0 or self.step == total:
                self.save()

    def _update(self, batch: Batch, joint: bool, bins: Tensor, near: Tensor) -> tuple[float, float]:
        with torch.no_grad():
            torch._foreach_copy_(self.copies, self.values)
        features = self.work.vision(batch.pixels)
        dense = dense_loss(self.work_heads, features, batch, near)
        answer = torch.zeros(())
        if joint:
            image = self.work.projector(features)
            heads = self.work_heads
            answer = answer_loss(self.work, heads, batch, image, self.words, bins, near)
        self._step((DENSE_WEIGHT if joint else 1.0) * dense + answer)
        return dense.item(), answer.item()

    def _update_asked(self, batch: Batch) -> float:
        with torch.no_grad():
            torch._foreach_copy_(self.copies, self.values)
            image = self.work.projector(self.work.vision(batch.pixels))
        loss = asked_loss(self.work, self.work_heads, batch, image)
        self._step(loss)
        return loss.item()

    def _step(self, loss: Tensor) -> None:
        loss.backward()
        for value, copy in zip(self.values, self.copies, strict=True):
            value.grad = None if copy.grad is None else copy.grad.float()
            copy.grad = None
        nn.utils.clip_grad_norm_(self.values, 1.0)
        self.optimizer.step()
        keep = min(AVERAGE, (1 + self.step) / (20 + self.step))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)


def main() -> None:
    """Train, or resume the last run."""
    parser = argparse.ArgumentParser(description="Train the tiny model.")
    parser.add_argument("--data", type=Path, required=True, help="shards of training.model.data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dense-steps", type=int, default=2500)
    parser.add_argument("--asked-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--detect", type=float, default=0.5, help="share of detect prompts")
    parser.add_argument("--sharpness", type=float, default=8.0, help="of seg targets")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    Run(args).train()


if __name__ == "__main__":
    main()
