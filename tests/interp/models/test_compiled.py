"""The compiled models do their task, and what they say about themselves is what patching a hook at a time finds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.hooks import ablate, capture, patch
from interp.models import ModelHandle, ModelSpec, compiled_model, compiled_models, load_model
from interp.models.compiled.truth import COLUMNS
from interp.sites import Site
from interp.tasks import LogitDiff, Pairs, measured

NAMES = sorted(compiled_models())


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def handle(name: str) -> ModelHandle:
    return load_model(ModelSpec(name, dtype="float64"), device="cpu")


def last_metric(handle: ModelHandle, pairs: Pairs, tokens: Tensor) -> Tensor:
    return measured(LogitDiff(pairs.correct, pairs.wrong), handle.logits(tokens), torch.arange(len(pairs)))


def patched_effects(handle: ModelHandle, pairs: Pairs, rows: list[dict], direction: str) -> list[float]:
    """Return the mean effect of each cell: the plain loop, one forward per cell, written from the definition."""
    base, source = (pairs.corrupt, pairs.clean) if direction == "denoising" else (pairs.clean, pairs.corrupt)
    with capture(handle, [site for site in handle.sites() if site.kind != "pattern"]) as theirs:
        handle.logits(source)
    before = last_metric(handle, pairs, base)
    found = []
    for row in rows:
        site = Site(row["layer"], row["kind"])
        places = slice(None) if row["pos"] is None else slice(row["pos"], row["pos"] + 1)
        part = row["head"] if row["head"] is not None else row["neuron"]
        where = (slice(None), places) if part is None else (slice(None), places, part)

        def edit(value: Tensor, where: tuple = where, site: Site = site) -> Tensor:
            value[where] = theirs[site][where]
            return value

        with patch(handle, site, edit):
            change = last_metric(handle, pairs, base) - before
        found.append(float(change.mean() if direction == "denoising" else -change.mean()))
    return found


def test_it_does_its_task(name: str, handle: ModelHandle) -> None:
    for seed in (0, 1, 2):
        pairs = compiled_model(name).pairs(n=24, seed=seed)
        answers = handle.logits(pairs.clean)[:, -1].argmax(-1)
        assert (answers == pairs.correct[:, 0]).all()
        assert (handle.logits(pairs.corrupt)[:, -1].argmax(-1) == pairs.wrong[:, 0]).all()
        assert len(set(map(tuple, pairs.clean.tolist()))) == 24
    assert torch.equal(compiled_model(name).pairs(8, 3).clean, compiled_model(name).pairs(8, 3).clean)
    assert not torch.equal(compiled_model(name).pairs(8, 3).clean, compiled_model(name).pairs(8, 4).clean)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_truth_is_what_patching_measures(name: str, handle: ModelHandle, direction: str) -> None:
    pairs = compiled_model(name).pairs(n=5, seed=1)
    rows = compiled_model(name).truth(pairs, direction).to_pylist()
    rng = np.random.default_rng(0)
    loud = [row for row in rows if abs(row["effect"]) > 1e-9]
    silent = [row for row in rows if not row["in_circuit"]]
    some = [loud[i] for i in rng.permutation(len(loud))[:30]] + [silent[i] for i in rng.permutation(len(silent))[:15]]
    measured_effects = patched_effects(handle, pairs, some, direction)
    for row, effect in zip(some, measured_effects, strict=True):
        assert effect == pytest.approx(row["effect"], abs=1e-9), row


def test_the_truth_names_every_cell_once(name: str, handle: ModelHandle) -> None:
    pairs = compiled_model(name).pairs(n=4)
    truth = compiled_model(name).truth(pairs)
    assert tuple(truth.column_names) == COLUMNS
    cells = [tuple(row[key] for key in COLUMNS[:6]) for row in truth.to_pylist()]
    assert len(set(cells)) == len(cells)
    by_place = {cell[:2] for cell in cells}
    assert by_place >= {(kind, layer) for layer in range(handle.n_layers) for kind in ("resid_pre", "head_out")}
    totals = [
        row["effect"] for row in truth.to_pylist() if row["kind"] == "resid_post" and row["role"] == pairs.roles[-1]
    ]
    whole = last_metric(handle, pairs, pairs.clean) - last_metric(handle, pairs, pairs.corrupt)
    assert totals[-1] == pytest.approx(float(whole.mean()), abs=1e-9)


@pytest.mark.parametrize("name", ["compiled/induction", "compiled/distractors"])
@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
def test_ablating_the_complement_changes_nothing(name: str, how: str) -> None:
    handle = load_model(ModelSpec(name, dtype="float64"), device="cpu")
    pairs = compiled_model(name).pairs(n=6)
    circuit = {"compiled/induction": {(0, 2), (1, 1)}, "compiled/distractors": {(0, 1), (2, 3)}}[name]
    before = handle.logits(pairs.clean)
    with ExitStack() as stack:
        for site, edit in complement(handle, circuit, how, pairs):
            stack.enter_context(patch(handle, site, edit))
        assert (handle.logits(pairs.clean) - before).abs().max() < 1e-9
    heads = compiled_model(name).truth(pairs).to_pylist()
    by_head = {
        (r["layer"], r["head"]) for r in heads if r["kind"] == "head_out" and r["pos"] is None and r["in_circuit"]
    }
    assert by_head == circuit
    for layer, head in circuit:  # and the circuit is needed
        with ablate(handle, f"attn_out.{layer}", how="zero"):
            assert (handle.logits(pairs.clean) - before).abs().max() > 1.0, (layer, head)


def complement(handle: ModelHandle, circuit: set[tuple[int, int]], how: str, pairs: Pairs) -> Iterator[tuple]:
    """Yield (site, edit) that replaces all heads but those of the circuit, and all MLPs."""
    order = torch.arange(len(pairs)).roll(1)
    for layer in range(handle.n_layers):

        def changed(value: Tensor) -> Tensor:
            if how == "zero":
                return torch.zeros_like(value)
            return value.mean((0, 1), keepdim=True).expand_as(value) if how == "mean" else value[order]

        def heads(value: Tensor, layer: int = layer) -> Tensor:
            others = [h for h in range(handle.n_heads) if (layer, h) not in circuit]
            value[:, :, others] = changed(value)[:, :, others]
            return value

        yield f"head_out.{layer}", heads
        yield f"mlp_out.{layer}", changed


def test_distractors_are_loud() -> None:
    """They move the residual stream more than the circuit does, and between clean and corrupted prompts."""
    handle = load_model(ModelSpec("compiled/distractors", dtype="float64"), device="cpu")
    pairs = compiled_model("compiled/distractors").pairs(n=6)
    with capture(handle, ["mlp_out.0", "resid_pre.0"]) as clean:
        handle.logits(pairs.clean)
    with capture(handle, ["mlp_out.0", "resid_pre.0"]) as corrupt:
        handle.logits(pairs.corrupt)
    assert (clean["mlp_out.0"] - corrupt["mlp_out.0"]).norm() > 3 * (
        clean["resid_pre.0"] - corrupt["resid_pre.0"]
    ).norm()


def test_first_order_estimates_fail_on_gates_only(name: str, handle: ModelHandle) -> None:
    """Gradient times change of the embedding at A: exact where the model is linear, far off where it saturates."""
    pairs = compiled_model(name).pairs(n=8)
    found = {}
    for direction, base in (("denoising", pairs.corrupt), ("noising", pairs.clean)):
        with capture(handle, "resid_pre.0", grad=True) as taken:
            logits = handle.forward(base, grad=True)
        assert logits is not None
        metric = measured(LogitDiff(pairs.correct, pairs.wrong), logits, torch.arange(len(pairs)))
        (gradient,) = torch.autograd.grad(metric.sum(), taken["resid_pre.0"])
        with capture(handle, "resid_pre.0") as clean:
            handle.logits(pairs.clean)
        with capture(handle, "resid_pre.0") as corrupt:
            handle.logits(pairs.corrupt)
        change = clean["resid_pre.0"] - corrupt["resid_pre.0"]
        estimate = (change * gradient).sum(-1).mean(0)
        rows = compiled_model(name).truth(pairs, direction).to_pylist()
        truth = [row["effect"] for row in rows if (row["kind"], row["layer"]) == ("resid_pre", 0)]
        found[direction] = (estimate.tolist(), truth)
    if name == "compiled/additive":
        assert found["denoising"][1] == pytest.approx(found["noising"][1])
        for estimate, truth in found.values():
            assert estimate == pytest.approx(truth, abs=1e-9)
    if name == "compiled/gated":
        assert found["noising"][0][1] == pytest.approx(0.0)
        assert found["noising"][1][1] == pytest.approx(1.5)
        assert found["denoising"][0][1] > 3.0
        assert found["denoising"][1][1] == pytest.approx(1.5)
        assert found["noising"][1][2:4] == pytest.approx([2.0, 2.0])
        assert found["denoising"][1][2:4] == pytest.approx([0.0, 0.0])


def test_both_views_agree(name: str, handle: ModelHandle) -> None:
    assert handle.verify() < 1e-9
    tokens = compiled_model(name).pairs(n=3).clean
    sites = [site for site in handle.sites() if site.kind != "pattern"]
    with capture(handle, sites) as plain:
        handle.logits(tokens)
    with capture(handle, sites, view="bridge") as bridged:
        handle.logits(tokens, view="bridge")
    for site in sites:
        assert torch.allclose(plain[site], bridged[site], atol=1e-9), site


def test_it_is_named_and_identified(name: str, handle: ModelHandle) -> None:
    again = load_model(ModelSpec(name, dtype="float64"), device="cpu")
    assert again.digest() == handle.digest()
    assert load_model(name, device="cpu").module.dtype == torch.float32
    assert handle.n_parameters == compiled_model(name).n_parameters
    assert compiled_model(name).card.startswith(f"# {name}\n")
    assert handle.bos_id == 0
    with pytest.raises(ValueError, match="no revision"):
        load_model(ModelSpec(name, revision="main"))


def test_unknown_names_are_met_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'compiled/induction'"):
        compiled_model("compiled/inductoin")
    with pytest.raises(ValueError, match="did you mean 'compiled/additive'"):
        load_model("compiled/aditive")


def test_what_does_not_fit_is_refused() -> None:
    one = compiled_model("compiled/gated")
    with pytest.raises(ValueError, match="n must lie in 1..128"):
        one.pairs(129)
    with pytest.raises(ValueError, match="Unknown direction 'noise'"):
        one.truth(one.pairs(4), "noise")
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        compiled_model("compiled/additive").pairs(0)
