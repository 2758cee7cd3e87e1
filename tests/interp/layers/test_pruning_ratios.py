"""Pruning ratios from alphas: the published table, the weighted mean, and the order."""

from __future__ import annotations

import pytest
import torch

from interp.layers.pruning_ratios import MOST, alpha_ratios, block_alphas
from interp.layers.spectra import Farms, spectra_rows
from interp.layers.weights import block_matrices
from interp.models import ModelHandle

# Mean alpha of the 32 blocks of LLaMA-7B and the ratios for 70 %: whole matrices (xmin_peak), and FARMS windows.
WHOLE = (
    "2.62 2.87 2.97 2.98 3.01 3.10 2.91 2.81 2.76 2.62 2.68 2.71 2.71 2.84 2.85 3.16 "
    "3.12 3.50 3.84 3.61 3.89 3.95 3.80 3.72 4.03 4.33 3.95 4.16 3.85 4.08 4.17 3.47",
    ".513 .577 .604 .605 .614 .636 .588 .562 .550 .513 .527 .535 .536 .568 .572 .653 "
    ".643 .739 .827 .767 .842 .857 .818 .795 .877 .953 .855 .910 .830 .889 .912 .732",
)
WINDOWS = (
    "2.58 3.01 2.96 3.19 3.44 3.23 3.13 3.07 2.99 2.95 2.98 2.95 2.95 3.09 3.14 3.31 "
    "3.55 3.51 3.74 3.87 4.17 3.95 4.12 4.08 4.35 4.44 4.21 4.51 4.22 4.07 4.11 3.76",
    ".489 .584 .572 .621 .675 .630 .609 .595 .579 .570 .576 .570 .570 .601 .612 .647 "
    ".699 .690 .742 .768 .835 .788 .823 .814 .873 .893 .843 .908 .846 .812 .822 .744",
)


def numbers(text: str) -> torch.Tensor:
    return torch.tensor([float(word) for word in text.split()], dtype=torch.float64)


@pytest.mark.parametrize(("alphas", "ratios"), [WHOLE, WINDOWS])
def test_llama_7b(alphas: str, ratios: str) -> None:
    found = alpha_ratios(numbers(alphas), 0.7)
    # The published means are rounded to two places, which moves a ratio by up to 0.005.
    assert torch.allclose(found, numbers(ratios), atol=0.005)
    assert float(found.mean()) == pytest.approx(0.7, abs=1e-9)


@pytest.mark.parametrize("target", [0.0, 0.3, 0.7, 0.9, 0.99, MOST])
def test_the_weighted_mean_is_the_target_and_the_order_that_of_alpha(target: float) -> None:
    g = torch.Generator().manual_seed(0)
    alphas, sizes = 2 + 3 * torch.rand(20, generator=g), 1000 + 50_000 * torch.rand(20, generator=g)
    found = alpha_ratios(alphas, target, sizes=sizes)
    assert float((found * sizes.double()).sum() / sizes.double().sum()) == pytest.approx(target, abs=1e-9)
    assert float(found.max()) <= MOST
    assert float(found.min()) >= 0
    ordered = found[alphas.argsort()]
    assert bool((ordered.diff() >= -1e-12).all())


def test_shift_and_scale_of_alpha_and_equal_alphas() -> None:
    alphas = numbers(WHOLE[0])
    assert torch.allclose(alpha_ratios(3 * alphas + 5, 0.5), alpha_ratios(alphas, 0.5))
    assert torch.allclose(alpha_ratios(torch.full((4,), 3.0), 0.5), torch.full((4,), 0.5, dtype=torch.float64))
    assert torch.allclose(alpha_ratios(alphas, 0.5, spread=0.0), torch.full((32,), 0.5, dtype=torch.float64))
    apart = alpha_ratios(alphas, 0.4, spread=0.3)
    assert float(apart.max() / apart.min()) == pytest.approx(1.3 / 0.7)


def test_full_blocks_leave_the_rest_to_the_others() -> None:
    found = alpha_ratios(torch.tensor([2.0, 3.0, 4.0]), 0.9, spread=0.5)  # 0.45, 0.9, 1.35 before
    assert float(found[2]) == MOST
    assert float(found.mean()) == pytest.approx(0.9, abs=1e-9)
    assert 0.45 < float(found[0]) < float(found[1]) <= MOST


def test_from_the_spectra_of_a_model(model: ModelHandle) -> None:
    rows = spectra_rows(block_matrices(model), farms=Farms(16, 1, 2))
    for column in ("alpha", "alpha_windows"):
        alphas, sizes = block_alphas(rows, column)
        assert float(alphas[1]) == pytest.approx(
            sum(float(row[column]) for row in rows if row["layer"] == 1) / (len(rows) / 3)
        )
        assert len(set(sizes.tolist())) == 1
        assert float(alpha_ratios(alphas, 0.5, sizes=sizes).mean()) == pytest.approx(0.5, abs=1e-9)


def test_arguments_out_of_range_are_refused() -> None:
    alphas = torch.tensor([2.0, 3.0])
    for arguments, message in (
        ({"target": 1.2}, r"target must lie in 0\.\.most=0.998"),
        ({"target": 0.5, "spread": 1.5}, r"spread must lie in 0\.\.1, got 1.5"),
        ({"target": 0.5, "sizes": torch.tensor([1.0, 0.0])}, "sizes must be one number above 0 for each of 2 blocks"),
    ):
        with pytest.raises(ValueError, match=message):
            alpha_ratios(alphas, **arguments)
    with pytest.raises(ValueError, match="alphas must be one finite number for each block"):
        alpha_ratios(torch.tensor([2.0, torch.nan]), 0.5)
