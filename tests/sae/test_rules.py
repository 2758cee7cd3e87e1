"""Properties that every rule has, and for each rule a slow reference straight from its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae.config import SaeConfig, TrainConfig
from sae.initialise import initialise
from sae.model import Sae
from sae.rules import RULES, Context, build_rule
from sae.training import Training

D_IN, D_SAE = 16, 40


def rows(n: int = 300, seed: int = 1) -> Tensor:
    """Return rows of a planted dictionary; its seed is never the one of an initialisation (0)."""
    g = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(32, D_IN, generator=g), dim=1)
    on = torch.rand(n, 32, generator=g) < 0.1
    return (on * torch.rand(n, 32, generator=g)) @ atoms + 0.3


def built(rule: str, normalise: str = "scalar", **args: int) -> Sae:
    sae = Sae(SaeConfig(D_IN, D_SAE, rule, args, normalise))  # type: ignore[arg-type]
    initialise(sae, rows(), seed=0)
    return sae


def topk_reference(sae: Sae, x: Tensor) -> Tensor:
    """Return the dense code, one row and one latent at a time."""
    scale = sae.normaliser.scale
    out = torch.zeros(len(x), sae.d_sae)
    for n, row in enumerate(x):
        pre = [float((row / scale - sae.b_dec) @ sae.W_enc[i] + sae.b_enc[i]) for i in range(sae.d_sae)]
        for i in sorted(range(sae.d_sae), key=lambda i: -pre[i])[: sae.rule.k]:  # type: ignore[arg-type]
            out[n, i] = max(pre[i], 0.0)
    return out


REFERENCES = {"topk": topk_reference}


def test_every_rule_has_a_reference() -> None:
    assert REFERENCES.keys() == RULES.keys()


@pytest.mark.parametrize("rule", RULES)
def test_code_equals_the_slow_reference(rule: str) -> None:
    sae = built(rule).eval()
    sae.b_enc.data.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    x = rows(20, seed=3)
    with torch.no_grad():
        assert torch.allclose(sae.encode(x).dense(), REFERENCES[rule](sae, x), atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_evaluation_does_not_look_across_the_batch(rule: str) -> None:
    sae, x = built(rule).eval(), rows(50, seed=4)
    with torch.no_grad():
        together = sae.encode(x).dense()
        alone = torch.cat([sae.encode(row[None]).dense() for row in x])
        turned = sae.encode(x.flip(0)).dense().flip(0)
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together, turned, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("normalise", ["scalar", "layer", "none"])
def test_training_lowers_fvu_and_keeps_atoms_at_unit_length(rule: str, normalise: str) -> None:
    sae = built(rule, normalise, k=4)
    training = Training(sae.train(), TrainConfig(tokens=300 * 128, batch=128, lr=3e-3))
    data = rows(4096, seed=5)
    g = torch.Generator().manual_seed(6)
    fvu = [float(training.advance(data[torch.randint(4096, (128,), generator=g)])["fvu"]) for _ in range(300)]
    assert sum(fvu[-20:]) < 0.7 * sum(fvu[:20])
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_zero_off_the_support(rule: str) -> None:
    sae = built(rule).train()
    x, _ = sae.normaliser.into(rows(3, seed=7))
    code = sae.encode_normalised(x, Context())
    (sae.decode_normalised(code) - x).square().sum().backward()
    off = ~code.fired()
    assert off.any()
    for gradient in (sae.W_enc.grad, sae.W_dec.grad, sae.b_enc.grad):
        assert gradient is not None
        assert torch.count_nonzero(gradient[off]) == 0
        assert torch.count_nonzero(gradient[~off]) > 0


def test_topk_keeps_at_most_k_and_never_a_negative_value() -> None:
    sae = built("topk", k=5).eval()
    with torch.no_grad():
        code = sae.encode(rows(100, seed=8))
    assert int(code.l0().max()) <= 5
    assert (code.values >= 0).all()


def test_unknown_rule_and_argument_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="Unknown rule 'topkk'; did you mean 'topk'"):
        build_rule("topkk", 4, 8, {})
    with pytest.raises(ValueError, match="argument of rule 'topk': 'kk'"):
        build_rule("topk", 4, 8, {"kk": 3})


@pytest.mark.parametrize("k", [0, -1, 41])
def test_k_outside_the_dictionary_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k must lie in 1\.\.d_sae=40, got {k}\."):
        Sae(SaeConfig(D_IN, D_SAE, "topk", {"k": k}))
