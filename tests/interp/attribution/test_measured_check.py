"""The measured check of estimates, the table of methods, and what is left behind after an error."""

from __future__ import annotations

import inspect
from functools import partial

import numpy as np
import pytest
import torch

from interp.attribution.estimates import METHODS, attribution_patching, checked, relp
from interp.attribution.patching import measure_cells
from interp.models import ModelHandle
from interp.tasks import Custom
from tests.interp.attribution.estimate_models import linear_model, random_pairs

PAIRS = random_pairs(n=2, length=5)
SITES = ["head_out", "mlp_out"]
ESTIMATES = [name for name in METHODS if name != "patching"]


def test_top_and_random_cells_are_really_patched(model: ModelHandle) -> None:
    plain = attribution_patching(model, PAIRS, SITES, parts=("pos", "head"), check=0)
    found = checked(plain, model, PAIRS, top=4, random=5)
    rows = found.nodes.to_pylist()
    order = sorted(range(len(rows)), key=lambda i: -abs(rows[i]["score"]))
    picked = [i for i, row in enumerate(rows) if row["measured"] is not None]
    assert set(order[:4]) <= set(picked)
    assert len(picked) == found.values["check_cells"] == 9
    truth = measure_cells(model, PAIRS, [rows[i] for i in picked])
    np.testing.assert_allclose([rows[i]["measured"] for i in picked], truth.score, atol=1e-6)
    np.testing.assert_allclose([rows[i]["measured_stderr"] for i in picked], truth.stderr, atol=1e-6)
    scores = np.array([rows[i]["score"] for i in picked])
    assert found.values["check_pearson"] == pytest.approx(np.corrcoef(scores, truth.score)[0, 1], abs=1e-4)
    large, moved = np.abs(scores) > 1e-6 * np.abs(scores).max(), np.abs(truth.score) > 1e-6 * np.abs(truth.score).max()
    agree = (large & (np.sign(scores) == np.sign(truth.score)))[moved].mean()  # what is smaller is rounding
    assert found.values["check_sign_agreement"] == pytest.approx(agree)
    assert plain.nodes["measured"].null_count == len(plain.nodes)


def test_the_draw_has_a_seed_and_all_cells_may_be_taken(gpt2: ModelHandle) -> None:
    plain = attribution_patching(gpt2, PAIRS, ["mlp_out"], check=0)
    measured = [
        checked(plain, gpt2, PAIRS, top=1, random=3, seed=seed).nodes["measured"].is_null().to_pylist()
        for seed in (0, 0, 1)
    ]
    assert measured[0] == measured[1] != measured[2]
    everything = checked(plain, gpt2, PAIRS, top=1000, random=10)
    assert everything.nodes["measured"].null_count == 0
    assert everything.values["check_cells"] == 15


def test_estimates_are_checked_unless_told_otherwise() -> None:
    handle = linear_model("gpt2")
    found = relp(handle, PAIRS, ["attn_out", "resid_pre"])
    assert found.values["check_cells"] == 20
    assert found.values["check_pearson"] == pytest.approx(1)
    assert found.values["check_sign_agreement"] == 1
    assert "check_cells" not in relp(handle, PAIRS, ["attn_out"], check=0).values


def test_a_magnitude_has_no_sign_to_agree(gpt2: ModelHandle) -> None:
    found = METHODS["atp_star"](gpt2, PAIRS, SITES, signed=False, check=5)
    assert (found.nodes["score"].to_numpy() >= 0).all()
    assert "check_sign_agreement" not in found.values
    assert -1 <= found.values["check_pearson"] <= 1


def test_a_metric_of_ones_own_is_passed_again(gpt2: ModelHandle) -> None:
    metric = Custom(lambda logits, _: logits[:, -1, 7], "seven")
    found = attribution_patching(gpt2, PAIRS, SITES, metric=metric, check=2)
    assert found.values["check_cells"] == 4
    with pytest.raises(ValueError, match="'seven', which has to be passed"):
        checked(found, gpt2, PAIRS)
    with pytest.raises(ValueError, match="0 or more cells, got -1"):
        attribution_patching(gpt2, PAIRS, SITES, check=-1)


def test_one_prompt_has_no_standard_error(gpt2: ModelHandle) -> None:
    found = attribution_patching(gpt2, PAIRS.take([0]), ["mlp_out"], check=2)
    assert found.nodes["stderr"].null_count == found.nodes["measured_stderr"].null_count == len(found.nodes)
    assert found.nodes["measured"].null_count == len(found.nodes) - 4


@pytest.mark.parametrize("name", METHODS)
def test_methods_share_arguments_and_result(name: str, gpt2: ModelHandle) -> None:
    method = METHODS[name]
    inner = method.func if isinstance(method, partial) else method
    names = inspect.signature(inner).parameters
    wanted = ["handle", "pairs", "sites", "metric", "direction", "baseline", "parts", "batch", "on_progress"]
    assert [argument for argument in names if argument in wanted] == wanted
    assert ("check" in names) == (name in ESTIMATES)
    heard: list[tuple[int, int]] = []
    found = method(gpt2, PAIRS, SITES, metric="probability", on_progress=lambda *done: heard.append(done))
    assert found.method == name
    assert found.target == "probability"
    assert found.map("head_out").shape == (3, 5)
    assert heard[-1][0] == heard[-1][1]


class Broken(Exception):
    pass


def hooks(handle: ModelHandle) -> int:
    parts = handle.module.modules()
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts) + len(handle._captures)


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_left_after_an_error(name: str, gpt2: ModelHandle) -> None:
    before = hooks(gpt2)

    def break_down(*_: object) -> torch.Tensor:
        raise Broken

    with pytest.raises(Broken):
        METHODS[name](gpt2, PAIRS, SITES, metric=Custom(break_down))
    with pytest.raises(Broken):
        METHODS[name](gpt2, PAIRS, SITES, on_progress=break_down)
    assert hooks(gpt2) == before
    assert gpt2.lock.acquire(blocking=False)
    gpt2.lock.release()
