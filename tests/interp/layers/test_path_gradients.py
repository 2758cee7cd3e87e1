"""Integrated gradients of layer outputs: completeness, a slow loop over the path, finite differences along it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.hooks import capture, patch
from interp.layers.path_gradients import KINDS, layer_path_gradients, position_rows
from interp.layers.suffix import Suffix
from interp.models import ModelHandle
from interp.sites import Site


def some_tokens(length: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(1, 300, (1, length), generator=torch.Generator().manual_seed(seed))


def likely_tokens(model: ModelHandle, answers: int = 2) -> Tensor:
    """Random tokens, then the model's own likeliest ones: answers that have a probability to lose."""
    tokens = some_tokens(6)
    for _ in range(answers):
        tokens = torch.cat([tokens, model.logits(tokens)[:, -1:].argmax(-1)], 1)
    return tokens


def answer(model: ModelHandle, tokens: Tensor, site: Site, x: Tensor, answers: int) -> Tensor:
    """The sum of the answers' probabilities with x at `site`, by a whole forward."""
    with patch(model, site, lambda _: x):
        logits = model.forward(tokens[:, :-1], grad=True)
    assert logits is not None
    p = logits[0, -answers:].softmax(-1)
    return p.gather(1, tokens[0, -answers:, None]).sum()


def at(model: ModelHandle, tokens: Tensor, site: Site, first: int = 1) -> tuple[Tensor, Tensor]:
    """The activation at `site` and its baseline."""
    with capture(model, site) as acts:
        model.forward(tokens[:, :-1])
    x = acts[site].clone()
    baseline = x.clone()
    baseline[:, first:] = x[:, first:].mean(1, keepdim=True)
    return x, baseline


@pytest.mark.parametrize(("rule", "shift"), [("midpoint", 0.5), ("left", 0.0)])
def test_scores_by_a_loop_over_the_path(model: ModelHandle, rule: str, shift: float) -> None:
    tokens = likely_tokens(model)
    found = layer_path_gradients(model, tokens, kinds=KINDS, answers=2, steps=3, rule=rule, batch=2)
    assert [one.site for one in found] == [Site(layer, kind) for kind in KINDS for layer in range(3)]
    for one in found[::4]:
        x, baseline = at(model, tokens, one.site)
        total = torch.zeros_like(x)
        for k in range(3):
            point = (baseline + (k + shift) / 3 * (x - baseline)).requires_grad_()
            answer(model, tokens, one.site, point, 2).backward()
            assert point.grad is not None
            total += point.grad / 3
        slow = ((x - baseline) * total).sum(-1)[0]
        torch.testing.assert_close(one.scores, slow, rtol=1e-3, atol=1e-6)
        ends = [float(answer(model, tokens, one.site, z, 2)) for z in (x, baseline)]
        assert one.change == pytest.approx(ends[0] - ends[1], abs=1e-5)
        assert one.output == pytest.approx(ends[0], abs=1e-5)
        assert float(one.scores[0]) == 0  # position 0 stays


@pytest.mark.parametrize("model", ["gpt2", "neox", pytest.param("llama", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("first", [False, True])
def test_scores_add_up_and_the_midpoint_rule_is_nearer(model: ModelHandle, first: bool) -> None:
    tokens = likely_tokens(model)
    asked = {"kinds": ("resid_post",), "answers": 2, "steps": 256, "move_first": first, "batch": 256}
    middle = layer_path_gradients(model, tokens, **asked)  # type: ignore[arg-type]
    left = layer_path_gradients(model, tokens, rule="left", **asked)  # type: ignore[arg-type]
    for one in (*middle, *left):
        assert abs(one.gap) < 1e-2
    assert sum(abs(one.gap) for one in middle) < sum(abs(one.gap) for one in left) / 3
    assert max(abs(one.change) for one in middle) > 0.02
    assert any(float(one.scores[0]) != 0 for one in middle) == first


def test_more_points_are_taken_where_the_sum_is_missed(gpt2: ModelHandle) -> None:
    tokens = likely_tokens(gpt2)
    asked = {"answers": 2, "steps": 1}
    rough = layer_path_gradients(gpt2, tokens, **asked)  # type: ignore[arg-type]
    fine = layer_path_gradients(gpt2, tokens, most_steps=64, **asked)  # type: ignore[arg-type]
    assert [one.steps for one in rough] == [1, 1, 1]
    assert max(one.steps for one in fine) > 1
    for before, after in zip(rough, fine, strict=True):
        assert after.change == before.change
        missed = abs(before.gap) > 0.01 * max(abs(before.change), 0.01)
        assert (after.steps > 1) == missed
        assert after.steps == 64 or abs(after.gap) <= 0.01 * max(abs(after.change), 0.01)


def test_gradients_are_slopes_along_the_path(gpt2: ModelHandle) -> None:
    tokens, site = some_tokens(), Site(1, "mlp_out")
    x, baseline = at(gpt2, tokens, site)
    one = layer_path_gradients(gpt2, tokens, kinds=("mlp_out",), steps=1)[1]
    middle, step = (x + baseline) / 2, 0.05
    ends = [float(answer(gpt2, tokens, site, middle + side * step * (x - baseline), 1)) for side in (1, -1)]
    assert one.total == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.02, abs=1e-6)


@pytest.mark.slow
def test_whole_forwards_give_the_same(model: ModelHandle) -> None:
    tokens = some_tokens()
    whole = Suffix(model, tokens[:, :-1], cone=False)
    usual = layer_path_gradients(model, tokens, kinds=KINDS, steps=3)
    slow = layer_path_gradients(model, tokens, kinds=KINDS, steps=3, suffix=whole)
    for one, other in zip(usual, slow, strict=True):
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-3, atol=1e-6)


def test_works_inside_inference_mode_and_lists_positions(llama: ModelHandle) -> None:
    with torch.inference_mode():
        found = layer_path_gradients(llama, some_tokens(), steps=2)
    rows = list(position_rows(found))
    assert len(rows) == 3 * 7
    assert rows[8] == ("resid_post", 1, 1, pytest.approx(float(found[1].scores[1])))


def test_bad_questions_are_refused(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match="midpoint"):
        layer_path_gradients(gpt2, some_tokens(), rule="midpiont")
    with pytest.raises(ValueError, match="mlp_out"):
        layer_path_gradients(gpt2, some_tokens(), kinds=("mlp_ot",))
    for tokens, more in (
        (some_tokens().repeat(2, 1), {}),
        (some_tokens(), {"steps": 0}),
        (some_tokens(2), {"answers": 2}),
    ):
        with pytest.raises(ValueError, match="one text, 1 or more steps and fewer answers than tokens"):
            layer_path_gradients(gpt2, tokens, **more)  # type: ignore[arg-type]
