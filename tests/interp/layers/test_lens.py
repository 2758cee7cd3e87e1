"""The logit lens: the last layer is the model, and the numbers of a prediction are what they are called."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from interp.hooks import capture
from interp.layers.lens import Prediction, lens_logits, row_chunk
from interp.models import ModelHandle


def some_tokens() -> torch.Tensor:
    return torch.randint(1, 300, (3, 10), generator=torch.Generator().manual_seed(0))


def test_after_the_last_block_it_is_the_model(model: ModelHandle) -> None:
    with capture(model, [f"resid_post.{i}" for i in range(3)]) as acts:
        logits = model.logits(some_tokens())
    assert torch.allclose(lens_logits(model, acts["resid_post.2"]), logits, atol=1e-5)
    assert not torch.allclose(lens_logits(model, acts["resid_post.0"]), logits, atol=0.1)


def test_a_prediction_agrees_with_torch() -> None:
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(5, 7, generator=g), torch.randn(5, 7, generator=g)
    targets = torch.tensor([0, 6, 3, 3, 1])
    a, b = Prediction(x), Prediction(y)
    assert torch.allclose(a.loss(targets), cross_entropy(x, targets, reduction="none"))
    expected = kl_div(y.log_softmax(-1), x.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    assert torch.allclose(a.kl_to(b), expected, atol=1e-6)
    assert torch.allclose(a.entropy(), torch.distributions.Categorical(logits=x).entropy())
    assert a.top.tolist() == x.argmax(-1).tolist()
    assert (Prediction(x.clone()).kl_to(a) == 0).all()


def test_a_token_that_is_excluded_adds_nothing_and_one_that_is_needed_costs_everything() -> None:
    x = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 0.0, 0.0]])
    y = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -torch.inf]])
    kl = Prediction(x).kl_to(Prediction(y))
    assert kl[0] == pytest.approx(torch.tensor(1.5).log().item())
    assert kl[1] == torch.inf
    assert Prediction(x).entropy()[0] == pytest.approx(torch.tensor(2.0).log().item())


def test_rows_worked_on_at_once_are_bounded() -> None:
    cpu = torch.device("cpu")
    assert row_chunk(4096, cpu) == 256
    assert row_chunk(10**7, cpu) == 16
