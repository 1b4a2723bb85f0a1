"""Shards of a source, without a Ray."""

import pytest

from palidecode.ray_data.sharing import Shares


def batches(count, slow=()):
    for number in range(count):
        if number in slow:
            yield None
        yield [[{"line": number}]]


def taken(shares, workers):
    """The shards in order, each a list of its batches' numbers."""
    found = []
    while not shares.ended:
        parts = shares.take(workers)
        if parts is not None:
            found.append([row["line"] for part in parts for row in part])
    return found


@pytest.mark.parametrize("most", [1, 4, 8])
@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 3, 8, 100, 1001])
def test_every_batch_is_in_one_shard_and_the_last_ones_are_small(count, workers, most):
    found = taken(Shares(batches(count), most), workers)
    assert [number for shard in found for number in shard] == list(range(count))
    sizes = [len(shard) for shard in found]
    assert all(sizes)
    assert max(sizes, default=0) <= most
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-workers:] == [1] * min(len(sizes), workers)
    full = count // most - 2 * workers
    assert sizes[: max(0, full)] == [most] * max(0, full)


def test_a_small_source_is_for_all_workers():
    assert [len(shard) for shard in taken(Shares(batches(8), 64), 8)] == [1] * 8


def test_little_is_read_ahead():
    read = []

    def counted():
        for batch in batches(10_000):
            read.append(batch)
            yield batch

    shares = Shares(counted(), 4)
    for number in range(1, 101):
        shares.take(2)
        assert len(read) <= 4 * (number + 2)
    shares.close()


def test_a_slow_source_is_waited_for_in_the_loop_and_not_here():
    shares = Shares(batches(9, slow=(0, 1, 5)), 4)
    assert [shares.take(1) for _ in range(2)] == [None, None]
    found = taken(shares, 1)
    assert [number for shard in found for number in shard] == list(range(9))
    assert len(found[0]) == 4
