"""EigenShift: against the dense decomposition; what is chosen, what stays."""

from __future__ import annotations

import pytest
import torch

from interp.layers.eigenshift import apply_shift, fit_shift, shifted
from interp.models import ModelHandle, load_model


def test_the_shift_is_that_of_the_dense_decomposition(gpt2: ModelHandle) -> None:
    g = torch.Generator().manual_seed(0)
    w = gpt2.unembed().double()
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    unwanted = torch.randn(50, 32, generator=g) + 3 * vh[4].float() - 5 * vh[20].float()
    others = torch.randn(60, 32, generator=g)
    shift = fit_shift(gpt2.unembed(), unwanted, others)
    assert torch.allclose(shift.values, s)
    delta = (unwanted.double() @ vh.T).mean(0) - (others.double() @ vh.T).mean(0)
    assert torch.allclose(shift.delta.abs(), delta.abs())
    assert shift.chosen(94).tolist() == [20, 4]
    assert shift.chosen(99.9).tolist() == [20]
    expected = s.clone()
    expected[[4, 20]] *= 0.25
    new = shifted(gpt2.unembed(), shift, 0.25, 94)
    assert torch.allclose(new.double(), u * expected @ vh, atol=1e-5)
    assert torch.allclose(shifted(gpt2.unembed(), shift, 1.0), gpt2.unembed())


def test_the_embedding_stays_and_the_given_model_too(gpt2: ModelHandle) -> None:
    digest = gpt2.digest()
    g = torch.Generator().manual_seed(0)
    shift = fit_shift(gpt2.unembed(), torch.randn(5, 32, generator=g) + 1, torch.randn(5, 32, generator=g))
    changed = load_model(apply_shift(gpt2, shift, 0.0, 90))
    before, after = gpt2.module.transformer.wte.weight, changed.module.transformer.wte.weight
    assert torch.equal(before, after)
    v = shift.vectors[:, shift.chosen(90)].float()
    assert float((changed.unembed() @ v).abs().max()) < 1e-5
    gpt2._digest = None
    assert gpt2.digest() == digest
    tokens = torch.tensor([[1, 2, 3]])
    assert not torch.allclose(changed.logits(tokens), gpt2.logits(tokens))


def test_empty_sets_and_odd_percentiles_are_refused(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match="got 0 and 2"):
        fit_shift(gpt2.unembed(), torch.zeros(0, 32), torch.zeros(2, 32))
    shift = fit_shift(gpt2.unembed(), torch.ones(1, 32), torch.zeros(2, 32))
    with pytest.raises(ValueError, match="0..100"):
        shift.chosen(101)
