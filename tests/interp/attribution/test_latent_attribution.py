"""Latents of dictionaries: slot by slot from the atoms, the rest as its own cell, sums, and latents really patched."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.attribution.estimates import attribution_patching, integrated_gradients, latent_attribution, relp
from interp.hooks import capture
from interp.models import ModelHandle
from interp.sites import Site
from interp.tasks import LogitDiff
from sae.config import SaeConfig
from sae.initialise import initialise
from sae.model import Sae
from tests.interp.attribution.estimate_models import double_model, linear_model, random_pairs

PAIRS = random_pairs(n=3, length=5)


def dictionary(width: int = 32, rule: str = "topk", normalise: str = "scalar", seed: int = 0, **args: float) -> Sae:
    args = args or ({"k": 5} if rule == "topk" else {"l1": 0.0})
    sae = Sae(SaeConfig(width, 40, rule, args, normalise))  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(seed + 50)
    initialise(sae, torch.randn(200, width, generator=g) + 0.3, seed)
    sae.b_enc.data.normal_(std=0.3, generator=g)
    return sae.double().eval()


def runs(handle: ModelHandle, site: Site) -> tuple[Tensor, Tensor, Tensor]:
    """Return (clean activation, corrupted activation, gradient at the corrupted run)."""
    with capture(handle, site) as found:
        handle.forward(PAIRS.clean)
    clean = found[site]
    with capture(handle, site, grad=True) as found:
        LogitDiff(PAIRS.correct, PAIRS.wrong)(handle.logits(PAIRS.corrupt), torch.arange(3)).sum().backward()
    grad = found[site].grad
    assert grad is not None
    return clean, found[site].detach(), grad


@pytest.mark.parametrize("rule", ["topk", "relu"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_scores_are_those_of_every_slot(family: str, rule: str) -> None:
    handle, site, sae = double_model(family), Site(1, "resid_post"), dictionary(rule=rule)
    clean, corrupt, grad = runs(handle, site)
    atoms = sae.unit()[2].detach() * sae.normaliser.scale
    slow: dict[tuple[int, int], list[float]] = defaultdict(lambda: [0.0] * 3)
    error = np.zeros((5, 3))
    for act, sign in ((clean, 1), (corrupt, -1)):
        for prompt in range(3):
            for pos in range(5):
                with torch.no_grad():
                    x_hat, code = sae.forward(act[prompt, pos][None])
                    dense = code.dense()[0]
                rest = (act[prompt, pos] - x_hat[0]) @ grad[prompt, pos]
                error[pos, prompt] += sign * float(rest)
                for latent in dense.nonzero().flatten().tolist():
                    score = dense[latent] * (atoms[latent] @ grad[prompt, pos])
                    slow[pos, latent][prompt] += sign * float(score)
    found = latent_attribution(handle, PAIRS, {site: sae}, check=0)
    rows = found.of("resid_post").to_pylist()
    assert {(row["pos"], row["latent"]) for row in rows} == set(slow)
    for row in rows:
        values = np.array(slow[row["pos"], row["latent"]])
        assert row["score"] == pytest.approx(values.mean(), rel=1e-6, abs=1e-9)
        assert row["stderr"] == pytest.approx(values.std(ddof=1) / 3**0.5, rel=1e-6, abs=1e-9)
    errors = found.of("error.resid_post").to_pylist()
    assert [row["latent"] for row in errors] == [None] * 5
    np.testing.assert_allclose([row["score"] for row in errors], error.mean(1), atol=1e-9)


@pytest.mark.parametrize("normalise", ["none", "scalar", "layer"])
@pytest.mark.parametrize("method", ["atp", "ig", "relp"])
def test_latents_and_rest_add_up_to_the_site(method: str, normalise: str) -> None:
    handle = double_model("neox")
    saes = {"head_out.0": dictionary(normalise=normalise), "mlp_act.1": dictionary(64, "relu", normalise)}
    direct = {"atp": attribution_patching, "ig": integrated_gradients, "relp": relp}[method]
    site = direct(handle, PAIRS, list(saes), check=0, direction="noising")
    found = latent_attribution(handle, PAIRS, saes, method, direction="noising", check=0, batch=2)
    assert np.abs(found.completeness["total"].to_numpy()).max() > 1e-3
    for row in found.completeness.to_pylist():
        assert row["total"] == pytest.approx(float(np.nansum(site.map(row["kind"])[row["layer"]])), abs=1e-8)
        if row["part"] == "all":
            assert abs(row["gap"]) < 1e-10
    table = found.nodes.to_pylist()
    for kind in ("head_out", "mlp_act"):
        for pos in range(5):
            parts = sum(row["score"] for row in table if row["kind"].endswith(kind) and row["pos"] == pos)
            layer = 0 if kind == "head_out" else 1
            assert parts == pytest.approx(float(site.map(kind)[layer, pos]), abs=1e-8)


def test_summed_over_positions(gpt2: ModelHandle) -> None:
    saes = {"resid_post.0": dictionary().float()}
    by_pos = latent_attribution(gpt2, PAIRS, saes, check=0)
    summed = latent_attribution(gpt2, PAIRS, saes, parts=(), check=0)
    totals: dict[int | None, float] = defaultdict(float)
    for row in by_pos.nodes.to_pylist():
        totals[row["latent"]] += row["score"]
    assert len(summed.nodes) == len(totals)
    for row in summed.nodes.to_pylist():
        assert row["pos"] is None
        assert row["score"] == pytest.approx(totals[row["latent"]], abs=1e-5)


def test_on_a_linear_model_latents_really_patched_do_what_was_estimated() -> None:
    handle = linear_model("llama")
    saes = {"resid_pre.1": dictionary(), "head_out.0": dictionary(rule="relu", normalise="none", seed=1)}
    for parts in (("pos",), ()):
        found = latent_attribution(handle, PAIRS, saes, parts=parts, check=10, direction="noising")
        rows = [row for row in found.nodes.to_pylist() if row["measured"] is not None]
        assert len(rows) == found.values["check_cells"] == 20
        assert {row["kind"] for row in rows} > {"resid_pre", "head_out"}
        for row in rows:
            assert row["measured"] == pytest.approx(row["score"], abs=1e-9)
            assert row["measured_stderr"] == pytest.approx(row["stderr"], abs=1e-9)
        assert found.values["check_pearson"] == pytest.approx(1)


def test_a_dictionary_that_needs_its_rows_is_not_measured(gpt2: ModelHandle) -> None:
    found = latent_attribution(gpt2, PAIRS, {"resid_pre.1": dictionary(normalise="layer").float()})
    assert found.nodes["measured"].null_count == len(found.nodes)
    assert "Nothing was measured" in found.about["check"]


def test_bad_input_is_refused(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match="d_in=16 numbers, but resid_pre.1 has 32"):
        latent_attribution(gpt2, PAIRS, {"resid_pre.1": dictionary(16)})
    with pytest.raises(ValueError, match="'atq'.*atp"):
        latent_attribution(gpt2, PAIRS, {"resid_pre.1": dictionary()}, "atq")
    with pytest.raises(ValueError, match="got parts head"):
        latent_attribution(gpt2, PAIRS, {"resid_pre.1": dictionary()}, parts=("head",))
    with pytest.raises(ValueError, match="At least one site"):
        latent_attribution(gpt2, PAIRS, {})


class Detached:
    """A dictionary whose reconstruction does not depend on the values that it returns."""

    d_in, d_sae = 32, 40

    def __init__(self) -> None:
        self.sae = dictionary().float()

    def encode(self, x: Tensor) -> object:
        return self.sae.encode(x)

    def decode(self, code: object) -> Tensor:
        return self.sae.decode(code)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        x_hat, code = self.sae.forward(x)
        return x_hat, code.with_values(code.values * 1)


def test_a_dictionary_without_a_graph_is_refused(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match=r"Detached\.forward must decode"):
        latent_attribution(gpt2, PAIRS, {"resid_pre.1": Detached()})
