"""Near misses: the tokens on which a latent stayed silent although its pre-activation was high.

For each latent, over kept tokens with code 0: the largest pre-activation of each block, and of those the n largest.
At most one per block, so that one passage cannot fill the list. The definition reads only the encoder's linear
pre-activation and the code, so it is exact for every rule: under TopK a near miss was crowded out by stronger
latents, under a threshold it stayed just below. The search follows the pre-activation upwards; of a signed latent's
negative side it shows nothing.

Cost: about a sixth of the encoder's product: one maximum over the pre-activations that the rule has computed anyway,
and a look at single columns where a block beats a latent's n-th best, n(1 + ln(blocks/n)) times per latent in all.
Memory: 12n bytes per latent.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.code import Code
from sae.model import Sae

GATHER_FLOATS = 1 << 22
"""Largest temporary of a search for positions, in floats (16 MiB in float32)."""


class Watched(Sae):
    """The same dictionary, parameters shared, which remembers the pre-activations that its rule asks for."""

    last: Tensor | None

    @classmethod
    def of(cls, sae: Sae) -> Watched:
        """Return `sae` watched; `sae` itself stays as it is."""
        watched = cls.__new__(cls)
        watched.__dict__.update(sae.__dict__)
        watched.last = None
        return watched

    def pre(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Return the pre-activations, and remember them."""
        self.last = super().pre(x)
        return self.last

    def preactivations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Return the pre-activations of the rows that the rule has just encoded; the caller may write into them.

        Three rows are computed again to see whether what is remembered belongs to `x` and is whole: a rule that asked
        for none, asked for them in parts or changed them in place fails there, and the product is repeated.
        """
        held = self.last
        if held is not None and len(held) == len(x) > 0:
            spots = torch.tensor([0, len(x) // 2, len(x) - 1], device=x.device)
            expected = torch.addmm(self.b_enc, self.centred(x[spots]), self.W_enc.t())
            if torch.allclose(held[spots], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
                return held
        return self.pre(x)


def silence(
    pre: Float[Tensor, "batch d_sae"], code: Code, kept: Bool[Tensor, " batch"]
) -> Float[Tensor, "batch d_sae"]:
    """Write -inf into `pre` where the latent is active or the token is not kept, and return it."""
    active = code.values.flatten() != 0
    pre[code.rows[active], code.indices.flatten()[active]] = -torch.inf
    # By row number: a boolean mask over the rows takes hundreds of times as long.
    return pre.index_fill_(0, (~kept).nonzero().squeeze(1), -torch.inf)


class NearMisses:
    """The best near misses so far: `values` descending and their `tokens` (block * context + position)."""

    def __init__(self, d_sae: int, n: int, device: torch.device | str = "cpu") -> None:
        """Keep `n` for each latent."""
        self.n = n
        self.values = torch.full((d_sae, n), -torch.inf, device=device)
        self.tokens = torch.zeros((d_sae, n), dtype=torch.long, device=device)

    def add(self, pre: Float[Tensor, "block pos d_sae"], first_token: int) -> None:
        """Look at whole blocks of `silence`d pre-activations; their tokens are numbered from `first_token`."""
        if self.n == 0:
            return
        best = pre.amax(1)
        blocks, latents = (best > self.values[:, -1]).nonzero(as_tuple=True)
        if not len(latents):
            return
        tokens = first_token + blocks * pre.shape[1] + self._positions(pre, blocks, latents)
        touched, rows = latents.unique(return_inverse=True)
        values = best.new_full((len(touched), len(best)), -torch.inf, dtype=torch.float32)
        places = torch.zeros(values.shape, dtype=torch.long, device=values.device)
        values[rows, blocks] = best[blocks, latents].float()
        places[rows, blocks] = tokens
        merged = torch.cat([self.values[touched], values], 1)
        # Stable: of equal pre-activations the earlier token stays, however the blocks come in batches.
        chosen = torch.sort(merged, dim=1, descending=True, stable=True).indices[:, : self.n]
        self.values[touched] = merged.gather(1, chosen)
        self.tokens[touched] = torch.cat([self.tokens[touched], places], 1).gather(1, chosen)

    @staticmethod
    def _positions(
        pre: Float[Tensor, "block pos d_sae"], blocks: Int[Tensor, " pairs"], latents: Int[Tensor, " pairs"]
    ) -> Int[Tensor, " pairs"]:
        step = max(1, GATHER_FLOATS // pre.shape[1])
        pairs = zip(blocks.split(step), latents.split(step), strict=True)
        return torch.cat([pre[block, :, latent].argmax(1) for block, latent in pairs])
