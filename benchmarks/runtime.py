"""Speed of PaliGemma 3B at 224 px with random weights, compared with transformers.

python benchmarks/runtime.py [--folder DIR]   # DIR keeps the 5.8 GB of random weights

Contenders run one after the other, each in its own process, on the same weights, picture and
token ids: on the GPU in bfloat16 if there is one, else on the CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Table, Target, at_least, optional, peak_bytes, report
from safetensors.torch import save_file

from palidecode.runtime.config import PRESETS, PaliGemmaConfig, config_to_hf
from palidecode.runtime.paligemma import PaliGemma
from palidecode.runtime.torch_weights import state_to_hf
from palidecode.runtime.weights import INDEX

# Prompts use the tiny model's tokenizer, whose <image> has this id. It doesn't change the speed.
CONFIG = replace(PRESETS["paligemma-3b-224"], image_token=1536)
PROMPT = 8  # tokens; with the image's the prefix has 264
FORCED = 32  # tokens of a random answer that all contenders score
SHARD = 1_500_000_000  # bytes
EOS = CONFIG.eos[0]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WORK = (
    "vision tower, one picture",
    "picture and 264 tokens to the first logits",
    "decoding, batch 1",
    "decoding, batch 8",
    "detect, 20 tokens, picture to boxes",
)


# -- the weights -----------------------------------------------------------------------------


def write_weights(folder: Path) -> None:
    """Write random weights in transformers' format; ``<eos>`` is never the likeliest token."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / INDEX).exists():
        return
    torch.manual_seed(0)
    with torch.device("meta"):
        model = PaliGemma(CONFIG)
    model = model.to_empty(device="cpu").bfloat16()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value.fill_(1.0 if "vision" in name and name.endswith("weight") else 0.0)
            else:
                value.normal_(std=0.02)
        model.language.embed.weight[EOS] = 0
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in state_to_hf(model).items():
        if sum(t.nbytes for t in shards[-1].values()) > SHARD:
            shards.append({})
        shards[-1][name] = tensor
    weight_map = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file({k: v.clone() for k, v in shard.items()}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    (folder / "config.json").write_text(json.dumps(config_to_hf(CONFIG)))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def prompt_ids() -> list[int]:
    """Draw the prompt's tokens, the same for all contenders."""
    return [CONFIG.bos, *np.random.default_rng(1).integers(2_000, 200_000, PROMPT - 1).tolist()]


def picture() -> np.ndarray:
    """Draw the picture, the same for all contenders."""
    return np.random.default_rng(2).integers(0, 256, (480, 640, 3)).astype(np.uint8)


# -- contenders, each in its own process -----------------------------------------------------


def median_of(call: Callable[[], object], rounds: int = 3) -> float:
    """Measure the median seconds of a call, after one that isn't timed."""
    call()
    turns = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        turns.append(time.perf_counter() - start)
    return statistics.median(turns)


@torch.inference_mode()
def run_transformers(folder: Path, answers: Path) -> dict[str, Any]:
    """Measure transformers' model and `generate`."""
    from transformers import PaliGemmaForConditionalGeneration
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    start = time.perf_counter()
    model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    model.to(DEVICE).eval()
    loaded = time.perf_counter() - start
    processor = SiglipImageProcessorPil(size={"height": 224, "width": 224}, resample=3)

    def inputs(batch: int) -> dict[str, torch.Tensor]:
        pixels = processor(picture(), return_tensors="pt")["pixel_values"].bfloat16()
        ids = [CONFIG.image_token] * CONFIG.vision.tokens + prompt_ids()
        tokens = torch.tensor([ids] * batch, device=DEVICE)
        return {
            "input_ids": tokens,
            "pixel_values": pixels.repeat(batch, 1, 1, 1).to(DEVICE),
            "attention_mask": torch.ones_like(tokens),
            "token_type_ids": torch.zeros_like(tokens),
        }

    def answer(batch: int, tokens: int) -> torch.Tensor:
        return model.generate(
            **inputs(batch), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        )

    one, eight = inputs(1), inputs(8)
    pixels = one["pixel_values"]
    numbers = {"loaded": loaded}
    numbers[WORK[0]] = median_of(lambda: model.get_image_features(pixels))
    numbers[WORK[1]] = median_of(lambda: model(**one, logits_to_keep=1, use_cache=True))
    few, many = median_of(lambda: answer(1, 2)), median_of(lambda: answer(1, 12))
    numbers[WORK[2]] = 10 / (many - few)
    few, many = median_of(lambda: answer(8, 2), 2), median_of(lambda: answer(8, 8), 2)
    numbers[WORK[3]] = 8 * 6 / (many - few)
    numbers[WORK[4]] = median_of(lambda: answer(1, 20), 2)
    numbers["peak"] = peak_bytes()
    del eight
    return numbers


@torch.inference_mode()
def run_ours(folder: Path, answers: Path, quantize: Any) -> dict[str, Any]:
    """Measure PaliDecoder and its parts."""
    from palidecode.pipeline.decoder import PaliDecoder
    from palidecode.runtime.kv_cache import KVCache
    from training.model.tokenizer import build

    words = folder / "words.json"
    if not words.exists():
        build().save(str(words))
    start = time.perf_counter()
    decoder = PaliDecoder.from_pretrained(
        folder, "bfloat16", DEVICE, quantize, tokenizer=words, engine="torch"
    )
    loaded = time.perf_counter() - start
    model, device = decoder.engine.model, torch.device(DEVICE)
    pixels = torch.randn(1, 3, 224, 224, device=device)
    ids = torch.tensor([prompt_ids()], device=device)
    features = model.encode_image(pixels)

    def prefill(batch: int, room: int) -> tuple[Any, Any, Any]:
        prefix = model.embed_prefix(
            features.expand(batch, -1, -1), ids.expand(batch, -1), torch.full((batch,), PROMPT)
        )
        length = CONFIG.vision.tokens + PROMPT + room
        cache = KVCache(CONFIG.text, batch, length, torch.bfloat16, device)
        hidden = model.prefill(prefix, cache)
        return prefix, cache, hidden

    def first_logits() -> object:
        nonlocal features
        features = model.encode_image(pixels)
        return model.language.logits(prefill(1, 1)[2])

    def steps(batch: int, count: int, rows: Any = None) -> float:
        prefix, cache, hidden = prefill(batch, count + 2)
        token = torch.full((batch,), 1000, device=device)
        times = []
        for step in range(count + 1):
            start = time.perf_counter()
            position = prefix.length[:, None] + step
            hidden = model.step(token[:, None], position, prefix.length, cache)[:, 0]
            model.language.logits(hidden, rows).log_softmax(1).argmax(1).tolist()
            times.append(time.perf_counter() - start)
        return batch / statistics.median(times[1:])

    numbers: dict[str, Any] = {"loaded": loaded}
    numbers[WORK[0]] = median_of(lambda: model.encode_image(pixels))
    numbers[WORK[1]] = median_of(first_logits)
    numbers[WORK[2]] = steps(1, 12)
    numbers["allowed"] = steps(1, 12, model.language.embed.weight[:1160].clone())
    numbers[WORK[3]] = steps(8, 6)
    image = picture()

    def detect() -> object:
        decoder.forget_pictures()
        return decoder.detect(image, "cat ; dog", max_new_tokens=20)

    numbers[WORK[4]] = median_of(detect, 2)
    numbers["again"] = median_of(lambda: decoder.detect(image, "cat ; dog", max_new_tokens=20), 2)
    numbers["peak"] = peak_bytes()
    np.save(answers, _forced_logits(model, features, device))
    return numbers


def _forced_logits(model: PaliGemma, features: torch.Tensor, device: torch.device) -> np.ndarray:
    """Logits along a fixed random answer, (32, vocabulary) float16."""
    rest = np.random.default_rng(3).integers(2_000, 200_000, FORCED).tolist()
    ids = torch.tensor([prompt_ids() + rest], device=device)
    length = torch.tensor([ids.shape[1]], device=device)
    whole = model.embed_prefix(features, ids, length)
    before = torch.tensor([CONFIG.vision.tokens + PROMPT], device=device)
    hidden = model.language(whole.embeddings, whole.position, before, last=FORCED)
    return model.language.logits(hidden[0]).half().cpu().numpy()


CONTENDERS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "transformers": run_transformers,
    "palidecode": lambda folder, answers: run_ours(folder, answers, None),
    "palidecode int8": lambda folder, answers: run_ours(folder, answers, "int8"),
}


# -- limits of the machine -------------------------------------------------------------------


def machine_limits() -> tuple[float, float]:
    """Measure bfloat16 operations and bytes read a second."""
    a = torch.randn(2048, 4096, device=DEVICE).bfloat16()
    b = torch.randn(4096, 4096, device=DEVICE).bfloat16()
    seconds = median_of(lambda: a @ b, 5)
    big = torch.ones(300_000_000, device=DEVICE)
    reading = median_of(big.sum, 5)
    return 2 * a.shape[0] * b.shape[0] * b.shape[1] / seconds, big.nbytes / reading


def operations(config: PaliGemmaConfig, tokens: int) -> tuple[float, float]:
    """Count floating-point operations of the vision tower and of a prefill of `tokens`."""
    v, t = config.vision, config.text
    vision = v.layers * (4 * v.width**2 + 2 * v.width * v.mlp) + v.width * 3 * v.patch**2
    tower = 2 * vision * v.tokens + v.layers * 4 * v.tokens**2 * v.width
    layer = 2 * t.width * t.head_size * (t.heads + t.kv_heads) + 3 * t.width * t.mlp
    prefill = 2 * layer * t.layers * tokens + t.layers * 4 * tokens**2 * t.heads * t.head_size
    return tower, prefill


# -- all together ----------------------------------------------------------------------------


def measure(folder: Path) -> dict[str, dict[str, Any]]:
    """Measure every contender, and the changes by quantising."""
    numbers, logits = {}, {}
    for name in CONTENDERS:
        if name == "transformers" and optional("transformers") is None:
            continue
        answers = folder / f"{name.replace(' ', '-')}.npy"
        command = [sys.executable, __file__, "--contender", name, "--folder", str(folder)]
        done = subprocess.run(
            [*command, "--answers", str(answers)], stdout=subprocess.PIPE, text=True, check=True
        )
        numbers[name] = json.loads(done.stdout.strip().splitlines()[-1])
        print(name, json.dumps(numbers[name]), file=sys.stderr, flush=True)
        if answers.exists():
            logits[name] = np.load(answers).astype(np.float32)
    exact = logits["palidecode"]
    for name, values in logits.items():
        numbers[name]["same"] = float((values.argmax(1) == exact.argmax(1)).mean())
        error = np.linalg.norm(values - exact) / np.linalg.norm(exact)
        numbers[name]["error"] = float(error)
    return numbers


def tables(numbers: dict[str, dict[str, Any]]) -> tuple[list[Table], list[Target]]:
    """Make the page's tables and targets."""
    rate, reading = machine_limits()
    tower, prefill = operations(CONFIG, CONFIG.vision.tokens + PROMPT)
    language = 2 * CONFIG.text.parameters()  # bytes; the head is the embedding
    limits = (tower / rate, (tower + prefill) / rate, reading / language, None, None)
    theirs = numbers.get("transformers", {})
    rows: list[list[Any]] = []
    for work, limit in zip(WORK, limits, strict=True):
        unit = "tokens/s" if "decoding" in work else "s"
        rows.append(
            [f"{work}, {unit}", *(numbers.get(name, {}).get(work) for name in CONTENDERS), limit]
        )
    rows.append(["decoding, batch 1, the grammar's rows of the head, tokens/s", None,
                 *(numbers[name]["allowed"] for name in list(CONTENDERS)[1:]), None])  # fmt: skip
    rows.append(["another detect prompt about the same picture, s", None,
                 *(numbers[name]["again"] for name in list(CONTENDERS)[1:]), None])  # fmt: skip
    rows.append(["loading, s", *(numbers.get(n, {}).get("loaded") for n in CONTENDERS), None])
    memory = [numbers.get(n, {}).get("peak", 0) / 1e9 for n in CONTENDERS]
    rows.append(["peak memory of the process, GB", *memory, None])
    speed = Table(
        f"PaliGemma 3B, 224 px, random weights, on {DEVICE}",
        ("work", *CONTENDERS, "limit in bfloat16"),
        rows,
        f"The limit follows from this machine's rates in the same run: {rate / 1e9:,.0f} GFLOP/s "
        f"in a bfloat16 product, {reading / 1e9:.1f} GB/s read. transformers and palidecode "
        "without a suffix run in bfloat16.",
    )
    cost = Table(
        "Cost of quantising",
        ("", "same likeliest token", "relative error of the logits"),
        [[n, numbers[n]["same"], numbers[n]["error"]] for n in list(CONTENDERS)[2:]],
        f"Compared with bfloat16 along a random answer of {FORCED} tokens, with random weights at "
        "full width: the logits of a trained model are further apart.",
    )
    targets = []
    if theirs:
        wanted = {
            "palidecode": (1.1, 1.1, 1.5, 1.4, 1.3),
            "palidecode int8": (None, None, 3.0, None, 2.3),
        }
        for name, ratios in wanted.items():
            for work, ratio in zip(WORK, ratios, strict=True):
                if ratio is None:
                    continue
                gain = numbers[name][work] / theirs[work]
                gain = gain if "decoding" in work else 1 / gain
                targets.append(at_least(f"{name}: {work}", gain, ratio, "× transformers"))
    return [speed, cost], targets


def main() -> None:
    """Measure all contenders, or run as one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, help="keeps the random weights")
    parser.add_argument("--contender", choices=CONTENDERS)
    parser.add_argument("--answers", type=Path)
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(CONTENDERS[args.contender](args.folder, args.answers)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        write_weights(folder)
        shown, targets = tables(measure(folder))
    report("runtime", shown, targets)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
