"""Reports with their baselines, leaks that are warned of, and probes in runs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from interp.hooks import capture
from interp.models import ModelHandle
from interp.runs import RunDamaged, open_run, start_run
from interp.types import Probe
from probes.controls import position_only
from probes.lda import LDA
from probes.logistic import LogisticProbe
from probes.reading import read
from probes.report import evaluate, reports_table
from probes.saving import PROBES, load_probe, probe_config, save_probe
from probes.source import Source
from probes.splits import LeakWarning, Split, grouped_split

SOURCE = Source("resid_post.2", "m", "d" * 64)


def rows(n: int = 400, classes: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (x, y, group): groups of four rows with one label and one offset."""
    rng = np.random.default_rng(0)
    group = np.arange(n) // 4
    y = (np.arange(n) // 4) % classes
    x = rng.normal(size=(n, 6)) + rng.normal(size=(n // 4, 6))[group]
    x[:, 0] += 3.0 * y
    return x, y, group


def test_a_report_is_what_scikit_learn_measures() -> None:
    x, y, group = rows()
    split = grouped_split(y, group, seed=1)
    probe = LogisticProbe(C=1.0, source=SOURCE)
    found = evaluate(probe, x, y, split, groups=group, resamples=200)
    guess, scores = probe.predict(x[split.test]), probe.decision_function(x[split.test])
    assert found.accuracy.value == pytest.approx((guess == y[split.test]).mean())
    assert found.balanced.value == pytest.approx(balanced_accuracy_score(y[split.test], guess))
    assert found.auc.value == pytest.approx(roc_auc_score(y[split.test], scores))
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high
    assert (found.rows, found.groups) == ((320, 80), 20)
    assert found.baselines["majority"] <= 0.6
    assert abs(found.baselines["shuffled labels"] - 0.5) < 0.3
    assert found.selectivity is None


def test_baselines_from_nothing_are_at_chance_and_the_task_is_not() -> None:
    x, y, group = rows(1600)
    split = grouped_split(y, group, seed=1)
    noise = np.random.default_rng(3).normal(size=x.shape)
    features = {"random weights": noise, "position only": position_only(np.arange(1600) % 4)}
    found = evaluate(LDA(), x, y, split, groups=group, features=features, types=np.arange(1600) % 50, resamples=50)
    assert found.accuracy.low > 0.7
    assert all(abs(found.baselines[name] - 0.5) < 0.17 for name in (*features, "shuffled labels"))
    assert found.selectivity == pytest.approx(found.accuracy.value - found.baselines["control task"])
    assert found.selectivity > 0.1


def test_three_classes_have_an_area_against_the_rest() -> None:
    x, y, group = rows(600, 3)
    split = grouped_split(y, group, seed=1)
    probe = LDA()
    found = evaluate(probe, x, y, split, groups=group, resamples=20)
    scores = probe.decision_function(x[split.test])
    wanted = np.mean([roc_auc_score(y[split.test] == c, scores[:, c]) for c in range(3)])
    assert found.auc.value == pytest.approx(wanted)


def test_leaks_are_warned_of_by_name_and_pay() -> None:
    x, y, group = rows()
    y = np.random.default_rng(5).integers(0, 2, 100)[group]  # nothing but the group tells the label
    x = np.random.default_rng(6).normal(size=(100, 80))[group] + 0.01 * np.random.default_rng(7).normal(size=(400, 80))
    mixed = Split(np.flatnonzero(np.arange(400) % 4), np.arange(0), np.arange(0, 400, 4))
    with pytest.warns(LeakWarning, match="group 0 .*; divide by grouped_split"):
        leaking = evaluate(LogisticProbe(C=1.0), x, y, mixed, groups=group, resamples=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        honest = evaluate(LogisticProbe(C=1.0), x, y, grouped_split(y, group), groups=group, resamples=10)
    assert leaking.accuracy.value > 0.95
    assert honest.accuracy.value < 0.75


def test_a_report_is_a_table_in_a_notebook_and_rows_of_one() -> None:
    x, y, group = rows()
    split = grouped_split(y, group)
    reports = [
        evaluate(LogisticProbe(C=1.0, source=SOURCE), x, y, split, groups=group, resamples=10, types=group % 9),
        evaluate(LDA(), x, y, split, resamples=10),
    ]
    page = reports[0]._repr_html_()
    assert "resid_post.2 of m" in page
    assert f"{reports[0].accuracy.value:.3f}" in page
    table = reports_table(reports)
    found = {(row["probe"], row["measure"]): row for row in table.to_pylist()}
    assert found["LogisticProbe", "accuracy"]["value"] == reports[0].accuracy.value
    assert found["LogisticProbe", "selectivity"]["layer"] == 2
    assert found["LDA", "majority"]["site"] is None
    assert len(set(table["split"].to_pylist())) == 1


def test_a_class_that_one_part_lacks_is_named() -> None:
    x, y, _ = rows()
    y[-4:] = 7
    with pytest.raises(ValueError, match="class 7 is not in both"):
        evaluate(LDA(), x, y, Split(np.arange(200), np.arange(0), np.arange(200, 400)))
    with pytest.raises(ValueError, match="baseline 'bag of tokens' needs a row for each of the 396 labels, got 3"):
        evaluate(LDA(), x[:396], y[:396], grouped_split(y[:396]), features={"bag of tokens": x[:3]})


def fitted(name: str) -> tuple[object, object]:
    """Return (probe, rows) of a kind, with few steps."""
    x, y, _ = rows(60)
    y = np.array(["no", "yes"])[y]
    quick = {
        "mlp": {"max_iter": 3},
        "ccs": {"steps": 3},
        "board": {"epochs": 1},
        "logistic": {"C": 1.0},
        "l1": {"C": 0.1},
    }
    source = {"sources": [SOURCE, SOURCE]} if name == "board" else {"source": SOURCE}
    probe = PROBES[name](**quick.get(name, {}), **source)
    if name == "board":
        x = torch.from_numpy(x).float().reshape(60, 2, 3)
        return probe.fit(x, np.arange(120).reshape(60, 2) % 3), x  # type: ignore[attr-defined]
    x = x.reshape(30, 2, 6) if name == "ccs" else x
    return probe.fit(x, y[: len(x)]), x  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(PROBES))
def test_a_probe_comes_back_from_its_run(name: str, tmp_path: Path) -> None:
    probe, x = fitted(name)
    with start_run("probe", probe_config(probe), slug="p", root=tmp_path) as run:  # type: ignore[arg-type]
        save_probe(run, probe)  # type: ignore[arg-type]
        run.finish({})
    back = load_probe(open_run(run.ref, root=tmp_path))
    assert type(back) is type(probe)
    assert probe_config(back) == probe_config(probe)  # type: ignore[arg-type]
    read = "transform" if name == "leace" else "predict"
    one, other = getattr(probe, read)(x), getattr(back, read)(x)
    assert np.array_equal(np.asarray(one), np.asarray(other))
    if name == "board":
        back.check_source(0, SOURCE)
    elif name not in ("ccs", "leace"):
        back.check_source(SOURCE)
        assert list(back.classes_) == ["no", "yes"]
        np.testing.assert_array_equal(back.decision_function(x), probe.decision_function(x))  # type: ignore[attr-defined]
        assert name == "mlp" or isinstance(back, Probe)


def test_a_run_holds_its_report(tmp_path: Path) -> None:
    x, y, group = rows()
    probe = LDA(source=SOURCE)
    report = evaluate(probe, x, y, grouped_split(y, group), groups=group, resamples=10)
    with start_run("probe", probe_config(probe), slug="p", root=tmp_path) as run:
        save_probe(run, probe, report)
        run.finish({"accuracy": report.accuracy.value})
    run = open_run(run.ref, root=tmp_path)
    assert run.json("report.json")["accuracy"]["value"] == report.accuracy.value
    assert run.table("report.parquet").num_rows == len(report.table_rows())


def test_what_is_no_probe_is_refused(tmp_path: Path) -> None:
    with start_run("probe", {"a": 1}, slug="p", root=tmp_path) as run:
        with pytest.raises(ValueError, match="This LDA is not fitted"):
            save_probe(run, LDA())
        save_probe(run, fitted("lda")[0])  # type: ignore[arg-type]
        about = run.json("probe.json")
        for change, error, text in (
            ({"probe": "svm"}, ValueError, "Unknown kind of probe 'svm'"),
            ({"arguments": {"depth": 3}}, RunDamaged, "has arguments that LDA does not take"),
            ({"learned": about["learned"] | {"n_features_in_": 5}}, RunDamaged, "for d_in=5"),
        ):
            (run.path / "probe.json").write_text(json.dumps(about | change))
            with pytest.raises(error, match=text):
                load_probe(run)
        (run.path / "probe.json").write_text("[]")
        with pytest.raises(RunDamaged, match="does not describe a probe"):
            load_probe(run)
    with (
        start_run("sae", {"a": 1}, slug="p", root=tmp_path) as other,
        pytest.raises(ValueError, match="a probe is in a run of kind 'probe'"),
    ):
        load_probe(other)


def test_reading_is_capturing_where_it_was_fitted(model: ModelHandle) -> None:
    tokens = torch.randint(1, 300, (3, 7), generator=torch.Generator().manual_seed(0))
    for kind in ("resid_post", "head_out"):  # heads are flattened
        with capture(model, f"{kind}.1") as taken:
            model.forward(tokens)
        rows = taken[f"{kind}.1"].flatten(2)
        probe = LDA(source=Source.of(model, f"{kind}.1")).fit(rows.flatten(0, 1), np.arange(21) % 3)
        found = read(model, probe, tokens)
        assert found.shape == (3, 7, 3)
        np.testing.assert_allclose(found[1], probe.decision_function(rows[1]), rtol=1e-4, atol=1e-4)
    other = LDA(source=Source("resid_post.1", "m", "0")).fit(rows.flatten(0, 1), np.arange(21) % 3)
    with pytest.raises(ValueError, match="with other weights"):
        read(model, other, tokens)
    read(model, other, tokens, same_weights=False)
    with pytest.raises(ValueError, match="does not know what it was fitted on"):
        read(model, LDA(), tokens)
