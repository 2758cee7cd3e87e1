"""A dictionary of random directions: what codes of that size and sparsity tell without having been learned.

Normaliser and centre are those of the learned dictionary, the encoder's rows and the atoms are one set of random
directions, and as many latents are active in a row as there on average (the largest, by size where codes are signed).
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from sae.config import SaeConfig
from sae.model import Sae


@torch.no_grad()
def random_dictionary(sae: Sae, active: float, *, signed: bool = False, seed: int = 0) -> Sae:
    """Return the random counterpart of a dictionary, in evaluation mode.

    Args:
        sae: the dictionary; it has to reconstruct its input.
        active: mean number of active latents of a row (`Pooled.active`); rounded, 1 at least.
        signed: whether its codes have negative values.
        seed: of the directions.

    Raises:
        ValueError: the dictionary reconstructs another site.
    """
    if not sae.target.centred or sae.d_in != sae.d_out:
        raise ValueError("Only a dictionary that reconstructs its input has a random counterpart; give such a one.")
    k = min(max(1, round(active)), sae.d_sae)
    rule = "abs_topk" if signed else "topk"
    found = Sae(SaeConfig(sae.d_in, sae.d_sae, rule, {"k": k}, sae.config.normalise))
    generator = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(sae.d_sae, sae.d_in, generator=generator), dim=1)
    found.W_enc.copy_(directions)
    found.W_dec.copy_(directions)
    found.b_dec.copy_(sae.b_dec)
    found.normaliser.load_state_dict(sae.normaliser.state_dict())
    return found.to(sae.W_dec.device, sae.W_dec.dtype).eval()
