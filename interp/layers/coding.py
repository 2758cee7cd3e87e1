"""Coding rate and sparsity of a layer: what white-box transformers compress and sparsify (Yu et al. 2023, CRATE).

For n tokens of unit norm, the columns of Z [d n], and heads U_k [d p], to precision eps,

    R(Z)      = 1/2 logdet(I + d / (n eps^2) Z Z^T)                     nats to code the tokens
    R^c(Z; U) = sum_k 1/2 logdet(I + p / (n eps^2) (U_k^T Z)^T (U_k^T Z))   nats within the heads

A head's v (`W_V` of the normed stream) stands for U_k^T Z in models that were not built this way. The n x n and the
d x d form are equal, and the smaller is taken. The rate grows with n: compare sequences of one length. CRATE's own
code passes 0.01 where the formula has eps^2, and so does `eps_squared` here.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.activations.outliers import norms
from interp.layers.tokens import TokenValues

EPS_SQUARED = 0.01
"""Squared precision of the code."""
ACTIVE = 1e-3
"""Share of a token's largest |x| from which an entry counts as active."""


def coding_rate(rows: Float[Tensor, "*batch tokens d"], eps_squared: float = EPS_SQUARED) -> Float[Tensor, "*batch"]:
    """Return R in nats of tokens that are scaled to unit norm (a zero token stays 0), in float64.

    Raises:
        ValueError: eps_squared is not above 0.
    """
    if not eps_squared > 0:
        raise ValueError(f"eps_squared must be above 0, got {eps_squared}.")
    n, d = rows.shape[-2:]
    unit = _unit(rows)
    gram = unit @ unit.mT if n < d else unit.mT @ unit
    eye = torch.eye(min(n, d), dtype=gram.dtype, device=gram.device)
    # Not slogdet: with two threads torch's LU of a batch of large matrices is silently wrong (pytorch issue 142815).
    root = torch.linalg.cholesky(eye + d / (n * eps_squared) * gram)
    return root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def head_rate(
    heads: Float[Tensor, "*batch tokens head d_head"], eps_squared: float = EPS_SQUARED
) -> Float[Tensor, "*batch"]:
    """Return R^c in nats: the rates of the heads, each vector scaled to unit norm, added up."""
    return coding_rate(heads.movedim(-2, -3), eps_squared).sum(-1)


def _unit(rows: Tensor) -> Tensor:
    rows = rows.double()
    sizes = norms(rows).to(rows.device)[..., None]
    return torch.where(sizes > 0, rows / sizes, 0.0)


class CodingRates:
    """Coding rates of sequences of one length, position 0 dropped: of the stream, or of the heads."""

    def __init__(self, eps_squared: float = EPS_SQUARED) -> None:
        """Begin without sequences."""
        self.eps_squared, self.tokens = eps_squared, 0
        self._rates: list[Tensor] = []

    def update(self, x: Float[Tensor, "batch pos *d"]) -> None:
        """Add sequences: [batch pos d], or [batch pos head d_head] for the rate within heads.

        Sequences that hold a number that is not finite are left out.

        Raises:
            ValueError: sequences of another length than those before, or of one token.
        """
        later = x[:, 1:]
        tokens = later.shape[1]
        if tokens == 0 or self.tokens not in (0, tokens):
            raise ValueError(
                f"Coding rates compare sequences of one length, 2 tokens or more; got {tokens + 1}"
                + (f" after {self.tokens + 1}." if self.tokens else ".")
            )
        self.tokens = tokens
        later = later[torch.isfinite(later).flatten(1).all(1)]
        if len(later):
            rate = head_rate if later.ndim == 4 else coding_rate
            self._rates.append(rate(later, self.eps_squared).cpu())

    def finish(self) -> dict[str, float]:
        """Return `rate_mean` and `rate_std` over sequences, and their number and length; NaN without any."""
        rates = torch.cat(self._rates) if self._rates else torch.zeros(0, dtype=torch.float64)
        return {
            "rate_mean": float(rates.mean()) if len(rates) else math.nan,
            "rate_std": float(rates.std(correction=0)) if len(rates) else math.nan,
            "sequences": len(rates),
            "length": self.tokens,
        }


class Sparsity:
    """Sparsity of activations such as `mlp_act`, token by token.

    `zero`: share of entries that are exactly 0, CRATE's measure; 0 for GELU, which never is. `active`: share of entries
    above `ACTIVE` times the token's largest. `hoyer`: (sqrt d - |x|_1 / |x|_2) / (sqrt d - 1), 0 dense to 1 one entry.
    """

    def __init__(self) -> None:
        """Begin without tokens."""
        self._values = {name: TokenValues() for name in ("zero", "active", "hoyer")}

    def update(self, x: Float[Tensor, "batch pos d"], keep: Bool[Tensor, "batch pos"] | None = None) -> None:
        """Add a batch, and which tokens count (None: all)."""
        for name, found in sparsity(x).items():
            self._values[name].update(found, keep)

    def finish(self) -> dict[str, float]:
        """Return each measure's `_mean`, `_p95` and `_max` after position 0, and `_first`."""
        found: dict[str, float] = {}
        for name, values in self._values.items():
            found |= values.finish(name)
        return found


def sparsity(x: Float[Tensor, "*batch d"]) -> dict[str, Float[Tensor, "*batch"]]:
    """Return {"zero", "active", "hoyer"} of each token in float64; NaN where it is not finite or 0 throughout."""
    sizes = x.detach().double().abs()
    most = sizes.amax(-1)
    valid = torch.isfinite(sizes).all(-1) & (most > 0)
    root = math.sqrt(x.shape[-1])
    hoyer = (root - sizes.sum(-1).cpu() / norms(sizes)) / (root - 1) if root > 1 else torch.ones_like(most).cpu()
    found = {
        "zero": (sizes == 0).double().mean(-1).cpu(),
        "active": (sizes > ACTIVE * most[..., None]).double().mean(-1).cpu(),
        "hoyer": hoyer,
    }
    return {name: torch.where(valid.cpu(), values, torch.nan) for name, values in found.items()}
