"""CKA: how alike the geometry of both models is at each site, and of every layer of a with every layer of b.

Unbiased linear CKA (`interp.layers.similarity`) over an even sample of at most `rows` tokens, in float64. It does not
see rotations and isotropic scale, and is dominated by the directions of largest variance, so that it stays near 1 where
much has changed: read it beside drift, never alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.compression.panel import Pair, PanelResult, Spread, kept_positions
from interp.compression.panels.drift import KINDS, sites_of
from interp.layers.similarity import LEAST_ROWS, Hsic, cka_of
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle


class Cka:
    """Unbiased linear CKA at each site, and across the layers of the residual stream."""

    name = "cka"

    def __init__(self, kinds: tuple[str, ...] = KINDS, cross: str | None = "resid_post", rows: int = 16_384) -> None:
        """Compare all sites of `kinds`, and all pairs of layers of the kind `cross`, on at most `rows` tokens."""
        if rows < LEAST_ROWS:
            raise ValueError(f"rows must be {LEAST_ROWS} or more, got {rows}.")
        self.kinds, self.cross, self.rows = tuple(kinds), cross, rows

    def sites(self, a: ModelHandle) -> tuple[Site, ...]:
        """Return the sites of all kinds."""
        return sites_of(a, tuple(dict.fromkeys((*self.kinds, *((self.cross,) if self.cross else ())))))

    def begin(self, a: ModelHandle, b: ModelHandle, blocks: Blocks) -> None:  # noqa: ARG002
        """Begin."""
        self._sites = self.sites(a)
        crossed = [site for site in self._sites if site.kind == self.cross]
        pairs = dict.fromkeys([(site, site) for site in self._sites] + [(s, t) for s in crossed for t in crossed])
        self._cross = {pair: Hsic() for pair in pairs}
        self._own_a = {site: Hsic() for site in self._sites}
        self._own_b = {site: Hsic() for site in self._sites}
        self._spread = Spread(int(kept_positions(blocks).sum()), self.rows)

    def update(self, pair: Pair) -> None:
        """Add one batch: the same tokens at every site, those that are finite at all of them."""
        usable = pair.keep
        for site in self._sites:
            usable = usable & pair.acts_a[site].isfinite().all(-1) & pair.acts_b[site].isfinite().all(-1)
        chosen = self._spread.next(int(usable.sum())).to(usable.device)
        places = usable.flatten().nonzero()[chosen, 0]
        x = {site: pair.acts_a[site].flatten(0, 1)[places].double() for site in self._sites}
        y = {site: pair.acts_b[site].flatten(0, 1)[places].double() for site in self._sites}
        for site in self._sites:
            self._own_a[site].add(x[site], x[site])
            self._own_b[site].add(y[site], y[site])
        for (left, right), sums in self._cross.items():
            sums.add(x[left], y[right])

    def finish(self) -> PanelResult:
        """Return the smallest CKA of a layer with itself, and the tables `layers` and `cross`."""
        import pyarrow as pa

        found = {
            (left, right): cka_of(sums, self._own_a[left], self._own_b[right])
            for (left, right), sums in self._cross.items()
        }
        rows = self._own_a[self._sites[0]].rows
        layers = [
            {"site": str(s), "layer": s.layer, "kind": s.kind, "cka": found[s, s], "rows": rows}
            for s in self._sites
            if s.kind in self.kinds
        ]
        cross = [
            {"site_a": str(left), "site_b": str(right), "cka": value}
            for (left, right), value in found.items()
            if left.kind == right.kind == self.cross
        ]
        stream = [row for row in layers if row["kind"] == "resid_post"] or layers
        summary = {"cka_min": min(row["cka"] for row in stream), "cka_last": stream[-1]["cka"], "rows": rows}
        schema = pa.schema([("site_a", pa.string()), ("site_b", pa.string()), ("cka", pa.float64())])
        tables = {"layers": pa.Table.from_pylist(layers), "cross": pa.Table.from_pylist(cross, schema)}
        return PanelResult(summary, tables)
