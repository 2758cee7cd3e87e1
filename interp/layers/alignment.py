"""Every measure of similarity for pairs of sites, of one model or of two, from one pass over the same tokens.

CKA, Procrustes, pair geometry, mutual k-NN (`interp.layers.similarity`) and the ridge map (`interp.layers.ridge_map`),
which is fitted on every other sequence and judged on the rest. A pair takes four matrices [d_a d_b] of float64, so
that all pairs of the layers of a wide model take long: choose the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.layers.moments import Moments
from interp.layers.ridge_map import fit_map
from interp.layers.similarity import Hsic, PairGeometry, cka_of, mutual_knn, procrustes_of
from interp.sites import Site

SAMPLE = 1024
"""Tokens whose nearest others are compared, the first that come."""


class Alignment:
    """Sums over tokens from which a row for each pair of sites follows."""

    def __init__(self, pairs: Sequence[tuple[Site, Site]], *, k: int = 10, sample: int = SAMPLE) -> None:
        """Begin without tokens.

        Args:
            pairs: (site of a, site of b).
            k: neighbours of the mutual k-NN.
            sample: tokens that are kept for it.

        Raises:
            ValueError: there is no pair, or k is not in 1..sample-1.
        """
        if not pairs or not 1 <= k < sample:
            raise ValueError(
                f"Alignment takes pairs of sites and k in 1..sample-1={sample - 1}, got {len(pairs)}, {k}."
            )
        self.pairs, self.k, self.sample = list(dict.fromkeys(pairs)), k, sample
        self.sites = tuple(list(dict.fromkeys(sites)) for sites in zip(*self.pairs, strict=True))
        self._sequences = 0
        self._hsic = {key: Hsic() for key in self._keys()}
        self._halves = {(key, half): Moments() for key in self._keys() for half in (0, 1)}
        self._geometry = {pair: PairGeometry() for pair in self.pairs}
        self._rows: dict[tuple[int, Site], list[Tensor]] = {
            (side, site): [] for side in (0, 1) for site in self.sites[side]
        }
        self._kept = 0

    def _keys(self) -> list[tuple[tuple[int, Site], tuple[int, Site]]]:
        """Return what second moments are taken of: pairs of (side, site), each site with itself first."""
        own = [((side, site), (side, site)) for side in (0, 1) for site in self.sites[side]]
        return own + [((0, a), (1, b)) for a, b in self.pairs]

    def update(
        self,
        acts_a: Mapping[Site, Tensor],
        acts_b: Mapping[Site, Tensor],
        keep: Bool[Tensor, "batch pos"] | None = None,
    ) -> None:
        """Add a batch of the same tokens: activations [batch pos d], and which tokens count (None: all).

        Position 0 never counts, nor a token that is not finite at one of the sites. Layers of one model: give its
        activations twice.
        """
        acts = {(side, site): (acts_a, acts_b)[side][site] for side in (0, 1) for site in self.sites[side]}
        usable = torch.stack([torch.isfinite(x).all(-1).cpu() for x in acts.values()]).all(0)
        usable = usable if keep is None else usable & keep.cpu()
        usable[:, 0] = False
        half = ((torch.arange(len(usable)) + self._sequences) % 2)[:, None].expand_as(usable)[usable]
        self._sequences += len(usable)
        rows = {key: x[usable.to(x.device)].double().cpu() for key, x in acts.items()}
        for left, right in self._keys():
            x, y = rows[left], rows[right]
            self._hsic[left, right].add(x, y)
            for which in (0, 1):
                self._halves[(left, right), which].update(x[half == which], y[half == which])
        for a, b in self.pairs:
            self._geometry[a, b].update(rows[0, a], rows[1, b])
        for key, x in rows.items():
            self._rows[key].append(x[: self.sample - self._kept])
        self._kept = min(self.sample, self._kept + len(half))

    def finish(self) -> list[dict[str, float | str]]:
        """Return a row for each pair: `site_a`, `site_b`, the measures, `knn_chance`, and `rows`, the tokens.

        The measures are `cka`, `procrustes`, `geometry`, `knn` and `map_error`, the FVU of the map from a to b on the
        sequences that it was not fitted on. NaN where there are too few tokens (one sequence leaves no other for the
        map), or where a site does not vary.
        """
        return [self._row(a, b) for a, b in self.pairs]

    def _row(self, a: Site, b: Site) -> dict[str, float | str]:
        keys = ((0, a), (1, b)), ((0, a), (0, a)), ((1, b), (1, b))
        fit, test = ([self._halves[key, half] for key in keys] for half in (0, 1))
        enough = self._kept > self.k
        x, y = (torch.cat(self._rows[key]) if enough else torch.zeros(0) for key in keys[0])
        whole = [one + other for one, other in zip(fit, test, strict=True)]
        fitted = fit[0].rows > 1 and test[0].rows > 0 and float(fit[1].covariance.trace()) > 0
        return {
            "site_a": str(a),
            "site_b": str(b),
            "cka": cka_of(*(self._hsic[key] for key in keys)),
            "procrustes": procrustes_of(*whole) if whole[0].rows > 1 else math.nan,
            "geometry": self._geometry[a, b].finish(),
            "knn": mutual_knn(x, y, self.k) if enough else math.nan,
            "knn_chance": self.k / (self._kept - 1) if enough else math.nan,
            "map_error": fit_map(fit[0], fit[1]).error(*test) if fitted else math.nan,
            "rows": self._hsic[keys[0]].rows,
        }
