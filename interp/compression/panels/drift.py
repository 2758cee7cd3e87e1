"""Drift: how far activations of b are from those of a, token by token, in the same basis.

    relative_error = mean |y - x| / |x|          cosine = mean <x, y> / (|x| |y|), and its 5th percentile
    sqnr_db = 10 log10(sum |x|^2 / sum |y - x|^2)    norm_ratio = mean |y| / |x|

with x of a and y of b. Position 0, whose norm is often hundreds of times that of others, stands apart (`first_*`). SQNR
is infinite where nothing drifted. The percentile is over an even sample of at most `sample` tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from interp.compression.panel import Pair, PanelResult, Spread, kept_positions
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

KINDS = ("resid_post", "attn_out", "mlp_out")
"""Kinds of sites that are compared, unless others are asked for."""


class _Sums:
    """Sums over the tokens of one site."""

    def __init__(self) -> None:
        self.totals = torch.zeros(5, dtype=torch.float64)  # relative error, cosine, norm ratio, |x|^2, |y - x|^2
        self.count = 0
        self.cosines: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor, spread: Spread | None) -> None:
        """Add rows; `spread` chooses those whose cosine is kept."""
        x, y = x.double(), y.double()
        # One formula for all three: with y equal to x, sqrt(xx * yy) is exactly xy, and the cosine exactly 1.
        xx, yy, xy, dd = ((p * q).sum(1) for p, q in ((x, x), (y, y), (x, y), (y - x, y - x)))
        lengths = (xx * yy).sqrt()
        cosine = torch.where(lengths > 0, xy / lengths, (xx == yy).double())  # both zero: the same
        error = torch.where(xx > 0, (dd / xx).sqrt(), torch.where(dd > 0, math.inf, 0.0))
        ratio = torch.where(xx > 0, (yy / xx).sqrt(), torch.where(yy > 0, math.inf, 1.0))
        self.totals += torch.stack([v.sum() for v in (error, cosine, ratio, xx, dd)]).cpu()
        self.count += len(x)
        if spread is not None:
            self.cosines.append(cosine[spread.next(len(x)).to(x.device)].float().cpu())

    def row(self) -> dict[str, float]:
        """Return the means."""
        if self.count == 0:
            return dict.fromkeys(("relative_error", "cosine", "cosine_p5", "sqnr_db", "norm_ratio"), math.nan)
        error, cosine, ratio = (self.totals[:3] / self.count).tolist()
        signal, noise = self.totals[3:].tolist()
        kept = torch.cat(self.cosines).numpy() if self.cosines else np.empty(0)
        return {
            "relative_error": error,
            "cosine": cosine,
            "cosine_p5": float(np.quantile(kept, 0.05)) if len(kept) else math.nan,
            "sqnr_db": math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else -math.inf,
            "norm_ratio": ratio,
        }


class Drift:
    """Relative error, cosine, SQNR and norm ratio at each site."""

    name = "drift"

    def __init__(self, kinds: tuple[str, ...] = KINDS, sample: int = 100_000) -> None:
        """Compare all sites of `kinds`; the percentile is over `sample` tokens at most."""
        if sample < 1:
            raise ValueError(f"sample must be 1 token or more, got {sample}.")
        self.kinds, self.sample = tuple(kinds), sample

    def sites(self, a: ModelHandle) -> tuple[Site, ...]:
        """Return the sites of the kinds, in order."""
        return sites_of(a, self.kinds)

    def begin(self, a: ModelHandle, b: ModelHandle, blocks: Blocks) -> None:
        """Begin; both models must have the same widths."""
        for site in self.sites(a):
            if a.width(site) != b.width(site):
                raise ValueError(
                    f"drift compares number by number, but {site} is {a.width(site)} wide in a and {b.width(site)} in "
                    "b. Leave it out: cka compares representations of different widths."
                )
        total = int(kept_positions(blocks).sum())
        self._sums = {site: (_Sums(), _Sums(), Spread(total, self.sample)) for site in self.sites(a)}

    def update(self, pair: Pair) -> None:
        """Add one batch."""
        for site, (later, first, spread) in self._sums.items():
            later.add(*pair.rows(site), spread)
            first.add(*pair.rows(site, pair.first & pair.real), None)

    def finish(self) -> PanelResult:
        """Return the largest drifts of the residual stream, and the table `layers`."""
        import pyarrow as pa

        rows = []
        for site, (later, first, _) in self._sums.items():
            apart = first.row()
            rows.append(
                {"site": str(site), "layer": site.layer, "kind": site.kind, **later.row()}
                | {"first_relative_error": apart["relative_error"], "first_cosine": apart["cosine"]}
            )
        stream = [row for row in rows if row["kind"] == "resid_post"] or rows
        summary = {
            "relative_error_max": max(row["relative_error"] for row in stream),
            "relative_error_last": stream[-1]["relative_error"],
            "cosine_min": min(row["cosine"] for row in stream),
            "sqnr_db_last": stream[-1]["sqnr_db"],
            "tokens": next(iter(self._sums.values()))[0].count,
        }
        return PanelResult(summary, {"layers": pa.Table.from_pylist(rows)})


def sites_of(handle: ModelHandle, kinds: tuple[str, ...]) -> tuple[Site, ...]:
    """Return the sites of `handle` of some kinds, in the order in which they are computed.

    Raises:
        ValueError: the model has no such kind, or none is named.
    """
    if not kinds:
        raise ValueError(f"kinds must name at least one kind of site, such as {KINDS[0]}, got none.")
    return tuple(sorted(handle.check_site(Site(layer, kind)) for layer in range(handle.n_layers) for kind in kinds))
