"""Conditional relevance: partitions add up, and single paths are what interventions in a linear model measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.attribution.relevance import Through, relevance
from sae import Sae, SaeConfig

if TYPE_CHECKING:
    from interp.models import ModelHandle


@dataclass
class ToyCode:
    indices: Tensor
    values: Tensor


class Toy(torch.nn.Module):
    """A dictionary with one latent for each of 32 orthonormal directions; it reconstructs without an error."""

    d_in = d_sae = 32

    def __init__(self) -> None:
        super().__init__()
        square = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
        self.atoms = torch.nn.Parameter(torch.linalg.qr(square)[0])

    def encode(self, x: Tensor) -> ToyCode:
        values = x @ self.atoms
        return ToyCode(torch.arange(32).expand_as(values), values)

    def decode(self, code: ToyCode) -> Tensor:
        return code.values @ self.atoms.T

    def forward(self, x: Tensor) -> tuple[Tensor, ToyCode]:
        code = self.encode(x)
        return self.decode(code), code


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 300, (2, 6), generator=torch.Generator().manual_seed(8))


def at_embeddings(handle: ModelHandle, tokens: Tensor, *through: Through, preset: str = "cp_lrp") -> np.ndarray:
    return relevance(handle, tokens, through=through, sites="resid_pre.0", preset=preset).map("resid_pre")[0]


@pytest.mark.parametrize("preset", ["attn_lrp", "gamma"])
def test_parts_of_a_site_add_up_to_all_of_it(model: ModelHandle, tokens: Tensor, preset: str) -> None:
    def sums(*parts: Through) -> np.ndarray:
        return sum(at_embeddings(model, tokens, part, preset=preset) for part in parts)  # type: ignore[return-value]

    close = {"rtol": 1e-3, "atol": 1e-4}
    heads = sums(*(Through("head_out.1", heads=(head,)) for head in range(4)))
    assert np.abs(heads).max() > 1e-3
    np.testing.assert_allclose(heads, sums(Through("head_out.1")), **close)
    np.testing.assert_allclose(heads, sums(Through("attn_out.1")), **close)
    halves = [tuple(range(model.d_mlp // 2)), tuple(range(model.d_mlp // 2, model.d_mlp))]
    neurons = sums(*(Through("mlp_act.1", neurons=half) for half in halves))
    np.testing.assert_allclose(neurons, sums(Through("mlp_out.1")), **close)
    positions = sums(*(Through("resid_pre.2", positions=(pos,)) for pos in range(6)))
    np.testing.assert_allclose(positions, at_embeddings(model, tokens, preset=preset), **close)
    assert np.abs(heads - positions).max() > 1e-2


@pytest.mark.parametrize("view", ["hf", "bridge"])
def test_latents_add_up_to_the_site(gpt2: ModelHandle, tokens: Tensor, view: str) -> None:
    toy = Toy()

    def through(*latents: int) -> np.ndarray:
        condition = Through("mlp_out.1", latents=latents, dictionary=toy)
        return relevance(gpt2, tokens, through=condition, sites="resid_pre.0", view=view).map("resid_pre")[0]

    whole = relevance(gpt2, tokens, through=Through("mlp_out.1"), sites="resid_pre.0", view=view).map("resid_pre")[0]
    assert np.abs(whole).max() > 1e-3
    np.testing.assert_allclose(through(*range(32)), whole, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(through(*range(9)) + through(*range(9, 32)), whole, rtol=1e-3, atol=1e-4)
    assert np.abs(through(*range(9)) - whole).max() > 1e-3
    assert toy.atoms.requires_grad  # the dictionary itself is as it was
    assert toy.atoms.grad is None


@pytest.mark.parametrize("rule", ["topk", "relu", "jump_relu"])
def test_latents_of_a_trained_kind_of_dictionary_add_up(gpt2: ModelHandle, tokens: Tensor, rule: str) -> None:
    sae = Sae(SaeConfig(32, 64, rule, {"k": 5} if rule == "topk" else {}, "none")).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        random = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
        sae.W_dec.copy_(torch.nn.functional.normalize(random, dim=1))
        sae.W_enc.copy_(sae.W_dec)

    def through(latents: range) -> np.ndarray:
        return at_embeddings(gpt2, tokens, Through("resid_post.0", latents=tuple(latents), dictionary=sae))

    whole = through(range(64))
    assert np.abs(whole).max() > 1e-3
    np.testing.assert_allclose(through(range(20)) + through(range(20, 64)), whole, rtol=1e-3, atol=1e-4)


def test_the_relevance_of_a_condition_is_handed_on(llama: ModelHandle, tokens: Tensor) -> None:
    found = relevance(
        llama, tokens, through=Through("head_out.1", heads=(2,)), sites=("resid_pre", "head_out", "embed")
    )
    plain = relevance(llama, tokens, sites="head_out.1")
    assert found.values["output"] == pytest.approx(plain.map("head_out")[1, :, 2].sum(), rel=1e-4)
    assert found.values["output"] != pytest.approx(found.values["clean"], rel=1e-2)
    np.testing.assert_allclose(found.completeness["gap"].to_numpy(), 0, atol=1e-4)  # Llama has no biases
    assert found.map("resid_pre").shape == (2, 6)  # nothing after the condition
    here = found.map("head_out")[1]
    np.testing.assert_allclose(here[:, 2], plain.map("head_out")[1, :, 2], rtol=1e-4, atol=1e-6)
    assert not here[:, [0, 1, 3]].any()
    assert found.about["through"] == [{"site": "head_out.1", "heads": [2]}]


def test_conditions_hold_one_after_the_other(gpt2: ModelHandle, tokens: Tensor) -> None:
    late, early = Through("attn_out.2"), Through("resid_pre.1", positions=(3,))
    both = at_embeddings(gpt2, tokens, late, early)
    np.testing.assert_allclose(both, at_embeddings(gpt2, tokens, early, late))
    split = [Through("resid_pre.1", positions=(pos,)) for pos in range(6)]
    total = sum(at_embeddings(gpt2, tokens, late, one) for one in split)
    np.testing.assert_allclose(total, at_embeddings(gpt2, tokens, late), rtol=1e-3, atol=1e-4)
    assert not both[4:].any()  # causal: position 3 of a later layer knows nothing of what comes after it


def test_bad_conditions_are_refused(gpt2: ModelHandle, tokens: Tensor) -> None:
    for bad, message in (
        ({"site": "mlp_out.0", "heads": (1,)}, "heads can be chosen at q, k, v, head_out, not at mlp_out.0"),
        ({"site": "head_out.0", "neurons": (1,)}, "neurons can be chosen at mlp_act"),
        ({"site": "head_out.0", "heads": ()}, "must name at least one"),
        ({"site": "mlp_out.0", "latents": (1,)}, "belong together"),
    ):
        with pytest.raises(ValueError, match=message):
            Through(**bad)
    for condition, message in (
        (Through("head_out.0", heads=(4,)), r"heads of head_out.0 must lie in 0\.\.3, got 4"),
        (Through("resid_pre.0", positions=(6,)), r"positions must lie in 0\.\.5"),
        (Through("mlp_out.0", latents=(32,), dictionary=Toy()), r"latents of mlp_out.0 must lie in 0\.\.31"),
        (Through("mlp_act.0", latents=(1,), dictionary=Toy()), "d_in=32 numbers, but mlp_act.0 has 128"),
        (Through("mlp_act.7"), "lies beyond this model"),
        (Through("pattern.0"), "cannot be conditioned on a pattern"),
    ):
        with pytest.raises(ValueError, match=message):
            relevance(gpt2, tokens, through=condition)
    with pytest.raises(ValueError, match="at different sites"):
        relevance(gpt2, tokens, through=[Through("attn_out.0"), Through("attn_out.0")])
    with pytest.raises(ValueError, match="No site that was asked for lies before the condition"):
        relevance(gpt2, tokens, through=Through("attn_out.0"), sites="resid_pre.2")
