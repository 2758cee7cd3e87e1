"""Effects of skipping blocks: from the definition by whole forwards, on the three families, and the closed cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from interp.hooks import capture, patch
from interp.layers.skipping import SkipEffects, SkipMatrix, aggregates, depth_score, layer_effects, skip_effects
from interp.layers.suffix import Base, Suffix, check_additive
from interp.models import ModelHandle
from interp.sites import Site

STREAM = [Site(0, "resid_pre"), *(Site(layer, "resid_post") for layer in range(3))]


def some_tokens(rows: int = 3, length: int = 12, seed: int = 0) -> Tensor:
    return torch.randint(1, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


def run(model: ModelHandle, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
    with capture(model, STREAM) as acts:
        logits = model.logits(tokens)
    return [acts[site] for site in STREAM], logits


def slow(model: ModelHandle, tokens: Tensor, part: str, left_out: Tensor, measured: Tensor, local: bool) -> SkipEffects:
    """Whole forwards, token by token, from the definitions."""
    stream, logits = run(model, tokens)
    p = logits.double().softmax(-1)
    with capture(model, [Site(layer, kind) for layer in range(3) for kind in ("attn_out", "mlp_out")]) as parts:
        model.forward(tokens)
    change = torch.full((3, 3, *tokens.shape), math.nan, dtype=torch.float64)
    outs = torch.full((2, 3, *tokens.shape), math.nan, dtype=torch.float64)
    where = left_out[..., None]
    for s in range(3):
        if local:
            gone = {
                "attn": parts[Site(s, "attn_out")],
                "mlp": parts[Site(s, "mlp_out")],
                "block": stream[s + 1] - stream[s],
            }
            moved = torch.where(where, gone[part], 0.0)
            changed = {s: stream[s + 1] - stream[s] - moved}
            for layer in range(s + 1, 3):
                with patch(model, f"resid_pre.{layer}", lambda x: x - moved):  # noqa: B023
                    after = run(model, tokens)[0][layer + 1]
                changed[layer] = after - (stream[layer] - moved)
            with patch(model, "resid_post.2", lambda x: x - moved):  # noqa: B023
                q = run(model, tokens)[1].double().softmax(-1)
        else:
            site, new = {
                "block": (f"resid_post.{s}", stream[s]),
                "attn": (f"attn_out.{s}", torch.zeros_like(stream[s])),
                "mlp": (f"mlp_out.{s}", torch.zeros_like(stream[s])),
            }[part]
            with patch(model, site, lambda x: torch.where(where, new, x)):  # noqa: B023
                again, other = run(model, tokens)
            changed = {layer: again[layer + 1] - again[layer] for layer in range(3)}
            q = other.double().softmax(-1)
        for b, t in measured.nonzero().tolist():
            outs[0, s, b, t] = (q[b, t] - p[b, t]).square().sum().sqrt()
            outs[1, s, b, t] = (p[b, t] * (p[b, t] / q[b, t]).log()).sum()
            for layer in range(3):
                own = (stream[layer + 1] - stream[layer])[b, t]
                new = changed.get(layer, (stream[layer + 1] - stream[layer]))[b, t]
                change[s, layer, b, t] = (own - new).norm() / own.norm()
    return SkipEffects(change, outs[0], outs[1])


def same(found: SkipEffects, slow_one: SkipEffects) -> None:
    close = {"rtol": 1e-3, "atol": 1e-4, "equal_nan": True}
    torch.testing.assert_close(found.change, slow_one.change, **close)
    torch.testing.assert_close(found.out_l2, slow_one.out_l2, **close)
    torch.testing.assert_close(found.out_kl, slow_one.out_kl, **close)


@pytest.mark.parametrize("part", ["block", "attn", "mlp"])
def test_current_effects_by_the_definition(model: ModelHandle, part: str) -> None:
    tokens = some_tokens()
    keep = torch.ones_like(tokens, dtype=torch.bool)
    keep[:, 0], keep[1, 5], keep[2, 9:] = False, False, False
    found = skip_effects(model, tokens, part=part, keep=keep)
    same(found, slow(model, tokens, part, keep, keep, local=False))
    same(skip_effects(model, tokens, part=part, keep=keep, suffix=Suffix(model, tokens, cone=False)), found)


def test_future_effects_by_the_definition(model: ModelHandle) -> None:
    tokens, until = some_tokens(), torch.tensor([4, 7, 11])
    places = torch.arange(12)[None].expand(3, -1)
    before, after = places < until[:, None], places >= until[:, None]
    before[:, 0] = False
    found = skip_effects(model, tokens, until=until)
    same(found, slow(model, tokens, "block", before, after, local=False))
    assert float(found.change[2, 2].nan_to_num().abs().max()) == 0  # no later block carries it to later tokens
    assert float(found.out_l2[2].nan_to_num().abs().max()) < 1e-6


@pytest.mark.parametrize("part", ["block", pytest.param("attn", marks=pytest.mark.slow)])
def test_direct_effects_by_the_definition(model: ModelHandle, part: str) -> None:
    tokens = some_tokens()
    keep = torch.ones_like(tokens, dtype=torch.bool)
    keep[:, 0] = False
    found = skip_effects(model, tokens, part=part, local=True)
    same(found, slow(model, tokens, part, keep, keep, local=True))


def test_no_effect_on_earlier_blocks_and_one_on_itself(model: ModelHandle) -> None:
    for local in (False, True):
        change = skip_effects(model, some_tokens(), local=local).change
        for s in range(3):
            assert float(change[s, :s, :, 1:].abs().max() if s else 0) == 0
            torch.testing.assert_close(change[s, s, :, 1:], torch.ones(3, 11, dtype=torch.float64))
        assert bool(change[..., 0].isnan().all())  # position 0 is never left out and never measured


def test_position_0_stays_as_it_is(model: ModelHandle) -> None:
    tokens = some_tokens()
    seen: list[Tensor] = []
    suffix = Suffix(model, tokens)
    inner = suffix.run

    def listen(x: Tensor, *args: object, **kwargs: object) -> object:
        seen.append(x)
        return inner(x, *args, **kwargs)  # type: ignore[arg-type]

    suffix.run = listen  # type: ignore[method-assign, assignment]
    base = suffix.base(tokens)
    skip_effects(model, tokens, suffix=suffix, base=base)
    starts = seen[::2]  # a run from the block after, then one for the output
    assert len(starts) == 3
    for s, x in enumerate(starts):
        assert torch.equal(x[:, 0], base.stream[s + 1][:, 0])
        assert torch.equal(x[:, 1:], base.stream[s][:, 1:])


def test_a_block_that_adds_nothing_has_no_effect(make_model: Callable[..., ModelHandle]) -> None:
    model = make_model("gpt2")
    block = model.module.transformer.h[1]
    for projection in (block.attn.c_proj, block.mlp.c_proj):
        nn.init.zeros_(projection.weight)
        nn.init.zeros_(projection.bias)
    for until in (None, torch.tensor([5, 5, 5])):
        found = skip_effects(model, some_tokens(), until=until)
        assert float(found.change[1].nan_to_num().abs().max()) == 0
        assert float(found.out_l2[1].nan_to_num().abs().max()) < 1e-6
        assert float(found.out_kl[1].nan_to_num().abs().max()) < 1e-6
        assert float(found.change[0].nan_to_num().abs().max()) > 0.01


def test_direct_is_total_where_later_blocks_are_linear_and_do_not_interact(
    make_model: Callable[..., ModelHandle],
) -> None:
    model = make_model("gpt2")
    for layer in (1, 2):
        block = model.module.transformer.h[layer]
        block.ln_1, block.ln_2, block.mlp.act = nn.Identity(), nn.Identity(), nn.Identity()
        nn.init.zeros_(block.attn.c_proj.weight)
        nn.init.zeros_(block.attn.c_proj.bias)
    first, second = (model.module.transformer.h[layer].mlp for layer in (1, 2))
    first.c_proj.weight[:, :16] = 0  # block 1 writes the second half of the stream,
    first.c_proj.bias[:16] = 0
    second.c_fc.weight[16:] = 0  # which block 2 does not read
    tokens = some_tokens()
    total, direct = (skip_effects(model, tokens, local=local).change[0] for local in (False, True))
    torch.testing.assert_close(total, direct, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert float(total[2].nan_to_num().max()) > 0.01
    second.c_fc.weight[16:] = 0.3  # now it does
    total, direct = (skip_effects(model, tokens, local=local).change[0] for local in (False, True))
    assert float((total[2] - direct[2]).nan_to_num().abs().max()) > 0.01


def test_fewer_operations_than_whole_forwards(gpt2: ModelHandle) -> None:
    tokens = some_tokens(4, 32)
    suffix = Suffix(gpt2, tokens)
    base = suffix.base(tokens)
    with FlopCounterMode(display=False) as ours:
        skip_effects(gpt2, tokens, suffix=suffix, base=base)
    with FlopCounterMode(display=False) as whole:
        for _ in range(3):
            gpt2.logits(tokens)
    unembedding = 2 * 3 * tokens.numel() * 32 * 300
    blocks = whole.get_total_flops() - unembedding
    assert ours.get_total_flops() - unembedding == pytest.approx(blocks / 3, rel=0.01)  # 2 + 1 + 0 of 3 * 3 blocks


def test_half_precision_that_overflows_is_computed_in_float32(make_model: Callable[..., ModelHandle]) -> None:
    vast = torch.full((1, 2, 4), 6e4, dtype=torch.float16)
    base = Base(torch.zeros(1, 2, dtype=torch.long), [vast, -vast], [vast], [vast], vast)
    assert float(base.contribution(0).abs().max()) == pytest.approx(1.2e5, rel=1e-3)  # float16 ends at 65504
    wide, half = make_model("gpt2"), make_model("gpt2")
    half.module.half()
    tokens = some_tokens()
    found, expected = (skip_effects(model, tokens) for model in (half, wide))
    torch.testing.assert_close(found.change, expected.change, rtol=0.05, atol=0.02, equal_nan=True)


def test_matrix_of_batches_is_that_of_all_at_once(gpt2: ModelHandle) -> None:
    tokens = some_tokens(5)
    parts, whole = SkipMatrix(), SkipMatrix()
    for some in tokens.split(2):
        parts.update(skip_effects(gpt2, some))
    found = skip_effects(gpt2, tokens)
    whole.update(found)
    assert parts.tokens == whole.tokens == 55
    for kind in ("mean", "p95", "max"):
        torch.testing.assert_close(parts.change()[kind], whole.change()[kind], rtol=1e-4, atol=1e-5)
    values = found.change[0, 2, :, 1:].flatten().sort().values
    assert float(whole.change()["mean"][0, 2]) == pytest.approx(float(values.mean()))
    assert float(whole.change()["p95"][0, 2]) == float(values[math.ceil(0.95 * 55) - 1])
    assert float(whole.change()["max"][0, 2]) == float(values[-1])
    sums, tokens_of = whole.output_by_sequence()
    assert tokens_of.tolist() == [11] * 5
    torch.testing.assert_close(sums.sum(0)[:3] / 55, whole.output()["mean"][0])
    torch.testing.assert_close(sums[1, 3:], found.out_kl[:, 1, 1:].sum(-1))


def test_aggregates_leave_out_what_is_no_number() -> None:
    values = torch.tensor([[1.0, math.inf, 3.0], [math.nan] * 3], dtype=torch.float64)
    found = aggregates(values)
    assert [float(found[kind][0]) for kind in found] == [2, 3, 3]
    assert all(math.isnan(float(found[kind][1])) for kind in found)


def test_depth_score_is_the_mean_layer() -> None:
    change = torch.tensor([[1.0, 0.5, 0.1], [0, 1.0, 0.4], [0, 0, 1.0]])
    torch.testing.assert_close(layer_effects(change), torch.tensor([0.3, 0.4, 0.0]))
    assert depth_score(layer_effects(change)) == pytest.approx(0.4 / 0.7)
    assert depth_score(torch.tensor([0.0, 0.0, 2.0])) == 2
    assert math.isnan(depth_score(torch.zeros(3)))


def test_a_norm_after_the_sum_is_refused(make_model: Callable[..., ModelHandle], model: ModelHandle) -> None:
    check_additive(model, some_tokens())
    odd = make_model("gpt2")
    for layer in range(3):
        odd.attach(Site(layer, "resid_post"), lambda x: x / x.norm(dim=-1, keepdim=True))
    with pytest.raises(ValueError, match="blocks that add to the stream"):
        check_additive(odd, some_tokens())


def test_bad_questions_are_refused(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match="attn"):
        skip_effects(gpt2, some_tokens(), part="atn")
    for t in (1, 12):
        with pytest.raises(ValueError, match=f"until must lie between tokens that count.*got {t} in row 1"):
            skip_effects(gpt2, some_tokens(), until=torch.tensor([5, t, 5]))
