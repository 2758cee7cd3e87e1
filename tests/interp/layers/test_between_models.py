"""Maps between models: exact, trivial and impossible ones, depth gaps, and the three families against each other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.data import Blocks
from interp.hooks import capture
from interp.layers.between import LayerMaps, MapMatrix, map_layers
from interp.layers.erasure import stream_sites
from interp.models import ModelHandle


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_blocks(count: int = 16, length: int = 20) -> Blocks:
    tokens = torch.randint(1, 300, (count, length), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    tokens[:, 0] = 0
    return Blocks(tokens, torch.ones_like(tokens, dtype=torch.bool), count, False, 0)


def maps(a: list[Tensor], b: list[Tensor], penalty: float = 1e-12) -> tuple[Tensor, Tensor]:
    found = LayerMaps(penalty=penalty)
    keep = torch.ones(a[0].shape[:2], dtype=torch.bool)
    found.update(a, b, keep)
    fvu = found.fit()
    found.judge(a, b, keep)
    return fvu, found.relative


def test_linear_targets_are_exact_and_random_ones_impossible() -> None:
    x = noise(80, 12, 6) + 3
    linear = x @ noise(6, 9, seed=1) + noise(9, seed=2)
    fvu, relative = maps([x, noise(80, 12, 5, seed=5)], [linear, noise(80, 12, 4, seed=3)])
    assert float(relative[0, 0]) < 1e-6
    assert float(fvu[0, 0]) < 1e-12
    for value in (*relative[:, 1], *fvu[1], fvu[0, 1]):
        assert float(value) == pytest.approx(1, abs=0.06)
    assert float(fvu[0, 1]) >= 1  # worse than the mean, on other rows


def test_errors_by_numpy_on_the_held_out_sequences() -> None:
    x, y = noise(10, 9, 3), noise(10, 9, 2, seed=1)
    y = y + (x @ noise(3, 2, seed=2)).tanh()
    fvu, relative = maps([x], [y])
    rows = [z[half::2, 1:].reshape(-1, z.shape[-1]).numpy() for half in (0, 1) for z in (x, y)]
    ones = [np.concatenate([rows[i], np.ones((len(rows[i]), 1))], 1) for i in (0, 2)]
    weight = np.linalg.lstsq(ones[0], rows[1], rcond=None)[0]
    rest = rows[3] - ones[1] @ weight
    spread = rows[3] - rows[3].mean(0)
    assert float(fvu[0, 0]) == pytest.approx((rest**2).sum() / (spread**2).sum(), rel=1e-6)
    sizes = np.linalg.norm(rest, axis=1) / np.linalg.norm(rows[3], axis=1)
    assert float(relative[0, 0]) == pytest.approx(sizes.mean(), rel=1e-6)


def test_a_model_and_itself_have_a_diagonal_of_zeros(model: ModelHandle) -> None:
    found = map_layers(model, model, some_blocks())
    assert found.fvu.shape == (4, 4)
    assert float(found.fvu.diagonal().max()) < 1e-4
    assert float(found.relative.diagonal().max()) < 1e-2
    assert found.best.tolist() == [0, 1, 2, 3]
    assert found.depth_gap()[0] == 0
    assert (found.fitted, found.judged, found.diff_only) == (8 * 19, 8 * 19, False)
    assert float(found.fvu[3, 0]) > 0.01


def test_contributions_are_mapped_with_diff_only(gpt2: ModelHandle) -> None:
    blocks = some_blocks()
    found = map_layers(gpt2, gpt2, blocks, diff_only=True, batch=5)
    assert found.fvu.shape == (3, 3)
    with capture(gpt2, stream_sites(gpt2)) as acts:
        gpt2.forward(blocks.tokens)
    stream = [acts[site] for site in stream_sites(gpt2)]
    added = [after - before for before, after in pairwise(stream)]
    fvu, relative = maps(added, added, penalty=1e-6)
    torch.testing.assert_close(found.fvu, fvu, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.relative, relative, rtol=1e-3, atol=1e-3)


def test_depths_of_models_of_other_depth(make_model: Callable[..., ModelHandle], tokenizer: object) -> None:
    deep, shallow = (make_model("gpt2", tokenizer, n_layer=n) for n in (4, 2))
    found = map_layers(deep, shallow, some_blocks())
    assert found.fvu.shape == found.relative.shape == (5, 3)
    assert found.depths(0).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.depths(1).tolist() == [0, 0.5, 1]
    stretched = torch.ones(5, 3)
    stretched[0, 0] = stretched[2, 1] = stretched[4, 2] = 0
    exact = MapMatrix(stretched, stretched, 1, 1, False)
    assert exact.best.tolist() == [0, 2, 4]
    assert exact.depth_gap() == (0, pytest.approx((0.5 + 0.3 + 0.5) / 3))
    moved = torch.ones(5, 3)
    moved[1] = 0
    assert MapMatrix(moved, moved, 1, 1, False).depth_gap()[0] == pytest.approx((0.25 + 0.25 + 0.75) / 3)


def test_what_cannot_be_compared_is_refused(make_model: Callable[..., ModelHandle], gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match="one vocabulary"):
        map_layers(gpt2, make_model("gpt2", gpt2.tokenizer, vocab_size=310), some_blocks())
    with pytest.raises(ValueError, match="has no tokenizer"):
        map_layers(gpt2, make_model("gpt2"), some_blocks())
    with pytest.raises(ValueError, match="every other sequence"):
        map_layers(gpt2, gpt2, some_blocks(1))


def test_the_first_position_padding_and_infinities_do_not_count() -> None:
    x, y = noise(6, 8, 3), noise(6, 8, 2, seed=1)
    keep = torch.ones(6, 8, dtype=torch.bool)
    keep[1, 5:] = False
    usual, odd = LayerMaps(), LayerMaps()
    usual.update([x], [y], keep)
    wild = x.clone()
    wild[:, 0], wild[1, 5:] = 1e9, torch.inf
    odd.update([wild], [y], keep)
    torch.testing.assert_close(odd.fit(), usual.fit())
    assert (odd.rows(0), odd.rows(1)) == (21, 18)
