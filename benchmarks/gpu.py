"""Speed of the torch engine on CUDA: PaliGemma 3B at 224 px in bfloat16, random weights.

python benchmarks/gpu.py -o gpu.json                # one GPU with 16 GB free, under 2 minutes
python benchmarks/gpu.py --device cpu --tiny        # tries the script, measures nothing

First the tokens are compared: replayed graphs with the same steps kernel by kernel, with the
eager engine, and with the CPU. Times are medians on the host's clock, each up to the logits or
tokens in the host's memory. A section that fails or has no time left is reported, and the next
one runs.
"""

from __future__ import annotations

import argparse
import importlib.util
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
from palidecode.runtime.static_steps import StaticSteps
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.runtime.torch_engine import TorchEngine
from palidecode.runtime.torch_loading import load_model

DEMO = Path(__file__).resolve().parents[1] / "palidecode" / "demo"
PROMPTS = {"detect": "detect cat ; dog", "segment": "segment cat ; dog"}
NEW = {"detect": 20, "segment": 70}
BATCHES = (1, 8, 32)
CONTENDERS = ("before", "eager", "static")
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
    """What one call of this script measures, and the time it has left."""

    def __init__(self, device: str, tiny: bool, budget: float, before: Path | None) -> None:
        self.before = before
        self.device, self.tiny, self.budget = torch.device(device), tiny, budget
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

    def section(self, name: str, call: Callable[[Run], None], least: float) -> None:
        """Run a section if `least` seconds are left; report what it raises."""
        left = self.budget - (time.perf_counter() - self.started)
        if left < least:
            self.put(f"skipped: {name}", f"{left:.0f} s left")
            return
        try:
            call(self)
        except Exception as error:
            traceback.print_exc()
            self.put(f"failed: {name}", f"{type(error).__name__}: {str(error)[:300]}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def engines(self) -> dict[str, TorchEngine]:
        """Make the contenders, over the same weights."""
        assert self.model is not None, "the model could not be made"
        found = {} if self.before is None else {"before": before(self.model, self.before)}
        found |= {
            name: TorchEngine(self.model, static=name == "static") for name in ("eager", "static")
        }
        return found


@torch.inference_mode()
def before(model: PaliGemma, path: Path) -> TorchEngine:
    """Make an engine whose decoder is an earlier ``gemma.py``, with the same weights."""
    spec = importlib.util.spec_from_file_location("gemma_before", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gemma_before"] = module
    spec.loader.exec_module(module)
    with torch.device("meta"):
        other = PaliGemma(model.config)
        other.language = module.Gemma(model.config.text)
    other.load_state_dict(model.state_dict(), assign=True)
    return TorchEngine(other.eval().requires_grad_(False), static=False)


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


def uncaptured(model: PaliGemma) -> TorchEngine:
    """Make an engine whose static steps are computed kernel by kernel."""
    engine = TorchEngine(model, static=True)
    engine._steps = StaticSteps(model, capture=False)
    return engine


def equal(found: Any, wanted: Any) -> str:
    """Count equal answers, and the largest difference of a log-probability in those."""
    same = [(a, b) for a, b in zip(found, wanted, strict=True) if a.token_ids == b.token_ids]
    off = [np.abs(np.subtract(a.logprobs, b.logprobs)).max() for a, b in same]
    return f"{len(same)} of {len(wanted)} equal, logprobs off by {max(off, default=0):.1e}"


def compare(run: Run, name: str, models: dict[str, PaliGemma], pixels: np.ndarray) -> None:
    """Compare the tokens of graphs, static steps, eager steps and the CPU."""
    here = models["device"]
    contenders = {
        "static": uncaptured(here),
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
    assert run.model is not None
    found = answers_of(run, engines["static"], pixels, "segment")
    wanted = answers_of(run, uncaptured(run.model), pixels, "segment")
    run.put("3B bfloat16, segment: graph and static", equal(found, wanted))
    wanted = answers_of(run, engines["eager"], pixels, "segment")
    run.put("3B bfloat16, segment: graph and eager", equal(found, wanted))
    same = [
        next((n for n, (x, y) in enumerate(pairs) if x != y), len(a.token_ids))
        for a, b in zip(found, wanted, strict=True)
        for pairs in [list(zip(a.token_ids, b.token_ids, strict=False))]
    ]
    run.put("3B bfloat16, segment: equal tokens from the start, of 70", str(sorted(same)))


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


@torch.inference_mode()
def replaying(run: Run) -> None:
    """Measure graphs that nothing waits for: the most that a choice on the device could give."""
    engine = run.engines()["static"]
    assert engine._steps is not None
    for batch in BATCHES:
        step_seconds(run, engine, batch, head_of(run))
        step = list(engine._steps._steps.values())[-1]
        if step._graph is None:
            run.put(f"replaying, batch {batch}", "there is no graph")
            continue
        seconds = run.median(lambda step=step: [step._graph.replay() for _ in range(20)]) / 20
        run.put(f"replaying without waiting, batch {batch}, ms a step", 1000 * seconds)


@torch.inference_mode()
def choosing(run: Run) -> None:
    """Measure decoding with mask, log-probability and choice on the device, ids to the host."""
    model, engine = run.model, run.engines()["static"]
    assert model is not None
    assert engine._steps is not None
    prompt = run.tokenizer.encode_prompt(PROMPTS["detect"])
    for head_name, head in (("grammar's rows", head_of(run)), ("whole head", None)):
        weight = model.language.head_weight
        rows = None if head is None else weight[torch.from_numpy(head).to(run.device)]
        ids = torch.arange(len(weight), device=run.device)
        ids = ids if head is None else torch.from_numpy(head).to(run.device)
        allowed = torch.ones(len(ids), dtype=torch.bool, device=run.device)
        for batch in BATCHES:
            features = engine.encode_image(pictures(run, 1)) * batch
            length = len(features[0]) + len(prompt) + STEPS + 4
            answers = engine.start(features, [prompt] * batch, length, head)
            answers.prefill()
            token = torch.full((batch, 1), 1000, device=run.device)
            position = answers._length[:, None].clone()
            times = []
            for _ in range(STEPS + 3):
                start = time.perf_counter()
                hidden = engine._steps.read(token, position, answers._length, answers._cache)
                logits = model.language.logits(hidden, rows)[:, 0]
                logits = torch.where(allowed, logits, -torch.inf).log_softmax(1)
                best, column = logits.max(1)
                token, position = ids[column][:, None], position + 1
                torch.stack((token[:, 0].double(), best.double())).cpu()
                times.append(time.perf_counter() - start)
            what = f"decoding, {head_name}, batch {batch}, static, choice on the device"
            run.put(f"{what}, tokens/s", batch / statistics.median(times[3:]))


def capturing(run: Run) -> None:
    """Measure the capture of a step, which the first use of its shapes costs."""
    engine = run.engines()["static"]
    step_seconds(run, engine, 1, head_of(run))
    assert engine._steps is not None
    step = list(engine._steps._steps.values())[-1]
    if run.device.type == "cuda":
        with torch.inference_mode():
            recorder = engine._steps._recorder
            assert recorder is not None, "there is no graph"
            run.put("capturing a step, ms", 1000 * run.median(lambda: step.capture(recorder), 3))
        run.put("memory in use, GB", torch.cuda.memory_allocated() / 1e9)


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


@torch.inference_mode()
def profile(run: Run) -> None:
    """Print the kernels that take most of a static step, of an eager one and of a prefill."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    engines = run.engines()
    kinds = [ProfilerActivity.CPU]
    if run.device.type == "cuda":
        kinds.append(ProfilerActivity.CUDA)
    prompt = run.tokenizer.encode_prompt(PROMPTS["detect"])
    for name, batch, steps in (("static", 1, 3), ("static", 32, 3), ("static", 8, 0)):
        engine = engines[name]
        features = engine.encode_image(pictures(run, 1)) * batch
        length = len(features[0]) + len(prompt) + 20
        engine.start(features, [prompt] * batch, length, head_of(run)).prefill()
        answers = engine.start(features, [prompt] * batch, length, head_of(run))
        ids = np.full((batch, 1), 1000)
        if steps:
            answers.prefill()
            answers.step(ids), answers.step(ids)
        with profiled(activities=kinds) as seen:
            for _ in range(steps):
                answers.step(ids)
            if not steps:
                answers.prefill()
            run.synchronize()
        key = "self_device_time_total" if len(kinds) > 1 else "self_cpu_time_total"
        events = sorted(seen.key_averages(), key=lambda event: -getattr(event, key))
        divisor = 1000 * max(steps, 1)
        lines = [
            f"{getattr(e, key) / divisor:8.3f} ms {e.count / max(steps, 1):6.0f} × {e.key[:110]}"
            for e in events[:14]
        ]
        kernels = [e for e in events if getattr(e, "device_type", None) is not None
                   and "CUDA" in str(e.device_type)]  # fmt: skip
        total = sum(getattr(e, key) for e in kernels) / divisor
        count = sum(e.count for e in kernels) / max(steps, 1)
        title = f"{'step' if steps else 'prefill'}, {name}, batch {batch}"
        print(f"\n{title}: {count:.0f} kernels, {total:.2f} ms\n" + "\n".join(lines), flush=True)
        run.numbers[f"profile: {title}"] = {"kernels": count, "ms": total, "lines": lines}


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
    return Table("PaliGemma 3B, 224 px, bfloat16, random weights", columns, rows)


SECTIONS: dict[str, tuple[Callable[[Run], None], float]] = {
    "limits": (limits, 5),
    "make": (make, 10),
    "decoding": (decoding, 10),
    "detect": (lambda run: whole(run, "detect", BATCHES), 8),
    "tokens": (tokens, 15),
    "bfloat16 tokens": (bfloat16_tokens, 5),
    "replaying": (replaying, 4),
    "choosing": (choosing, 4),
    "prefill": (prefill, 5),
    "segment": (lambda run: whole(run, "segment", (1, 8)), 8),
    "capturing": (capturing, 3),
    "transformers": (transformers, 25),
    "profile": (profile, 10),
}


def main() -> None:
    """Run the sections in turn; print the table and save the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script")
    parser.add_argument("--budget", type=float, default=120, help="seconds")
    parser.add_argument("--before", type=Path, help="an earlier gemma.py to compare with")
    parser.add_argument("--only", help="sections, separated by commas")
    parser.add_argument("-o", "--output", type=Path, help="a JSON file")
    args = parser.parse_args()
    run = Run(args.device, args.tiny, args.budget, args.before)
    name = torch.cuda.get_device_name() if run.device.type == "cuda" else "cpu"
    run.put("device", name)
    wanted = args.only.split(",") if args.only else SECTIONS
    for section in wanted:
        call, least = SECTIONS[section]
        run.section(section, call, least)
        if args.output:
            result = {"numbers": run.numbers, "machine": machine(), "versions": versions()}
            args.output.write_text(json.dumps(result, indent=1, ensure_ascii=False))
    shown = table(run)
    print(f"\n{shown.title}, {name}\n\n{markdown(shown)}")
    if args.output:
        result["table"] = asdict(shown)
        args.output.write_text(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
