"""Selection over a whole batch against sorting everything."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae.code import Code
from sae.selection import (
    _candidates,
    above,
    batch_largest,
    column_largest,
    column_shares,
    floors,
    follow_floors,
    from_columns,
    latents_between,
    transposed,
)


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(
    rows=st.integers(1, 70),
    columns=st.sampled_from([1, 7, 64, 122, 610]),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_batch_largest_is_the_sorted_end(rows: int, columns: int, share: float, seed: int) -> None:
    pre = matrix(rows, columns, seed)
    n = round(share * pre.numel())
    places = batch_largest(pre, n)
    assert (places.diff() > 0).all()
    assert torch.equal(pre.view(-1)[places].sort(descending=True).values, pre.view(-1).sort(descending=True).values[:n])


@pytest.mark.parametrize(("rows", "columns", "n"), [(256, 1024, 4096), (200, 610, 2000), (64, 4096, 2000)])
def test_a_batch_of_usual_size_is_searched_by_a_floor(rows: int, columns: int, n: int) -> None:
    pre = matrix(rows, columns)
    few = _candidates(pre.view(-1), n, columns)
    assert few is not None
    assert n <= len(few) < 2 * n
    assert torch.equal(batch_largest(pre, n), pre.view(-1).topk(n).indices.sort().values)


@pytest.mark.parametrize("kind", ["equal", "columns", "spikes", "nan"])
def test_a_sample_that_misleads_costs_time_and_nothing_else(kind: str) -> None:
    pre, n = matrix(256, 512), 3000
    if kind == "equal":
        pre = torch.ones(256, 512)
    elif kind == "columns":  # rows of one kind all over
        pre = matrix(1, 512).expand(256, 512).contiguous()
    elif kind == "spikes":  # large entries exactly where the sample looks
        pre.view(-1)[::61] += 100
    else:
        pre[3] = torch.nan
    places = batch_largest(pre, n)
    assert places.unique().numel() == n
    found, wanted = pre.view(-1)[places].sort().values, pre.view(-1).topk(n).values.sort().values
    assert torch.equal(found.nan_to_num(999.0), wanted.nan_to_num(999.0))


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(ValueError, match=r"n must lie in 0\.\.12 entries of a \[3, 4\] matrix, got 13"):
        batch_largest(matrix(3, 4), 13)
    with pytest.raises(ValueError, match=r"counts must lie in 0\.\.batch=4, got 0 to 5; take more rows"):
        column_largest(matrix(3, 4), torch.tensor([0, 5, 1]))


@given(batch=st.integers(1, 130), seed=st.integers(0, 1000))
def test_column_largest_takes_each_latents_own_number(batch: int, seed: int) -> None:
    columns = matrix(30, batch, seed)
    counts = torch.randint(0, batch + 1, (30,), generator=torch.Generator().manual_seed(seed))
    counts[seed % 30] = 0
    places = column_largest(columns, counts)
    assert places.unique().numel() == int(counts.sum())
    taken = torch.zeros(30, batch, dtype=torch.bool)
    taken.view(-1)[places] = True
    for i in range(30):
        wanted = columns[i].topk(int(counts[i])).indices
        assert torch.equal(taken[i].nonzero().squeeze(1), wanted.sort().values)


def test_a_code_from_columns_is_the_code_at_the_same_entries(built: Callable, rows: Callable) -> None:
    sae = built("topk").train()
    x, _ = sae.normaliser.into(rows(30, seed=2))
    columns, pre = transposed(x, sae), sae.pre(x)
    assert torch.allclose(columns.t(), pre, atol=1e-5)
    places = batch_largest(columns, 77)
    code = from_columns(columns, places)
    wanted = Code.at(columns.t().contiguous(), batch_largest(pre, 77))
    assert torch.equal(code.indices, wanted.indices)
    assert torch.equal(code.values, wanted.values)
    assert code.pointers is not None
    assert wanted.pointers is not None
    assert torch.equal(code.pointers, wanted.pointers)


@pytest.mark.parametrize("csr", [False, True])
def test_latents_between_splits_a_code_and_keeps_its_graph(csr: bool) -> None:
    indices = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(i))[:5] for i in range(9)])
    values = matrix(9, 5).requires_grad_()
    code = Code(indices, values, 20)
    if csr:
        code = Code(indices.flatten(), values.flatten(), 20, torch.arange(0, 46, 5))
    parts = [latents_between(code, first, end) for first, end in ((0, 3), (3, 3), (3, 11), (11, 20))]
    assert [len(part) for part in parts] == [9] * 4
    assert torch.equal(sum(part.dense() for part in parts), code.dense())
    assert parts[1].indices.numel() == 0
    parts[2].values.sum().backward()
    assert torch.equal(values.grad, ((indices >= 3) & (indices < 11)).float())


@pytest.mark.parametrize("m", [2, 3, 5, 20])
def test_floors_are_exceeded_by_as_many_rows_as_were_kept(m: int) -> None:
    g = torch.Generator().manual_seed(1)
    levels, smallest = [], []
    for _ in range(60):
        columns = torch.empty(40, 200).exponential_(generator=g)
        code = from_columns(columns, column_largest(columns, torch.full((40,), m)))
        levels.append(floors(code))
        smallest.append(torch.full((40,), torch.inf).scatter_reduce(0, code.indices, code.values, "amin"))
    rows = [200 * float((-torch.stack(level).mean(0)).exp().mean()) for level in (levels, smallest)]
    assert rows[0] == pytest.approx(m, rel=0.05)
    assert rows[1] < rows[0], "the smallest kept values alone lie too high"


def test_floors_of_silent_latents_are_infinite_and_of_one_row_its_value() -> None:
    code = Code.from_dense(torch.tensor([[0.0, 2.0, 3.0, 0.1], [0.0, 0.0, 5.0, 9.0]]))
    assert floors(code).tolist() == pytest.approx([torch.inf, 2.0, 2.5, 0.0])


@pytest.mark.parametrize("floor", [torch.tensor(0.3), torch.linspace(-1, 1, 12)])
def test_above_keeps_what_exceeds_the_floor_and_nothing_else(floor: Tensor) -> None:
    pre = matrix(9, 12, seed=8)
    pre[2, 3] = floor.expand(12)[3]
    code = above(pre, floor)
    wanted = torch.where(pre > floor, pre, 0.0)
    assert torch.equal(code.dense(), wanted)
    assert code.values.numel() == int((pre > floor).sum())
    assert code.dense()[2, 3] == 0


def test_shares_of_the_columns_are_met_on_average_and_in_sum() -> None:
    columns, shares = matrix(6, 40, seed=9), torch.tensor([0.5, 0.3, 0.1, 0.06, 0.03, 0.01])
    g = torch.Generator().manual_seed(10)
    counts = torch.stack([torch.bincount(column_shares(columns, shares, g) // 40, minlength=6) for _ in range(400)])
    assert (counts.sum(1) == 40).all()
    assert torch.allclose(counts.double().mean(0), shares.double() * 40, atol=0.1)
    chosen = column_shares(columns, shares, torch.Generator().manual_seed(11))
    for latent in range(6):
        own = chosen[chosen // 40 == latent] % 40
        assert set(own.tolist()) == set(columns[latent].topk(len(own)).indices.tolist())


def test_thresholds_follow_the_mean_floor_of_the_batches_a_latent_is_on_in() -> None:
    codes = [
        Code.from_dense(matrix(8, 5, seed=seed).relu() * torch.tensor([1.0, 1, 1, 1, 0])) for seed in range(12, 18)
    ]
    thresholds, kept = torch.zeros(5), torch.zeros(5, dtype=torch.long)
    for code in codes:
        follow_floors(code, thresholds, kept, window=100)
    assert kept.tolist() == [6, 6, 6, 6, 0]
    every = torch.stack([floors(code) for code in codes])
    assert torch.allclose(thresholds[:4], every[:, :4].mean(0))
    assert thresholds[4] == 0
    follow_floors(codes[0], thresholds, kept, window=1)  # the last batch alone
    assert torch.allclose(thresholds[:4], every[0, :4])
