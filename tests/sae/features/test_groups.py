from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sae.features.groups import HASH_BITS, draw, first_of_each, order_by, ragged, ranks


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=40), st.integers(0, 4))
def test_first_of_each_takes_the_smallest_keys_of_every_group(pairs: list[tuple[int, int]], count: int) -> None:
    group = np.array([g for g, _ in pairs], np.int64)
    key = np.array([k for _, k in pairs], np.int64)
    expected = []
    for owner in sorted(set(group.tolist())):
        places = [i for i in range(len(pairs)) if pairs[i][0] == owner]
        expected += sorted(places, key=lambda i: (pairs[i][1], i))[:count]
    assert first_of_each(group, key, 3, count).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=20))
def test_ragged_lists_the_ranges(ranges: list[tuple[int, int]]) -> None:
    starts, lengths = (np.array([r[i] for r in ranges], np.int64) for i in (0, 1))
    assert ragged(starts, lengths).tolist() == [i for start, length in ranges for i in range(start, start + length)]


def test_ranks_start_again_in_every_group() -> None:
    assert ranks(np.array([3, 3, 3, 0, 7, 7])).tolist() == [0, 1, 2, 0, 0, 1]
    assert ranks(np.zeros(0, np.int64)).tolist() == []


def test_order_is_stable() -> None:
    assert order_by(np.array([1, 0, 1, 0]), np.array([2, 5, 2, 5]), 4).tolist() == [1, 3, 0, 2]


def test_draws_depend_on_everything_they_name_and_look_uniform() -> None:
    latent, token = np.repeat(np.arange(100), 200), np.tile(np.arange(200), 100)
    drawn = draw(0, 1, latent, token)
    assert len(np.unique(drawn)) == len(drawn)
    assert drawn.min() >= 0
    assert drawn.max() < 2**HASH_BITS
    counts, _ = np.histogram(drawn, bins=16, range=(0, 2**HASH_BITS))
    assert counts.min() > 0.85 * len(drawn) / 16
    for other in (draw(1, 1, latent, token), draw(0, 2, latent, token)):
        assert not np.any(other == drawn)
        assert abs(np.corrcoef(other, drawn)[0, 1]) < 0.05
    rows = drawn.reshape(100, 200).astype(np.float64)
    assert abs(np.corrcoef(rows[0], rows[1])[0, 1]) < 0.25
    assert draw(0, 1, latent[:5], token[:5]).tolist() == drawn[:5].tolist()
