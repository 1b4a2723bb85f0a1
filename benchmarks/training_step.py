"""A training step of PaliGemma 3B: LoRA of rank 16, batch 1, 224 px, random weights, on a CPU.

python benchmarks/training_step.py [--folder DIR]   # DIR keeps 6 GB of weights, as quantized.py's

bfloat16 with gradient checkpointing, as `palidecode finetune --dtype bfloat16 --recompute
--batch-size 1` does; the row is a detect row of four objects. The memory that a GPU needs is
computed from the same numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from measure import Table, peak_bytes, report
from PIL import Image
from quantized import CONFIG, write_weights

RANK, STEPS = 16, 3
PROMPT = "detect cat ; dog"
ANSWER = " ; ".join("<loc0100><loc0200><loc0700><loc0800> cat" for _ in range(4))
NUMBERS = {"bfloat16": 2, "float32": 4}


def measure(folder: Path) -> dict[str, float]:
    """Measure steps of one training, after one that isn't timed."""
    from palidecode.trainer.settings import Settings
    from palidecode.trainer.training import Training

    words = Path(__file__).parents[1] / "palidecode" / "demo" / "model" / "tokenizer.json"
    with tempfile.TemporaryDirectory() as made:
        rows = Path(made) / "rows.jsonl"
        Image.new("RGB", (640, 480)).save(rows.with_name("a.png"))
        rows.write_text(json.dumps({"image": "a.png", "prefix": PROMPT, "suffix": ANSWER}))
        settings = Settings(
            steps=STEPS + 1, batch_size=1, rank=RANK, dtype="bfloat16", recompute=True
        )
        training = Training(
            str(folder), rows, Path(made) / "out", settings=settings, device="cpu",
            tokenizer=str(words),
        )  # fmt: skip
        loaded = peak_bytes()
        training.update()
        turns, cpu = [], time.process_time()
        for _ in range(STEPS):
            start = time.perf_counter()
            training.update()
            turns.append(time.perf_counter() - start)
        example = training.examples.rows[0]
        return {
            "seconds": statistics.median(turns),
            "CPU seconds": (time.process_time() - cpu) / STEPS,
            "loaded": loaded,
            "peak": peak_bytes(),
            "trained": training.weights.count(),
            "tokens": CONFIG.vision.tokens + len(example.prompt) + len(example.answer),
            "targets": len(example.answer),
        }


def needed(trained: float, tokens: float, targets: float, batch: int = 1) -> dict[str, float]:
    """Compute the bytes that a step needs on a GPU, with and without checkpointing.

    Weights in bfloat16; of each trained number the value, its gradient and AdamW's two moments in
    float32. With checkpointing each layer keeps its input, and one layer at a time all within;
    without it each layer keeps what its backward pass reads: about six vectors of the width and
    three of the MLP's, and the inputs of its adapters in float32. Attention is fused. Nothing
    before the adapters is trained, so the vision tower keeps nothing.
    """
    text, item, wide = CONFIG.text, NUMBERS["bfloat16"], NUMBERS["float32"]
    rows = batch * tokens
    inner = item * rows * (6 * text.width + 3 * text.mlp)
    inner += wide * rows * (3 * text.width + text.mlp)
    return {
        "weights": item * CONFIG.parameters(),
        "adapters, gradients, AdamW": 4 * wide * trained,
        "logits and their gradient": batch * targets * text.vocabulary * (item + 2 * wide),
        "activations, checkpointed": item * rows * text.width * text.layers + inner,
        "activations, all kept": text.layers * inner,
    }


def main() -> None:
    """Write the weights, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, help="keeps the weights")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        write_weights(folder)
        load = os.getloadavg()[0]
        found = measure(folder)
    about = (found["trained"], found["tokens"], found["targets"])
    one, eight = needed(*about), needed(*about, batch=8)
    show(found, load, one, eight)


def show(
    found: dict[str, float], load: float, one: dict[str, float], eight: dict[str, float]
) -> None:
    """Print the tables."""
    basis = ("weights", "adapters, gradients, AdamW", "logits and their gradient")
    rows: list[list[str | float | None]] = [
        [name, one[name] / 1e9, eight[name] / 1e9] for name in one
    ]
    for kind in ("activations, checkpointed", "activations, all kept"):
        sums = [sum(part[name] for name in basis) + part[kind] for part in (one, eight)]
        rows.append([f"**sum, {kind}**", sums[0] / 1e9, sums[1] / 1e9])
    report(
        "training_step",
        [
            Table(
                "PaliGemma 3B, 224 px, LoRA of rank 16, batch 1, bfloat16, checkpointing, on a CPU",
                ("", "measured"),
                [
                    ["a step, s", found["seconds"]],
                    ["a step, CPU s", found["CPU seconds"]],
                    ["peak memory, GB", found["peak"] / 1e9],
                    ["of it before the first step, GB", found["loaded"] / 1e9],
                    ["trained numbers, million", found["trained"] / 1e6],
                    ["tokens: picture, prompt and answer", found["tokens"]],
                    ["load average before", load],
                ],
                "The weights are mapped from the file, and count as memory once they are read.",
            ),
            Table(
                "What the same step needs on a GPU, GB, computed",
                ("", "batch 1", "batch 8"),
                rows,
                "Without the memory that the allocator and CUDA itself keep (about 1 GB).",
            ),
        ],
        [],
    )


if __name__ == "__main__":
    main()
