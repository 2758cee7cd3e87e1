from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sae.features.config import FeaturesConfig
from sae.features.examples import GROUPS, PER_BLOCK, Examples, choose, windows
from sae.features.spool import Chunk

CONTEXT = 8


def chunk_of(dense: np.ndarray, first: int = 0) -> Chunk:
    """Return the codes [token latent] as a chunk."""
    latents, tokens = np.nonzero(dense.T)
    offsets = np.concatenate([[0], np.cumsum((dense != 0).sum(0))])
    return Chunk(first, first + dense.shape[1], offsets, tokens, dense[tokens, latents])


def chosen(dense: np.ndarray, config: FeaturesConfig, first: int = 0) -> Examples:
    none = np.zeros((dense.shape[1], 0))
    return choose(chunk_of(dense, first), CONTEXT, config, none.astype(np.float32), none.astype(np.int64))


def of(found: Examples, latent: int, group: str) -> Examples:
    return found.take((found.latents == latent) & (found.groups == GROUPS.index(group)))


@pytest.fixture
def dense() -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40 * CONTEXT, 6)).astype(np.float32) * (rng.random((40 * CONTEXT, 6)) < 0.4)
    values[:, 2] = 0
    values[:, 3] = 0
    values[7, 3] = -2.5
    values[:, 4] = np.where(values[:, 4] != 0, 1, 0)  # ties only
    values[:, 5] = 0
    values[16:24, 5] = np.arange(1, 9)  # one block holds all of it
    return values


@pytest.mark.parametrize("n_top", [0, 1, 9, 1000])
def test_top_are_the_largest_with_few_from_one_block(n_top: int, dense: np.ndarray) -> None:
    found = chosen(dense, FeaturesConfig(n_top=n_top))
    for latent in range(6):
        for group, sign in (("top", 1), ("bottom", -1)):
            own = np.flatnonzero(sign * dense[:, latent] > 0).tolist()
            expected: list[int] = []
            for token in sorted(own, key=lambda t: (-abs(dense[t, latent]), t)):
                if sum(t // CONTEXT == token // CONTEXT for t in expected) < PER_BLOCK:
                    expected.append(token)
            end = of(found, latent, group)
            assert end.tokens.tolist() == expected[:n_top]
            assert end.ranks.tolist() == list(range(len(end.tokens)))
            assert end.values.tolist() == dense[end.tokens, latent].tolist()


def test_turning_the_signs_exchanges_the_ends(dense: np.ndarray) -> None:
    one, other = (chosen(values, FeaturesConfig(n_top=7)) for values in (dense, -dense))
    for latent in range(6):
        assert of(one, latent, "top").tokens.tolist() == of(other, latent, "bottom").tokens.tolist()
        for group in ("quantile", "random"):
            assert of(one, latent, group).tokens.tolist() == of(other, latent, group).tokens.tolist()


def test_one_block_cannot_fill_the_list(dense: np.ndarray) -> None:
    assert of(chosen(dense, FeaturesConfig()), 5, "top").values.tolist() == [8.0, 7.0]


@pytest.mark.parametrize(("n_quantiles", "per_quantile"), [(10, 5), (3, 2), (1, 4), (0, 5), (5, 0), (100, 1)])
def test_quantiles_are_equally_filled_and_some_of_each_are_shown(
    n_quantiles: int, per_quantile: int, dense: np.ndarray
) -> None:
    found = chosen(dense, FeaturesConfig(n_quantiles=n_quantiles, per_quantile=per_quantile))
    for latent in range(6):
        ranked = sorted(np.flatnonzero(dense[:, latent]).tolist(), key=lambda t: (abs(dense[t, latent]), -t))
        bins: dict[int, list[int]] = {}
        for place, token in enumerate(ranked):
            bins.setdefault(place * n_quantiles // len(ranked), []).append(token)
        shown = of(found, latent, "quantile")
        if n_quantiles == 0 or per_quantile == 0:
            assert len(shown.tokens) == 0
            continue
        for number, members in bins.items():
            here = shown.tokens[shown.quantiles == number].tolist()
            assert set(here) <= set(members)
            assert len(here) == len(set(here)) == min(per_quantile, len(members))
        assert np.all(np.diff(np.abs(shown.values)) <= 0)
        assert shown.ranks.tolist() == list(range(len(shown.tokens)))


def test_random_examples_are_distinct_active_and_uniform() -> None:
    dense = np.zeros((400 * CONTEXT, 50), np.float32)
    dense[::2] = 1 + np.arange(200 * CONTEXT * 2 // 2)[:, None]
    found = chosen(dense, FeaturesConfig(n_random=20))
    places = []
    for latent in range(50):
        here = of(found, latent, "random")
        assert len(set(here.tokens.tolist())) == 20
        assert (here.tokens % 2 == 0).all()
        places += here.tokens.tolist()
    counts, _ = np.histogram(places, bins=5, range=(0, 400 * CONTEXT))
    assert counts.sum() == 1000
    assert abs(counts - 200).max() < 60  # 4.7 standard deviations


def test_what_is_drawn_depends_on_the_latents_number_and_the_seed_not_on_the_chunk(dense: np.ndarray) -> None:
    whole = chosen(dense, FeaturesConfig(n_random=4))
    late = chosen(dense[:, 1:2], FeaturesConfig(n_random=4), first=1)
    for group in ("random", "quantile"):
        assert of(late, 0, group).tokens.tolist() == of(whole, 1, group).tokens.tolist()
    other = chosen(dense, FeaturesConfig(n_random=4, seed=1))
    assert of(other, 0, "random").tokens.tolist() != of(whole, 0, "random").tokens.tolist()
    assert of(other, 0, "top").tokens.tolist() == of(whole, 0, "top").tokens.tolist()


def test_latents_with_few_or_no_tokens_show_what_there_is(dense: np.ndarray) -> None:
    found = chosen(dense, FeaturesConfig())
    assert 2 not in found.latents
    assert not len(of(found, 3, "top").tokens)
    for group in ("bottom", "quantile", "random"):
        assert of(found, 3, group).values.tolist() == [-2.5]


def test_windows_stay_in_the_block_and_hold_the_codes_around(dense: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(1, 99, (40, CONTEXT)).astype(np.int32)
    lengths = rng.integers(3, CONTEXT + 1, 40)
    blocks, positions = np.divmod(np.arange(40 * CONTEXT), CONTEXT)
    dense = np.where((positions < lengths[blocks])[:, None], dense, 0)
    chunk = chunk_of(dense)
    near = np.array([[0.5], [-0.5], [0.1], [-np.inf], [0.2], [0.3]], np.float32)
    token = np.array([[0], [9], [17], [0], [24], [1]])
    found = choose(chunk, CONTEXT, FeaturesConfig(), near, token)
    shown = windows(found, chunk, ids, lengths, 3)
    assert shown.offsets[-1] == len(shown.values) == len(shown.token_ids)
    for number, (latent, place) in enumerate(zip(found.latents, found.tokens, strict=True)):
        block, position = divmod(int(place), CONTEXT)
        first, last = max(0, position - 3), min(int(lengths[block]), position + 4)
        part = slice(shown.offsets[number], shown.offsets[number + 1])
        assert shown.starts[number] == first
        assert shown.token_ids[part].tolist() == ids[block, first:last].tolist()
        assert shown.values[part].tolist() == dense[block * CONTEXT + first : block * CONTEXT + last, latent].tolist()


def test_near_misses_keep_their_order_and_leave_out_what_is_missing() -> None:
    near = np.array([[0.5, 0.2, -np.inf], [-np.inf] * 3], np.float32)
    found = choose(chunk_of(np.zeros((8, 2), np.float32)), CONTEXT, FeaturesConfig(), near, np.array([[4, 1, 0]] * 2))
    assert found.latents.tolist() == [0, 0]
    assert found.tokens.tolist() == [4, 1]
    assert found.ranks.tolist() == [0, 1]
    assert found.quantiles.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_top", -1, "n_top must lie in 0..10000, got -1."),
        ("n_quantiles", 128, "n_quantiles must lie in 0..100, got 128."),
        ("window", -2, "window must be 0 or more, got -2."),
        ("outlier_norm", 1.0, "outlier_norm is a multiple of the median norm and must be above 1, got 1.0"),
    ],
)
def test_senseless_settings_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeaturesConfig(**{field: value})
