"""Family `similarity`: how alike each layer is to the next one, and to every other (`interp.layers.alignment`).

Curves are of about `tokens` tokens in blocks spread over the text. The matrices layer by layer are of an even sample of
`sample` tokens, so that a wide model does not need four matrices for each pair of layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.layers.alignment import Alignment
from interp.layers.family import Batch, FamilyResult, Measure, layer_table
from interp.layers.moments import Moments
from interp.layers.sampling import Spread, check_text
from interp.layers.similarity import Hsic, cka_of, mutual_knn, procrustes_of
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

CURVES = ("cka", "procrustes", "geometry", "knn", "map_error")


class SimilarityFamily:
    """Unbiased CKA, Procrustes, pair geometry, shared neighbours and the ridge map from each layer to the next."""

    name = "similarity"
    measures = (
        Measure("cka", "CKA with the layer before", "", "Unbiased; sees the largest directions only. 1: alike."),
        Measure(
            "procrustes",
            "Procrustes distance from it",
            "share",
            "What rotation, scale and shift leave of the variance.",
        ),
        Measure("geometry", "agreement of token cosines", "correlation", "Blind to each token's norm."),
        Measure("knn", "nearest tokens in common", "share", "Cosine of centred rows; chance is k / (tokens - 1)."),
        Measure(
            "map_error",
            "error of the linear map",
            "FVU",
            "Fitted on every other sequence, judged on the rest; 1: as bad as the mean.",
        ),
    )

    def __init__(self, tokens: int = 8192, sample: int = 1024, k: int = 10) -> None:
        """Read `tokens` tokens for the curves and `sample` for matrices; `k` neighbours.

        Raises:
            ValueError: a number is out of range.
        """
        if tokens < 1 or not 1 <= k < sample:
            raise ValueError(f"tokens must be 1 or more and k lie in 1..sample-1={sample - 1}, got {tokens} and {k}.")
        self.tokens, self.sample, self.k = tokens, sample, k

    def sites(self, handle: ModelHandle) -> tuple[Site, ...]:
        """Return the stream before the first block and after each."""
        return (Site(0, "resid_pre"), *(Site(layer, "resid_post") for layer in range(handle.n_layers)))

    def begin(self, handle: ModelHandle, blocks: Blocks) -> None:
        """Begin; choose the blocks that are read.

        Raises:
            ValueError: the text has no position that counts.
        """
        check_text(blocks)
        self._sites = self.sites(handle)
        self._alignment = Alignment(list(zip(self._sites, self._sites[1:], strict=False)), k=self.k, sample=self.sample)
        wanted = min(len(blocks), max(2, self.tokens // blocks.context))
        self._blocks = Spread(len(blocks), wanted)
        # of the blocks that are read, as if no token were left out
        self._tokens = Spread(wanted * (blocks.context - 1), self.sample)
        self._rows: dict[Site, list[Tensor]] = {site: [] for site in self._sites}

    def update(self, batch: Batch) -> None:
        """Add the chosen blocks of a batch."""
        chosen = self._blocks.next(len(batch.tokens)).to(batch.keep.device)
        if len(chosen) == 0:
            return
        acts = {site: batch.acts[site][chosen] for site in self._sites}
        keep = batch.keep[chosen]
        self._alignment.update(acts, acts, keep)
        usable = keep & torch.stack([x.isfinite().all(-1) for x in acts.values()]).all(0)
        places = usable.flatten().nonzero()[:, 0]
        places = places[self._tokens.next(len(places)).to(places.device)]
        for site, x in acts.items():
            self._rows[site].append(x.flatten(0, 1)[places].cpu())

    def finish(self) -> FamilyResult:
        """Return the curves, and the table `pairs` of all pairs of layers."""
        import pyarrow as pa

        layers = dict(zip(self._sites, range(-1, len(self._sites)), strict=False))
        rows = self._alignment.finish()
        after = [layers[Site.parse(str(row["site_b"]))] for row in rows]
        table = layer_table(
            (layer, name, "", row[name]) for layer, row in zip(after, rows, strict=True) for name in CURVES
        )
        least = min(zip((float(row["cka"]) for row in rows), after, strict=True))
        summary = {
            "cka_least": least[0],
            "cka_least_layer": least[1],
            "knn_chance": rows[0]["knn_chance"],
            "rows": rows[0]["rows"],
        }
        return FamilyResult(summary, table, {"pairs": pa.Table.from_pylist(self._pairs(layers))})

    def _pairs(self, layers: dict[Site, int]) -> list[dict[str, float]]:
        """Return CKA, Procrustes and shared neighbours of every pair of layers, both ways round."""
        rows = {site: torch.cat(parts).double() for site, parts in self._rows.items()}
        own = {site: _sums(x, x) for site, x in rows.items()}
        found = []
        for i, (a, x) in enumerate(rows.items()):
            for b, y in list(rows.items())[i:]:
                hsic, moments = _sums(x, y)
                enough = len(x) > self.k
                values = {
                    "cka": cka_of(hsic, own[a][0], own[b][0]),
                    "procrustes": procrustes_of(moments, own[a][1], own[b][1]) if len(x) > 1 else None,
                    "knn": mutual_knn(x, y, self.k) if enough else None,
                }
                found.append({"layer_a": layers[a], "layer_b": layers[b], **values})
                if a != b:
                    found.append({"layer_a": layers[b], "layer_b": layers[a], **values})
        return found


def _sums(x: Tensor, y: Tensor) -> tuple[Hsic, Moments]:
    hsic, moments = Hsic(), Moments()
    hsic.add(x, y)
    moments.update(x, y)
    return hsic, moments
