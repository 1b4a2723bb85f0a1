"""The page of a training: its numbers, and curves of loss, AP and learning rate."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from palidecode.report.page import write_page
from palidecode.report.plots import steps_svg

_SMOOTH = 50  # parts of a run that a smoothed loss has
_DAY, _HOUR, _MINUTE = 86_400, 3_600, 60
OF_A_STEP = ("step", "loss", "rate", "norm", "seconds", "memory")
"""Numbers of a step; the others of a line are those of an evaluation."""


def write_training(
    path: str | os.PathLike[str],
    log: Sequence[Mapping[str, float]],
    *,
    name: str,
    total: int,
    best: Mapping[str, float],
    settings: Mapping[str, object],
    facts: Sequence[tuple[str, str]] = (),
) -> None:
    """Write a training as one self-contained HTML page.

    Parameters
    ----------
    path : path
    log : sequence of mapping
        The numbers of each step: step, loss, rate, seconds, memory (bytes), and those of
        evaluations where there was one; at least one step.
    name : str
    total : int
        Steps of the whole training.
    best : mapping
        The numbers of the evaluation whose weights are kept; empty without one.
    settings : mapping
    facts : sequence of (str, str)
        Words and values for the top of the page.
    """
    evaluations = [line for line in log if len(line.keys() - set(OF_A_STEP)) > 0]
    columns = [key for key in evaluations[0] if key not in OF_A_STEP] if evaluations else []
    steps = [line["step"] for line in log]
    window = max(1, len(log) // _SMOOTH)
    loss = [line["loss"] for line in log]
    plots = [
        (
            "Loss",
            steps_svg(steps, {"loss": loss}, "loss", window=window),
            f"Mean of the answers' tokens; the thick line is the mean of {window} steps.",
        )
    ]
    if len(evaluations) > 1:
        curves = {key: [line[key] for line in evaluations] for key in columns}
        at = [line["step"] for line in evaluations]
        plots.append(("Evaluations", steps_svg(at, curves, "ap"), "On rows that are held back."))
    rate = {"rate": [line["rate"] for line in log]}
    plots.append(("Learning rate", steps_svg(steps, rate, "rate"), "Of AdamW."))
    write_page(
        path,
        "training.html",
        {},
        name=name,
        step=int(log[-1]["step"]),
        total=total,
        best=best,
        facts=facts,
        cards=_cards(log, best, window),
        plots=plots,
        evaluations=evaluations,
        columns=columns,
        settings=settings,
    )


def _cards(
    log: Sequence[Mapping[str, float]], best: Mapping[str, float], window: int
) -> list[dict[str, str]]:
    """List the numbers at the top, the most important first."""
    kept = [
        {"name": key, "value": f"{value:.3f}", "hint": f"best, at step {best['step']:,.0f}"}
        for key, value in best.items()
        if key != "step"
    ]
    if "segm AP" in best:  # the number by which the best is chosen
        kept.sort(key=lambda card: not card["name"].startswith("segm"))
    last = [line["loss"] for line in log[-window:]]
    seconds = sum(line["seconds"] for line in log)
    memory = max((line.get("memory", 0.0) for line in log), default=0.0)
    first = f"{log[0]['loss']:.3f} at the first step"
    rest = [
        {"name": "loss", "value": f"{sum(last) / len(last):.3f}", "hint": first},
        {"name": "time", "value": _duration(seconds), "hint": "of the steps, without evaluations"},
    ]
    if memory:
        rest.append({"name": "memory", "value": f"{memory / 1e9:.1f} GB", "hint": "at most"})
    return kept + rest


def _duration(seconds: float) -> str:
    for unit, word in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {word}"
    return f"{seconds:.0f} s"
