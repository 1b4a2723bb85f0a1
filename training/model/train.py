"""Train the tiny model: ``python -m training.model.train --data DIR --out DIR --seconds 500``.

A run has three stages, is resumable and seeded:

1. *dense*: the vision tower alone. Every patch predicts class, colour, box and mask codes of
   the object that covers it. This replaces SigLIP's pre-training.
2. *asked*: the decoder alone reads prompts. Every patch predicts if its object is asked for.
   Without this stage classes are learned but colours are not.
3. *joint*: the whole model learns to answer. The loss covers the suffix, ``<eos>`` included,
   with objects from left to right, not the prefix (image, ``<bos>``, prompt, newline). Loc
   targets are Gaussians over the bins that narrow from σ = 40 to 3, and seg targets are spread
   over similar codes, so that near misses teach the model, unlike with one-hot targets.

The weights of the model are a moving average over the run. The stages and the learning rate
follow the share of the run that is done: of its steps, or of its seconds, which include the start.
With ``--draw N`` that many processes draw scenes meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import threading
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
from training.model.batches import CELLS, CONFIG, Batch, Pool
from training.model.data import Shard, draw_shard
from training.model.questions import IDS, TASKS, Words
from training.model.tokenizer import build
from training.scenes.draw import COLOR_NAMES, MOST, VALIDATION_SEED, Task
from training.scenes.shapes import CLASSES

BINS_WIDE, BINS_NARROW = 40.0, 3.0  # σ of loc targets, in bins
SHARPNESS = 8.0  # of seg targets
DENSE_SHARE, ASKED_SHARE = 0.18, 0.08  # of the run; the rest is the joint stage
DENSE_WEIGHT = 0.5  # of the dense loss in the joint stage
CODED = 16  # patches of a scene that predict mask codes
SEG_WEIGHT = 0.8  # of a mask token; a loc token has 1
TEXT_BY_MASKS = 3.0  # of a label's or separator's token in answers with masks
ASKED_WEIGHT = 0.5  # of `_patches_asked` in the joint stage
ASKED_AFTER = (1, 2)  # layers of the decoder
DETECT, ALL_CLASSES = 0.35, 0.4  # shares of detect batches, of questions about every class
AVERAGE = 0.999  # share of the moving average that each step keeps
DECAY = 0.02
WARM_UP = 200  # steps at the start of each stage
VALIDATED = 128  # scenes
LOG_EVERY = 100  # steps
SAVE_EVERY = 60.0  # seconds
FIRST_SHARD = 120.0  # seconds until it is drawn, at most


class DenseHeads(nn.Module):
    """Predictions of each patch about the object that covers it; used in training only.

    `cells` predicts the parts of the patch that the object covers; without it edges, and so
    silhouettes, are learned slowly. `asked` predicts after some layers of the decoder if the
    prompt asks for the object; without it colours aren't learned.
    """

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.label = nn.Linear(width, 1 + len(CLASSES))
        self.color = nn.Linear(width, len(COLOR_NAMES))
        self.box = nn.Linear(width, 4)
        self.codes = nn.Linear(width, SEG_PER_MASK * SEG_COUNT)
        self.cells = nn.Linear(width, CELLS)
        self.asked = nn.ModuleList(nn.Linear(text_width, 1) for _ in ASKED_AFTER)


def dense_loss(heads: DenseHeads, features: Tensor, batch: Batch, near: Tensor) -> Tensor:
    """Loss of every patch's class, colour, box and codes."""
    seen = (batch.owner > 0).float()
    count = seen.sum().clamp_min(1)

    def inside(each: Tensor) -> Tensor:
        return (each.view_as(seen) * seen).sum() / count

    each = _cross_entropy(heads.label(features), batch.label)
    # Most patches are background, so objects' classes have a term of their own.
    loss = each.mean() + inside(each) + _whole_objects(heads, features, batch)
    cells = heads.cells(features).float()
    each = F.binary_cross_entropy_with_logits(cells, batch.cells, reduction="none")
    loss = loss + 2 * inside(each.mean(-1))
    loss = loss + 0.2 * inside(_cross_entropy(heads.color(features), batch.color))
    guess = heads.box(features).float() + _centers(CONFIG.vision, features.device)
    loss = loss + 6 * inside((guess - batch.box).abs().mean(-1))
    loss = loss + inside(1 - _iou(guess, batch.box))
    # The head of the codes is wide, so only some patches of objects predict them.
    order, some = (torch.rand_like(seen) * seen).topk(CODED, dim=1)
    row = torch.arange(len(seen), device=seen.device)[:, None]
    logits = heads.codes(features[row, some]).float().unflatten(-1, (SEG_PER_MASK, SEG_COUNT))
    each = -(logits.log_softmax(-1) * near[batch.codes[row, some]]).sum(-1).mean(-1)
    known = (order > 0).float()
    return loss + 0.2 * (each * known).sum() / known.sum().clamp_min(1)


def _cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross entropy of logits (B, N, classes) and classes (B, N), each one's."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), truth.flatten(), reduction="none")
    return flat.view_as(truth)


def _whole_objects(heads: DenseHeads, features: Tensor, batch: Batch) -> Tensor:
    """Loss of the class that each object's mean feature predicts."""
    numbers = torch.arange(1, MOST + 1, device=features.device)
    covers = (batch.owner[:, None] == numbers[:, None]).to(features.dtype)  # (B, 5, P)
    size = covers.sum(-1, keepdim=True)
    each = _cross_entropy(heads.label(covers @ features / size.clamp_min(1)), batch.objects)
    known = (size[..., 0] > 0).float()
    return (each * known).sum() / known.sum().clamp_min(1)


def _centers(config: VisionConfig, device: torch.device) -> Tensor:
    side = config.image_size // config.patch
    middle = (torch.arange(side, device=device) + 0.5) / side
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    return torch.stack((y, x, y, x), -1).reshape(1, side * side, 4)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    top, bottom = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (bottom - top).clamp_min(0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp_min(0).prod(-1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared).clamp_min(1e-6)


class Targets:
    """What each token's loss compares with, and how much it weighs."""

    def __init__(self, words: Words, device: torch.device) -> None:
        v, count = words.vocabulary, CONFIG.text.vocabulary
        self.near = near_codes(SHARPNESS).to(device)
        self.soft = torch.eye(count, device=device)  # (V, V)
        self._loc = slice(v.loc_offset, v.loc_offset + LOC_COUNT)
        seg = slice(v.seg_offset, v.seg_offset + SEG_COUNT)
        self.soft[seg, seg] = self.near
        self.weight: dict[Task, Tensor] = {}  # (V,) each
        for task, text in (("segment", TEXT_BY_MASKS), ("detect", 1.0)):
            weight = torch.full((count,), text, device=device)
            weight[self._loc], weight[seg] = 1.0, SEG_WEIGHT
            self.weight[task] = weight  # type: ignore[index]
        self.spread(BINS_WIDE)

    def spread(self, sigma: float) -> None:
        """Set σ of the loc targets, in bins."""
        self.sigma = sigma
        self.soft[self._loc, self._loc] = near_bins(sigma, self.soft.device)


def near_codes(sharpness: float) -> Tensor:
    """For each seg code, a distribution over similar codes, (128, 128)."""
    codebook = torch.from_numpy(load_weights(DEMO_ID).arrays[CODEBOOK].copy())
    distance = torch.cdist(codebook, codebook).square()
    return (-sharpness * distance / distance.mean()).softmax(1)


def near_bins(sigma: float, device: torch.device | None = None) -> Tensor:
    """For each loc bin, a Gaussian over the bins, (1024, 1024)."""
    bins = torch.arange(LOC_COUNT, dtype=torch.float32, device=device)
    return (-(bins[:, None] - bins).square() / (2 * sigma**2)).softmax(1)


def read_answers(model: PaliGemma, batch: Batch, image: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Hidden states of prompts and answers (B, T, width), and those of `hidden_states`."""
    whole = model.embed_prefix(image, batch.ids, batch.lengths)
    tokens = CONFIG.vision.tokens
    with hidden_states(model) as states:
        hidden = model.language(whole.embeddings, whole.position, batch.prefix + tokens)
    return hidden[:, tokens:], states


def answer_loss(hidden: Tensor, head: Tensor, batch: Batch, soft: Tensor, weight: Tensor) -> Tensor:
    """Cross entropy of the suffix against soft targets; `head` is (V, width)."""
    logp = F.linear(hidden, head).float().log_softmax(-1)
    target = batch.ids.roll(-1, 1)
    counts = weight[target] * in_answer(batch)
    return -((logp * soft[target]).sum(-1) * counts).sum() / counts.sum()


def in_answer(batch: Batch) -> Tensor:
    """True (B, T) where the next token is one of the answer."""
    position = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    return (position >= batch.prefix[:, None] - 1) & (position < batch.lengths[:, None] - 1)


def asked_loss(model: PaliGemma, heads: DenseHeads, batch: Batch, image: Tensor) -> Tensor:
    """Loss of `_patches_asked` for prompts without answers."""
    whole = model.embed_prefix(image, batch.ids[:, : IDS["detect"]], batch.prefix)
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
    seen, asked = (batch.owner > 0).float(), batch.asked.float()
    loss = torch.zeros((), device=seen.device)
    for head, state in zip(heads.asked, states, strict=True):
        logits = head(state[:, : CONFIG.vision.tokens])[..., 0].float()
        each = F.binary_cross_entropy_with_logits(logits, asked, reduction="none")
        loss = loss + (each * seen).sum() / seen.sum().clamp_min(1)
    return loss / len(states)


def new_model(seed: int, words: Words) -> tuple[PaliGemma, DenseHeads]:
    """Initialise weights from a seed; loc embeddings are smooth Fourier features of their bin."""
    torch.manual_seed(seed)
    model, heads = PaliGemma(CONFIG), DenseHeads(CONFIG.vision.width, CONFIG.text.width)
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


def learning_rate(step: int, over: float, peak: float) -> float:
    """A short warm-up, then a cosine to a fiftieth; `over` is the share of the stage behind it."""
    return peak * min(1, (step + 1) / WARM_UP) * (0.02 + 0.49 * (1 + math.cos(math.pi * over)))


class Run:
    """A training and its state on disk."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.began = self.logged = time.perf_counter()
        self.device = torch.device(args.device)
        self.step, self.seconds, self.done = 0, 0.0, 0.0
        self.words = Words(Tokenizer(build()))
        self.random = torch.Generator(self.device)
        self.model, self.heads = new_model(args.seed, self.words)
        self.model.to(self.device)
        self.heads.to(self.device)
        # Forward and backward passes use a bfloat16 copy; updates go to the float32 weights.
        self.work, self.work_heads = new_model(args.seed, self.words)
        self.work.to(self.device, torch.bfloat16)
        self.work_heads.to(self.device, torch.bfloat16)
        self.average = {k: v.detach().clone() for k, v in self.model.named_parameters()}
        self.values = [*self.model.parameters(), *self.heads.parameters()]
        self.copies = [*self.work.parameters(), *self.work_heads.parameters()]
        self.gradients = [torch.zeros_like(value) for value in self.values]
        matrices = [p for p in self.values if p.ndim == 2]
        rest = [p for p in self.values if p.ndim != 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}],
            lr=args.rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.targets = Targets(self.words, self.device)
        self.dense_loss, self.answer_loss = dense_loss, answer_loss
        self.path = args.out / "state.safetensors"
        if self.path.exists():
            self._load()
        self.random.manual_seed(args.seed + 1000 + self.step)
        self.pool = Pool(args.scenes, self.device)
        unseen = Shard(**draw_shard(VALIDATION_SEED, 0, VALIDATED))  # type: ignore[arg-type]
        self.unseen = Pool(VALIDATED, self.device)
        self.unseen.add(unseen)

    def _load(self) -> None:
        tensors = load_file(self.path, device=str(self.device))

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
        self.done = float(tensors["done"])

    def save(self) -> None:
        """Write the whole state, and the average in half precision, atomically.

        Keeps the files if the average has become infinite.
        """
        if not all(value.isfinite().all() for value in self.average.values()):
            self.log({"lost": "the weights are infinite or NaN"})
            return
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"heads.{k}": v for k, v in self.heads.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in values.items()}
        for name in ("step", "seconds", "done"):
            tensors[name] = torch.tensor(getattr(self, name), dtype=torch.float64)
        _write(tensors, self.path, {})
        halves = {k: v.half() for k, v in self.average.items()}
        about = {"steps": str(self.step), "seconds": str(round(self.seconds))}
        _write(halves, self.args.out / "average.safetensors", about)

    def log(self, line: dict[str, object]) -> None:
        """Print a line of JSON and append it to the log."""
        text = json.dumps({"step": self.step, "seconds": round(self.seconds), **line})
        print(text, flush=True)
        with (self.args.out / "log.jsonl").open("a") as log:
            log.write(text + "\n")

    def train(self) -> None:
        """Run to the end; log a line of JSON every `LOG_EVERY` steps, and at every save."""
        for stage in ("dense", "asked", "joint"):
            for task in TASKS:  # compiles, and finds out if the memory suffices
                self.update(self.unseen, stage, task, learn=False)
        began = saved = time.perf_counter()
        seconds, done = self.seconds, self.done
        start = began - self.began
        left = math.inf if self.args.seconds is None else max(1.0, self.args.seconds - start)
        cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name() if cuda else "cpu"
        self.log({"start": round(start, 1), "scenes": self.pool.size, "device": name})
        stage, first, sums = "", 0, torch.zeros(2, device=self.device)
        while self.done < 1:
            if self.stage()[0] != stage:
                stage, first = self.stage()[0], self.step
            self._schedule(self.step - first)
            task = "detect" if torch.rand(()) < DETECT else "segment"
            sums += self.update(self.pool, stage, task)
            self.step += 1
            if self.step % LOG_EVERY == 0:
                self._log_losses(sums)
            now = time.perf_counter()
            self.seconds = seconds + now - began
            by_time = done + (1 - done) * (now - began) / left
            self.done = self.step / self.args.steps if self.args.steps else by_time
            if now - saved > SAVE_EVERY or self.done >= 1:
                saved = now
                self.save()
                self.log({"stage": stage, "unseen": self.validate()})

    def stage(self) -> tuple[str, float]:
        """Name of the stage, and the share of it that is over."""
        joint_from = DENSE_SHARE + ASKED_SHARE
        if self.done < DENSE_SHARE:
            return "dense", self.done / DENSE_SHARE
        if self.done < joint_from:
            return "asked", (self.done - DENSE_SHARE) / ASKED_SHARE
        return "joint", min(1.0, (self.done - joint_from) / (1 - joint_from))

    def _schedule(self, step: int) -> None:
        """Set learning rate and σ; `step` counts from the start of the stage."""
        stage, over = self.stage()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, over, self.args.rate)
        narrow = BINS_WIDE * (BINS_NARROW / BINS_WIDE) ** (over / 0.7)
        sigma = max(BINS_NARROW, narrow) if stage == "joint" else BINS_WIDE
        if not 0.99 < sigma / self.targets.sigma < 1.01:
            self.targets.spread(sigma)

    def _log_losses(self, sums: Tensor) -> None:
        dense, answer = (sums / LOG_EVERY).tolist()  # waits for the device
        sums.zero_()
        now = time.perf_counter()
        memory = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        self.log(
            {
                "stage": self.stage()[0],
                "dense": round(dense, 4),
                "answer": round(answer, 4),
                "sigma": round(self.targets.sigma, 1),
                "steps_per_second": round(LOG_EVERY / (now - self.logged), 2),
                "scenes": self.pool.size,
                "gigabytes": round(memory / 2**30, 1),
            }
        )
        self.logged = now

    def update(self, pool: Pool, stage: str, task: Task, learn: bool = True) -> Tensor:
        """Do a step of a stage; return the losses of patches and of answers, (2,)."""
        with torch.no_grad():
            torch._foreach_copy_(self.copies, self.values)
        everything = 0.0 if stage == "asked" else ALL_CLASSES
        batch = pool.draw(self.args.batch, task, everything, self.random)
        dense, answer = self.losses(batch, stage, task)
        ((DENSE_WEIGHT if stage == "joint" else 1.0) * dense + answer).backward()  # type: ignore[no-untyped-call]
        if learn:
            self._learn()
        for copy in self.copies:
            copy.grad = None
        return torch.stack((dense, answer)).detach()

    def losses(self, batch: Batch, stage: str, task: Task) -> tuple[Tensor, Tensor]:
        """Losses of patches, of 0 in the asked stage, and of answers, of 0 in the dense stage."""
        work, heads, targets = self.work, self.work_heads, self.targets
        zero = torch.zeros((), device=self.device)
        if stage == "asked":
            # Not without gradients: that would be compiled once more.
            image = work.encode_image(batch.pixels).detach()
            return zero, asked_loss(work, heads, batch, image)
        features = work.vision(batch.pixels)
        dense = self.dense_loss(heads, features, batch, targets.near)
        if stage == "dense":
            return dense, zero
        hidden, states = read_answers(work, batch, work.projector(features))
        head = work.language.head_weight
        answer = self.answer_loss(hidden, head, batch, targets.soft, targets.weight[task])
        return dense, answer + ASKED_WEIGHT * _patches_asked(heads, states, batch)

    def _learn(self) -> None:
        """Update the weights and their average by the gradients of the copies."""
        wide, narrow = [], []
        for value, copy, gradient in zip(self.values, self.copies, self.gradients, strict=True):
            value.grad = None if copy.grad is None else gradient
            if copy.grad is not None:
                wide.append(gradient)
                narrow.append(copy.grad)
        torch._foreach_copy_(wide, narrow)
        nn.utils.clip_grad_norm_(self.values, 1.0)
        self.optimizer.step()
        keep = min(AVERAGE, (1 + self.step) / (20 + self.step))
        with torch.no_grad():
            now: list[Tensor] = list(self.model.parameters())
            torch._foreach_lerp_(list(self.average.values()), now, 1 - keep)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Measure the average on unseen scenes: each next token of an answer, given those before.

        `bins` is the mean error of loc tokens; `words` and `codes` are the shares of other tokens
        and of seg tokens that are right.
        """
        torch._foreach_copy_(list(self.work.parameters()), list(self.average.values()))
        rows = torch.arange(self.unseen.size, device=self.device)
        batch = self.unseen.batch(rows, torch.zeros_like(rows), IDS["segment"])
        with torch.compiler.set_stance("force_eager"):
            dense, answer = self.losses(batch, "joint", "segment")
            features = self.work.vision(batch.pixels)
            hidden, _ = read_answers(self.work, batch, self.work.projector(features))
            known = in_answer(batch)
            guess = self.work.language.logits(hidden[known]).argmax(-1)
        truth, v = batch.ids.roll(-1, 1)[known], self.words.vocabulary
        loc = (truth >= v.loc_offset) & (truth < v.loc_offset + LOC_COUNT)
        seg = (truth >= v.seg_offset) & (truth < v.seg_offset + SEG_COUNT)
        right = (guess == truth).float()
        found = {
            "dense": dense,
            "answer": answer,
            "bins": (guess - truth)[loc].abs().float().clamp_max(LOC_COUNT).mean(),
            "codes": right[seg].mean(),
            "words": right[~loc & ~seg].mean(),
        }
        return {name: round(value.item(), 4) for name, value in found.items()}


def compiled(run: Run) -> None:
    """Compile the layers and losses of a run; all layers of a kind share their code."""
    torch._dynamo.config.recompile_limit = 64
    for layer in (*run.work.vision.layers, *run.work.language.layers):
        layer.forward = torch.compile(layer.forward, dynamic=False)
    run.dense_loss = torch.compile(dense_loss, dynamic=False)
    run.answer_loss = torch.compile(answer_loss, dynamic=False)


@contextmanager
def drawing(args: argparse.Namespace) -> Iterator[None]:
    """Draw scenes in `args.draw` processes."""
    command = [sys.executable, "-m", "training.model.data", "--scenes", str(args.scenes)]
    command += ["--parts", str(args.draw), "-o", str(args.data), "--part"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (args.out / "draw.log").open("w") as log:
        artists = [
            subprocess.Popen([*command, str(part)], env=alone, stderr=log)
            for part in range(args.draw)
        ]
    try:
        yield
    finally:
        for artist in artists:
            artist.terminate()
        for artist in artists:
            artist.wait()


@contextmanager
def reading(pool: Pool, folder: Path, drawn: int) -> Iterator[None]:
    """Read the shards of a folder; if some are being drawn, go on while the training runs."""
    stop = threading.Event()

    def read() -> None:
        while not stop.wait(0.3):
            try:
                pool.read(folder)
            except (OSError, ValueError) as error:
                print(f"{folder}: {error}", flush=True)

    reader = threading.Thread(target=read, daemon=True)
    if drawn:
        reader.start()
    else:
        pool.read(folder)
    until = time.perf_counter() + (FIRST_SHARD if drawn else 0)
    while not pool.size:
        if time.perf_counter() > until:
            raise SystemExit(f"{folder}: no shards")
        time.sleep(0.1)
    try:
        yield
    finally:
        stop.set()
        if drawn:
            reader.join()


def _write(tensors: dict[str, Tensor], path: Path, about: dict[str, str]) -> None:
    part = path.with_suffix(".part")
    save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, part, about)
    os.replace(part, path)


def main() -> None:
    """Train, or resume the last run."""
    parser = argparse.ArgumentParser(description="Train the tiny model.")
    parser.add_argument("--data", type=Path, required=True, help="shards of training.model.data")
    parser.add_argument("--out", type=Path, required=True)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="length of the run in steps")
    length.add_argument("--seconds", type=float, help="… in seconds, the start included")
    parser.add_argument("--draw", type=int, default=0, help="processes that draw meanwhile")
    parser.add_argument("--scenes", type=int, default=70_000, help="most to draw and to hold")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=cuda)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.data.mkdir(parents=True, exist_ok=True)
    with drawing(args):
        run = Run(args)
        if args.compile:
            compiled(run)
        with reading(run.pool, args.data, args.draw):
            run.train()


if __name__ == "__main__":
    main()
