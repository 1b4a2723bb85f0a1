"""Speed of parsing answers: ``python benchmarks/parsing.py``

Peers: the regex of Hugging Face's PaliGemma demo, re-implemented here (it keeps seg tokens but
reports neither issues nor spans), and supervision (which finds no objects in answers with seg
tokens). Every contender parses one text into objects; ours also reports issues and spans.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from answers import detokenize, texts, token_ids
from measure import Cell, Table, Target, at_least, at_most, in_turns, missing, optional, report

from palidecode.answers.batch import parse_batch
from palidecode.answers.parsing import parse
from palidecode.detections import decode

DEMO_TARGETS = {1: 0.7, 10: 1.3, 100: 2.0}  # times the demo's rate
SIZE = (1280, 960)

_LOC, _SEG = r"<loc(\d{4})>", r"<seg(\d{3})>"
_DEMO = re.compile(rf"(.*?){_LOC * 4}\s*(?:{_SEG * 16})?\s*([^;<>]+)? ?(?:; )?")


def demo_objects(text: str) -> list[dict[str, object]]:
    """Parse like the demo: match one object, cut it off, repeat with the rest."""
    width, height = SIZE
    objects = []
    while text:
        match = _DEMO.match(text)
        if match is None:
            break
        _, y1, x1, y2, x2, *codes, label = match.groups()
        top, left, bottom, right = (int(value) / 1024 for value in (y1, x1, y2, x2))
        xyxy = (int(left * width), int(top * height), int(right * width), int(bottom * height))
        seg = None if codes[0] is None else [int(code) for code in codes]
        objects.append({"xyxy": xyxy, "seg": seg, "label": (label or "").strip()})
        text = text[match.end() :]
    return objects


def supervision_parser() -> Callable[[str], object] | None:
    """Return supervision's internal parser, or its public function if that has moved."""
    supervision = optional("supervision")
    if supervision is None:
        return None
    inner = getattr(optional("supervision.detection.vlm"), "from_paligemma", None)
    if inner is not None:
        return lambda text: inner(text, SIZE)
    return lambda text: supervision.Detections.from_vlm(
        supervision.VLM.PALIGEMMA, text, resolution_wh=SIZE
    )


def one_by_one() -> tuple[Table, list[Target]]:
    """Measure objects per second, one text a call."""
    peer = supervision_parser()
    rows: list[list[Cell]] = []
    targets = []
    for masks in (True, False):
        for objects in (1, 10, 100):
            batch = texts(objects, max(4, 200 // objects), objects, masks=masks)
            check_same(batch)
            contenders: dict[str, Callable[[str], object]] = {"demo": demo_objects, "ours": parse}
            if peer is not None and not masks:
                contenders["supervision"] = peer
            seconds = in_turns({name: _over(call, batch) for name, call in contenders.items()})
            rate = {name: len(batch) * objects / taken for name, taken in seconds.items()}
            ratio = rate["ours"] / rate["demo"]
            kind = "segment" if masks else "detect"
            other: Cell = missing("supervision") if peer is None else rate.get("supervision")
            rows.append([f"{kind}, {objects} per text", rate["demo"]])
            rows[-1] += ["finds none" if masks and peer else other, rate["ours"], ratio]
            if masks:
                wanted = DEMO_TARGETS[objects]
                targets.append(at_least(f"{objects} per text", ratio, wanted, "× the demo"))
    columns = ("answers", "demo's regex", "supervision", "ours", "ours ÷ demo")
    return Table("Text, one answer a call: objects/s", columns, rows), targets


def _over(call: Callable[[str], object], batch: list[str]) -> Callable[[], None]:
    def run() -> None:
        for text in batch:
            call(text)

    return run


def check_same(batch: list[str]) -> None:
    """Check that both sides parse the same objects."""
    for text in batch:
        theirs = [(item["label"], item["seg"]) for item in demo_objects(text)]
        ours = [(item.label, item.seg and list(item.seg)) for item in parse(text).objects]
        assert theirs == ours, text


def in_batches() -> tuple[Table, list[Target]]:
    """Measure objects per second, many answers a call."""
    many = {masks: texts(5, 1000, 10, masks=masks) for masks in (True, False)}
    ids = {masks: token_ids(6, 64, 10, masks=masks) for masks in (True, False)}
    rows: list[list[Cell]] = []
    targets = []
    for masks, kind in ((True, "segment"), (False, "detect")):
        seconds = in_turns(
            {
                "demo": _over(demo_objects, many[masks]),
                "columns": lambda masks=masks: parse_batch(many[masks]),
                "detections": lambda masks=masks: decode(many[masks], SIZE),
                "ids": lambda masks=masks: parse_batch(ids[masks], detokenize=detokenize),
            }
        )
        rate = {name: 10_000 / seconds[name] for name in ("demo", "columns", "detections")}
        rate["ids"] = 640 / seconds["ids"]
        demo = rate["demo"]
        for name, what in (
            ("demo", "1,000 texts × 10, the demo's regex in a loop"),
            ("columns", "1,000 texts × 10 → columns (`parse_batch`)"),
            ("detections", "1,000 texts × 10 → `Detections` (`palidecode.decode`)"),
            ("ids", "token ids, 64 answers × 10 → columns (`parse_batch`)"),
        ):
            rows.append([f"{kind}: {what}", rate[name], rate[name] / demo])
        targets += [
            at_least(f"{kind}: texts → Detections", rate["detections"], 500_000, "objects/s"),
            at_least(f"{kind}: token ids", rate["ids"], 2_000_000, "objects/s"),
        ]
    note = "Labels of token ids go through a dict. The demo has no way to read ids."
    columns = ("what", "objects/s", "÷ demo's regex")
    return Table("Many answers a call", columns, rows, note), targets


HOSTILE = {
    "clean objects": "<loc0001><loc0002><loc0103><loc0204> cat ; ",
    "the same loc": "<loc0001>",
    "loc without end": "<loc00",
    "seg without box": "<seg001>",
    "separators": ";",
    "line breaks": "\n",
    "spaces": " ",
    "letters": "a",
    "numbers out of range": "<loc9999><seg999>",
    "cut boxes": "<loc0001><loc0002> a;",
    "digits without end": "<loc" + "1" * 60,
}


def hostile() -> tuple[Table, list[Target]]:
    """Measure nanoseconds per byte as the input grows: constant if time is linear."""
    sizes = (1_000, 10_000, 100_000, 1_000_000)
    rows: list[list[Cell]] = []
    worst = 0.0
    for name, piece in HOSTILE.items():
        per_byte = [_fastest(piece * (size // len(piece))) for size in sizes]
        growth = per_byte[-1] / per_byte[1]
        worst = max(worst, growth)
        rows.append([name, *(seconds * 1e9 for seconds in per_byte), growth])
    columns = ("input", *(f"{size // 1000:,} kB" for size in sizes), "1,000 kB ÷ 10 kB")
    note = "Quadratic time would grow 100-fold from 10 kB to 1 MB."
    table = Table("Hostile text: nanoseconds per byte", columns, rows, note)
    return table, [at_most("hostile text: growth of time per byte", worst, 4, "×")]


def _fastest(text: str) -> float:
    """Measure seconds per byte, the best of several runs, as noise would hide the growth."""
    times = []
    for _ in range(30 if len(text) < 50_000 else 3):
        start = time.perf_counter()
        parse(text)
        times.append(time.perf_counter() - start)
    return min(times) / len(text)


def main() -> None:
    """Measure and print."""
    parts = [one_by_one(), in_batches(), hostile()]
    report("parsing", [table for table, _ in parts], [t for _, targets in parts for t in targets])


if __name__ == "__main__":
    main()
