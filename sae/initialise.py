"""Where training starts: b_dec in the middle of the data, atoms of one length, the encoder their transpose.

Tied initialisation and a good centre are most of what keeps latents alive (Gao et al. 2024, app. A.1).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae.model import Sae

FREE_LENGTH = 0.1
"""Length at which free atoms start (Conerly et al. 2024; sae-lens' `decoder_init_norm`)."""


def geometric_median(
    x: Float[Tensor, "batch d_in"], *, tolerance: float = 1e-5, iterations: int = 100
) -> Float[Tensor, " d_in"]:
    """Return the point with the least summed distance to the rows of `x` (Weiszfeld 1937), in float64.

    A row that lies on the estimate has weight 1/0; its distance is held above a millionth of the typical one, which
    keeps the iteration finite and its fixed point unchanged to that precision.
    """
    x = x.double()
    centre = x.mean(0)
    floor = 1e-6 * (x - centre).norm(dim=1).mean()
    if floor == 0:
        return centre
    for _ in range(iterations):
        weight = 1 / (x - centre).norm(dim=1).clamp_min(floor)
        moved = (weight @ x) / weight.sum()
        done = (moved - centre).norm() < tolerance * floor * 1e6
        centre = moved
        if done:
            break
    return centre


@torch.no_grad()
def initialise(sae: Sae, sample: Float[Tensor, "batch d_in"], seed: int = 0) -> None:
    """Fit the normaliser and b_dec to `sample`, draw atoms of length 1 (free ones: 0.1), tie the encoder to them."""
    sample = sample.to(sae.W_dec.device)
    sae.normaliser.fit(sample, geometric_median(sample))
    normalised, _ = sae.normaliser.into(sample.to(sae.W_dec.dtype))
    sae.b_dec.copy_(geometric_median(normalised))
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(sae.W_dec.shape, generator=generator, dtype=torch.float64)
    length = 1.0 if sae.unit_atoms else FREE_LENGTH
    sae.W_dec.copy_(length * atoms / atoms.norm(dim=1, keepdim=True))
    sae.W_enc.copy_(sae.W_dec)
    sae.b_enc.zero_()
