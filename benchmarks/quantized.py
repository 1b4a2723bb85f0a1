"""PaliGemma 3B in 8 and 4 bits on a CPU: ONNX Runtime beside torch, random weights, 224 px.

python benchmarks/quantized.py [--folder DIR]     # DIR keeps 11 GB: weights, exports and results
python benchmarks/quantized.py --folder DIR --contender "onnx int4"      # one piece

Writing the weights and exporting them needs no torch. Contenders run one after the other, each in
its own process, on the same weights, picture and token ids. With a folder, a contender that has
been measured isn't measured again.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import Table, at_least, at_most, peak_bytes, report

from palidecode.runtime.config import PRESETS, config_to_hf
from palidecode.runtime.weights import OLDER_PREFIXES, SINGLE, parts

# Prompts use the tiny model's tokenizer, whose <image> has this id. It doesn't change the speed.
CONFIG = replace(PRESETS["paligemma-3b-224"], image_token=1536)
PROMPT, ROWS = 8, 1160  # tokens of the prompt; rows of the head that a grammar needs
SEGMENT = 70  # tokens of three objects with masks
WORK = {
    "loading, files warm, s": "lower",
    "picture and 264 tokens to the first logits, s": "lower",
    "decoding, batch 1, the grammar's rows, tokens/s": "higher",
    "decoding, batch 8, the grammar's rows, tokens/s": "higher",
    "detect, 20 tokens, picture to boxes, s": "lower",
    "segment, 3 objects (68 tokens), picture to codes, s": "lower",
    "peak memory of the process, GB": "lower",
}
LIMIT, LOAD = "decoding, batch 1, limit of the memory, tokens/s", "load average"
CONTENDERS = {
    "transformers bfloat16": {},
    "torch bfloat16": {"dtype": "bfloat16", "engine": "torch"},
    "torch int8": {"quantize": "int8", "engine": "torch"},
    "onnx int8": {"quantize": "int8", "engine": "onnx"},
    "onnx int4": {"quantize": "int4", "engine": "onnx"},
}
TINY = {
    "tiny torch float32": {"dtype": "float32", "engine": "torch"},
    "tiny torch bfloat16": {"dtype": "bfloat16", "engine": "torch"},
    "tiny onnx float32": {"engine": "onnx"},
}
ANSWERS = [(task, count) for task in ("detect", "segment") for count in (1, 3, 10)]
WANTED: dict[str, tuple[float | None, ...]] = {
    "int4": (2.0, 4.5, 22.0, 55.0, 5.0, 7.0, 2.6),
    "int8": (2.0, None, 15.0, None, None, None, 4.2),
}


# -- the weights -----------------------------------------------------------------------------


def write_weights(folder: Path) -> None:
    """Write random bfloat16 weights in transformers' format, one tensor at a time.

    No two tensors are equal: ONNX Runtime would hold them once, and read less memory for a token.
    """
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
        for number, (name, entry) in enumerate(entries.items()):
            count = int(np.prod(entry["shape"]))
            if "norm" in name:  # LayerNorms are 1 and 0, Gemma's norms 0
                ones = "vision" in name and name.endswith("weight")
                file.write(np.full(count, 0x3F80 if ones else 0, np.uint16).tobytes())
                continue
            own = np.roll(bits, 4099 * number)
            while count:
                file.write(own[:count].tobytes())
                count -= len(own[:count])
    (folder / f"{SINGLE}.part").rename(folder / SINGLE)
    (folder / "config.json").write_text(json.dumps(config_to_hf(CONFIG)))


# -- contenders, each in its own process -----------------------------------------------------


def pixels() -> np.ndarray:
    """Draw what the model sees of a picture."""
    return np.random.default_rng(1).standard_normal((1, 3, 224, 224)).astype(np.float32)


def prompt_ids() -> list[int]:
    """Draw the prompt's tokens."""
    ids = np.random.default_rng(1).integers(2_000, 200_000, PROMPT - 1)
    return [CONFIG.bos, *ids.tolist()]


def run(folder: Path, options: dict[str, str]) -> dict[str, Any]:
    """Measure one contender of ours."""
    from palidecode.pipeline.decoder import PaliDecoder
    from palidecode.runtime.options import GrammarOptions

    torch = options["engine"] == "torch"
    path = folder if torch else folder / options["quantize"]
    words = Path(__file__).parents[1] / "palidecode" / "demo" / "model" / "tokenizer.json"

    def load() -> PaliDecoder:
        decoder = PaliDecoder.from_pretrained(path, device="cpu", tokenizer=words, **options)
        if not torch:  # sessions start with the first picture
            for graph in ("vision", "decoder"):
                decoder.engine.session(graph)
        return decoder

    decoder = load()
    del decoder
    gc.collect()
    start = time.perf_counter()
    decoder = load()
    loaded = time.perf_counter() - start
    engine = decoder.engine
    head = np.sort(np.random.default_rng(1).choice(200_000, ROWS, replace=False))
    image = np.random.default_rng(2).integers(0, 256, (480, 640, 3)).astype(np.uint8)

    def first() -> Any:
        answers = engine.start(engine.encode_image(pixels()), [prompt_ids()], 400, head)
        answers.prefill()
        return answers

    def steps(batch: int, count: int) -> float:
        answers, times = copied(read), []
        answers.keep_rows(np.zeros(batch, np.int64))  # the same answer several times
        for step in range(count + 1):
            start = time.perf_counter()
            answers.step(np.full((batch, 1), 1000 + step))
            times.append(time.perf_counter() - start)
        return batch / statistics.median(times[1:])

    timed = Timed(engine)
    decoder._asker.engine = timed  # answers of a known number of objects

    def seconds(verb: Any, names: str, tokens: int, most: int | None = None) -> float:
        decoder.forget_pictures()
        start = time.perf_counter()
        verb(image, names, max_new_tokens=tokens, grammar=GrammarOptions(max_objects=most))
        return time.perf_counter() - start

    read = first()
    measured = [
        loaded,
        median_of(first, 2),
        steps(1, 16),
        steps(8, 6),
        seconds(decoder.detect, "cat ; dog", 20),
        seconds(decoder.segment, "cat", SEGMENT, 3),
        peak_bytes() / 1e9,
    ]
    numbers: dict[str, Any] = dict(zip(WORK, measured, strict=True))
    numbers["together"] = together(decoder, timed, image)
    if not torch:
        layers = (a.nbytes for name, a in engine._arrays.items() if "language.layers" in name)
        numbers[LIMIT] = bytes_a_second() / (sum(layers) + 4 * ROWS * CONFIG.text.width)
    return numbers


class Timed:
    """An engine that counts and times its steps, and whose answers go on as long as they may."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.config = engine, engine.config
        self.forwards, self.seconds = 0, 0.0
        self.reuse, self.kept = False, {}  # what was read, by its length and rows of the head

    def encode_image(self, images: np.ndarray) -> Any:
        """Encode pixels."""
        return self.engine.encode_image(images)

    def start(self, features: Any, prompts: Any, length: int, head: Any) -> Any:
        """Begin a batch of answers."""
        key = (tuple(prompts[0]), length, head is None or len(head))
        if not self.reuse or key not in self.kept:
            batch = self.engine.start(features, prompts, length, head)
            self.kept[key] = (batch.prefill(), copied(batch))
        logits, batch = self.kept[key][0], copied(self.kept[key][1])
        end = CONFIG.eos[0] if head is None else int(np.searchsorted(head, CONFIG.eos[0]))
        step = batch.step

        def endless(logits: np.ndarray) -> np.ndarray:
            logits = logits.copy()
            logits[..., end] = -1e4
            return logits

        def timed(tokens: np.ndarray) -> np.ndarray:
            start = time.perf_counter()
            logits = step(tokens)
            self.seconds += time.perf_counter() - start
            self.forwards += 1
            return endless(logits)

        batch.prefill, batch.step = (lambda: endless(logits)), timed
        return batch


def copied(batch: Any) -> Any:
    """Copy a batch with its cache."""
    again = copy.copy(batch)
    if hasattr(batch._cache, "slots"):  # ONNX Runtime's, whose arrays of one row stay as they are
        again._cache = copy.copy(batch._cache)
        again._cache._prefixes = list(batch._cache._prefixes)
    else:
        again._cache = copy.deepcopy(batch._cache)
    return again


def together(decoder: Any, timed: Timed, image: np.ndarray) -> list[list[Any]]:
    """Measure the steps of answers with and without reading forced tokens together."""
    from palidecode.runtime.grammar import AnswerState
    from palidecode.runtime.options import GrammarOptions

    forced, rows, timed.reuse = AnswerState.forced, [], True
    for task, count in ANSWERS:
        row: list[Any] = [f"{task}, {count}"]
        for way in (lambda state: [], forced):
            AnswerState.forced = way  # type: ignore[method-assign]
            timed.forwards, timed.seconds = 0, 0.0
            options = GrammarOptions(max_objects=count, repeats=True)
            (answer,) = decoder.generate([image], f"{task} cat", 300, options, over="allowed")
            row += [len(answer.token_ids), timed.forwards + 1, timed.seconds]
        rows.append(row)
    return rows


def run_transformers(folder: Path) -> dict[str, Any]:
    """Measure transformers' model and `generate`, once: it is slow."""
    import torch
    from transformers import PaliGemmaForConditionalGeneration

    def load() -> Any:
        return PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)

    load()
    gc.collect()
    start = time.perf_counter()
    model = load().eval()
    loaded = time.perf_counter() - start
    ids = [CONFIG.image_token] * CONFIG.vision.tokens + prompt_ids()
    tokens = torch.tensor([ids])
    given = {
        "input_ids": tokens,
        "pixel_values": torch.from_numpy(pixels()).bfloat16(),
        "attention_mask": torch.ones_like(tokens),
        "token_type_ids": torch.zeros_like(tokens),
    }

    def answer(count: int) -> float:
        start = time.perf_counter()
        model.generate(**given, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        return time.perf_counter() - start

    with torch.inference_mode():
        answer(1)
        first, twenty, seventy = answer(1), answer(20), answer(SEGMENT)
    decoding = (SEGMENT - 20) / (seventy - twenty)
    measured = [loaded, first, decoding, None, twenty, seventy, peak_bytes() / 1e9]
    return dict(zip(WORK, measured, strict=True))


def run_tiny(options: dict[str, str]) -> dict[str, Any]:
    """Measure the tiny model: pictures a second of `detect`, batches of 8, one thread.

    CPU time, which others on the machine hardly change.
    """
    from palidecode.pipeline.checkpoint import ModelOptions
    from palidecode.pipeline.decoder import PaliDecoder

    decoder = PaliDecoder.from_options(ModelOptions("demo", device="cpu", **options), threads=1)
    scenes = Path(__file__).parents[1] / "palidecode" / "demo" / "scenes"
    pictures = sorted(scenes.rglob("*.jpg"))[:8]
    turns = []
    for _ in range(6):
        decoder.forget_pictures()
        start = time.process_time()
        decoder.detect(pictures, batch_size=8)
        turns.append(time.process_time() - start)
    return {"pictures": len(pictures) / statistics.median(turns[1:])}


def median_of(call: Callable[[], object], rounds: int = 3) -> float:
    """Measure the median seconds of a call, after one that isn't timed."""
    call()
    turns = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        turns.append(time.perf_counter() - start)
    return statistics.median(turns)


def bytes_a_second() -> float:
    """Measure how fast both cores read memory."""
    big = np.ones(300_000_000, np.float32)
    return big.nbytes / median_of(lambda: np.dot(big, big), 5)


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


# -- all together ----------------------------------------------------------------------------


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Measure a contender in a process of its own, or read what the folder knows of it."""
    kept = folder / f"{name.replace(' ', '-')}.json"
    if not kept.exists():
        command = [sys.executable, __file__, "--folder", str(folder), "--contender", name]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    numbers: dict[str, Any] = json.loads(kept.read_text())
    return numbers


def contend(name: str, folder: Path) -> None:
    """Measure a contender and keep its numbers in the folder."""
    before = os.getloadavg()[0]
    if name in TINY:
        numbers = run_tiny(dict(TINY[name]))
    elif CONTENDERS.get(name):
        numbers = run(folder, dict(CONTENDERS[name]))
    else:
        numbers = run_transformers(folder)
    numbers[LOAD] = f"{before:.1f}, {os.getloadavg()[0]:.1f}"
    print(name, json.dumps(numbers), file=sys.stderr, flush=True)
    (folder / f"{name.replace(' ', '-')}.json").write_text(json.dumps(numbers))


def main() -> None:
    """Measure all contenders, or run as one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, help="keeps weights, exports and results")
    parser.add_argument("--contender", choices=[*CONTENDERS, *TINY])
    args = parser.parse_args()
    if args.contender:
        contend(args.contender, args.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        write_weights(folder)
        exports = []
        for bits in ("int8", "int4"):
            kept = folder / f"export-{bits}.json"
            if not kept.exists():
                kept.write_text(json.dumps(export(folder, bits)))
            exports.append([bits, *json.loads(kept.read_text())])
        numbers = {name: measure(name, folder) for name in (*CONTENDERS, *TINY)}
    show(numbers, exports)


def show(numbers: dict[str, dict[str, Any]], exports: Sequence[Sequence[Any]]) -> None:
    """Print the page's tables and targets."""
    shown = [
        Table(
            "PaliGemma 3B, 224 px, random weights, on a CPU",
            ("work", *CONTENDERS),
            [
                [work, *(numbers[name].get(work) for name in CONTENDERS)]
                for work in (*WORK, LIMIT, LOAD)
            ],
            "The limit is the rate at which both cores read memory, divided by the bytes of the "
            "layers' weights and of the head's rows. transformers has no grammar: it decodes with "
            "the whole head, and writes 20 and 70 tokens without reading them.",
        ),
        Table("Exporting", ("", "seconds", "peak memory, GB", "size, GB"), exports),
        Table(
            "Tokens without a choice, read together: forwards, and seconds of the steps",
            ("engine", "answer", "tokens", "forwards one by one", "forwards", "fewer, ×",
             "s one by one", "s", "faster, ×"),
            [
                [name, row[0], row[1], row[2], row[5], row[2] / row[5], row[3], row[6],
                 row[3] / row[6]]
                for name in list(CONTENDERS)[1:]
                for row in numbers[name]["together"]
            ],
            "Objects of one class, scores over the allowed tokens; without the picture and prompt.",
        ),
        Table(
            "The tiny model: detect, batch 8, one thread",
            ("", "pictures per second of CPU time", LOAD),
            [[name, numbers[name]["pictures"], numbers[name][LOAD]] for name in TINY],
        ),
    ]  # fmt: skip
    targets = []
    for bits, wanted in WANTED.items():
        for (work, better), limit in zip(WORK.items(), wanted, strict=True):
            if limit is None:
                continue
            found, what = numbers[f"onnx {bits}"][work], f"onnx {bits}: {work}"
            if better == "higher":
                targets.append(at_least(what, found, limit, ""))
            else:
                targets.append(at_most(what, found, limit, ""))
    report("quantized", shown, targets)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
