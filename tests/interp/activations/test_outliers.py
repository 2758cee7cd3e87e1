"""One rule for outliers: the norm against the median one, whatever the number format."""

from __future__ import annotations

import pytest
import torch

from interp.activations.outliers import near, norms, typical_norm


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms_of_every_dtype_are_float64(dtype: torch.dtype) -> None:
    found = norms(torch.tensor([[[3.0, 4.0], [0.0, 0.0]]], dtype=dtype))
    assert found.dtype == torch.float64
    assert found.tolist() == [[5.0, 0.0]]


def test_squares_beyond_float32_are_no_infinity_and_what_is_infinite_stays_so() -> None:
    rows = torch.tensor([[3e30, 4e30], [torch.inf, 1.0], [torch.nan, 1.0]])
    found = norms(rows)
    assert float(found[0]) == pytest.approx(5e30, rel=1e-6)
    assert found[1] == torch.inf
    assert found[2].isnan()


def test_the_typical_norm_is_the_median_of_what_is_finite() -> None:
    assert typical_norm(torch.tensor([1.0, torch.inf, 9.0, 3.0, torch.nan]).double()) == 3.0
    assert typical_norm(torch.tensor([torch.nan]).double()) == 0.0
    assert typical_norm(torch.zeros(0).double()) == 0.0


def test_near_leaves_out_what_is_longer_than_so_many_times_the_typical_norm() -> None:
    lengths = torch.tensor([0.0, 5.9, 6.0, 6.1, torch.inf, torch.nan]).double()
    assert near(lengths, 2.0, 3.0).tolist() == [True, True, True, False, False, True]
    assert near(lengths, None, 3.0).all()
