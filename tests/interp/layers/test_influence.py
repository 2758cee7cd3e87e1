"""Block influence, angles and ZD: closed cases, slow loops on the three families, invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.hooks import capture
from interp.layers.erasure import stream_sites
from interp.layers.influence import Influence, weight_outliers
from interp.layers.weights import block_matrices
from interp.models import ModelHandle


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def influence(stream: list[Tensor], keep: Tensor | None = None, split: int = 2) -> Influence:
    keep = torch.ones(stream[0].shape[:2], dtype=torch.bool) if keep is None else keep
    found = Influence()
    for some in torch.arange(len(keep)).split(split):
        found.update([x[some] for x in stream], keep[some])
    return found


def test_an_identity_block_has_none_and_a_reversal_two() -> None:
    x = noise(3, 7, 5)
    found = influence([x, x, -x, 3 * x + 0.0])
    torch.testing.assert_close(found.block_influence(), torch.tensor([0.0, 2.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(found.first(), torch.tensor([0.0, 2.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(found.lim(), torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    angles = found.angles()
    assert angles[0, 2] == pytest.approx(0, abs=1e-6)  # all three blocks together turn nothing
    assert angles[1, 0] == pytest.approx(1)
    assert math.isnan(angles[2, 1])


def test_scale_does_not_matter_and_neither_do_position_0_padding_nor_infinities() -> None:
    stream = [noise(4, 6, 5, seed=i) for i in range(3)]
    usual = influence(stream)
    scaled = influence([100.0**i * x for i, x in enumerate(stream)])
    torch.testing.assert_close(scaled.block_influence(), usual.block_influence())
    torch.testing.assert_close(scaled.angles(), usual.angles(), equal_nan=True)
    keep = torch.ones(4, 6, dtype=torch.bool)
    keep[2, 3:], keep[1, 4] = False, False
    kept = influence(stream, keep)
    wild = [x.clone() for x in stream]
    wild[1][:, 0], wild[1][2, 3:] = 1e12, 7.0
    wild[2][1, 4] = torch.inf
    keep[1, 4] = True
    torch.testing.assert_close(influence(wild, keep).block_influence(), kept.block_influence())
    assert not torch.allclose(kept.block_influence(), usual.block_influence())


def test_cosines_and_angles_by_a_loop(model: ModelHandle) -> None:
    tokens = torch.randint(1, 300, (3, 8), generator=torch.Generator().manual_seed(0))
    keep = torch.ones_like(tokens, dtype=torch.bool)
    keep[1, 5:] = False
    with capture(model, stream_sites(model)) as acts:
        model.forward(tokens)
    stream = [acts[site] for site in stream_sites(model)]
    found = influence(stream, keep)

    def cos(a: int, b: int, row: int, t: int) -> float:
        x, y = (stream[i][row, t].double().numpy() for i in (a, b))
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    rows = [(row, t) for row, t in keep.nonzero().tolist() if t]
    for layer in range(3):
        slow = np.mean([1 - cos(layer, layer + 1, *at) for at in rows])
        assert float(found.block_influence()[layer]) == pytest.approx(slow, rel=1e-5)
        assert float(found.first()[layer]) == pytest.approx(
            np.mean([1 - cos(layer, layer + 1, row, 0) for row in range(3)]), rel=1e-5
        )
        for n in range(1, 4 - layer):
            slow = np.mean([math.acos(cos(layer, layer + n, *at)) / math.pi for at in rows])
            assert float(found.angles()[layer, n - 1]) == pytest.approx(slow, rel=1e-5)
            ends = [math.acos(cos(layer, layer + n, row, t)) / math.pi for row, t in ((0, 7), (1, 4), (2, 7))]
            assert float(found.angles(last=True)[layer, n - 1]) == pytest.approx(np.mean(ends), rel=1e-5)
    sums, counts = found.sequences()
    assert counts.tolist() == [7, 4, 7]
    torch.testing.assert_close(sums.sum(0) / 18, found.block_influence())


def test_zd_counts_weights_above_one_deviation(model: ModelHandle) -> None:
    found = weight_outliers(model)
    for layer in range(3):
        whole = np.concatenate([one.matrix.numpy().ravel() for one in block_matrices(model) if one.layer == layer])
        assert float(found[layer]) == pytest.approx(np.mean((whole - whole.mean()) / whole.std() > 1), abs=1e-6)
        if model.family != "gpt2":  # whose output matrices are drawn smaller: a mixture of two Gaussians
            assert float(found[layer]) == pytest.approx(0.1587, abs=0.02)  # 1 - Phi(1)
    assert float(weight_outliers(model, 2.0).max()) < float(found.min())
