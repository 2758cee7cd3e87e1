"""TopK against the slow reference of its definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.config import SaeConfig
from sae.model import Sae


def topk_reference(pre: list[list[float]], k: int) -> Tensor:
    """Return the dense code, one row and one latent at a time."""
    out = torch.zeros(len(pre), len(pre[0]))
    for n, row in enumerate(pre):
        for i in sorted(range(len(row)), key=lambda i: -row[i])[:k]:
            out[n, i] = max(row[i], 0.0)
    return out


@pytest.mark.parametrize("atoms", ["unit", "free"])
@pytest.mark.parametrize("training", [False, True])
def test_code_equals_the_slow_reference(
    atoms: str, training: bool, built: Callable, rows: Callable, uneven: Callable, preactivations: Callable
) -> None:
    sae, x = uneven(built("topk", atoms=atoms)).train(training), rows(20, seed=3)
    with torch.no_grad():
        assert torch.allclose(sae.encode(x).dense(), topk_reference(preactivations(sae, x), sae.rule.k), atol=1e-5)


def test_keeps_at_most_k_and_never_a_negative_value(built: Callable, rows: Callable) -> None:
    sae = built("topk", k=5).eval()
    with torch.no_grad():
        code = sae.encode(rows(100, seed=8))
    assert int(code.l0().max()) <= 5
    assert (code.values >= 0).all()


@pytest.mark.parametrize("k", [0, -1, 41])
def test_k_outside_the_dictionary_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k must lie in 1\.\.d_sae=40, got {k}\."):
        Sae(SaeConfig(16, 40, "topk", {"k": k}))
