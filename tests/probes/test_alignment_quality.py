"""Alignment by layer: pooled weights, the null, and that nothing of the test part is learned from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probes.alignment import pooling_weights, quality_by_layer, separation_loss, standardised
from probes.clusters import aqi, cluster_indices
from probes.splits import grouped_split


def planted(at: tuple[int, ...] = (2,), n: int = 160, size: float = 3.0, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return (activations of 4 layers, class, group of four rows of both classes): some layers tell the classes."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 4, 12)), np.arange(n) % 2
    for layer in at:
        x[:, layer, 0] += size * y
    return x, y, np.arange(n) // 4


def rows_of(x: np.ndarray, y: np.ndarray, group: np.ndarray, **settings: float) -> dict[str, dict]:
    table = quality_by_layer(x, y, group, draws=20, **settings).tables["quality"]  # type: ignore[arg-type]
    return {row["of"]: row for row in table.to_pylist()}


def test_the_layer_that_tells_is_found_and_pooling_takes_it() -> None:
    x, y, group = planted()
    rows = rows_of(x, y, group)
    assert list(rows) == ["0", "1", "2", "3", "pooled", "equal weights"]
    assert sum(rows[layer]["alpha"] for layer in "0123") == pytest.approx(1)
    assert rows["2"]["alpha"] > 0.8
    assert rows["2"]["p"] == pytest.approx(1 / 21)
    assert rows["pooled"]["aqi"] > 1.5 * rows["equal weights"]["aqi"]
    assert all(rows[layer]["aqi"] < rows[layer]["null_high"] * 1.5 for layer in "013")


def test_pooling_layers_that_tell_different_things_beats_each() -> None:
    x, y, group = planted((0, 3), 400, 1.5)
    rows = rows_of(x, y, group, sparsity=0.0)
    assert min(rows["0"]["alpha"], rows["3"]["alpha"]) > 0.25
    assert rows["pooled"]["aqi"] > max(rows["0"]["aqi"], rows["3"]["aqi"])


def test_sparsity_leaves_fewer_layers() -> None:
    x, y, _ = planted((0, 3), 400, 1.5)
    rows = standardised(x, np.arange(400))
    free, sparse = (pooling_weights(rows, y, sparsity=one) for one in (0.0, 1.0))
    entropy = [-(one * np.log(one + 1e-300)).sum() for one in (free, sparse)]
    assert entropy[1] < 0.5 * entropy[0]


def test_the_loss_is_its_definition() -> None:
    rng = np.random.default_rng(2)
    rows, y = rng.normal(size=(6, 3, 5)), np.array([0, 0, 0, 1, 1, 1])
    alpha = np.array([0.2, 0.5, 0.3])
    near = [(0, 1), (3, 5), (2, 0)]
    far = [(0, 3), (1, 5), (2, 4)]
    assert all(y[i] == y[j] for i, j in near)
    assert all(y[i] != y[j] for i, j in far)
    h = np.einsum("rld,l->rd", rows, alpha)
    d = {pair: np.linalg.norm(h[pair[0]] - h[pair[1]]) for pair in near + far}
    unit = float(np.mean(np.square(np.array(list(d.values()), float)))) ** 0.5
    wanted = float(np.mean(np.array([d[p] / unit for p in near]) ** 2))
    wanted += np.mean([max(0.0, 2**0.5 - d[p] / unit) ** 2 for p in far]) - 0.1 * (alpha * np.log(alpha)).sum()
    products = [
        torch.tensor(np.array([(rows[i] - rows[j]) @ (rows[i] - rows[j]).T for i, j in pairs])) for pairs in (near, far)
    ]
    found = separation_loss(torch.tensor(alpha), products[0], products[1], 0.1)
    assert float(found) == pytest.approx(wanted, rel=1e-9)


def test_a_layers_unit_and_place_change_nothing() -> None:
    x, y, group = planted((1, 2))
    moved = x * np.array([1, 100, 0.01, 7])[None, :, None] + np.arange(12)
    before, after = rows_of(x, y, group), rows_of(moved, y, group)
    for name, row in before.items():
        for measure in ("aqi", "dbs", "di", "null_mean"):
            assert after[name][measure] == pytest.approx(row[measure], rel=1e-6), (name, measure)


def test_the_test_part_teaches_nothing() -> None:
    """Labels of the test part exchanged: the weights stay."""
    x, y, group = planted()
    test = grouped_split(y, group, test=0.5, seed=0).test
    other = y.copy()
    other[test] = 1 - y[test]
    first, second = rows_of(x, y, group), rows_of(x, other, group)
    assert [first[one]["alpha"] for one in "0123"] == [second[one]["alpha"] for one in "0123"]
    assert first["2"]["aqi"] == pytest.approx(second["2"]["aqi"])  # the two classes have only changed their names


def test_labels_of_nothing_have_even_p_values() -> None:
    found = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(80, 1, 6)), np.arange(80) % 2
        group = np.arange(80) // 2 if seed % 2 else np.arange(80)  # pairs, and rows by themselves
        table = quality_by_layer(x, y, group, draws=39, seed=seed).tables["quality"].to_pylist()
        found.append(table[0]["p"])
    assert 0.25 < np.mean(found) < 0.75
    assert min(found) < 0.4 < 0.6 < max(found)


def test_few_rows_in_many_dimensions_lie_apart_by_chance() -> None:
    rng = np.random.default_rng(0)
    codes = np.arange(40) % 2
    assert aqi(rng.normal(size=(40, 500)), codes, 2) > 0.02
    few, many = (aqi(rng.normal(size=(n, 50)), np.arange(n) % 2, 2) for n in (20, 2000))
    assert few > 10 * many


def test_the_quick_way_is_the_index() -> None:
    x, y, _ = planted()
    assert aqi(x[:, 2], y, 2) == pytest.approx(cluster_indices(x[:, 2], y).aqi)


def test_what_does_not_fit_is_refused() -> None:
    x, y, group = planted()
    with pytest.raises(ValueError, match=r"X must be activations \[row, layer, d_in\], got shape \[160, 12\]"):
        quality_by_layer(x[:, 0], y, group)
    with pytest.raises(ValueError, match="names must hold one for each of the 4 layers, got 2"):
        quality_by_layer(x, y, group, names=["a", "b"])
    with pytest.raises(ValueError, match="draws of the null must be 1 or more, got 0"):
        quality_by_layer(x, y, group, draws=0)
