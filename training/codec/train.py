"""Train the mask codec from scratch: ``python -m training.codec.train --coco FILE --font FILE …``.

The network is that of PaliGemma's seg tokens, but the codes are our own. Loss: the squared
error of the field (for a sharp zero crossing and a range of ±1), soft Dice of its sigmoid
(close to IoU, and independent of the size of the background), and a commitment term. The
codebook follows its latents by moving averages; unused rows move to latents of the current
batch. The last part trains the decoder alone on frozen codes.

Seeded and resumable: the state is a ``.safetensors`` file and a log of JSON lines.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from tqdm import tqdm

from palidecode.codec.network import CODE_WIDTH, MaskVQVAE
from palidecode.vocab import MASK_SIDE, SEG_COUNT
from training.codec import masks

COMMITMENT = 0.25
SHARPNESS = 4.0  # of the sigmoid in soft Dice: a field of ±1 counts as 0.98 and 0.02
CODEBOOK_DECAY = 0.99
WEIGHT_DECAY_EMA = 0.9995
DEAD_BELOW = 0.05  # codebook rows used less than this share of the average are moved


@dataclass
class State:
    """State for resuming a run."""

    network: MaskVQVAE
    average: MaskVQVAE  # moving average of the weights, which is shipped
    optimizer: torch.optim.AdamW
    counts: torch.Tensor
    sums: torch.Tensor
    step: int = 0


def new_state(seed: int, device: str) -> State:
    """Create a seeded network and an empty codebook average."""
    torch.manual_seed(seed)
    network = MaskVQVAE().to(device, memory_format=torch.channels_last)
    average = MaskVQVAE().to(device)
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
    counts = torch.zeros(SEG_COUNT, device=device)
    return State(network, average, optimizer, counts, torch.zeros(SEG_COUNT, CODE_WIDTH).to(device))


def save_state(state: State, path: Path) -> None:
    """Write the whole state to one file, atomically."""
    tensors = {f"network.{k}": v for k, v in state.network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in state.average.state_dict().items()}
    for index, values in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in values.items()}
    tensors |= {"counts": state.counts, "sums": state.sums, "step": torch.tensor(state.step)}
    part = path.with_suffix(".part")
    save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, part)
    os.replace(part, path)


def load_state(state: State, path: Path) -> None:
    """Resume from a file of `save_state`."""
    tensors = load_file(path)
    for name, module in (("network.", state.network), ("average.", state.average)):
        module.load_state_dict(
            {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}
        )
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, field = key.split(".")
            moments.setdefault(int(index), {})[field] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.counts.copy_(tensors["counts"])
    state.sums.copy_(tensors["sums"])
    state.step = int(tensors["step"])


def make_pool(path: Path, count: int, stream: masks.Stream) -> np.ndarray:
    """Draw the first `count` masks of the stream into a file, in 8 bits, unless it exists."""
    shape = (count, MASK_SIDE, MASK_SIDE)
    if not path.exists():
        part = path.with_suffix(".part")
        pool = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
        for row in tqdm(range(count), desc="drawing masks", mininterval=5):
            pool[row] = np.rint(next(stream) * 255)
        pool.flush()
        os.replace(part, path)
    pool = np.load(path, mmap_mode="r")
    if pool.shape != shape:
        raise SystemExit(
            f"{path} holds {pool.shape[0]} masks, not {count}: delete it, or use --pool "
            f"{pool.shape[0]}"
        )
    return pool


def draw_batch(pool: np.ndarray, size: int, seed: int, step: int) -> torch.Tensor:
    """Draw batch number `step`: random rows, mirrored at random, in [0, 1]."""
    rng = np.random.default_rng((seed, step))
    batch = pool[np.sort(rng.integers(len(pool), size=size))].astype(np.float32) / 255
    if rng.random() < 0.5:
        batch = batch[:, :, ::-1]
    if rng.random() < 0.1:
        batch = batch[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(batch))


def mask_loss(fields: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared error against ±1, and soft Dice."""
    squared = (fields - (2 * target - 1)).square().mean()
    probability = torch.sigmoid(SHARPNESS * fields)
    shared = (probability * target).sum((1, 2))
    dice = 1 - (2 * shared + 1) / (probability.sum((1, 2)) + target.sum((1, 2)) + 1)
    return squared + dice.mean()


@torch.no_grad()
def follow_latents(state: State, latents: torch.Tensor, codes: torch.Tensor) -> int:
    """Move the codebook towards its latents and revive dead rows; return their number."""
    flat = codes.reshape(-1)
    hits = torch.bincount(flat, minlength=SEG_COUNT).float()
    sums = torch.zeros_like(state.sums).index_add_(0, flat, latents)
    state.counts.lerp_(hits, 1 - CODEBOOK_DECAY)
    state.sums.lerp_(sums, 1 - CODEBOOK_DECAY)
    average = state.counts.sum() / SEG_COUNT
    dead = (state.counts < DEAD_BELOW * average).nonzero().flatten()
    if len(dead):
        chosen = latents[torch.randint(len(latents), (len(dead),), device=latents.device)]
        state.counts[dead] = average
        state.sums[dead] = chosen * average
    state.network.codebook.copy_(state.sums / state.counts.clamp_min(1e-6)[:, None])
    return len(dead)


def first_codebook(state: State, batch: torch.Tensor) -> None:
    """Take rows from the first batch's latents, so that every row is used from the start."""
    with torch.no_grad():
        latents = state.network.latents(batch)
        rows = latents[torch.randperm(len(latents))[:SEG_COUNT]]
        state.network.codebook.copy_(rows)
        state.counts.fill_(len(latents) / SEG_COUNT)
        state.sums.copy_(rows * state.counts[:, None])


def learning_rate(step: int, steps: int, peak: float) -> float:
    """A short warm-up, then a cosine to a hundredth."""
    if step < 300:
        return peak * (step + 1) / 300
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)


def train_step(state: State, batch: torch.Tensor, decoder_only: bool) -> dict[str, float]:
    """One update of network, codebook and average."""
    device = batch.device.type
    with torch.autocast(device, torch.bfloat16):
        if decoder_only:
            with torch.no_grad():
                codes = state.network.encode(batch)
            fields, commitment, dead = state.network.decode(codes).float(), torch.tensor(0.0), 0
        else:
            out = state.network(batch)
            fields, codes = out.fields.squeeze(1).float(), out.codes
    if not decoder_only:
        latents = out.latents.float()
        rows = functional.embedding(codes.reshape(-1), state.network.codebook)
        commitment = (latents - rows).square().mean()
        dead = follow_latents(state, latents.detach(), codes)
    loss = mask_loss(fields, batch) + COMMITMENT * commitment.to(fields.device)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
    state.optimizer.step()
    state.optimizer.zero_grad()
    keep = min(WEIGHT_DECAY_EMA, (1 + state.step) / (20 + state.step))
    with torch.no_grad():
        for mean, value in zip(state.average.parameters(), state.network.parameters(), strict=True):
            mean.lerp_(value, 1 - keep)
        state.average.codebook.copy_(state.network.codebook)
    return {"loss": loss.item(), "commitment": commitment.item(), "dead": dead}


@torch.no_grad()
def round_trip_iou(network: MaskVQVAE, crops: torch.Tensor) -> torch.Tensor:
    """IoU at 64×64 of every crop (N, 64, 64) in [0, 1] with its own round trip."""
    ious = []
    for part in crops.split(64):
        decoded, truth = network.decode(network.encode(part)) > 0, part > 0.5
        shared = (decoded & truth).sum((1, 2))
        ious.append(shared / (decoded | truth).sum((1, 2)).clamp_min(1))
    return torch.cat(ious)


def main() -> None:
    """Train, or resume the last run."""
    parser = argparse.ArgumentParser(description="Train the mask codec.")
    parser.add_argument("--coco", type=Path, required=True, help="COCO instances file")
    parser.add_argument("--font", action="append", required=True, help="a font file; repeatable")
    parser.add_argument("--out", type=Path, default=Path("codec-run"))
    parser.add_argument("--pool", type=int, default=300_000, help="number of masks to draw")
    parser.add_argument("--steps", type=int, default=14_000)
    parser.add_argument(
        "--decoder-steps", type=int, default=3_000, help="last steps, which train the decoder only"
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    stream = masks.stream(args.seed, masks.load_fonts(args.font), masks.load_coco(args.coco, 0))
    pool = make_pool(args.out / "pool.npy", args.pool, stream)
    held = [masks.shrink(item.mask) for item in masks.load_coco(args.coco, 1)]
    held_out = torch.from_numpy(np.stack(held)).to(args.device)
    state, checkpoint = new_state(args.seed, args.device), args.out / "state.safetensors"
    if checkpoint.exists():
        load_state(state, checkpoint)
    else:
        first_codebook(state, draw_batch(pool, 512, args.seed, 0).to(args.device))
    log, began = (args.out / "log.jsonl").open("a"), time.perf_counter()
    while state.step < args.steps:
        decoder_only = state.step >= args.steps - args.decoder_steps
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(state.step, args.steps, args.rate)
        batch = draw_batch(pool, args.batch, args.seed, state.step).to(args.device)
        values = train_step(state, batch, decoder_only)
        state.step += 1
        if state.step % 250 == 0 or state.step == args.steps:
            ious = round_trip_iou(state.average, held_out)
            values |= {"step": state.step, "seconds": round(time.perf_counter() - began, 1)}
            values |= {"iou": ious.mean().item(), "worst_decile": ious.quantile(0.1).item()}
            log.write(json.dumps(values) + "\n")
            log.flush()
            save_state(state, checkpoint)


if __name__ == "__main__":
    main()
