"""The cache of the ONNX engine against one that keeps each row apart."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime import OrtValue

from palidecode.runtime.onnx_cache import PAST, PREFIX, OnnxCache

NAMES = ("keys.0", "values.0")


def cache_of(rows):
    """Begin a batch; a row is its number and the length of its prefix, and holds its number."""
    widest = max(length for _, length in rows)
    prefixes = [np.full((len(rows), 2, widest, 3), np.nan, np.float32) for _ in NAMES]
    for array, sign in zip(prefixes, (1, -1), strict=True):
        for place, (number, length) in enumerate(rows):
            array[place, :, :length] = sign * number
            array[place, :, length:] = 0
    return OnnxCache(NAMES, np.array([length for _, length in rows]), prefixes)


def read(cache, values, tokens):
    """Read tokens as the graph does; a row's are all its value."""
    feeds = cache.feeds()
    position = (cache.lengths + cache.read)[:, None] + np.arange(tokens)
    own = np.zeros(len(cache.lengths))
    own[cache.slots] = values
    answers = []
    for name, sign in zip(NAMES, (1, -1), strict=True):
        past = feeds[f"{PAST}.{name}"].numpy()
        new = np.broadcast_to(sign * own[:, None, None, None], (len(own), 2, tokens, 3))
        joined = np.concatenate([past, new], axis=2).astype(np.float32)
        answers.append(OrtValue.ortvalue_from_numpy(joined))
    cache.grow(position, answers)


def seen(cache):
    """List what each row attends to, by position."""
    feeds, known, rows = cache.feeds(), cache.known, []
    for slot in cache.slots.tolist():
        columns = [
            np.concatenate(
                [feeds[f"{part}.{name}"].numpy()[slot, 0, :, 0] for part in (PREFIX, PAST)]
            )
            for name in NAMES
        ]
        order = [n for n in np.argsort(known[slot], kind="stable") if known[slot, n] >= 0]
        assert known[slot, order].tolist() == list(range(len(order)))
        assert (columns[1] == -columns[0]).all()
        rows.append(columns[0][order].tolist())
    return rows


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_rows_are_those_of_a_batch_that_keeps_them_apart(data):
    numbers = iter(range(1, 1000))
    lengths = st.integers(1, 70)
    begun = [(next(numbers), data.draw(lengths)) for _ in range(data.draw(st.integers(1, 20)))]
    cache = cache_of(begun)
    rows = [[float(number)] * length for number, length in begun]
    for _ in range(data.draw(st.integers(1, 12))):
        kind = data.draw(st.sampled_from(["read", "read", "keep", "twice", "join"]))
        if kind == "read":
            values, tokens = [float(next(numbers)) for _ in rows], data.draw(st.integers(1, 3))
            read(cache, values, tokens)
            rows = [row + [value] * tokens for row, value in zip(rows, values, strict=True)]
        elif kind == "join":
            new = [(next(numbers), data.draw(lengths)) for _ in range(data.draw(st.integers(1, 3)))]
            cache.join(cache_of(new))
            rows += [[float(number)] * length for number, length in new]
        else:
            every = st.integers(0, len(rows) - 1)
            few = st.sets(every, max_size=3) if kind == "keep" else st.just(set())
            dropped = data.draw(few)
            kept = [n for n in range(len(rows)) if n not in dropped] or [0]
            kept += data.draw(st.lists(every, max_size=3)) if kind == "twice" else []
            cache.keep_rows(np.array(kept))
            rows = [rows[n] for n in kept]
        assert seen(cache) == rows


def test_memory_does_not_grow_with_joins():
    """Nor with a place that stays free, nor with prefixes that are long and short in turns."""
    cache = cache_of([(number, 5) for number in range(1, 17)])
    cache.keep_rows(np.arange(15))
    for number in range(17, 300):
        read(cache, [1.0] * 15, 2)
        cache.keep_rows(np.arange(1, 15))
        cache.join(cache_of([(number, 40 if number % 40 == 0 else 5)]))
        columns = cache.known.shape[1] - cache._prefixes[0].shape[2]
        assert columns <= 15 * 2 + 32 + 2
        assert cache._prefixes[0].shape[0] == len(cache.lengths) == 16
