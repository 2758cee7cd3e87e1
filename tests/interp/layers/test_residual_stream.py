"""Contributions to the residual stream by a slow loop, on the three families, and where blocks do not add."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.hooks import capture
from interp.layers.stream import KINDS, MEASURES, Contributions, contributions, cosine, is_parallel
from interp.layers.tokens import TokenValues, later_rows, upper
from interp.models import ModelHandle
from interp.sites import Site


def some_tokens(seed: int = 0) -> Tensor:
    return torch.randint(1, 300, (3, 9), generator=torch.Generator().manual_seed(seed))


def slow_measures(h: np.ndarray, a: np.ndarray, m: np.ndarray, after: np.ndarray, parallel: bool) -> dict[str, float]:
    """One token, from the definitions."""

    def size(x: np.ndarray) -> float:
        return math.sqrt(sum(float(v) ** 2 for v in x))

    def cos(x: np.ndarray, y: np.ndarray) -> float:
        return sum(float(v) * float(w) for v, w in zip(x, y, strict=True)) / size(x) / size(y)

    mid = h if parallel else h + a
    return {
        "norm": size(after),
        "attn_share": size(a) / size(h),
        "mlp_share": size(m) / size(mid),
        "block_share": size(a + m) / size(h),
        "attn_cosine": cos(a, h),
        "mlp_cosine": cos(m, mid),
        "block_cosine": cos(a + m, h),
        "stream_cosine": cos(after, h),
    }


def test_rows_are_means_over_later_tokens_of_the_definition(model: ModelHandle) -> None:
    found = Contributions(3, parallel=is_parallel(model))
    assert is_parallel(model) == (model.family == "gpt_neox")
    kept = torch.ones(3, 9, dtype=torch.bool)
    kept[2, 5:] = False
    values: dict[tuple[int, str], list[float]] = {}
    first: dict[tuple[int, str], list[float]] = {}
    for part, keep in zip(some_tokens().split(2), kept.split(2), strict=True):
        with capture(model, found.sites) as acts:
            model.forward(part)
        found.update(acts, keep)
        for layer in range(3):
            h, a, m, after = (acts[Site(layer, kind)].double().numpy() for kind in KINDS)
            for b, t in keep.nonzero().tolist():
                into = values if t else first
                slow = slow_measures(h[b, t], a[b, t], m[b, t], after[b, t], is_parallel(model))
                for name, value in slow.items():
                    into.setdefault((layer, name), []).append(value)
    rows = found.finish()
    assert [row["layer"] for row in rows] == [0, 1, 2]
    assert {row["tokens"] for row in rows} == {2 * 8 + 4}
    for (layer, name), each in values.items():
        assert rows[layer][f"{name}_mean"] == pytest.approx(np.mean(each), rel=1e-9)
        assert rows[layer][f"{name}_max"] == pytest.approx(max(each), rel=1e-9)
        assert rows[layer][f"{name}_p95"] == pytest.approx(sorted(each)[math.ceil(0.95 * len(each)) - 1], rel=1e-9)
        assert rows[layer][f"{name}_first"] == pytest.approx(np.mean(first[layer, name]), rel=1e-9)
    assert max(row["unexplained_max"] for row in rows) < 1e-5


def test_the_denominator_of_the_mlp_depends_on_what_it_reads() -> None:
    h, a = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[-3.0, 8.0]]])
    m = torch.tensor([[[0.0, 6.0]]])
    one = contributions(h, a, m, h + a + m, parallel=False)
    other = contributions(h, a, m, h + a + m, parallel=True)
    assert float(one["mlp_share"]) == pytest.approx(6 / 12)
    assert float(other["mlp_share"]) == pytest.approx(6 / 5)
    assert float(one["mlp_cosine"]) == pytest.approx(1.0)
    assert float(other["mlp_cosine"]) == pytest.approx(0.8)
    assert float(one["attn_share"]) == float(other["attn_share"])


def test_a_scale_of_the_whole_stream_changes_norms_only() -> None:
    g = torch.Generator().manual_seed(0)
    h, a, m = (torch.randn(2, 3, 5, generator=g) for _ in range(3))
    one = contributions(h, a, m, h + a + m, parallel=False)
    other = contributions(*(1e4 * x for x in (h, a, m, h + a + m)), parallel=False)
    for name in set(MEASURES) - {"unexplained"}:
        factor = 1e4 if name == "norm" else 1.0
        assert torch.allclose(other[name], factor * one[name], rtol=1e-5)


def test_a_norm_after_the_sum_is_refused_and_so_is_nothing_else() -> None:
    g = torch.Generator().manual_seed(0)
    h, a, m = (torch.randn(2, 6, 8, generator=g) for _ in range(3))
    after = torch.nn.functional.layer_norm(h + a + m, (8,))
    for last, fits in ((h + a + m, True), ((h + a + m).bfloat16(), True), (after, False)):
        found = Contributions(1, parallel=False)
        found.update({Site(0, kind): x for kind, x in zip(KINDS, (h, a, m, last), strict=True)})
        if fits:
            assert found.finish()[0]["unexplained_mean"] < 0.01
        else:
            with pytest.raises(ValueError, match=r"blocks that add to the stream.*in block 0"):
                found.finish()


def test_float16_does_not_overflow_and_infinities_are_counted() -> None:
    h = torch.full((1, 4, 64), 6e4, dtype=torch.float16)  # |h|^2 is far beyond float16, and beyond float32 below
    zero = torch.zeros_like(h)
    found = contributions(h, zero, zero, h, parallel=False)
    assert torch.allclose(found["norm"], torch.full((1, 4), 59_968.0 * 8, dtype=torch.float64), rtol=1e-3)
    assert torch.isfinite(contributions(*(x.float() * 1e30 for x in (h, zero, zero, h)), parallel=False)["norm"]).all()
    h[0, 2, 0] = torch.inf
    sums = Contributions(1, parallel=False)
    sums.update({Site(0, kind): x for kind, x in zip(KINDS, (h, zero, zero, h), strict=True)})
    row = sums.finish()[0]
    assert (row["tokens"], row["left_out"]) == (2, 1)
    assert math.isnan(row["attn_cosine_mean"])  # a vector of zeros has no direction
    assert row["attn_share_mean"] == 0


def test_a_vast_first_token_changes_the_first_column_alone() -> None:
    g = torch.Generator().manual_seed(0)
    values = torch.rand(4, 6, generator=g)
    usual, odd = TokenValues(), TokenValues()
    usual.update(values)
    values[:, 0] = 1e6
    odd.update(values)
    one, other = usual.finish("x"), odd.finish("x")
    assert other.pop("x_first") == 1e6
    one.pop("x_first")
    assert one == other
    assert later_rows(torch.ones(2, 5, 3)).shape == (8, 3)


def test_summaries_of_few_values() -> None:
    assert upper(torch.arange(1.0, 101.0)) == 95
    assert upper(torch.tensor([7.0])) == 7
    single = TokenValues()
    single.update(torch.tensor([[2.0]]))  # a prompt of one token has nothing after position 0
    found = single.finish("x")
    assert found["x_first"] == 2
    assert all(math.isnan(found[name]) for name in ("x_mean", "x_p95", "x_max"))
    assert cosine(torch.ones(2), torch.ones(2)).item() == pytest.approx(1.0)
