"""Write what lvis 0.5.3 says about `lvis_problem` to lvis.json.

python -m tests.evaluation.make_lvis

lvis needs an environment of its own: ``pip install lvis==0.5.3 numpy pycocotools``.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from tests.evaluation.problems import lvis_problem

SEEDS = range(6)
KINDS = ("bbox", "segm")


def numbers(seed: int, kind: str) -> dict[str, float]:
    """The numbers of lvis for a problem."""
    from lvis import LVIS, LVISEval, LVISResults

    truth, results = lvis_problem(seed, kind == "segm")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(truth, file)
        file.flush()
        of_truth = LVIS(file.name)
        evaluator = LVISEval(of_truth, LVISResults(of_truth, results), kind)
    evaluator.run()
    return {name: float(value) for name, value in evaluator.get_results().items()}


def main() -> None:
    """Write the numbers of all problems."""
    vars(np)["float"] = float  # lvis 0.5.3 is older than numpy 1.24, which took it away
    told = {kind: [numbers(seed, kind) for seed in SEEDS] for kind in KINDS}
    path = Path(__file__).parent / "lvis.json"
    path.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
