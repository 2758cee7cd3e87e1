"""How a budget of k active latents per token is shared out over the latents.

    shares      d_i proportional to 1 / (rank_i + shift)^power, at most `cap`, summing to k: densities
    counts      m_i = d_i · batch, rounded up or down so that their sum stays k · batch and their mean is d_i · batch

Densities of trained dictionaries fall about like a power of their rank (Zipf). A pure 1/rank curve cannot be met: its
first latent would have to fire k / H(d_sae) times per token, 3.6 times at k = 32 and d_sae = 4096. What exceeds `cap`
is poured over the others in proportion to their shares (water-filling).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def zipf_shares(
    d_sae: int, k: int, *, power: float = 1.0, shift: float = 0.0, cap: float = 0.5
) -> Float[Tensor, " d_sae"]:
    """Return the density of each rank, largest first, in float64: at most `cap`, their sum k; power 0 is uniform.

    Raises:
        ValueError: the budget cannot be met, or an argument is out of its range.
    """
    if not (power >= 0 and shift >= 0 and power < 100 and shift < 1e9):
        raise ValueError(f"power and shift must be at least 0 and finite, got {power} and {shift}.")
    if not 0 < cap <= 1:
        raise ValueError(f"cap is a share of the tokens and must lie in 0..1 (above 0), got {cap}.")
    if k > cap * d_sae:
        raise ValueError(
            f"{d_sae} latents that fire on at most {cap:g} of the tokens fire {cap * d_sae:g} times per token, got "
            f"k={k}: lower k, raise cap, or take at least {-int(-k // cap)} latents."
        )
    curve = (torch.arange(1, d_sae + 1, dtype=torch.float64) + shift) ** -power
    # With the j largest at the cap, the others share what is left: the first j at which none of them exceeds it.
    rest = curve.flip(0).cumsum(0).flip(0)
    left = (k - cap * torch.arange(d_sae, dtype=torch.float64)).clamp_min(0)
    shares = curve * (left / rest)
    full = int((shares > cap * (1 + 1e-12)).long().cumprod(0).sum())
    out = curve * (left[full] / rest[full]) if full < d_sae else curve
    out[:full] = cap
    return out


def nearest_divisor(whole: int, wanted: int) -> int:
    """Return the divisor of `whole` nearest to `wanted`, the smaller of two."""
    return min((part for part in range(1, whole + 1) if whole % part == 0), key=lambda part: abs(part - wanted))


def round_counts(
    shares: Float[Tensor, " d_sae"], batch: int, generator: torch.Generator | None = None
) -> Int[Tensor, " d_sae"]:
    """Return whole counts for a batch: each d_i · batch rounded up or down, right on average, their sum right always.

    One draw decides all: count i is the number of whole numbers in (c_(i-1) + u, c_i + u], c the running sum, u uniform
    in 0..1 (systematic sampling).
    """
    draw = torch.rand((), generator=generator, dtype=torch.float64, device=shares.device)
    # A whole number less its rounding error still counts as that number.
    edges = ((shares.double() * batch).cumsum(0) + 1e-9 + draw * (1 - 2e-9)).floor()
    return edges.diff(prepend=edges.new_zeros(1)).long()


def check_places(what: str, k: int, batch: int, d_sae: int) -> None:
    """Refuse batches in which some latent would be without a place, whoever got the others.

    Raises:
        ValueError: k · batch places are fewer than d_sae latents; `what` says who shares them out.
    """
    if k * batch < d_sae:
        raise ValueError(
            f"{what} shares k · batch = {k * batch} places out over {d_sae} latents: take batches of at least "
            f"{-(-d_sae // k)} rows, a larger k or fewer latents."
        )
