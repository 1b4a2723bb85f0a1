"""Speed of the torch engine on CUDA: PaliGemma 3B at 224 px in bfloat16, random weights.

python benchmarks/gpu.py -o gpu.json                # one GPU with 16 GB free, about 2 minutes
python benchmarks/gpu.py --only limits make decoding         # some sections
python benchmarks/gpu.py --device cpu --tiny        # tries the script, measures nothing

`static` replays CUDA graphs, as palidecode does on CUDA; `eager` launches every kernel from the
host. Their tokens are compared with each other and with the CPU's. Times are medians on the
host's clock, each up to the logits or tokens in the host's memory. A section that fails is
reported, and the next one runs; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from measure import Table, machine, markdown, number, versions
from PIL import Image

from palidecode.runtime.config import PRESETS, PaliGemmaConfig, TextConfig, VisionConfig
from palidecode.runtime.generate import GenerateOptions, generate
from palidecode.runtime.grammar import Grammar, GrammarOptions
from palidecode.runtime.image import ImageConfig, to_pixels
from palidecode.runtime.opening import open_checkpoint
from palidecode.runtime.paligemma import PaliGemma
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.runtime.torch_engine import TorchEngine
from palidecode.runtime.torch_loading import find_device, load_model

DEMO = Path(__file__).resolve().parents[1] / "palidecode" / "demo"
PROMPTS = {"detect": "detect cat ; dog", "segment": "segment cat ; dog"}
NEW = {"detect": 20, "segment": 70}
BATCHES = (1, 8, 32)
CONTENDERS = ("eager", "static")
STEPS = 30  # timed steps of decoding
FILL = GrammarOptions(min_objects=100)  # answers end only where no other object fits
_SMALL_VISION = VisionConfig(width=32, layers=2, heads=4, mlp=48, image_size=28)
_SMALL_TEXT = TextConfig(
    width=128, layers=3, mlp=256, heads=4, kv_heads=1, head_size=32, vocabulary=2600,
    query_scale=32.0,
)  # fmt: skip
SMALL = {
    "Gemma": PaliGemmaConfig(_SMALL_VISION, _SMALL_TEXT, image_token=1536),
    "Gemma 2": PaliGemmaConfig(
        _SMALL_VISION,
        replace(_SMALL_TEXT, kv_heads=2, attention_softcap=50.0, final_softcap=30.0,
                sliding_window=7, post_norms=True),
        image_token=1536,
    ),
}  # fmt: skip


class Run:
    """What one call of this script measures."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.tiny, self.failed = find_device(device), tiny, False
        self.started = time.perf_counter()
        self.config = replace(PRESETS["paligemma-3b-224"], image_token=1536)
        if tiny:
            self.config = SMALL["Gemma"]
        self.tokenizer = Tokenizer.from_file(DEMO / "model" / "tokenizer.json")
        self.model: PaliGemma | None = None
        self.numbers: dict[str, Any] = {}

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def put(self, name: str, value: Any) -> None:
        """Keep a number, and print it as soon as it is known."""
        self.numbers[name] = value
        shown = number(value) if isinstance(value, float) else value
        elapsed = time.perf_counter() - self.started
        print(f"[{elapsed:6.1f} s] {name}: {shown}", flush=True)

    def median(self, call: Callable[[], object], rounds: int = 5) -> float:
        """Measure the median seconds of a call, after one that isn't timed."""
        call()
        self.synchronize()
        turns = []
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            self.synchronize()
            turns.append(time.perf_counter() - start)
        return statistics.median(turns)

    def section(self, name: str, call: Callable[[Run], None]) -> None:
        """Run a section; report what it raises."""
        try:
            call(self)
        except Exception as error:
            self.failed = True
            traceback.print_exc()
            self.put(f"failed: {name}", f"{type(error).__name__}: {str(error)[:300]}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def engines(self) -> dict[str, TorchEngine]:
        """Make the contenders, over the same weights."""
        assert self.model is not None, "the model could not be made"
        return {name: TorchEngine(self.model, static=name == "static") for name in CONTENDERS}


# -- limits of the machine -------------------------------------------------------------------


def limits(run: Run) -> None:
    """Measure a copy, a sum and a bfloat16 product."""
    size, side = (1 << 16, 64) if run.tiny else (1 << 30, 8192)
    source = torch.randn(size // 2, device=run.device).to(torch.bfloat16)
    target = torch.empty_like(source)
    copy = run.median(lambda: [target.copy_(source) for _ in range(10)]) / 10
    run.put("copy, TB/s read and written", 2 * source.nbytes / copy / 1e12)
    words = source.view(torch.int32)
    read = run.median(lambda: [words.amax() for _ in range(10)]) / 10
    run.put("reading, TB/s", source.nbytes / read / 1e12)
    a, b = (torch.randn(side, side, device=run.device).to(torch.bfloat16) for _ in range(2))
    product = run.median(lambda: [a @ b for _ in range(10)]) / 10
    run.put("bfloat16 product, TFLOP/s", 2 * side**3 / product / 1e12)


# -- equal tokens ----------------------------------------------------------------------------


def random_model(
    config: PaliGemmaConfig, device: torch.device, dtype: torch.dtype, spread: float
) -> PaliGemma:
    """Make a model with random weights on the device; its answers differ between pictures."""
    with torch.device("meta"):
        model = PaliGemma(config)
    model = model.to_empty(device=device).to(dtype).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(1)
    for name, value in model.named_parameters():
        value.normal_(0, 0.05 if "embed" in name else spread, generator=generator)
        if name.startswith("vision") and "norm" in name and name.endswith("weight"):
            value.add_(1.0)
    model.language.norm.weight.add_(5.0)
    return model


def answers_of(run: Run, engine: TorchEngine, pixels: np.ndarray, task: str, **more: Any) -> Any:
    """Answer one prompt about every picture."""
    prompt = PROMPTS[task]
    grammar = Grammar.of(run.tokenizer, prompt, more.pop("grammar", FILL))
    features = engine.encode_image(pixels)
    return generate(
        engine,
        features,
        [run.tokenizer.encode_prompt(prompt)] * len(features),
        run.tokenizer.vocabulary,
        [grammar] * len(features),
        GenerateOptions(**{"max_new_tokens": NEW[task], "over": "allowed", **more}),
    )


def equal(found: Any, wanted: Any) -> str:
    """Count equal answers, and the largest difference of a log-probability in those."""
    same = [(a, b) for a, b in zip(found, wanted, strict=True) if a.token_ids == b.token_ids]
    off = [np.abs(np.subtract(a.logprobs, b.logprobs)).max() for a, b in same]
    return f"{len(same)} of {len(wanted)} equal, logprobs off by {max(off, default=0):.1e}"


def compare(run: Run, name: str, models: dict[str, PaliGemma], pixels: np.ndarray) -> None:
    """Compare the tokens of graphs, of the eager engine and of the CPU."""
    here = models["device"]
    contenders = {
        "eager": TorchEngine(here, static=False),
        "cpu": TorchEngine(models["cpu"], static=False),
    }
    graphs = TorchEngine(here, static=True)
    for task, options in (
        ("detect", {}),
        ("segment", {"over": "vocabulary", "grammar": GrammarOptions()}),
    ):
        found = answers_of(run, graphs, pixels, task, **options)
        again = answers_of(run, graphs, pixels, task, **options)
        for other, engine in contenders.items():
            wanted = answers_of(run, engine, pixels, task, **options)
            what = f"{name}, {task}{', whole head' if options else ''}: graph and {other}"
            run.put(what, equal(found, wanted))
        run.put(f"{name}, {task}: graph and graph again", equal(again, found))


@torch.inference_mode()
def tokens(run: Run) -> None:
    """Compare tokens in float32: the bundled model on its pictures, and small random ones."""
    path = DEMO / "model"
    torch.set_num_threads(1)  # the models are small
    checkpoint = open_checkpoint(path)
    assert checkpoint.source is not None
    models = {
        name: load_model(checkpoint.source, checkpoint.config, "float32", device, None).model
        for name, device in (("device", run.device), ("cpu", torch.device("cpu")))
    }
    scenes = [Image.open(file) for file in sorted((DEMO / "scenes").glob("*.jpg"))[:4]]
    compare(run, "bundled model", models, to_pixels(scenes, checkpoint.image_config))
    pixels = np.random.default_rng(2).standard_normal((4, 3, 28, 28)).astype(np.float32)
    for name, config in SMALL.items():
        cpu = random_model(config, torch.device("cpu"), torch.float32, 0.1)
        here = PaliGemma(config).to(run.device).eval().requires_grad_(False)
        here.load_state_dict(cpu.state_dict())
        compare(run, name, {"device": here, "cpu": cpu}, pixels)


@torch.inference_mode()
def make(run: Run) -> None:
    """Make the model on the device."""
    start = time.perf_counter()
    run.model = random_model(run.config, run.device, torch.bfloat16, 0.02)
    run.synchronize()
    run.put("random weights made, s", time.perf_counter() - start)
    assert not torch.equal(
        run.model.language.layers[0].mlp.down.weight, run.model.language.layers[1].mlp.down.weight
    )
    run.put("parameters, billions", run.config.parameters() / 1e9)


def bfloat16_tokens(run: Run) -> None:
    """Compare tokens of the large model, where rounding may decide between close tokens."""
    pixels = pictures(run, 8)
    engines = run.engines()
    found = answers_of(run, engines["static"], pixels, "segment")
    wanted = answers_of(run, engines["eager"], pixels, "segment")
    run.put("bfloat16, segment: graph and eager", equal(found, wanted))
    same = [
        next((n for n, (x, y) in enumerate(pairs) if x != y), len(a.token_ids))
        for a, b in zip(found, wanted, strict=True)
        for pairs in [list(zip(a.token_ids, b.token_ids, strict=False))]
    ]
    run.put("bfloat16, segment: equal tokens from the start, of 70", str(sorted(same)))


# -- decoding --------------------------------------------------------------------------------


def pictures(run: Run, count: int) -> np.ndarray:
    """Draw pixels (count, 3, S, S)."""
    side = run.config.vision.image_size
    return np.random.default_rng(2).standard_normal((count, 3, side, side)).astype(np.float32)


def head_of(run: Run) -> np.ndarray:
    """Ids of the tokens that the grammar of detect can allow."""
    grammar = Grammar.of(run.tokenizer, PROMPTS["detect"])
    assert grammar is not None
    return grammar.tokens


def step_seconds(run: Run, engine: TorchEngine, batch: int, head: Any) -> float:
    """Median seconds of a step: tokens in, logits out, the likeliest taken in numpy."""
    features = engine.encode_image(pictures(run, 1)) * batch
    prompt = run.tokenizer.encode_prompt(PROMPTS["detect"])
    length = len(features[0]) + len(prompt) + STEPS + 4
    answers = engine.start(features, [prompt] * batch, length, head)
    logits, times = answers.prefill(), []
    for _ in range(STEPS + 3):
        start = time.perf_counter()
        columns = logits.argmax(1)
        ids = columns if head is None else head[columns]
        logits = answers.step(ids[:, None])[:, 0]
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def bytes_of(run: Run, batch: int, rows: int) -> int:
    """Bytes that a step must read: the decoder, rows of the head, keys and values."""
    t = run.config.text
    layers = t.parameters() - t.vocabulary * t.width
    seen = run.config.vision.tokens + 8 + STEPS // 2
    cache = 2 * t.layers * batch * t.kv_heads * t.head_size * seen
    return 2 * (layers + rows * t.width + cache)


def decoding(run: Run) -> None:
    """Measure decoding: the grammar's rows of the head, and the whole head."""
    engines = run.engines()
    for head_name, head in (("grammar's rows", head_of(run)), ("whole head", None)):
        rows = run.config.text.vocabulary if head is None else len(head)
        for batch in BATCHES:
            for name, engine in engines.items():
                seconds = step_seconds(run, engine, batch, head)
                what = f"decoding, {head_name}, batch {batch}, {name}"
                run.put(f"{what}, ms a step", 1000 * seconds)
                run.put(f"{what}, tokens/s", batch / seconds)
            if "reading, TB/s" in run.numbers:
                seconds = bytes_of(run, batch, rows) / run.numbers["reading, TB/s"] / 1e12
                run.put(f"decoding, {head_name}, batch {batch}, limit, tokens/s", batch / seconds)


# -- whole answers ---------------------------------------------------------------------------


def prefill(run: Run) -> None:
    """Measure the vision tower and the prompt, which both contenders share."""
    engine = run.engines()["static"]
    prompt = run.tokenizer.encode_prompt(PROMPTS["detect"])
    for batch in BATCHES:
        pixels = pictures(run, batch)
        run.put(f"vision tower, batch {batch}, ms",
                1000 * run.median(lambda p=pixels: engine.encode_image(p)))  # fmt: skip
        features = engine.encode_image(pixels)
        length = len(features[0]) + len(prompt) + 20

        def first(features: Any = features, batch: int = batch, length: int = length) -> object:
            return engine.start(features, [prompt] * batch, length, head_of(run)).prefill()

        run.put(f"prefill, batch {batch}, ms", 1000 * run.median(first))
    picture = Image.fromarray(
        np.random.default_rng(2).integers(0, 256, (480, 640, 3)).astype(np.uint8)
    )
    config = ImageConfig(run.config.vision.image_size)
    run.put("a picture of 640×480 to pixels, on the host, ms",
            1000 * run.median(lambda: to_pixels([picture], config)))  # fmt: skip


def whole(run: Run, task: str, batches: tuple[int, ...]) -> None:
    """Measure pixels to tokens."""
    for name, engine in run.engines().items():
        for batch in batches:
            pixels = pictures(run, batch)
            found = answers_of(run, engine, pixels, task)
            loc = run.tokenizer.vocabulary.loc_offset
            boxes = sum(loc <= t < loc + 1024 for a in found for t in a.token_ids) / 4
            count = sum(len(answer.token_ids) for answer in found)
            seconds = run.median(lambda p=pixels, e=engine: answers_of(run, e, p, task), 4)
            what = f"{task}, {NEW[task]} tokens at most, batch {batch}, {name}"
            run.put(f"{what}, ms", 1000 * seconds)
            run.put(f"{what}, pictures/s", batch / seconds)
            run.put(f"{what}, boxes/s", boxes / seconds)
            run.put(f"{what}, tokens/s, all work", count / seconds)


@torch.inference_mode()
def transformers(run: Run) -> None:
    """Measure transformers' model and `generate` beside ours, with weights of its own."""
    from transformers import PaliGemmaConfig as TheirConfig
    from transformers import PaliGemmaForConditionalGeneration

    from palidecode.runtime.config import config_to_hf

    data = {k: v for k, v in config_to_hf(run.config).items() if k != "architectures"}
    theirs = TheirConfig(**data)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(run.device):
            model = PaliGemmaForConditionalGeneration(theirs).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    run.put("transformers' weights", str(next(model.parameters()).dtype))
    prompt = run.tokenizer.encode_prompt(PROMPTS["detect"])
    ids = [run.config.image_token] * run.config.vision.tokens + prompt

    def answer(batch: int, new: int) -> object:
        given = torch.tensor([ids] * batch, device=run.device)
        pixels = torch.from_numpy(pictures(run, batch)).to(run.device, torch.bfloat16)
        found = model.generate(
            input_ids=given,
            pixel_values=pixels,
            attention_mask=torch.ones_like(given),
            token_type_ids=torch.zeros_like(given),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
        )
        assert found.shape[1] == len(ids) + new
        return found.cpu()

    for batch in BATCHES:
        few, many = (run.median(lambda b=batch, n=n: answer(b, n), 3) for n in (2, 20))
        run.put(f"transformers, detect, 20 tokens, batch {batch}, ms", 1000 * many)
        run.put(f"transformers, detect, 20 tokens, batch {batch}, pictures/s", batch / many)
        run.put(f"transformers, decoding, whole head, batch {batch}, tokens/s",
                18 * batch / (many - few))  # fmt: skip


# -- all together ----------------------------------------------------------------------------


def table(run: Run) -> Table:
    """Make the page's table of decoding and whole answers."""
    n, rows = run.numbers, []
    for head in ("grammar's rows", "whole head"):
        for batch in BATCHES:
            what = f"decoding, {head}, batch {batch}"
            ours = [n.get(f"{what}, {name}, tokens/s") for name in CONTENDERS]
            theirs = n.get(f"transformers, {what}, tokens/s")
            limit = n.get(f"{what}, limit, tokens/s")
            share = None if not (ours[-1] and limit) else ours[-1] / limit
            rows.append([f"{what}, tokens/s", theirs, *ours, limit, share])
    for task, batches in (("detect", BATCHES), ("segment", (1, 8))):
        for batch in batches:
            what = f"{task}, {NEW[task]} tokens at most, batch {batch}"
            for unit in ("pictures/s", "boxes/s"):
                ours = [n.get(f"{what}, {name}, {unit}") for name in CONTENDERS]
                theirs = n.get(f"transformers, {task}, {NEW[task]} tokens, batch {batch}, {unit}")
                rows.append([f"{what}, {unit}", theirs, *ours, None, None])
    columns = ("work", "transformers", *CONTENDERS, "limit by bytes read", "share of it")
    model = "A small model" if run.tiny else "PaliGemma 3B, 224 px"
    return Table(f"{model}, bfloat16, random weights", columns, rows)


SECTIONS: dict[str, Callable[[Run], None]] = {
    "limits": limits,
    "tokens": tokens,
    "make": make,
    "bfloat16": bfloat16_tokens,
    "decoding": decoding,
    "prefill": prefill,
    "detect": lambda run: whole(run, "detect", BATCHES),
    "segment": lambda run: whole(run, "segment", (1, 8)),
    "transformers": transformers,
}


def main() -> int:
    """Run the sections in turn; print the table and save the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("-o", "--output", type=Path, help="a JSON file")
    args = parser.parse_args()
    run = Run(args.device, args.tiny)
    name = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "cpu"
    run.put("device", name)
    for section in args.only:
        run.section(section, SECTIONS[section])
    shown = table(run)
    print(f"\n{shown.title}, {name}\n\n{markdown(shown)}")
    if args.output:
        result = {"numbers": run.numbers, "machine": machine(), "versions": versions()}
        result["table"] = asdict(shown)
        args.output.write_text(json.dumps(result, indent=1, ensure_ascii=False))
    return int(run.failed)


if __name__ == "__main__":
    sys.exit(main())
