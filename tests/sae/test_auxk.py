"""AuxK against its definition, and the gradient that a peer's version lost."""

from __future__ import annotations

import torch

from sae.auxk import auxk_loss
from sae.config import SaeConfig
from sae.initialise import initialise
from sae.model import Sae


def setup(dead_share: float = 0.5) -> tuple[Sae, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    sae = Sae(SaeConfig(8, 24, "topk", {"k": 3}, "none")).double()
    x = torch.randn(50, 8, generator=g, dtype=torch.float64)
    initialise(sae, x, seed=1)
    sae.b_enc.data.normal_(generator=g)
    dead = torch.rand(24, generator=g) < dead_share
    recon = sae.decode_normalised(sae.encode_normalised(x))
    return sae, x, recon, dead


def test_loss_equals_its_definition() -> None:
    for share in (0.1, 0.5):
        sae, x, recon, dead = setup(share)
        error = (x - recon).detach()
        pre = (x - sae.b_dec) @ sae.W_enc.t() + sae.b_enc
        pre = torch.where(dead, pre, -torch.inf)
        k = min(4, int(dead.sum()))
        values, indices = pre.topk(k)
        estimate = torch.zeros(50, 24, dtype=torch.float64).scatter(1, indices, values.relu()) @ sae.W_dec
        expected = (
            (error - estimate).square().mean() / (error - error.mean(0)).square().mean() * min(int(dead.sum()) / 4, 1)
        )
        assert torch.allclose(auxk_loss(x, recon, dead, sae), expected)


def test_gradient_reaches_the_encoder_of_dead_latents_and_of_no_other() -> None:
    sae, x, recon, dead = setup()
    auxk_loss(x, recon, dead, sae).backward()
    for gradient in (sae.W_enc.grad, sae.W_dec.grad, sae.b_enc.grad):
        assert gradient is not None
        assert torch.count_nonzero(gradient[dead]) > 0
        assert torch.count_nonzero(gradient[~dead]) == 0


def test_target_is_detached_and_the_decoder_bias_stays_out() -> None:
    sae, x, recon, dead = setup()
    before = auxk_loss(x, recon, dead, sae)
    moved = recon + 0.0 * sae.W_dec.sum()
    moved.retain_grad()
    auxk_loss(x, moved, dead, sae).backward()
    assert moved.grad is None or torch.count_nonzero(moved.grad) == 0
    # Shift b_dec and x and recon together: pre-activations and the error stay, so the loss must.
    sae.b_dec.data += 3.0
    assert torch.allclose(auxk_loss(x + 3.0, recon + 3.0, dead, sae), before)


def test_no_dead_latents_cost_nothing() -> None:
    sae, x, recon, dead = setup()
    assert float(auxk_loss(x, recon, torch.zeros_like(dead), sae)) == 0.0


def test_free_atoms_have_the_loss_of_the_folded_dictionary() -> None:
    g = torch.Generator().manual_seed(5)
    sae = Sae(SaeConfig(8, 24, "topk", {"k": 3}, "none", "free")).double()
    x = torch.randn(50, 8, generator=g, dtype=torch.float64)
    initialise(sae, x, seed=1)
    sae.W_dec.data *= torch.rand(24, 1, generator=g, dtype=torch.float64) + 0.5
    dead, recon = torch.rand(24, generator=g) < 0.5, x * 0.9
    free = auxk_loss(x, recon, dead, sae)
    free.backward()
    assert sae.W_enc.grad is not None
    assert torch.count_nonzero(sae.W_enc.grad[dead]) > 0
    sae.finalise()
    assert torch.allclose(free, auxk_loss(x, recon, dead, sae))
