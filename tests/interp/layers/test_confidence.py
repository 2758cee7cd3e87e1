"""Entropy and token-frequency neurons: slow formulas, the model itself with a neuron put at its mean, planted ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from interp.hooks import capture, patch
from interp.layers.confidence import Confidence, unigram_direction
from interp.layers.neurons import neuron_directions
from interp.models import ModelHandle, load_model
from interp.models.compiled.blank import without_norms


def counts(seed: int = 0) -> Tensor:
    return torch.randint(0, 50, (300,), generator=torch.Generator().manual_seed(seed))


def test_geometry_is_that_of_slow_formulas(model: ModelHandle) -> None:
    found = Confidence(model, counts()).geometry(1)
    norm, w = model.final_norm, neuron_directions(model, 1)
    centred = model.family != "llama"
    gain = norm.weight.double()
    rows = model.unembed().double() * gain
    if centred:
        rows = rows - rows.mean(1, keepdim=True)
        w = w - w.mean(1, keepdim=True)
    logs = (counts().double() + 1).log()
    frequency = (logs - logs.mean()) / (logs - logs.mean()).norm()
    singular = torch.linalg.svd(rows).Vh
    least = singular[-2] if centred else singular[-1]  # the last of a centred one is the mean, which the norm drops
    for i in range(0, model.d_mlp, 9):
        cosines = torch.stack([cosine_similarity(w[i], row, dim=0) for row in rows])
        assert float(found.norm[i]) == pytest.approx(float(w[i].norm()))
        assert float(found.logit_var[i]) == pytest.approx(float(cosines.var(correction=0)), rel=1e-6)
        assert float(found.null_share[i]) == pytest.approx(float(cosine_similarity(w[i], least, dim=0)) ** 2, rel=1e-5)
        logits = rows @ w[i]
        expected = float(cosine_similarity(logits - logits.mean(), frequency, dim=0))
        assert float(found.frequency[i]) == pytest.approx(expected, abs=1e-9)


def measured(handle: ModelHandle, tokens: Tensor, neuron: int) -> tuple[dict[str, float], Tensor, Tensor]:
    """Return (row of `effects`, logits before, logits with the neuron at its mean), both of all rows but the last."""
    sites = ["mlp_act.2", "resid_post.2"]
    with capture(handle, sites) as acts:
        before = handle.logits(tokens)[:, :-1].flatten(0, 1).double()
    rows = {site: acts[site][:, :-1].flatten(0, 1) for site in sites}
    mean = rows["mlp_act.2"][:, neuron].mean()

    def still(x: Tensor) -> Tensor:
        x[..., neuron] = mean
        return x

    with patch(handle, "mlp_act.2", still):
        after = handle.logits(tokens)[:, :-1].flatten(0, 1).double()
    (row,) = Confidence(handle, counts()).effects([neuron], *rows.values(), tokens[:, 1:].flatten())
    return row, before, after


def entropy(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits).entropy()


def test_effects_are_those_of_the_model_with_the_neuron_at_its_mean(model: ModelHandle) -> None:
    tokens = torch.randint(1, 300, (3, 12), generator=torch.Generator().manual_seed(0))
    row, before, after = measured(model, tokens, 5)
    targets = tokens[:, 1:].flatten()
    loss = [torch.nn.functional.cross_entropy(x, targets, reduction="none") for x in (before, after)]
    assert row["loss_change"] == pytest.approx(float((loss[1] - loss[0]).mean()), abs=1e-6)
    assert row["loss_moved"] == pytest.approx(float((loss[1] - loss[0]).abs().mean()), rel=1e-3)
    moved = entropy(after) - entropy(before)
    assert row["entropy_change"] == pytest.approx(float(moved.mean()), abs=1e-6)
    # logits along the frequency direction put back
    f = unigram_direction(counts())
    back = after + ((before - after) @ f)[:, None] * f
    left = torch.nn.functional.cross_entropy(back, targets, reduction="none") - loss[0]
    expected = 1 - float(left.abs().mean() / (loss[1] - loss[0]).abs().mean())
    assert row["frequency_share"] == pytest.approx(expected, abs=1e-3)


def test_a_neuron_that_writes_where_the_unembedding_is_blind_works_through_the_scale_alone(
    make_module: Callable[..., torch.nn.Module],
) -> None:
    handle = load_model(make_module("gpt2", tie_word_embeddings=False))
    with torch.no_grad():
        blind = torch.zeros(32)
        blind[30], blind[31] = 1.0, -1.0
        gain = handle.final_norm.weight
        head = handle.module.lm_head.weight
        # two tokens' worth of columns that see the same: what differs between them is seen by no token
        head[:, 30] = head[:, 31] * gain[31] / gain[30]
        handle.module.transformer.h[2].mlp.c_proj.weight[5] = 8 * blind
    tokens = torch.randint(1, 300, (2, 20), generator=torch.Generator().manual_seed(3))
    confidence = Confidence(handle, counts())
    shape = confidence.geometry(2)
    assert float(shape.null_share[5]) == pytest.approx(1)
    assert int(shape.logit_var.argmin()) == 5
    row, before, after = measured(handle, tokens, 5)
    assert row["scale_share"] == pytest.approx(1)
    assert row["entropy_moved"] > 1e-3
    assert torch.equal(before.argmax(1), after.argmax(1)) or float((before - after).abs().max()) > 0
    other, *_ = measured(handle, tokens, 6)
    assert other["scale_share"] < 0.9


def test_without_a_norm_nothing_goes_through_the_scale(make_module: Callable[..., torch.nn.Module]) -> None:
    handle = load_model(without_norms(make_module("gpt2", initializer_range=0.05)).double())  # type: ignore[arg-type]
    row, *_ = measured(handle, torch.randint(1, 300, (2, 10), generator=torch.Generator().manual_seed(0)), 3)
    assert row["scale_share"] == pytest.approx(0, abs=1e-12)


def test_counts_of_another_vocabulary_are_refused_and_none_says_nothing_of_frequency(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match="300 tokens, got 4"):
        Confidence(gpt2, torch.ones(4, dtype=torch.long))
    assert bool(Confidence(gpt2).geometry(0).frequency.isnan().all())
