"""Top-AFA against the slow reference of its definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.code import Code
from sae.rules import Context, build_rule
from sae.rules import top_afa as module


def top_afa_reference(pre: list[list[float]], lengths: list[float]) -> Tensor:
    """Return the dense code: for each row, every number of latents is tried."""
    out = torch.zeros(len(pre), len(pre[0]))
    for n, row in enumerate(pre):
        order = sorted(range(len(row)), key=lambda i: -row[i])
        gaps = {}
        for count in range(1, len(row) + 1):
            norm = sum(max(row[i], 0.0) ** 2 for i in order[:count]) ** 0.5
            gaps[count] = abs(norm - lengths[n])
        best = min(gaps, key=lambda count: gaps[count])
        for i in order[:best]:
            out[n, i] = max(row[i], 0.0)
    return out


@pytest.mark.parametrize("atoms", ["unit", "free"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("first", [2, 64])
def test_code_equals_the_slow_reference(
    atoms: str,
    training: bool,
    first: int,
    built: Callable,
    rows: Callable,
    uneven: Callable,
    preactivations: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FIRST", first)
    sae, x = uneven(built("top_afa", atoms=atoms)).double().train(training), rows(40, seed=3).double()
    x[0] *= 30  # longer than all its latents together
    with torch.no_grad():
        if atoms == "unit":
            sae.W_enc.mul_(torch.linspace(0.3, 2.0, 40).unsqueeze(1))
        normalised, _ = sae.normaliser.into(x)
        code = sae.encode(x)
        lengths = (normalised - sae.b_dec).norm(dim=1).tolist()
        assert torch.allclose(code.dense(), top_afa_reference(preactivations(sae, x), lengths).double(), atol=1e-4)
    assert int(code.l0().min()) >= 1
    if atoms == "unit":
        assert code.l0().unique().numel() > 3, "L0 hardly differs between rows"


def test_penalty_is_the_squared_difference_in_length(built: Callable) -> None:
    sae = built("top_afa", "none", afa=32.0)
    sae.b_dec.data.zero_()
    x = torch.zeros(2, 16)
    x[0, 0], x[1, 1] = 5.0, 2.0
    values = torch.tensor([3.0, 4.0, 1.0], requires_grad=True)
    code = Code(torch.tensor([4, 7, 1]), values, 40, torch.tensor([0, 2, 3]))
    penalty = sae.rule.penalties(x, code, x, sae, Context())["afa"]
    assert float(penalty.detach()) == pytest.approx(32 / 16 * (0.0 + 1.0) / 2)
    nothing = torch.zeros(0, dtype=torch.long)
    silent = Code(nothing, torch.zeros(0, requires_grad=True), 40, torch.zeros(3, dtype=torch.long))
    assert float(sae.rule.penalties(x, silent, x, sae, Context())["afa"].detach()) == pytest.approx(2 * (25 + 4) / 2)
    zero = Code(torch.tensor([[1], [2]]), torch.zeros(2, 1, requires_grad=True), 40)
    sae.rule.penalties(x, zero, x, sae, Context())["afa"].backward()
    assert torch.isfinite(zero.values.grad).all()


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="afa must be at least 0 and finite, got -1"):
        build_rule("top_afa", 16, 40, {"afa": -1.0})
