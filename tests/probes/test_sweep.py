"""Sweeps: every layer by the same division and the same steps as a single report, with all baselines."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from interp.runs import RunDamaged, open_run, start_run
from probes.capturing import Captured
from probes.lda import LDA
from probes.logistic import LogisticProbe
from probes.mass_mean import MassMean
from probes.report import evaluate
from probes.ridge import RidgeProbe
from probes.saving import load_probe, probe_names, save_probe
from probes.sparse import KSparse
from probes.splits import LeakWarning, Split, grouped_split
from probes.sweep import Spot, sweep, text_baselines, usable_types

QUICK = LogisticProbe(1.0)


def planted(
    strengths: tuple[float, ...], n: int = 200, classes: int = 2, seed: int = 0
) -> tuple[Captured, np.ndarray, np.ndarray]:
    """Return (activations, labels, groups of two): column 1 of a layer is noise and `strength` times the label."""
    rng = np.random.default_rng(seed)
    group = np.arange(n) // 2
    y = group % classes
    values = {}
    for layer, strength in enumerate(strengths):
        x = rng.normal(size=(n, 2, 5))
        x[:, 0, 1] += strength * y  # the second position knows nothing
        values[f"resid_post.{layer}"] = x.astype(np.float32)
    tokens = tuple(rng.integers(1, 20, rng.integers(2, 9)) for _ in range(n))
    return Captured("m", "d" * 64, tuple(values), ("last", "-2"), values, tokens, 0), y, group


def test_each_spot_is_what_a_report_by_itself_says() -> None:
    acts, y, group = planted((0.0, 3.0))
    noise, _, _ = planted((0.0, 0.0), seed=1)
    split = grouped_split(y, group, test=0.3)
    found = sweep(acts, y, groups=group, split=split, probe=QUICK, random=noise, resamples=30)
    assert list(found.reports) == [Spot(site, where) for site in acts.sites for where in acts.positions]
    for spot, report in found.reports.items():
        x, types = acts.rows(*spot), acts.token_at(spot.position)
        probe = LogisticProbe(1.0, source=acts.source(*spot))
        features = {"random weights": noise.rows(*spot)}
        alone = evaluate(probe, x, y, split, groups=group, types=types, features=features, resamples=30)
        assert report == replace(alone, baselines=report.baselines)
        assert alone.baselines.items() <= report.baselines.items()
        assert np.array_equal(found.probes[spot].coef_, probe.coef_)  # type: ignore[attr-defined]
        assert {
            "majority",
            "shuffled labels",
            "random weights",
            "bag of tokens",
            "position only",
            "control task",
        } == set(report.baselines)
    assert len({report.split for report in found.reports.values()}) == 1


def test_a_planted_direction_has_the_area_that_theory_says_and_the_rest_is_chance() -> None:
    strength = 2.0
    acts, y, group = planted((0.0, strength), n=600)
    found = sweep(acts, y, groups=group, probe=QUICK, resamples=100)
    best = found.best()
    assert best == ("resid_post.1", "last")
    wanted = norm.cdf(strength / np.sqrt(2))
    assert found.reports[best].auc.low < wanted < found.reports[best].auc.high
    for spot, report in found.reports.items():
        assert abs(report.baselines["shuffled labels"] - 0.5) < 0.15
        assert abs(report.baselines["bag of tokens"] - 0.5) < 0.15
        if spot != best:
            assert abs(report.auc.value - 0.5) < 0.15
    summary = found.summary()
    assert (summary["best_layer"], summary["best_position"]) == (1, "last")
    assert summary["over_baselines"] == pytest.approx(
        found.reports[best].accuracy.value - max(found.reports[best].baselines.values())
    )
    assert summary["n_train"] + summary["n_test"] == 600


def test_spots_come_by_kind_position_and_layer() -> None:
    acts, y, group = planted((0.0, 1.0, 2.0), n=80)
    turned = replace(acts, sites=acts.sites[::-1])
    found = sweep(turned, y, groups=group, probe=LDA(), resamples=5, controls=False)
    assert [spot.layer for spot in found.spots()] == [0, 1, 2]
    assert {spot.position for spot in found.spots(position="-2")} == {"-2"}
    assert found.spots("mlp_out") == []


@pytest.mark.parametrize(("probe", "probable"), [(QUICK, True), (RidgeProbe(0.1), False), (MassMean(), False)])
def test_predictions_are_those_of_the_probe(probe: LogisticProbe, probable: bool) -> None:
    acts, y, group = planted((2.0,), n=120)
    found = sweep(acts, y, groups=group, probe=probe, resamples=5, controls=False)
    spot = Spot("resid_post.0", "last")
    rows = [row for row in found.predictions().to_pylist() if row["position"] == "last"]
    assert [row["text"] for row in rows] == found.split.test.tolist()
    x = acts.rows(*spot)[found.split.test]
    assert [int(row["predicted"]) for row in rows] == found.probes[spot].predict(x).tolist()
    assert [int(row["label"]) for row in rows] == y[found.split.test].tolist()
    assert np.allclose([row["score"] for row in rows], found.probes[spot].decision_function(x))
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert right == pytest.approx(found.reports[spot].accuracy.value)
    if probable:
        p = found.probes[spot].predict_proba(x)
        assert np.allclose([row["confidence"] for row in rows], p.max(1))
        assert np.allclose([row["label_probability"] for row in rows], p[np.arange(len(x)), y[found.split.test]])
    else:
        assert {row["confidence"] for row in rows} == {row["label_probability"] for row in rows} == {None}


def test_three_classes_have_predictions_too() -> None:
    acts, y, group = planted((4.0,), n=180, classes=3)
    found = sweep(acts, y, groups=group, probe=LDA(), resamples=5, controls=False)
    rows = found.predictions().to_pylist()[: len(found.split.test)]
    assert {row["label"] for row in rows} == {"0", "1", "2"}
    assert all(0.33 < row["confidence"] <= 1 for row in rows)


def test_k_sparse_curves_of_a_sweep_find_the_planted_column() -> None:
    acts, y, group = planted((0.0, 4.0))
    noise, _, _ = planted((0.0, 0.0), seed=1)
    found = sweep(acts, y, groups=group, probe=QUICK, random=noise, ks=(1, 3), resamples=20)
    table = found.k_sparse()
    assert table is not None
    rows = {(row["site"], row["position"], row["k"]): row for row in table.to_pylist()}
    assert len(rows) == 8
    planted_row = rows["resid_post.1", "last", 1]
    assert planted_row["chosen"] == [1]
    assert planted_row["accuracy"] > 0.9 > 0.65 > planted_row["random_weights"]
    train = found.split.train
    alone = KSparse(3).fit(acts.rows("resid_post.1", "last")[train], y[train])
    assert rows["resid_post.1", "last", 3]["chosen"] == alone.chosen_.tolist()
    assert sweep(acts, y, groups=group, probe=QUICK, resamples=5, controls=False).k_sparse() is None


def test_length_and_tokens_are_seen_by_their_baselines_alone() -> None:
    acts, y, group = planted((0.0,), n=200)
    split = grouped_split(y, group)
    telling = replace(acts, tokens=tuple(np.arange(5 + 3 * int(label)) for label in y))
    found = text_baselines(telling, y, split, group)
    assert found == {"bag of tokens": 1.0, "position only": 1.0}
    alike = replace(acts, tokens=tuple(np.arange(4) for _ in y))
    majority = (y[split.test] == np.bincount(y[split.train]).argmax()).mean()
    assert set(text_baselines(alike, y, split, group).values()) == {majority}


def test_a_control_task_needs_types() -> None:
    acts, y, group = planted((0.0,))
    split = grouped_split(y, group)
    tokens = acts.token_at("last")
    assert tokens is not None
    assert usable_types(tokens, y, split, group) is tokens
    assert usable_types(np.zeros_like(tokens), y, split, group) is None
    assert usable_types(None, y, split, group) is None
    few = np.where(tokens > 10, tokens, tokens[0])
    few[split.test] = 0  # none of the types stands on both sides
    assert usable_types(few, y, split, group) is None
    rare = np.zeros(len(y), dtype=int)
    rare[[split.train[0], split.test[0]]] = 1
    assert usable_types(np.arange(len(y)) % 8, rare, split, group) is None  # all types draw the common label


def test_texts_on_both_sides_are_warned_of_once() -> None:
    acts, y, _ = planted((1.0, 1.0), n=40)
    split = grouped_split(y)
    texts = [f"text {i % 10}" for i in range(40)]
    with pytest.warns(LeakWarning, match="stand in different parts") as heard:
        found = sweep(acts, y, split=split, probe=QUICK, texts=texts, resamples=5, controls=False)
    assert len(heard) == 1
    assert found.summary()["leaks"] == len(found.leaks) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweep(acts, y, groups=np.arange(40) % 10, probe=QUICK, texts=texts, resamples=5, controls=False)


def test_wrong_requests_are_refused() -> None:
    acts, y, group = planted((1.0,), n=40)
    with pytest.raises(ValueError, match="two classes or more"):
        sweep(acts, np.zeros(40), probe=QUICK)
    with pytest.raises(ValueError, match="one label for each of the 40 rows"):
        sweep(acts, y[:-1], probe=QUICK)
    with pytest.raises(ValueError, match="same texts, sites and positions"):
        sweep(acts, y, groups=group, probe=QUICK, random=replace(acts, positions=("last", "0")))
    small = Split(np.array([0, 2, 4, 6]), np.zeros(0, int), np.arange(8, 40))
    with pytest.raises(ValueError, match="5 folds need 5 groups of each class"):
        sweep(acts, y, groups=group, split=small)


def test_probes_of_a_study_come_back_by_name(tmp_path: Path) -> None:
    acts, y, group = planted((1.0, 2.0), n=80)
    found = sweep(acts, y.astype(str), groups=group, probe=QUICK, resamples=5, controls=False)
    with start_run("probes", {"a": 1}, slug="p", root=tmp_path) as run:
        for spot, probe in found.probes.items():
            save_probe(run, probe, name=f"probes/{spot.site}@{spot.position}")
        run.finish({})
    back = open_run(run.ref, root=tmp_path)
    assert probe_names(back) == [f"probes/{spot.site}@{spot.position}" for spot in sorted(found.probes)]
    for spot, probe in found.probes.items():
        other = load_probe(back, f"probes/{spot.site}@{spot.position}")
        x = acts.rows(*spot)
        assert np.array_equal(other.decision_function(x), probe.decision_function(x))
        assert other.source == acts.source(*spot)
        assert other.predict(x).tolist() == probe.predict(x).tolist()
    with pytest.raises(ValueError, match="probes/resid_post"):
        load_probe(back, "probes/resid_post.7@last")
    (back.path / "probes" / "resid_post.1@last.json").write_text("{}")
    with pytest.raises(RunDamaged, match="does not describe a probe"):
        load_probe(back, "probes/resid_post.1@last")
