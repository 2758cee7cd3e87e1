"""Heavy-tail exponents, windows and ranks: published and random matrices, slow loops, and the three families."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.layers.spectra import (
    RULES,
    Farms,
    distance,
    hill,
    singular_values,
    spectra_rows,
    spectrum,
    tail_exponent,
    windows,
)
from interp.layers.weights import block_matrices
from interp.models import ModelHandle


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_alpha(values: list[float], start: int) -> float:
    tail = sorted(values)[start:]
    return 1 + len(tail) / (sum(math.log(v) for v in tail) - len(tail) * math.log(tail[0]))


def slow_distance(values: list[float], start: int, alpha: float) -> float:
    tail = sorted(values)[start:]
    return max(abs(1 - (v / tail[0]) ** (1 - alpha) - j / len(tail)) for j, v in enumerate(tail))


@pytest.mark.parametrize(
    ("shape", "whole", "windowed"),
    [((512, 512), 2.13, 2.11), ((512, 1024), 2.72, 2.12), ((512, 2048), 3.49, 2.13), ((256, 4096), 5.95, 2.14)],
)
def test_the_exponent_of_random_matrices_grows_with_their_aspect_and_that_of_windows_does_not(
    shape: tuple[int, int], whole: float, windowed: float
) -> None:
    matrix = noise(*shape) / math.sqrt(shape[1])
    found = spectrum(matrix, "xmin_mid", Farms(rows=256, aspect=1, per_side=3))
    assert found.alpha == pytest.approx(whole, abs=0.05)
    assert found.alpha_windows == pytest.approx(windowed, abs=0.05)


def test_a_power_law_has_its_exponent() -> None:
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert tail_exponent(draws ** (-1 / 2)) == pytest.approx(3.0, abs=0.05)
    assert tail_exponent(draws ** (-1 / 3)) == pytest.approx(4.0, abs=0.07)


def test_fits_are_those_of_slow_loops_for_every_rule() -> None:
    values = singular_values(noise(40, 60, seed=4)).square()
    each = sorted(values.tolist())
    fits = [(slow_distance(each, i, slow_alpha(each, i)), slow_alpha(each, i), i) for i in range(39)]
    for d, alpha, i in fits:
        assert hill(values.sort().values, i) == pytest.approx(alpha)
        assert distance(values.sort().values, i, alpha) == pytest.approx(d)
    assert tail_exponent(values) == pytest.approx(slow_alpha(each, 20))
    assert tail_exponent(values, "ks") == pytest.approx(min(fits)[1])
    counts, edges = np.histogram(np.log10(each), bins=100)
    peak = 10 ** edges[counts.argmax()]
    near = [fit for fit in fits if 0.95 * peak <= each[fit[2]] <= 1.5 * peak]
    literal = [fit for fit in fits if each[fit[2]] <= 1.5 * peak and each[fit[2]] >= math.log10(0.95 * peak)]
    assert tail_exponent(values, "xmin_peak") == pytest.approx(min(near)[1])
    assert tail_exponent(values, "xmin_peak", fix_bound=False) == pytest.approx(min(literal)[1])
    assert len({round(min(found)[1], 6) for found in (fits, near, literal)}) == 3  # each bound matters here


@pytest.mark.parametrize("rule", RULES)
def test_scale_order_and_transposition_change_no_exponent(rule: str) -> None:
    matrix = noise(30, 50)
    usual = spectrum(matrix, rule, Farms(10, 2, 3))
    for other in (7.0 * matrix, matrix.T, matrix[torch.randperm(30, generator=torch.Generator().manual_seed(0))]):
        found = spectrum(other, rule, Farms(10, 2, 3))
        assert found.alpha == pytest.approx(usual.alpha, rel=1e-9)
        assert found.stable_rank == pytest.approx(usual.stable_rank)
        assert found.effective_rank == pytest.approx(usual.effective_rank)
    assert spectrum(7.0 * matrix.T, rule, Farms(10, 2, 3)).alpha_windows == pytest.approx(usual.alpha_windows, rel=1e-9)


def test_ranks_of_known_matrices() -> None:
    turn = torch.linalg.qr(noise(50, 50)).Q
    found = spectrum(turn[:20])
    assert (found.stable_rank, found.effective_rank) == (pytest.approx(20), pytest.approx(20))
    line = spectrum(torch.outer(noise(30), noise(40, seed=1)))
    assert (line.stable_rank, line.effective_rank) == (pytest.approx(1), pytest.approx(1))
    assert math.isnan(line.alpha)  # one eigenvalue, the others are rounding
    matrix = noise(12, 20)
    assert spectrum(matrix).stable_rank == pytest.approx(
        float(matrix.norm() / torch.linalg.matrix_norm(matrix, 2)) ** 2
    )
    assert spectrum(matrix).alpha_hat == pytest.approx(
        spectrum(matrix).alpha * math.log10(float(torch.linalg.matrix_norm(matrix, 2)) ** 2)
    )


@pytest.mark.parametrize("shape", [(6, 6), (6, 9), (50, 7), (40, 90), (3, 2)])
@pytest.mark.parametrize("aspect", [1, 2])
def test_windows_have_one_shape_lie_inside_and_reach_both_ends(shape: tuple[int, int], aspect: int) -> None:
    matrix = torch.arange(shape[0] * shape[1], dtype=torch.float64).reshape(shape)
    found = list(windows(matrix, Farms(5, aspect, 4)))
    assert len({one.shape for one in found}) == 1
    rows, columns = found[0].shape
    assert columns == rows * aspect
    assert rows == min(5, min(shape), max(shape) // aspect)
    assert len(found) == len({float(one[0, 0]) for one in found}) <= 16
    assert found[0][0, 0] == 0


def test_windows_of_the_whole_matrix_are_the_matrix() -> None:
    matrix = noise(20, 20)
    found = spectrum(matrix, "xmin_mid", Farms(20, 1, 5))
    assert found.alpha_windows == found.alpha


def test_the_matrices_of_a_model_are_all_of_its_blocks(model: ModelHandle) -> None:
    found = list(block_matrices(model))
    blocks = [
        p for name, p in model.module.named_parameters() if p.ndim == 2 and "embed" not in name and ".wpe" not in name
    ]
    blocks = [p for p in blocks if p.shape[0] != model.d_vocab]
    assert sum(one.matrix.numel() for one in found) == sum(p.numel() for p in blocks)
    gated = model.family == "llama"
    names = ["q", "k", "v", "o", *(["mlp_gate"] if gated else []), "mlp_in", "mlp_out"]
    assert [(one.layer, one.name) for one in found] == [(layer, name) for layer in range(3) for name in names]
    assert {one.matrix.shape[1] for one in found if one.name != "mlp_out"} == {32}
    assert {one.matrix.shape[0] for one in found if one.name in ("o", "mlp_out")} == {32}


def test_fused_projections_are_taken_apart_as_the_bridge_does(model: ModelHandle) -> None:
    found = {(one.layer, one.name): one.matrix for one in block_matrices(model)}
    for layer in range(3):
        for name in "qkv":
            theirs = getattr(model.bridge.blocks[layer].attn, f"W_{name.upper()}")  # [head d_model d_head]
            ours = found[layer, name].unflatten(0, (-1, model.d_head)).mT
            assert torch.equal(theirs[:: theirs.shape[0] // ours.shape[0]], ours)


def test_rows_of_a_model_name_layer_and_matrix(gpt2: ModelHandle) -> None:
    rows = spectra_rows(block_matrices(gpt2), farms=Farms(16, 2, 3))
    assert len(rows) == 3 * 6
    assert all(1 < float(row["alpha"]) < 20 and 1 <= float(row["stable_rank"]) <= 32 for row in rows)
    assert sum(int(row["numbers"]) for row in rows) == 3 * 12 * 32 * 32


def test_what_has_no_spectrum_is_said() -> None:
    with pytest.raises(ValueError, match="Unknown rule for the tail 'xmin_midd'; did you mean 'xmin_mid'"):
        tail_exponent(torch.ones(9), "xmin_midd")
    with pytest.raises(ValueError, match="finite weights"):
        spectrum(torch.full((3, 3), torch.nan))
    with pytest.raises(ValueError, match="per_side must be 2 or more, got 1"):
        Farms(per_side=1)
    assert math.isnan(tail_exponent(torch.tensor([1.0, 2.0, 3.0, 4.0])))
    assert math.isnan(tail_exponent(torch.ones(20)))  # equal eigenvalues have no tail
    assert math.isnan(spectrum(torch.zeros(8, 8)).stable_rank)
