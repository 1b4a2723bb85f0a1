"""PaliGemma 3B in 8 and 4 bits on a CPU: ONNX Runtime beside torch, random weights, 224 px.

python benchmarks/quantized.py [--folder DIR]   # DIR keeps 6 GB of weights and the exports

Writing the weights and exporting them needs no torch. Contenders run one after the other, each in
its own process, on the same weights, picture and token ids.
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
from measure import Table, at_least, peak_bytes, report

from palidecode.runtime.config import PRESETS, config_to_hf
from palidecode.runtime.weights import OLDER_PREFIXES, SINGLE, parts

# Prompts use the tiny model's tokenizer, whose <image> has this id. It doesn't change the speed.
CONFIG = replace(PRESETS["paligemma-3b-224"], image_token=1536)
PROMPT, ROWS = 8, 1160  # tokens of the prompt; rows of the head that a grammar needs
WORK = {
    "loading, s": "lower",
    "picture and 264 tokens to the first logits, s": "lower",
    "decoding, batch 1, the grammar's rows, tokens/s": "higher",
    "decoding, batch 8, the grammar's rows, tokens/s": "higher",
    "detect, 20 tokens, picture to boxes, s": "lower",
    "peak memory of the process, GB": "lower",
}
CONTENDERS = {
    "torch bfloat16": {"dtype": "bfloat16", "engine": "torch"},
    "torch int8": {"quantize": "int8", "engine": "torch"},
    "torch int4": {"quantize": "int4", "engine": "torch"},
    "onnx int8": {"quantize": "int8", "engine": "onnx"},
    "onnx int4": {"quantize": "int4", "engine": "onnx"},
}
WANTED = {  # of the better engine
    "int4": (2.0, 4.5, 22.0, 55.0, 5.0, 2.6),
    "int8": (2.0, None, 15.0, None, None, 4.2),
}


def write_weights(folder: Path) -> None:
    """Write random bfloat16 weights in transformers' format, one tensor at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / SINGLE).exists():
        return
    noise = np.random.default_rng(0).standard_normal(1 << 24, np.float32) * np.float32(0.02)
    bits = (noise.view(np.uint32) >> 16).astype(np.uint16)
    entries: dict[str, Any] = {}
    end = 0
    for part in parts(CONFIG).values():
        for name, shape in zip(part.names, part.shapes, strict=True):
            tower, _, rest = name.partition(".")
            start, end = end, end + 2 * int(np.prod(shape))
            entries[OLDER_PREFIXES[f"{tower}."] + rest] = {
                "dtype": "BF16",
                "shape": shape,
                "data_offsets": [start, end],
            }
    header = json.dumps(entries).encode()
    with (folder / f"{SINGLE}.part").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, entry in entries.items():
            count = int(np.prod(entry["shape"]))
            if "norm" in name:  # LayerNorms are 1 and 0, Gemma's norms 0
                ones = "vision" in name and name.endswith("weight")
                file.write(np.full(count, 0x3F80 if ones else 0, np.uint16).tobytes())
                continue
            while count:
                file.write(bits[:count].tobytes())
                count -= len(bits[:count])
    (folder / f"{SINGLE}.part").rename(folder / SINGLE)
    (folder / "config.json").write_text(json.dumps(config_to_hf(CONFIG)))


def run(folder: Path, options: dict[str, str]) -> dict[str, float]:
    """Measure one contender."""
    from palidecode.pipeline.checkpoint import locate
    from palidecode.pipeline.decoder import PaliDecoder

    if options["engine"] == "onnx":
        folder = folder / options.pop("quantize")
    words = locate("demo")[0] / "tokenizer.json"
    start = time.perf_counter()
    decoder = PaliDecoder.from_pretrained(folder, device="cpu", tokenizer=words, **options)
    rng = np.random.default_rng(1)
    pixels = rng.standard_normal((1, 3, 224, 224)).astype(np.float32)
    engine, head = decoder.engine, np.sort(rng.choice(200_000, ROWS, replace=False))
    prompt = [CONFIG.bos, *rng.integers(2_000, 200_000, PROMPT - 1).tolist()]
    image = np.random.default_rng(2).integers(0, 256, (480, 640, 3)).astype(np.uint8)
    for graph in ("vision", "decoder"):
        if options["engine"] == "onnx":
            engine.session(graph)  # sessions start with the first picture
    loaded = time.perf_counter() - start

    def first(batch: int = 1) -> Any:
        features = engine.encode_image(pixels)
        answers = engine.start(features * batch, [prompt] * batch, 400, head)
        answers.prefill()
        return answers

    def steps(batch: int, count: int) -> float:
        answers, times = first(batch), []
        for step in range(count + 1):
            start = time.perf_counter()
            answers.step(np.full((batch, 1), 1000 + step))
            times.append(time.perf_counter() - start)
        return batch / statistics.median(times[1:])

    def detect() -> object:
        decoder.forget_pictures()
        return decoder.detect(image, "cat ; dog", max_new_tokens=20)

    measured = [
        loaded,
        median_of(first),
        steps(1, 16),
        steps(8, 6),
        median_of(detect, 2),
        peak_bytes() / 1e9,
    ]
    return dict(zip(WORK, measured, strict=True))


def median_of(call: Callable[[], object], rounds: int = 3) -> float:
    """Measure the median seconds of a call, after one that isn't timed."""
    call()
    turns = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        turns.append(time.perf_counter() - start)
    return statistics.median(turns)


def export(folder: Path, quantize: str) -> list[float]:
    """Export in a process of its own; its seconds, peak memory and size in GB."""
    words = Path(__file__).parents[1] / "palidecode" / "demo" / "model" / "tokenizer.json"
    code = (
        "import json, resource, sys\n"
        "from palidecode.pipeline.export import export\n"
        "made = export(sys.argv[1], sys.argv[2], sys.argv[3], tokenizer=sys.argv[4])\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "assert 'torch' not in sys.modules\n"
        "print(json.dumps([made.seconds, peak / 1e9, made.bytes / 1e9]))"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(folder),
        str(folder / quantize),
        quantize,
        str(words),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    numbers: list[float] = json.loads(done.stdout)
    return numbers


def main() -> None:
    """Measure all contenders, or run as one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, help="keeps the weights and the exports")
    parser.add_argument("--contender", choices=CONTENDERS)
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(run(args.folder, dict(CONTENDERS[args.contender]))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        write_weights(folder)
        exports = []
        for bits in ("int8", "int4"):
            if not (folder / bits).exists():
                exports.append([bits, *export(folder, bits)])
        numbers = {}
        for name in CONTENDERS:
            command = [sys.executable, __file__, "--folder", str(folder), "--contender", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            numbers[name] = json.loads(done.stdout.splitlines()[-1])
            print(name, numbers[name], file=sys.stderr, flush=True)
    shown = [
        Table(
            "PaliGemma 3B, 224 px, random weights, on a CPU",
            ("work", *CONTENDERS),
            [[work, *(numbers[name][work] for name in CONTENDERS)] for work in WORK],
        ),
        Table("Exporting", ("", "seconds", "peak memory, GB", "size, GB"), exports),
    ]
    targets = []
    for bits, wanted in WANTED.items():
        for (work, better), limit in zip(WORK.items(), wanted, strict=True):
            if limit is None:
                continue
            found, what = numbers[f"onnx {bits}"][work], f"onnx {bits}: {work}"
            if better == "higher":
                targets.append(at_least(what, found, limit, ""))
            else:
                targets.append(at_least(f"{what}: {limit} ÷ measured", limit / found, 1.0, "×"))
    report("quantized", shown, targets)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
