"""The verdicts of benchmarks/sae_claims.py follow from intervals alone, equal L0 is equal, and a broken run goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.claims.bench import Bench, largest, recipe
from benchmarks.claims.sources import WHERES
from benchmarks.claims.verdicts import Contrast, interval, judge, verdict
from benchmarks.sae_claims import CLAIMS, Cache
from sae.code import Code


def test_the_interval_is_that_of_students_t() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [0.1, 0.4, 0.2, 0.35]
    mean, low, high = interval(values)
    found = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((found.low, found.high))
    assert mean == pytest.approx(sum(values) / 4)
    assert interval([0.3]) == (0.3, -math.inf, math.inf)


@pytest.mark.parametrize(
    ("want", "low", "high", "said"),
    [
        ("less", -0.3, -0.1, "holds"),
        ("less", -0.3, 0.1, "not decided"),
        ("less", -0.005, 0.2, "does not hold"),
        ("less", 0.1, 0.2, "does not hold"),
        ("more", 0.1, 0.2, "holds"),
        ("more", -0.2, 0.005, "does not hold"),
        ("no more", -0.3, 0.01, "holds"),
        ("no more", -0.3, 0.02, "not decided"),
        ("no more", 0.02, 0.03, "does not hold"),
        ("no less", -0.01, 0.5, "holds"),
        ("no less", -0.5, -0.02, "does not hold"),
        ("more", -math.inf, math.inf, "not decided"),
        ("report", 0.1, 0.2, ""),
    ],
)
def test_a_verdict_is_where_the_interval_lies(want: str, low: float, high: float, said: str) -> None:
    assert verdict(want, low, high, 0.01) == said  # type: ignore[arg-type]


def test_differences_are_paired_by_seed_and_a_relative_margin_is_a_share_of_the_other_side() -> None:
    seeds = [{"a": 1.0, "b": 2.0}, {"a": 11.0, "b": 12.0}, {"a": 21.0, "b": 22.0}]
    found = judge("claim", "here", Contrast("a against b", "a", "b", "less"), seeds)
    assert (found.mean, found.low, found.high, found.verdict) == (-1.0, -1.0, -1.0, "holds")
    within = Contrast("within a tenth", "b", "a", "no more", 0.1, relative=True)
    assert judge("claim", "here", within, seeds).verdict == "holds"  # 1 more, of 11 on average
    assert judge("claim", "here", Contrast("no more", "b", "a", "no more", 0.1), seeds).verdict == "does not hold"


def test_the_largest_values_are_kept_by_size() -> None:
    code = Code(torch.tensor([[0, 3], [2, 1]]), torch.tensor([[1.0, -5.0], [0.5, 2.0]]), 4)
    assert largest(code, 2).values.tolist() == [[0.0, -5.0], [0.0, 2.0]]
    assert torch.equal(largest(code, 9).values, code.values)


def test_rivals_are_compared_at_one_l0_and_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = type(WHERES["even"])("even", "", 16, 2, 3, 64)
    monkeypatch.setattr("benchmarks.claims.bench.TEST_STEPS", range(10**6, 10**6 + 2))
    bench = Bench(where, 0, tmp_path)
    saes = bench.train({"one": recipe("topk", k=1), "three": recipe("topk", k=3), "again": recipe("topk", k=3)})
    assert saes["three"] is saes["again"]
    assert bench.train({"three": recipe("topk", k=3)})["three"] is saes["three"]
    found = bench.equal_l0(("one", saes["one"]), ("three", saes["three"]))
    fewest = int((bench.code(saes["one"]).values != 0).sum())
    assert found["one fvu at three"] == pytest.approx(bench.fvu(saes["one"], bench.code(saes["one"])))
    pruned = largest(bench.code(saes["three"]), fewest)
    assert int((pruned.values != 0).sum()) == fewest
    assert found["three fvu at one"] == pytest.approx(bench.fvu(saes["three"], pruned))


def test_a_broken_run_goes_on_from_its_cache(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    Cache(path).put("choice", "planted", 0, {"a": 0.5})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"claim": "choice", "whe')
    again = Cache(path)
    assert again.get("choice", "planted", 0) == {"a": 0.5}
    assert again.get("choice", "planted", 1) is None
    resized = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    resized["where"]["steps"] += 1
    path.write_text(json.dumps(resized) + "\n", encoding="utf-8")
    assert Cache(path).get("choice", "planted", 0) is None  # measured at another size


def test_every_contrast_names_a_known_source() -> None:
    assert {where for claim in CLAIMS.values() for where in claim.wheres} <= WHERES.keys()
    for claim in CLAIMS.values():
        labels = [contrast.label for contrast in claim.contrasts]
        assert len(labels) == len(set(labels))
