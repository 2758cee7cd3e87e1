"""Alignment quality by layer, and of all layers pooled: how far apart two kinds of texts lie inside a model.

    r_l = (x_l - mean) / std / sqrt(d_in)            of both classes together, by the training part
    h = sum_l alpha_l r_l,   alpha = softmax(theta)
    loss = mean over pairs of one class d^2 + mean over pairs of two classes relu(m - d)^2 + sparsity H(alpha)
    d = |h_i - h_j| / (root mean square over all pairs),   m = sqrt(2)

AQI (Borah et al. 2025, "Alignment Quality Index"; indices in `probes.clusters`) is measured on the test part, for each
layer, for the learned alpha, and for equal alpha, which the learned one has to beat. Distances count in their own root
mean square, since a mixture of unlike layers makes all of them smaller and separates nothing; with equally many pairs
of both kinds m is then as far as two classes can be apart. theta is learned on the training part only. The null
shuffles the labels of the test part: within groups where these hold several labels, else whole groups. Shuffled labels
have an AQI above 0, the more so the more columns and the fewer rows there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray

from probes.clusters import WEIGHT, aqi, cluster_indices
from probes.controls import shuffled_labels
from probes.rows import array, check_finite, check_groups, check_labels, standardiser
from probes.splits import grouped_split
from probes.study import StudyResult

MARGIN = 2**0.5
PAIRS, STEPS, RATE = 2048, 200, 0.1
"""Pairs of each kind, steps of Adam over all of them, and its rate."""
POOLED, UNIFORM = "pooled", "equal weights"
DUNN_ROWS = 4000
"""Rows up to which DI is computed."""


def quality_by_layer(
    X: Any,
    y: Any,
    groups: Any = None,
    *,
    names: Sequence[str] | None = None,
    test: float = 0.5,
    draws: int = 200,
    sparsity: float = 0.02,
    weight: float = WEIGHT,
    seed: int = 0,
) -> StudyResult:
    """Return the indices of each layer and of all pooled, beside those of shuffled labels.

    Args:
        X: activations [row, layer, d_in].
        y: class of each row.
        groups: what each row belongs to: matched pairs, topics. Groups are not divided.
        names: of the layers.
        test: share of the rows that is measured on.
        draws: shufflings of the labels.
        sparsity: of the learned alpha, a factor of its entropy in nats.
        weight: share of CHI in AQI.
        seed: of the division, the pairs and the shufflings.

    Returns:
        Table `quality`: of (a layer, or `pooled`, or `equal weights`), alpha, xbi, chi, dbs, di, aqi, null_mean,
        null_high (95 % of the draws lie below), p ((1 + draws that reach aqi) / (1 + draws)), n_train, n_test. In the
        summary, `best_p` compares the best layer with the best of shuffled labels.

    Raises:
        ValueError: X of another shape, not one name for each layer, draws below 1, or a class missing in a part.
    """
    x, labels = array(X, "X"), array(y, "y")
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"X must be activations [row, layer, d_in], got shape {list(x.shape)}.")
    if draws < 1:
        raise ValueError(f"draws of the null must be 1 or more, got {draws}.")
    check_finite(x, "X")
    called = [str(layer) for layer in range(x.shape[1])] if names is None else [str(one) for one in names]
    if len(called) != x.shape[1]:
        raise ValueError(f"names must hold one for each of the {x.shape[1]} layers, got {len(called)}.")
    classes, codes = check_labels(labels, len(x))
    of = check_groups(groups, len(x))
    split = grouped_split(codes, of, test=test, seed=seed)
    rows = standardised(x, split.train)
    alpha = pooling_weights(rows[split.train], codes[split.train], sparsity=sparsity, seed=seed)
    kept, k = rows[split.test], len(classes)
    equal = np.full(len(called), 1 / len(called))
    cases: list[tuple[str, float | None, NDArray]] = [
        (name, float(alpha[layer]), kept[:, layer]) for layer, name in enumerate(called)
    ]
    cases += [(POOLED, None, _pooled(kept, alpha)), (UNIFORM, None, _pooled(kept, equal))]
    orders = [_shuffled(codes[split.test], of[split.test], seed + draw) for draw in range(draws)]
    nulls = np.array([[aqi(one, order, k, weight) for order in orders] for _, _, one in cases])
    table = [
        {"of": name, "alpha": share, **_measured(one, codes[split.test], null, weight)}
        | {"n_train": len(split.train), "n_test": len(split.test)}
        for (name, share, one), null in zip(cases, nulls, strict=True)
    ]
    return _result(table, nulls[: len(called)])


def standardised(
    x: Float[np.ndarray, "row layer d_in"], train: Int[np.ndarray, " train"]
) -> Float[np.ndarray, "row layer d_in"]:
    """Return all rows by the mean and deviation of the training rows, over all classes, each layer's variance 1."""
    found = np.empty(x.shape)
    for layer in range(x.shape[1]):
        mean, spread = standardiser(x[train, layer].astype(np.float64))
        found[:, layer] = (x[:, layer] - mean) / spread / np.sqrt(x.shape[2])
    return found


def pooling_weights(
    rows: Float[np.ndarray, "row layer d_in"],
    codes: Int[np.ndarray, " row"],
    *,
    sparsity: float = 0.02,
    pairs: int = PAIRS,
    steps: int = STEPS,
    seed: int = 0,
) -> Float[np.ndarray, " layer"]:
    """Return the share of each layer under which rows of one class are near and rows of two classes far.

    Args:
        rows: standardised activations of the training part.
        codes: class of each, 0..k-1.
        sparsity: factor of the entropy of the shares.
        pairs: pairs of each kind, drawn.
        steps: of Adam.
        seed: of the draw.
    """
    if rows.shape[1] == 1:
        return np.ones(1)
    products = [_products(rows, *some) for some in _pairs(codes, pairs, np.random.default_rng(seed))]
    near, far = (torch.from_numpy(one) for one in products)
    theta = torch.zeros(rows.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([theta], RATE)
    for _ in range(steps):
        loss = separation_loss(theta.softmax(0), near, far, sparsity)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return theta.detach().softmax(0).numpy()


def separation_loss(
    alpha: Float[torch.Tensor, " layer"],
    near: Float[torch.Tensor, "pair layer layer"],
    far: Float[torch.Tensor, "pair layer layer"],
    sparsity: float,
) -> Float[torch.Tensor, ""]:
    """Return the loss, from the inner products of the layers' differences for pairs of one class and of two."""
    squares = [(one @ alpha @ alpha).clamp_min(0) for one in (near, far)]
    unit = (squares[0].mean() + squares[1].mean()) / 2
    unit = unit.clamp_min(torch.finfo(unit.dtype).tiny)
    apart = (squares[1] / unit + 1e-12).sqrt()  # the root of 0 has no slope
    entropy = -(alpha * alpha.clamp_min(1e-300).log()).sum()
    return (squares[0] / unit).mean() + (MARGIN - apart).relu().square().mean() + sparsity * entropy


def _pairs(codes: Int[np.ndarray, " row"], count: int, rng: np.random.Generator) -> list[tuple[NDArray, NDArray]]:
    """Return (first rows, second rows) of pairs of one class, and of two."""
    found = []
    for same in (True, False):
        left, right = rng.integers(0, len(codes), (2, 8 * count + 64))
        fits = ((codes[left] == codes[right]) == same) & (left != right)
        if not fits.any():
            raise ValueError("Pooling needs a class with two rows or more in the training part; give more rows.")
        found.append((left[fits][:count], right[fits][:count]))
    return found


def _products(rows: NDArray, left: NDArray, right: NDArray) -> Float[np.ndarray, "pair layer layer"]:
    found = np.empty((len(left), rows.shape[1], rows.shape[1]))
    for start in range(0, len(left), 256):
        here = slice(start, start + 256)
        differences = rows[left[here]] - rows[right[here]]
        found[here] = differences @ differences.transpose(0, 2, 1)
    return found


def _pooled(rows: NDArray, alpha: NDArray) -> Float[np.ndarray, "row d_in"]:
    return np.einsum("rld,l->rd", rows, alpha)


def _shuffled(codes: Int[np.ndarray, " row"], of: Int[np.ndarray, " row"], seed: int) -> Int[np.ndarray, " row"]:
    """Return the labels exchanged, within groups where each holds several labels."""
    held = [len(np.unique(codes[of == group])) for group in np.unique(of)]
    if min(held) == 1:  # `shuffled_labels` exchanges whole groups where all have one label, else rows
        return shuffled_labels(codes, groups=of, seed=seed)
    rng = np.random.default_rng(seed)
    found = np.empty_like(codes)
    for group in np.unique(of):
        rows = np.flatnonzero(of == group)
        found[rows] = codes[rng.permutation(rows)]
    return found


def _measured(x: NDArray, codes: NDArray, null: Float[np.ndarray, " draw"], weight: float) -> dict[str, float]:
    found = cluster_indices(x, codes, weight=weight, dunn=len(x) <= DUNN_ROWS)
    return {
        **{name: getattr(found, name) for name in ("xbi", "chi", "dbs", "di", "aqi")},
        "null_mean": float(null.mean()),
        "null_high": float(np.quantile(null, 0.95)),
        "p": _share(null, found.aqi),
    }


def _share(null: Float[np.ndarray, " draw"], value: float) -> float:
    """Return how often shuffled labels do as well, counting the true ones as one draw; ties by rounding count."""
    return float((1 + (null >= value - 1e-12).sum()) / (1 + len(null)))


def _result(rows: list[dict[str, Any]], nulls: Float[np.ndarray, "layer draw"]) -> StudyResult:
    import pyarrow as pa

    layers = len(nulls)
    best = max(rows[:layers], key=lambda row: row["aqi"])
    by_name = {row["of"]: row for row in rows[layers:]}
    alpha = np.array([row["alpha"] for row in rows[:layers]])
    summary = {
        "best_layer": best["of"],
        "best_aqi": best["aqi"],
        "best_p": _share(nulls.max(0), best["aqi"]),
        "pooled_aqi": by_name[POOLED]["aqi"],
        "pooled_p": by_name[POOLED]["p"],
        "equal_aqi": by_name[UNIFORM]["aqi"],
        "effective_layers": float(np.exp(-(alpha * np.log(np.maximum(alpha, 1e-300))).sum())),
    }
    kinds = [("of", pa.string())] + [(name, pa.float64()) for name in list(rows[0])[1:-2]]
    kinds += [(name, pa.int64()) for name in ("n_train", "n_test")]
    return StudyResult({"quality": pa.Table.from_pylist(rows, pa.schema(kinds))}, summary)
