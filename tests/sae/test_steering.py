"""Steering by a latent: against the decoder's own difference, identities to the last bit, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.hooks import capture
from interp.models import ModelHandle
from interp.sites import Site
from sae.code import Code
from sae.config import SaeConfig, TargetConfig
from sae.initialise import initialise
from sae.model import Sae
from sae.steering import Steering, latent_values, steer, values_at

SITE = Site(1, "resid_post")
RULES: dict[str, dict[str, Any]] = {"topk": {"k": 8}, "relu": {}, "abs_topk": {"k": 8}}


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    ids = torch.randint(1, 300, (2, 10), generator=torch.Generator().manual_seed(3))
    ids[:, 0] = 0
    return ids


def read(model: ModelHandle, tokens: Tensor, site: Site = SITE, view: str = "hf") -> Tensor:
    with capture(model, site, view=view) as taken:
        model.forward(tokens, view=view)
    return taken[site].clone()


def fitted(
    model: ModelHandle,
    tokens: Tensor,
    rule: str = "topk",
    normalise: str = "scalar",
    site: Site = SITE,
    d_sae: int = 48,
) -> Sae:
    sae = Sae(SaeConfig(model.width(site), d_sae, rule, RULES[rule], normalise))  # type: ignore[arg-type]
    initialise(sae, read(model, tokens, site)[:, 1:].flatten(2).flatten(0, 1).repeat(4, 1), seed=9)
    return sae.eval().requires_grad_(False)


def busiest(sae: Sae, x: Tensor) -> int:
    """Return a latent that is on in some of the rows but not in all."""
    counts = sae.encode(x.flatten(2)).counts()
    return int(torch.where(counts < x.shape[0] * x.shape[1], counts, 0).argmax())


def recoded(sae: Sae, x: Tensor, latent: int, change: Callable[[float], float]) -> Tensor:
    """Return x - x_hat(z) + x_hat(z') row by row, from dense codes and the dictionary's own decoder."""
    rows = []
    for row in x.flatten(0, 1):
        _, scale = sae.normaliser.into(row[None])
        dense = sae.encode(row[None]).dense()
        other = dense.clone()
        other[0, latent] = change(float(dense[0, latent]))
        old, new = (sae.decode(Code.from_dense(z), scale) for z in (dense, other))
        rows.append(row + (new - old)[0])
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("normalise", ["scalar", "layer", "none"])
@pytest.mark.parametrize(("how", "value"), [("clamp", 5.0), ("clamp", -2.0), ("ablate", None), ("add", 3.0)])
def test_the_change_is_that_of_the_decoded_code(
    gpt2: ModelHandle, tokens: Tensor, rule: str, normalise: str, how: str, value: float | None
) -> None:
    sae = fitted(gpt2, tokens, rule, normalise)
    x = read(gpt2, tokens)
    latent = busiest(sae, x[:, 1:])
    with steer(gpt2, SITE, sae, latent, how, value):
        found = read(gpt2, tokens)
    changes = {"clamp": lambda z: value, "ablate": lambda z: 0.0, "add": lambda z: z + (value or 0.0)}
    wanted = recoded(sae, x, latent, changes[how])
    assert torch.equal(found[:, 0], x[:, 0])  # BOS
    assert torch.allclose(found[:, 1:], wanted[:, 1:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[:, 1:], x[:, 1:], atol=1e-2)


@pytest.mark.parametrize("normalise", ["scalar", "layer"])
def test_no_change_is_no_change_to_the_last_bit(model: ModelHandle, tokens: Tensor, normalise: str) -> None:
    sae = fitted(model, tokens, normalise=normalise)
    x = read(model, tokens)
    clean = model.logits(tokens)
    z = sae.encode(x).dense().view(2, 10, -1)
    row, position, latent = (int(i) for i in (z[:, 1:] != 0).nonzero()[0])
    own = float(z[row, position + 1, latent])
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[row, position + 1] = True
    silent = int((z != 0).flatten(0, 1).sum(0).argmin())
    on = z[..., silent] != 0
    with steer(model, SITE, sae, latent, "clamp", own, positions=mask):
        assert torch.equal(model.logits(tokens), clean)
    with steer(model, SITE, sae, latent, "add", 0.0):
        assert torch.equal(model.logits(tokens), clean)
    with steer(model, SITE, sae, silent, "ablate", positions=~on):
        assert torch.equal(model.logits(tokens), clean)
    with steer(model, SITE, sae, latent, "clamp", own + 5, positions=mask):
        assert not torch.equal(model.logits(tokens), clean)
    assert torch.equal(model.logits(tokens), clean)  # nothing is left behind


def test_ablating_and_clamping_at_zero_are_one(gpt2: ModelHandle, tokens: Tensor) -> None:
    sae = fitted(gpt2, tokens)
    latent = busiest(sae, read(gpt2, tokens)[:, 1:])
    with steer(gpt2, SITE, sae, latent, "ablate"):
        ablated = gpt2.logits(tokens)
    with steer(gpt2, SITE, sae, latent, "clamp", 0.0):
        assert torch.equal(gpt2.logits(tokens), ablated)


def test_both_views_and_heads(model: ModelHandle, tokens: Tensor) -> None:
    site = Site(1, "head_out")
    sae = fitted(model, tokens, site=site)
    found = {}
    for view in ("hf", "bridge"):
        with steer(model, site, sae, 3, "add", 4.0, view=view):
            found[view] = model.logits(tokens, view=view)
    assert torch.allclose(found["hf"], found["bridge"], atol=1e-3)
    assert not torch.allclose(found["hf"], model.logits(tokens), atol=1e-2)
    with steer(model, site, sae, 3, "add", 4.0):
        moved = read(model, tokens, site)
    wanted = sae.W_dec[3] * sae.normaliser.scale * 4
    assert torch.allclose((moved - read(model, tokens, site))[:, 1:].flatten(2), wanted.expand(2, 9, -1), atol=1e-4)


def test_positions(gpt2: ModelHandle, tokens: Tensor) -> None:
    sae = fitted(gpt2, tokens)
    x = read(gpt2, tokens)
    for positions, changed in [([-1], [9]), ([0, 4], [0, 4]), ([], []), (None, [*range(1, 10)])]:
        with steer(gpt2, SITE, sae, 7, "add", 2.0, positions=positions):
            moved = (read(gpt2, tokens) != x).any(-1)
        assert [i for i in range(10) if moved[:, i].all()] == changed
        assert int(moved.sum()) == 2 * len(changed)
    for wrong in ([10], [-11], torch.ones(2, 9, dtype=torch.bool)):
        with pytest.raises(ValueError, match="positions must"), steer(gpt2, SITE, sae, 7, "ablate", positions=wrong):
            gpt2.logits(tokens)


def test_rows_that_are_not_finite_are_left_alone(gpt2: ModelHandle, tokens: Tensor) -> None:
    from interp.hooks import patch

    sae = fitted(gpt2, tokens)

    def spoil(x: Tensor) -> Tensor:
        x[0, 3, 0] = math.nan
        x[1, 2] = math.inf
        return x

    with patch(gpt2, SITE, spoil), steer(gpt2, SITE, sae, 7, "add", 2.0):
        found = read(gpt2, tokens)
    x = read(gpt2, tokens)
    assert torch.equal(found[0, 3, 1:], x[0, 3, 1:])
    assert found[1, 2].isinf().all()
    assert (found[0, 4] != x[0, 4]).any()


def test_a_latents_values_in_either_form_of_a_code() -> None:
    dense = torch.tensor([[0.0, 2.0, -1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    slots = Code(torch.tensor([[1, 2], [0, 1], [2, 0]]), torch.tensor([[2.0, -1.0], [3.0, 0.0], [0.0, 0.0]]), 3)
    for latent in range(3):
        assert torch.equal(latent_values(slots, latent), dense[:, latent])
        assert torch.equal(latent_values(Code.from_dense(dense), latent), dense[:, latent])


def test_values_at(gpt2: ModelHandle, tokens: Tensor) -> None:
    sae = fitted(gpt2, tokens, "abs_topk")
    x = read(gpt2, tokens)
    dense = sae.encode(x).dense().view(2, 10, -1)
    assert (dense < 0).any()
    for latent in range(sae.d_sae):
        assert torch.equal(values_at(sae, x, latent), dense[..., latent])


@pytest.mark.parametrize(
    ("latent", "how", "value", "message"),
    [
        (48, "ablate", None, "latent must lie in 0..d_sae-1=47, got 48"),
        (-1, "ablate", None, "latent must lie in 0..d_sae-1=47, got -1"),
        (True, "ablate", None, "latent must be a whole number"),
        (1, "clmp", 1.0, "Unknown steering 'clmp'; did you mean 'clamp'?"),
        (1, "clamp", None, "clamp needs a value"),
        (1, "add", math.nan, "value must be a finite number, got nan"),
        (1, "clamp", math.inf, "value must be a finite number, got inf"),
        (1, "ablate", 2.0, "ablate holds the latent at 0 and takes no value"),
    ],
)
def test_refusals(gpt2: ModelHandle, tokens: Tensor, latent: Any, how: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message), steer(gpt2, SITE, fitted(gpt2, tokens), latent, how, value):
        pass


def test_dictionaries_that_do_not_fit(gpt2: ModelHandle, tokens: Tensor) -> None:
    transcoder = Sae(SaeConfig(32, 48, "topk", {"k": 4}, target=TargetConfig("transcoder"))).eval()
    crosscoder = Sae(SaeConfig(64, 48, "topk", {"k": 4}, target=TargetConfig("crosscoder", blocks=(32, 32)))).eval()
    for sae in (transcoder, crosscoder):
        with pytest.raises(ValueError, match="cannot be added there. Steer"), steer(gpt2, SITE, sae, 1, "ablate"):
            pass
    sae = fitted(gpt2, tokens)
    wide = pytest.raises(ValueError, match="d_in=32 numbers, but mlp_act.1 has 128")
    with wide, steer(gpt2, "mlp_act.1", sae, 1, "ablate"):
        pass
    with pytest.raises(ValueError, match="call sae.eval"), steer(gpt2, SITE, sae.train(), 1, "ablate"):
        pass
    assert Steering(3, "add", -1.0).changed(torch.tensor([2.0])).item() == 1
