"""AuxK: let latents that have fallen silent model what the others leave (Gao et al. 2024, sec. A.2).

    e = stopgrad(x - x_hat)      z_aux = relu of the k_aux largest pre-activations among dead latents
    L_aux = ||e - z_aux W_dec||^2 / ||e - mean e||^2 · min(n_dead / k_aux, 1)

A rule whose code is signed picks the k_aux largest in size, and keeps their signs; a rule may also have more latents
revived than the dead (`Rule.revive`).

The decoder's bias stays out (it belongs to x_hat), and gradient reaches the encoder rows of the dead latents that
were picked: without that, none of them can come back. Only the dead latents' rows are multiplied.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae import kernels
from sae.code import Code
from sae.model import Sae


def auxk_loss(
    x: Float[Tensor, "batch d_in"],
    recon: Float[Tensor, "batch d_out"],
    dead: Bool[Tensor, " d_sae"],
    sae: Sae,
    wanted: Float[Tensor, "batch d_out"] | None = None,
) -> Float[Tensor, ""]:
    """Return the auxiliary loss (about 1 when the dead latents explain nothing), 0 where no latent is dead.

    `wanted` is what `recon` reconstructs (None: x).
    """
    latents = sae.rule.revive(dead).nonzero().squeeze(1)
    if latents.numel() == 0:
        return x.new_zeros(())
    k_aux = max(1, sae.d_out // 2)
    k = min(k_aux, latents.numel())
    weight, bias, atoms = sae.unit()
    with torch.no_grad():
        error = (x if wanted is None else wanted) - recon
        pre = torch.addmm(bias[latents], sae.centred(x), weight[latents].t())
        picked = (pre.abs() if sae.rule.signed else pre).topk(k, dim=-1, sorted=False).indices
        values = pre.gather(1, picked)
    code = kernels.preactivation(x, weight, bias, Code(latents[picked], values, sae.d_sae), sae.centre)
    estimate = kernels.decode(code if sae.rule.signed else code.with_values(code.values.relu()), atoms)
    spread = (error - error.mean(0)).square().mean()
    loss = (error - estimate).square().mean() / spread.clamp_min(torch.finfo(x.dtype).tiny)
    return loss * min(latents.numel() / k_aux, 1.0)
