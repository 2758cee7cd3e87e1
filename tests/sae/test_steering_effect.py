"""What steering does to a text: tables against a slow reading of the logits; continuations from one seed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.hooks import capture
from interp.models import ModelHandle
from sae.config import SaeConfig
from sae.initialise import initialise
from sae.model import Sae
from sae.steering import steer
from sae.steering_effect import effect, generate

SITE = "resid_post.1"


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    ids = torch.randint(1, 300, (2, 8), generator=torch.Generator().manual_seed(3))
    ids[:, 0] = 0
    return ids


@pytest.fixture(scope="module")
def sae(gpt2: ModelHandle, tokens: Tensor) -> Sae:
    with capture(gpt2, SITE) as acts:
        gpt2.forward(tokens)
    sae = Sae(SaeConfig(32, 48, "topk", {"k": 8}))
    initialise(sae, acts[SITE][:, 1:].flatten(0, 1).repeat(4, 1), seed=9)
    return sae.eval().requires_grad_(False)


def test_tables_say_what_the_logits_say(gpt2: ModelHandle, sae: Sae, tokens: Tensor) -> None:
    found = effect(gpt2, tokens, SITE, sae, 5, "clamp", 6.0, at=None, top=3)
    with capture(gpt2, SITE) as acts:
        before = gpt2.logits(tokens).double().softmax(-1)
    with steer(gpt2, SITE, sae, 5, "clamp", 6.0), capture(gpt2, SITE) as steered:
        after = gpt2.logits(tokens).double().softmax(-1)
    rows = found.next_tokens.to_pylist()
    assert len(rows) == 2 * 8 * 12 - 2 * 2 * 3  # nothing is gained or lost at BOS
    for one in rows:
        p, q = before[one["row"], one["position"]], after[one["row"], one["position"]]
        by = {"before": p, "after": q, "gained": q - p, "lost": p - q}[one["side"]]
        assert int((by > by[one["token_id"]]).sum()) == one["rank"]
        assert one["before"] == pytest.approx(float(p[one["token_id"]]), rel=1e-6)
        assert one["after"] == pytest.approx(float(q[one["token_id"]]), rel=1e-6)
        assert one["text"] == gpt2.token_strings([one["token_id"]])[0]
    dense, moved = (sae.encode(taken[SITE]).dense().view(2, 8, -1)[..., 5] for taken in (acts, steered))
    places = found.positions.to_pylist()
    assert [(one["row"], one["position"]) for one in places] == [(n, i) for n in range(2) for i in range(8)]
    for one in places:
        p, q = before[one["row"], one["position"]], after[one["row"], one["position"]]
        slow = sum(float(a) * (math.log(float(a)) - math.log(float(b))) for a, b in zip(p, q, strict=True))
        assert one["kl"] == pytest.approx(slow, rel=1e-3, abs=1e-7)
        assert one["value_before"] == float(dense[one["row"], one["position"]])
        assert one["value_after"] == float(moved[one["row"], one["position"]])
        assert (one["top_before"], one["top_after"]) == (int(p.argmax()), int(q.argmax()))
    assert found.kl[0] == found.kl[8] == 0
    assert max(found.kl) > 1e-3


def test_nothing_happens_before_the_first_changed_position(gpt2: ModelHandle, sae: Sae, tokens: Tensor) -> None:
    found = effect(gpt2, tokens, SITE, sae, 5, "add", 6.0, positions=[4])
    assert all(kl == 0 for one, kl in enumerate(found.kl) if one % 8 < 4)
    assert all(kl > 0 for one, kl in enumerate(found.kl) if one % 8 >= 4)
    assert set(found.next_tokens.column("position").to_pylist()) == {7}


def test_no_steering_gains_and_loses_nothing(gpt2: ModelHandle, sae: Sae, tokens: Tensor) -> None:
    found = effect(gpt2, tokens[0], SITE, sae, 5, "add", 0.0)
    assert found.kl == [0.0] * 8
    assert set(found.next_tokens.column("side").to_pylist()) == {"before", "after"}


def test_a_model_without_a_tokenizer(make_model: Any, sae: Sae, tokens: Tensor) -> None:
    found = effect(make_model("gpt2"), tokens, SITE, sae, 5, "ablate")
    assert found.positions.column("text").null_count == 16


def test_continuations_share_their_noise(gpt2: ModelHandle, sae: Sae, tokens: Tensor) -> None:
    plain = generate(gpt2, tokens, 6, seed=1)
    assert plain.shape == (2, 14)
    assert torch.equal(plain[:, :8], tokens)
    assert torch.equal(plain, generate(gpt2, tokens, 6, seed=1))
    assert not torch.equal(plain, generate(gpt2, tokens, 6, seed=2))
    with steer(gpt2, SITE, sae, 5, "add", 0.0):
        assert torch.equal(generate(gpt2, tokens, 6, seed=1), plain)
    with steer(gpt2, SITE, sae, 5, "clamp", 40.0):
        assert not torch.equal(generate(gpt2, tokens, 6, seed=1), plain)


def test_sampling_follows_the_distribution(gpt2: ModelHandle, tokens: Tensor) -> None:
    wanted = gpt2.logits(tokens[:1])[0, -1].double().softmax(-1)
    drawn = torch.stack([generate(gpt2, tokens[:1], 1, seed=seed)[0, -1] for seed in range(300)])
    top = int(wanted.argmax())
    share = float((drawn == top).double().mean())
    assert abs(share - float(wanted[top])) < 4 * math.sqrt(float(wanted[top] * (1 - wanted[top])) / 300)
    greedy = generate(gpt2, tokens[:1], 1, temperature=0.0)[0, -1]
    assert int(greedy) == top


def test_refusals(gpt2: ModelHandle, sae: Sae, tokens: Tensor) -> None:
    for wrong, message in [({"top": 0}, "top must be 1"), ({"at": [8]}, "at must hold positions in 0..7")]:
        with pytest.raises(ValueError, match=message):
            effect(gpt2, tokens, SITE, sae, 5, "ablate", **wrong)  # type: ignore[arg-type]
    for n, temperature, message in [(57, 1.0, "n_ctx=64"), (-1, 1.0, "new_tokens"), (1, math.nan, "temperature")]:
        with pytest.raises(ValueError, match=message):
            generate(gpt2, tokens, n, temperature=temperature)
