"""How far apart labelled clusters lie: four indices, and the Alignment Quality Index that is made of two of them.

    XBI = sum_c sum_{x in c} |x - mu_c|^2 / ( n min_{a!=b} |mu_a - mu_b|^2 )                 lower is better
    CHI = [ sum_c n_c |mu_c - mu|^2 / (k - 1) ] / [ sum_c sum_{x in c} |x - mu_c|^2 / (n - k) ]     higher
    DBS = (1/k) sum_a max_{b!=a} (s_a + s_b) / |mu_a - mu_b|,   s_c = mean |x - mu_c|         lower
    DI  = min_{a!=b} min |x_a - x_b| / max_c diam(c)                                         higher
    AQI = w CHI / (CHI + n - k) + (1 - w) / (1 + XBI),   in [0, 1]                           higher

Xie and Beni 1991; Calinski and Harabasz 1974; Davies and Bouldin 1979; Dunn 1974; AQI: Borah et al. 2025, of which the
maps to [0, 1] are ours. With n - k in it the first does not grow with the number of rows; of two clusters it is
the share of the variance that lies between them. Two clusters have only one number here:
CHI = (n - 2) n1 n2 / (n^2 XBI), so that AQI orders layers as XBI does, and combining the two adds nothing. DI is two
distances of single rows.

No index changes when rows are moved, turned, or multiplied by one number. All change when columns are: standardise all
clusters together (`probes.alignment`). Means of few rows in many dimensions lie apart by chance: compare with shuffled
labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from probes.rows import check_labels, check_rows

WEIGHT = 0.5
"""Share of CHI in AQI."""
BLOCK_FLOATS = 1 << 22
"""Distances that are held at a time (32 MiB)."""


@dataclass(frozen=True)
class ClusterIndices:
    """The indices of one set of rows."""

    xbi: float
    """Xie-Beni; infinite where two centroids are one."""
    chi: float
    """Calinski-Harabasz; infinite where the rows of each cluster are one."""
    dbs: float
    """Davies-Bouldin; infinite where two centroids are one."""
    di: float
    """Dunn; NaN where it was not asked for."""
    aqi: float
    """Alignment Quality Index."""


def cluster_indices(X: Any, labels: Any, *, weight: float = WEIGHT, dunn: bool = True) -> ClusterIndices:
    """Return the indices of rows in clusters that the labels make, with Euclidean distances.

    Args:
        X: rows [row, d_in].
        labels: cluster of each row.
        weight: share of CHI in AQI, 0 to 1.
        dunn: whether to compute DI, whose time grows with the square of the rows.

    Raises:
        ValueError: one cluster only, no more rows than clusters, NaN, or a weight out of range.
    """
    x = check_rows(X, "X")
    classes, codes = check_labels(labels, len(x))
    k = len(classes)
    if len(x) <= k:
        raise ValueError(f"{k} clusters need more than {k} rows, got {len(x)}; give more rows, or fewer clusters.")
    means, between, within = scatter(x, codes, k)
    xbi, chi = _xie_beni(means, within, len(x)), _calinski(between, within, len(x), k)
    spread = np.linalg.norm(x - means[codes], axis=1)
    mean_spread = np.bincount(codes, spread) / np.bincount(codes)
    di = _dunn(x, codes, k) if dunn else float("nan")
    return ClusterIndices(xbi, chi, _davies_bouldin(means, mean_spread), di, combined(xbi, chi, len(x), k, weight))


def scatter(
    x: Float[np.ndarray, "row d_in"], codes: Int[np.ndarray, " row"], k: int
) -> tuple[Float[np.ndarray, "cluster d_in"], float, float]:
    """Return (centroids, squared distances between the clusters, squared distances within), both summed over rows."""
    marks = (codes == np.arange(k)[:, None]).astype(float)
    counts = marks.sum(1)
    # Around the common mean, else two large numbers would be subtracted from each other.
    means = marks @ (x - x.mean(0)) / counts[:, None]
    within = float(np.square(x - x.mean(0) - means[codes]).sum())
    return means + x.mean(0), float(counts @ np.square(means).sum(1)), within


def combined(xbi: float, chi: float, n: int, k: int, weight: float = WEIGHT) -> float:
    """Return AQI of n rows in k clusters.

    Raises:
        ValueError: a weight outside of 0..1.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is the share of CHI and must lie in 0..1, got {weight}.")
    of_chi = 1.0 if np.isinf(chi) else chi / (chi + n - k)
    return float(weight * of_chi + (1 - weight) / (1 + xbi))


def aqi(x: Float[np.ndarray, "row d_in"], codes: Int[np.ndarray, " row"], k: int, weight: float = WEIGHT) -> float:
    """Return AQI alone, of rows and codes that were checked before: what a null computes many times."""
    means, between, within = scatter(x, codes, k)
    n = len(x)
    return combined(_xie_beni(means, within, n), _calinski(between, within, n, k), n, k, weight)


def _gaps(means: Float[np.ndarray, "cluster d_in"]) -> Float[np.ndarray, "cluster cluster"]:
    return np.linalg.norm(means[:, None] - means[None], axis=2)


def _ratio(above: float, below: float) -> float:
    if below > 0:
        return above / below
    return float("inf") if above > 0 else float("nan")


def _xie_beni(means: Float[np.ndarray, "cluster d_in"], within: float, n: int) -> float:
    gaps = _gaps(means)
    nearest = float(gaps[~np.eye(len(means), dtype=bool)].min()) ** 2
    # Clusters that are points and lie on one point are as badly apart as can be.
    return within / (n * nearest) if nearest > 0 else float("inf")


def _calinski(between: float, within: float, n: int, k: int) -> float:
    found = _ratio(between / (k - 1), within / (n - k))
    return 0.0 if np.isnan(found) else found


def _davies_bouldin(means: Float[np.ndarray, "cluster d_in"], spread: Float[np.ndarray, " cluster"]) -> float:
    gaps = _gaps(means)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(gaps > 0, (spread[:, None] + spread[None]) / gaps, np.inf)
    np.fill_diagonal(ratios, -np.inf)
    return float(ratios.max(1).mean())


def _dunn(x: Float[np.ndarray, "row d_in"], codes: Int[np.ndarray, " row"], k: int) -> float:
    from scipy.spatial.distance import cdist

    apart, wide = np.inf, 0.0
    parts = [x[codes == code] for code in range(k)]
    for number, part in enumerate(parts):
        for other in range(number, k):
            step = max(1, BLOCK_FLOATS // len(parts[other]))
            for start in range(0, len(part), step):
                found = cdist(part[start : start + step], parts[other])
                if other == number:
                    wide = max(wide, float(found.max()))
                else:
                    apart = min(apart, float(found.min()))
    return _ratio(apart, wide)
