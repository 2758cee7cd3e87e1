"""AbsTopK against the slow reference of its definition; signs; AuxK by size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.auxk import auxk_loss
from sae.rules import Context


def abs_topk_reference(pre: list[list[float]], k: int) -> Tensor:
    """Return the dense code H_k(pre), one row and one latent at a time."""
    out = torch.zeros(len(pre), len(pre[0]))
    for n, row in enumerate(pre):
        for i in sorted(range(len(row)), key=lambda i: -abs(row[i]))[:k]:
            out[n, i] = row[i]
    return out


@pytest.mark.parametrize("atoms", ["unit", "free"])
@pytest.mark.parametrize("training", [False, True])
def test_code_equals_the_slow_reference(
    atoms: str, training: bool, built: Callable, rows: Callable, uneven: Callable, preactivations: Callable
) -> None:
    sae, x = uneven(built("abs_topk", atoms=atoms)).train(training), rows(20, seed=3)
    with torch.no_grad():
        code = sae.encode(x)
        assert torch.allclose(code.dense(), abs_topk_reference(preactivations(sae, x), sae.rule.k), atol=1e-4)
    assert (code.values < 0).any()
    assert (code.values > 0).any()
    assert (code.l0() == sae.rule.k).all()


def test_the_batch_form_keeps_the_largest_sizes_of_all_rows_and_then_those_above_a_threshold(
    built: Callable, rows: Callable, uneven: Callable, preactivations: Callable
) -> None:
    sae, x = uneven(built("abs_topk", k=3, batch=True)).train(), rows(20, seed=3)
    with torch.no_grad():
        code, pre = sae.encode(x), torch.tensor(preactivations(sae, x))
        floor = pre.abs().flatten().topk(60).values.min()
        assert torch.allclose(code.dense(), pre * (pre.abs() >= floor), atol=1e-5)
        sae.rule.observe(code, Context(0, 100))
        assert float(sae.rule.threshold) == pytest.approx(float(floor), rel=1e-5)
        assert torch.allclose(sae.eval().encode(x).dense(), pre * (pre.abs() > sae.rule.threshold), atol=1e-5)


def test_opposite_rows_have_opposite_codes_where_there_is_no_bias(built: Callable, rows: Callable) -> None:
    sae = built("abs_topk", "none").eval()
    sae.b_dec.data.zero_()
    x = rows(30, seed=4)
    with torch.no_grad():
        assert torch.allclose(sae.encode(-x).dense(), -sae.encode(x).dense(), atol=1e-6)


def test_auxk_picks_by_size_and_keeps_the_sign(built: Callable, rows: Callable) -> None:
    sae = built("abs_topk", "none", k=3).double()
    sae.b_enc.data.normal_(generator=torch.Generator().manual_seed(1))
    x = rows(50, seed=5).double()
    dead = torch.arange(40) % 3 == 0
    recon = sae.decode_normalised(sae.encode_normalised(x))
    error = (x - recon).detach()
    pre = torch.where(dead, (x - sae.b_dec) @ sae.W_enc.t() + sae.b_enc, 0.0)
    picked = pre.abs().topk(8).indices
    estimate = torch.zeros_like(pre).scatter(1, picked, pre.gather(1, picked)) @ sae.W_dec
    wanted = (error - estimate).square().mean() / (error - error.mean(0)).square().mean()
    assert (pre.gather(1, picked) < 0).any()
    assert torch.allclose(auxk_loss(x, recon, dead, sae), wanted)
