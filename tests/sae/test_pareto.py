"""Pareto tables: read off at the L0 that runs have, never beyond, each site by itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from interp.runs import Run, start_run
from sae.pareto import at_l0, pareto


def evaluation(
    root: Path, rule: str, k: int, l0: float, fvu: float, *, seed: int = 0, site: str = "resid_post.1"
) -> Run:
    trained = {"sae": {"rule": rule, "d_sae": 64, "rule_args": {"k": k}}, "site": site}
    with start_run("sae", trained, slug="s", root=root, seed=seed) as sae:
        sae.finish({})
    with start_run("evaluation", {"sae_run": sae.ref, "site": site}, slug="e", root=root, parents=[sae]) as run:
        run.finish({"l0": l0, "fvu": fvu, "ce_recovered_mean": 1 - fvu})
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [
        evaluation(tmp_path, "topk", 4, 4.0, 0.30),
        evaluation(tmp_path, "topk", 16, 16.0, 0.10),
        evaluation(tmp_path, "topk", 4, 4.0, 0.34, seed=1),
        evaluation(tmp_path, "topk", 16, 16.0, 0.12, seed=1),
        evaluation(tmp_path, "batch_topk", 4, 4.4, 0.26),
        evaluation(tmp_path, "batch_topk", 16, 17.0, 0.11),
        evaluation(tmp_path, "relu", 0, 9.0, 0.50, site="resid_post.2"),
    ]


def test_the_front_holds_what_nothing_sparser_beats(runs: list[Run]) -> None:
    table = pareto(runs).to_pylist()
    assert len(table) == len(runs)
    front = {(row["rule"], row["l0"], row["seed"]) for row in table if row["front"]}
    assert front == {("topk", 4.0, 0), ("batch_topk", 4.4, 0), ("topk", 16.0, 0), ("relu", 9.0, 0)}
    by_recovered = {row["run"] for row in pareto(runs, "ce_recovered_mean").to_pylist() if row["front"]}
    assert by_recovered == {row["run"] for row in table if row["front"]}


def test_curves_are_read_in_log_l0_and_not_beyond_their_ends(runs: list[Run]) -> None:
    table: list[dict[str, Any]] = at_l0(pareto(runs), [4.0, 8.0, 16.5, 40.0]).to_pylist()
    found = {(row["rule"], row["l0"]): row for row in table}
    assert found["topk", 8.0]["value"] == pytest.approx((0.20 + 0.23) / 2)  # halfway in log L0 for both seeds
    assert (found["topk", 8.0]["low"], found["topk", 8.0]["high"]) == pytest.approx((0.20, 0.23))
    assert found["topk", 8.0]["seeds"] == 2
    assert found["topk", 4.0]["value"] == pytest.approx(0.32)
    assert found["topk", 16.5]["value"] is None
    assert found["batch_topk", 4.0]["value"] is None
    share = math.log(16.5 / 4.4) / math.log(17 / 4.4)
    assert found["batch_topk", 16.5]["value"] == pytest.approx(0.26 + share * (0.11 - 0.26))
    assert found["relu", 8.0]["seeds"] == 0


def trained(root: Path, l0: float, fvu: float, *, tokens: int = 1000, seed: int = 0, **arguments: Any) -> Run:
    config = {"sae": {"rule": "topk", "d_sae": 64, "rule_args": arguments}, "site": "resid_post.1"}
    config["train"] = {"tokens": tokens, "seed": seed}
    with start_run("sae", config, slug="t", root=root, seed=seed) as run:
        run.finish({"l0": l0, "fvu": fvu, "tokens": tokens})
    return run


def test_what_was_not_evaluated_has_the_numbers_of_its_training(tmp_path: Path, runs: list[Run]) -> None:
    bare = trained(tmp_path, 2.0, 0.5, k=2)
    rows = {row["run"]: row for row in pareto([*runs, bare]).to_pylist()}
    assert rows[bare.ref]["sae_run"] == bare.ref
    assert (rows[bare.ref]["fvu"], rows[bare.ref]["ce_delta"], rows[bare.ref]["front"]) == (0.5, None, True)
    assert pareto([*runs, bare], dictionaries=[bare]).equals(pareto([*runs, bare]))


def test_a_curve_has_one_kind_of_rule_and_one_length_of_training(tmp_path: Path) -> None:
    runs = [
        trained(tmp_path, l0, fvu, tokens=tokens, k=int(l0))
        for tokens, fvu in ((1000, 0.4), (9000, 0.2))
        for l0 in (4, 16)
    ]
    runs += [trained(tmp_path, l0, 0.3, k=int(l0), batch=True) for l0 in (4, 16)]
    points = pareto(runs)
    found = {(row["variant"], row["trained"]): row["value"] for row in at_l0(points, [8.0]).to_pylist()}
    assert found == pytest.approx({("", 1000): 0.4, ("", 9000): 0.2, ("batch", 1000): 0.3})
    assert points["args"].to_pylist().count("k 4, batch") == 1


def test_repeats_differ_in_the_seed_only(tmp_path: Path) -> None:
    runs = [trained(tmp_path, 4, 0.4, k=4, seed=seed) for seed in (0, 1)] + [trained(tmp_path, 4, 0.4, k=5)]
    repeats = {row["sae_run"]: row["repeat"] for row in pareto(runs).to_pylist()}
    first, again, other = (repeats[run.ref] for run in runs)
    assert first == again != other


def test_what_cannot_be_compared_is_refused(runs: list[Run], tmp_path: Path) -> None:
    with start_run("sae", {"x": 1}, slug="s", root=tmp_path) as other:
        other.finish({})
    with pytest.raises(ValueError, match="is no finished evaluation"):
        pareto([other])
    with pytest.raises(ValueError, match="Unknown metric of evaluation/.*'fuv'; did you mean 'fvu'"):
        pareto(runs, "fuv")
    with pytest.raises(ValueError, match="Unknown column 'fuv'"):
        at_l0(pareto(runs), [4.0], "fuv")
    with pytest.raises(ValueError, match="Each L0 must be above 0"):
        at_l0(pareto(runs), [0.0])
