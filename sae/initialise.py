"""Where training starts: b_dec in the middle of the data, atoms of one length, the encoder their transpose.

Tied initialisation and a good centre are most of what keeps latents alive (Gao et al. 2024, app. A.1). A transcoder's
atoms are the image of its encoder rows w under the linear regression B of y on x, which is the tied start where y = x:

    W_dec[i] = B^T w_i / ||B^T w_i||     W_enc[i] = w_i ||B^T w_i||     b_enc[i] = -<W_enc[i], centre of x>

b_enc so starts as if the centre of x were subtracted, but is free to leave it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae.batches import Batch
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
def initialise(
    sae: Sae, sample: Float[Tensor, "batch d_in"], seed: int = 0, y: Float[Tensor, "batch d_out"] | None = None
) -> None:
    """Fit the normalisers and biases to a sample, draw atoms of length 1 (free ones: 0.1) and the encoder for them.

    Args:
        sae: the dictionary.
        sample: raw activations.
        seed: of the draw.
        y: what is to be reconstructed, raw, where that is not the sample itself.
    """
    sample = sample.to(sae.W_dec.device)
    parts = sample.split(sae.config.target.blocks, dim=1) if sae.config.target.blocks else (sample,)
    sae.normaliser.fit(sample, torch.cat([geometric_median(part) for part in parts]))
    normalised, _ = sae.normaliser.into(sample.to(sae.W_dec.dtype))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(sae.W_enc.shape, generator=generator, dtype=torch.float64)
    sae.rule.begin(torch.Generator().manual_seed(seed + 1))
    if sae.target.centred:
        sae.b_dec.copy_(geometric_median(normalised))
        _tie(sae, rows)
        return
    if y is None:
        raise ValueError(f"The target {sae.config.target.kind!r} starts from both sides; give initialise(..., y=...).")
    y = y.to(sae.W_dec.device)
    sae.target.fit(y, geometric_median(y))
    wanted = sae.target.wanted(Batch(sample, y), normalised)
    centre = geometric_median(normalised)
    sae.b_dec.copy_(geometric_median(wanted))
    _map(sae, rows, regression(normalised.double() - centre, wanted.double() - sae.b_dec))
    sae.b_enc.copy_(-(sae.W_enc.double() @ centre))


def _tie(sae: Sae, rows: Float[Tensor, "d_sae d_in"]) -> None:
    """Make `rows` the atoms, and the encoder that projects on them."""
    length = 1.0 if sae.unit_atoms else FREE_LENGTH
    sae.W_dec.copy_(length * rows / sae.length(rows).unsqueeze(1))
    sae.W_enc.copy_(sae.W_dec)
    if sae.config.target.blocks:  # an atom of length 1 is shorter than 1 as the crow flies
        sae.W_enc.mul_((length / sae.W_dec.norm(dim=1, keepdim=True)).square())
    sae.b_enc.zero_()


def _map(sae: Sae, rows: Float[Tensor, "d_sae d_in"], image: Float[Tensor, "d_in d_out"]) -> None:
    """Make unit `rows` the encoder and their image the atoms, its length in the encoder."""
    rows = (rows / rows.norm(dim=1, keepdim=True)).to(image.device)
    atoms = rows @ image
    size = atoms.norm(dim=1, keepdim=True)
    length = 1.0 if sae.unit_atoms else FREE_LENGTH
    sae.W_dec.copy_(length * atoms / size.clamp_min(torch.finfo(atoms.dtype).tiny))
    sae.W_enc.copy_(length * rows * size)


def regression(
    x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], ridge: float = 1e-3
) -> Float[Tensor, "d_in d_out"]:
    """Return the B that makes x B closest to y, with a penalty of `ridge` times the mean variance of x."""
    second = x.T @ x / len(x)
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(second + ridge * second.diagonal().mean() * eye, x.T @ y / len(x))
