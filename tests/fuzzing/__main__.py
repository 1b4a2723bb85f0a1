"""``python -m tests.fuzzing TARGET``: a target guided by coverage, as long as one likes.

Inputs that reach new code are kept in ``--corpus``, what breaks something is written as
``crash-…`` where libFuzzer says.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import atheris

from tests.fuzzing import changed, targets

with atheris.instrument_imports(include=["palidecode"]):
    TARGETS = targets()  # imports the package

_LONGEST = 1 << 18  # tokenizers are longer than 2¹⁶


def main() -> None:
    """Run libFuzzer on one target."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--rounds", type=int, metavar="N", help="stop after so many")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after so long")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of everything random")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="keep what reached new code")
    parser.add_argument("--input", type=Path, metavar="FILE", help="run this one, nothing else")
    args = parser.parse_args()
    target = TARGETS[args.target]
    if args.input is not None:
        target.run(args.input.read_bytes())
        return
    corpus = args.corpus or Path(tempfile.mkdtemp(prefix="palidecode-corpus-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number:02}").write_bytes(seed)
    for number in range(20):
        (corpus / f"changed-{number:02}").write_bytes(changed(target, number))

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, longest))
        return target.mutate(rng, data)[:longest]

    options = [f"-seed={args.seed}", f"-max_len={_LONGEST}", "-timeout=60", "-rss_limit_mb=4096"]
    options += ["-print_final_stats=1", f"-artifact_prefix={corpus.parent}/"]
    # By default libFuzzer reads the corpus again each second and runs more inputs than it was
    # asked to, depending on how busy the machine is. Nobody else writes into this one.
    options += ["-reload=0"]
    if args.rounds is not None:
        options.append(f"-runs={args.rounds}")
    if args.minutes is not None:
        options.append(f"-max_total_time={round(60 * args.minutes)}")
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
