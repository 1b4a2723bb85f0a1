import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from palidecode.evaluation.referring.overlap import overlaps, read_runs
from palidecode.geometry.masks import paste
from palidecode.geometry.rle import crop_to_rle, rle_to_mask
from tests.evaluation.referring.masks import blob, encoded


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 30), kind=st.sampled_from(["smooth", "rough", "flat", "steps"]))
def test_overlaps_are_those_of_pasted_masks(seed, kind):
    rng = np.random.default_rng(seed)
    fields = {
        "smooth": lambda: (
            np.sin(np.arange(64) / rng.uniform(2, 20, (5, 1, 1)) + 1)
            * np.cos(np.arange(64)[:, None] / rng.uniform(2, 20, (5, 1, 1)))
        ),
        "rough": lambda: rng.normal(0, 1, (5, 64, 64)),
        "flat": lambda: np.full((5, 64, 64), rng.choice([-1.0, 0.0, 1.0])),
        "steps": lambda: rng.integers(-1, 2, (5, 64, 64)),  # zeros lie on the threshold itself
    }[kind]().astype(np.float32)
    threshold = float(rng.choice([0.0, 0.0, 0.25, -1.0]))
    corners, rles = [], []
    for _ in fields:
        width, height = rng.integers(1, 300, 2).tolist()
        rles.append(encoded(blob(rng, width, height)))
        x, y = np.sort(rng.integers(0, width + 1, 2)), np.sort(rng.integers(0, height + 1, 2))
        corners.append([x[0], y[0], x[1], y[1]])
    runs = read_runs(rles)
    both, predicted = overlaps(fields, np.array(corners), rles, runs, threshold=threshold)
    for row, (rle, box) in enumerate(zip(rles, corners, strict=True)):
        size = rle["size"][::-1]
        truth = rle_to_mask(rle)
        pasted = rle_to_mask(crop_to_rle(paste(fields[row], box, size, threshold=threshold), size))
        assert runs.areas()[row] == truth.sum()
        assert predicted[row] == pasted.sum()
        assert both[row] == (pasted & truth).sum()
