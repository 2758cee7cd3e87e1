"""GroupMax against the slow reference of its definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.rules import build_rule


def group_max_reference(pre: list[list[float]], k: int) -> Tensor:
    """Return the dense code, group by group."""
    out, size = torch.zeros(len(pre), len(pre[0])), len(pre[0]) // k
    for n, row in enumerate(pre):
        for group in range(k):
            i = max(range(group * size, (group + 1) * size), key=lambda i: row[i])
            out[n, i] = max(row[i], 0.0)
    return out


@pytest.mark.parametrize("atoms", ["unit", "free"])
@pytest.mark.parametrize("training", [False, True])
def test_code_equals_the_slow_reference(
    atoms: str, training: bool, built: Callable, rows: Callable, uneven: Callable, preactivations: Callable
) -> None:
    sae, x = uneven(built("group_max", atoms=atoms, k=5)).train(training), rows(20, seed=3)
    with torch.no_grad():
        assert torch.allclose(sae.encode(x).dense(), group_max_reference(preactivations(sae, x), 5), atol=1e-5)


def test_k_divides_the_dictionary() -> None:
    assert build_rule("group_max", 16, 40, {}).k == 5
    assert build_rule("group_max", 768, 4096, {}).k == 32
    assert build_rule("group_max", 16, 37, {}).k == 1
    with pytest.raises(ValueError, match=r"k must divide d_sae=40 into groups of one size, got 7; the nearest is 8"):
        build_rule("group_max", 16, 40, {"k": 7})
