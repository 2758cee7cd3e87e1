"""One row per text: mean activation and mean code over its tokens, or those of the last, and the studies' linear probe.

    x = mean_t x_t        w_i = mean_t z_i,t s_t        x without latents S = x - sum_{i in S} w_i W_dec[i]

s_t is what the dictionary's normaliser divides row t by, so that w_i is how much of atom i, in raw units, the latent
writes, and ablation of a mean is the mean of the ablated rows: codes never meet activations of another scale. The
dictionary's error stays in. BOS, padding and rows that are not finite are left out of every mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from interp.hooks import capture
from interp.metrics import finite_rows
from interp.models import ModelHandle
from interp.names import unknown
from interp.sites import Site
from sae.model import Sae

POSITIONS = ("mean", "last")
"""Which tokens of a text its row is made of."""


@dataclass(frozen=True, eq=False)
class Pooled:
    """Texts as rows."""

    raw: Float[Tensor, "text d_in"]
    """Mean activation."""
    codes: Float[Tensor, "text d_sae"]
    """Mean code in raw units: a latent's number times its atom is what it writes."""
    atoms: Float[Tensor, "d_sae d_in"]
    """Directions of length 1 that the latents write."""
    cut: int = 0
    """Texts that were longer than the context, and lost their end."""
    active: float = 0.0
    """Mean number of active latents of a row (L0), before the mean over a text."""

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.raw)

    def without(self, latents: Int[Tensor, " ablated"]) -> Float[Tensor, "text d_in"]:
        """Return the mean activations with some latents ablated."""
        return self.raw - self.codes[:, latents] @ self.atoms[latents]


@torch.no_grad()
def pool(
    handle: ModelHandle,
    site: Site | str,
    sae: Sae,
    texts: Sequence[str],
    *,
    positions: str = "mean",
    context: int = 128,
    batch: int = 16,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Pooled:
    """Return the texts' mean activations and codes; the codes are dense, 4 bytes x texts x d_sae.

    Args:
        handle: the model.
        site: where the dictionary belongs.
        sae: the dictionary, in evaluation mode.
        texts: the texts; what goes beyond `context` tokens is cut off.
        positions: `mean` over the tokens, or the `last` token.
        context: longest text in tokens, BOS included.
        batch: texts in a forward pass.
        on_progress: hears the number of texts done so far.

    Raises:
        ValueError: a dictionary of another width or that reconstructs another site, unknown positions, or a text
            without any token.
    """
    if positions not in POSITIONS:
        raise ValueError(unknown("positions", positions, POSITIONS))
    place = handle.check_site(site)
    if not sae.target.centred or sae.config.target.kind == "crosscoder" or sae.d_in != handle.width(place):
        raise ValueError(
            f"The dictionary ({sae.config.target.kind}, d_in={sae.d_in}) does not reconstruct {place}, which has "
            f"{handle.width(place)} numbers. Give the site it was trained on, and one that reconstructs its input."
        )
    context = min(context, handle.n_ctx)
    ids = [handle.tokens(text)[0] for text in texts]
    raw = torch.zeros(len(ids), sae.d_in)
    codes = torch.zeros(len(ids), sae.d_sae)
    active = seen = 0
    for start in range(0, len(ids), batch):
        part = [one[:context] for one in ids[start : start + batch]]
        x, of = _rows(handle, place, part, last=positions == "last")
        counts = torch.bincount(of, minlength=len(part))
        if (counts == 0).any():
            number = start + int((counts == 0).nonzero()[0])
            raise ValueError(f"Text {number} has no token to average ({texts[number][:40]!r}); leave it out.")
        rows, scale = sae.normaliser.into(x.to(sae.W_dec.device, sae.W_dec.dtype))
        code = sae.encode_normalised(rows)
        factor = scale.factor if scale.factor.ndim else scale.factor.expand(len(rows))
        values = code.values.flatten() * factor.flatten()[code.rows]
        flat = of.to(values.device)[code.rows] * sae.d_sae + code.indices.flatten()
        sums = values.new_zeros(len(part) * sae.d_sae).index_add(0, flat, values).view(len(part), -1)
        active, seen = active + int((values != 0).sum()), seen + len(rows)
        stop = start + len(part)
        codes[start:stop] = sums.cpu() / counts[:, None]
        raw[start:stop] = torch.zeros(len(part), sae.d_in).index_add(0, of, x.float().cpu()) / counts[:, None]
        on_progress(stop)
    cut = sum(len(one) > context for one in ids)
    return Pooled(raw, codes, sae.unit()[2].detach().float().cpu(), cut, active / max(seen, 1))


def _rows(
    handle: ModelHandle, site: Site, ids: list[Tensor], last: bool
) -> tuple[Float[Tensor, "rows d_in"], Int[Tensor, " rows"]]:
    """Return (activations, text of each) at the tokens that count."""
    longest = max(map(len, ids))
    tokens = torch.zeros(len(ids), longest, dtype=torch.long, device=handle.device)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row, one in enumerate(ids):
        tokens[row, : len(one)], mask[row, : len(one)] = one, True
    with capture(handle, site, stop=True) as taken:
        handle.forward(tokens, mask=mask)
    x = taken[site].flatten(2)
    kept = mask & finite_rows(x)
    if handle.bos_id is not None:
        kept &= tokens != handle.bos_id
    if last:
        kept &= kept.flip(1).cumsum(1).flip(1) == 1  # one token is left from here on
    return x[kept], kept.nonzero()[:, 0].cpu()


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear probe: a row is positive where <w, x> + b > 0."""

    w: Float[Tensor, " d_in"]
    """Direction, in raw units."""
    b: float
    """Bias."""

    def accuracy(self, x: Float[Tensor, "text d_in"], y: Bool[Tensor, " text"]) -> float:
        """Return the share of rows that it tells right."""
        return float(((x @ self.w + self.b > 0) == y).float().mean())


def fit_probe(
    x: Float[Tensor, "text d_in"],
    y: Bool[Tensor, " text"],
    *,
    epochs: int = 20,
    batch: int = 16,
    lr: float = 1e-3,
    l1: float = 1e-3,
    seed: int = 0,
) -> Probe:
    """Return the logistic probe of SAEBench: AdamW, and an L1 penalty on w.

    Rows are centred and divided by one number first (their root mean square), so that rate and penalty mean the same
    for every model and site; directions stay what they are.

    Raises:
        ValueError: rows of one class only.
    """
    if not 0 < int(y.sum()) < len(y):
        raise ValueError(f"A probe needs rows of both classes, got {int(y.sum())} positive ones of {len(y)}.")
    centre = x.mean(0)
    spread = (x - centre).square().mean().sqrt().clamp_min(torch.finfo(x.dtype).tiny)
    rows, wanted = (x - centre) / spread, y.to(x.dtype)
    w = torch.zeros(x.shape[1], requires_grad=True)
    b = torch.zeros((), requires_grad=True)
    optimiser = torch.optim.AdamW([w, b], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for chosen in torch.randperm(len(rows), generator=generator).split(batch):
            loss = binary_cross_entropy_with_logits(rows[chosen] @ w + b, wanted[chosen]) + l1 * w.abs().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    direction = w.detach() / spread
    return Probe(direction, float(b.detach() - direction @ centre))


def balanced(cells: Int[Tensor, " text"], rows: Bool[Tensor, " text"], seed: int = 0) -> Int[Tensor, " chosen"]:
    """Return as many of the chosen `rows` of each cell as its smallest has, ascending.

    Raises:
        ValueError: a cell has none.
    """
    generator = torch.Generator().manual_seed(seed)
    places = [(rows & (cells == cell)).nonzero()[:, 0] for cell in range(int(cells.max()) + 1)]
    least = min(map(len, places))
    if least == 0:
        raise ValueError(f"Each cell needs a text, got {[len(one) for one in places]} of them. Give more texts.")
    return torch.cat([one[torch.randperm(len(one), generator=generator)[:least]] for one in places]).sort().values
