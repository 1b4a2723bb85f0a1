"""``palidecode finetune``: train a model on rows of prompts and answers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from palidecode.cli.options import fill
from palidecode.cli.output import DONE, SKIPPED, Output
from palidecode.cli.terminal import message
from palidecode.errors import InputError
from palidecode.runs.stopping import Stopping, run_stoppable
from palidecode.wording import many

_LINES = 50  # about as many in a whole run


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode finetune``."""
    try:
        from palidecode.report.training import OF_A_STEP
        from palidecode.trainer.settings import Settings
        from palidecode.trainer.training import Training
    except ImportError as error:
        raise InputError(f"finetune needs {error.name}: pip install 'palidecode[train]'") from error
    output = fill(Output, args)
    settings = fill(Settings, args, targets=tuple(args.targets))
    training = Training(
        args.model,
        args.rows,
        args.output,
        args.images,
        args.held_back,
        settings,
        device=args.device,
        tokenizer=args.tokenizer,
    )
    quiet = args.quiet or not training.ranks.first
    every = max(1, training.total // _LINES)

    def report(line: Mapping[str, float]) -> None:
        found = {name: value for name, value in line.items() if name not in OF_A_STEP}
        if not quiet and (found or line["step"] % every == 0):
            message(_progress(line, found, training.total))

    examples = training.examples
    if not quiet:
        rows = many(len(examples.rows), "row")
        message(f"{rows}, {many(training.total, 'step')}, {training.weights.count():,} weights")

    def work(stopping: Stopping) -> int:
        training.run(report, stopping.check)
        return DONE

    code = run_stoppable(work, "run the same command again to resume")
    if code != DONE:
        return code
    problems = [(problem.line, problem.reason) for problem in examples.problems]
    problems += sorted(training.unread.items())
    left_out = SKIPPED if problems or examples.too_long else DONE
    if not training.ranks.first:  # the first process reports
        return DONE
    output.problems(problems)
    if examples.too_long:
        output.note(f"{many(examples.too_long, 'row')} left out: over {settings.longest} tokens")
    data = {"output": str(args.output), "steps": training.step, "best": training.best}
    data |= {"problems": problems, "too_long": examples.too_long}
    lines = [f"{args.output}: trained on {many(len(examples.rows), 'row')}"]
    best = [f"{name} {value:.4g}" for name, value in training.best.items()]
    lines += [f"best: {', '.join(best)}"] if best else []
    output.result(data, lines)
    return left_out


def _progress(line: Mapping[str, float], found: Mapping[str, float], total: int) -> str:
    """Return the line about a step, and what an evaluation found."""
    parts = [f"loss {line['loss']:.3f}", f"rate {line['rate']:.1e}", f"{line['seconds']:.2f} s"]
    if line["memory"]:
        parts.append(f"{line['memory'] / 1e9:.1f} GB")
    parts += [f"{name} {value:.3f}" for name, value in found.items()]
    return f"step {line['step']:,.0f} of {total:,}: {', '.join(parts)}"
