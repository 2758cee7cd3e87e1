"""Matryoshka against the slow reference of its definition; prefixes; sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.model import Sae
from sae.rules import Context, build_rule


def matryoshka_reference(sae: Sae, x: Tensor, z: Tensor, sizes: list[int]) -> tuple[list[Tensor], float]:
    """Return (each prefix' reconstruction, what the prefixes but the last leave) of a dense code, row by row."""
    recons = []
    for size in sizes:
        recon = torch.zeros_like(x)
        for n in range(len(x)):
            recon[n] = sae.b_dec + sum(z[n, i] * sae.W_dec[i] / sae.W_dec[i].norm() for i in range(size))
        recons.append(recon)
    return recons, sum(float((x - recon).square().mean()) for recon in recons[:-1])


@pytest.mark.parametrize("atoms", ["unit", "free"])
@pytest.mark.parametrize("batch", [True, False])
def test_prefixes_and_penalty_equal_the_slow_reference(
    atoms: str, batch: bool, built: Callable, rows: Callable, uneven: Callable
) -> None:
    sae = uneven(built("matryoshka", atoms=atoms, k=4, batch=batch, sizes="3, 10 22", weight=0.5)).train()
    x, _ = sae.normaliser.into(rows(12, seed=3))
    with torch.no_grad():
        code = sae.encode_normalised(x)
        recons, left = matryoshka_reference(sae, x, code.dense(), [3, 10, 22, 40])
        assert sae.rule.sizes == [3, 10, 22, 40]
        for level, recon in enumerate(recons):
            found = sae.decode_normalised(sae.rule.prefix(code, level))
            assert torch.allclose(found, recon, atol=1e-4)
        penalty = sae.rule.penalties(x, code, recons[-1], sae, Context())
    assert float(penalty["prefixes"]) == pytest.approx(0.5 * left, rel=1e-4)


@pytest.mark.parametrize(("batch", "other"), [(True, "batch_topk"), (False, "topk")])
@pytest.mark.parametrize("training", [False, True])
def test_the_code_is_that_of_the_rule_inside(
    batch: bool, other: str, training: bool, built: Callable, rows: Callable
) -> None:
    sae, inner = built("matryoshka", k=4, batch=batch).train(training), built(other, k=4).train(training)
    x = rows(30, seed=4)
    with torch.no_grad():
        assert torch.equal(sae.encode(x).dense(), inner.encode(x).dense())


def test_what_a_transcoder_wants_is_what_prefixes_are_compared_with(built: Callable, rows: Callable) -> None:
    sae = built("matryoshka", k=4, sizes="10").train()
    x, _ = sae.normaliser.into(rows(12, seed=3))
    y = x.flip(0)
    code = sae.encode_normalised(x)
    found = sae.rule.penalties(x, code, x, sae, Context(target=y))["prefixes"]
    assert torch.allclose(found, (sae.decode_normalised(sae.rule.prefix(code, 0)) - y).square().mean())


def test_sizes_double_unless_given() -> None:
    assert build_rule("matryoshka", 16, 40, {}).sizes == [2, 5, 10, 20, 40]
    assert build_rule("matryoshka", 16, 3, {"k": 1}).sizes == [1, 3]


@pytest.mark.parametrize("sizes", ["10 5", "0 5", "40", "5 5", "41", "-3"])
def test_sizes_that_do_not_nest_are_refused(sizes: str) -> None:
    with pytest.raises(ValueError, match=r"sizes must rise and lie in 1\.\.d_sae-1=39"):
        build_rule("matryoshka", 16, 40, {"sizes": sizes})


def test_other_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match='sizes must be whole numbers such as "256 1024", got .half.'):
        build_rule("matryoshka", 16, 40, {"sizes": "half"})
    with pytest.raises(ValueError, match="weight must be at least 0 and finite, got nan"):
        build_rule("matryoshka", 16, 40, {"weight": float("nan")})
