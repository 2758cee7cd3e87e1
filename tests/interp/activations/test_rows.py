from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.activations.rows import Draw, RowPlan, _static_counts, generator
from interp.data import Blocks


@st.composite
def plans(draw: st.DrawFn) -> tuple[Blocks, RowPlan]:
    """Blocks of random tokens with padding at the end and BOS (0) anywhere, in random order."""
    count, context = draw(st.integers(1, 6)), draw(st.integers(2, 5))
    tokens = draw(st.lists(st.integers(0, 3), min_size=count * context, max_size=count * context))
    lengths = draw(st.lists(st.integers(1, context), min_size=count, max_size=count))
    keep = torch.arange(context)[None] < torch.tensor(lengths)[:, None]
    blocks = Blocks(torch.tensor(tokens, dtype=torch.int32).view(count, context), keep, count, False, 0)
    order = np.array(draw(st.permutations(range(count))))
    return blocks, RowPlan(blocks, order, drop_bos=draw(st.booleans()))


@given(plans(), st.integers(1, 7))
def test_stretches_of_any_length_visit_every_row_once_and_in_order(made: tuple[Blocks, RowPlan], length: int) -> None:
    _, plan = made
    wanted = [(int(b), int(p)) for b in plan.order for p in np.flatnonzero(plan.usable(np.array([b]))[0])]
    found = []
    for first in range(0, len(plan), length):
        chosen, mask = plan.blocks_of(first, min(first + length, len(plan)))
        assert len(chosen) <= length + (mask.sum(1) == 0).sum()
        block, position = np.nonzero(mask)
        found += list(zip(chosen[block].tolist(), position.tolist(), strict=True))
    assert found == wanted
    assert len(plan) == len(wanted)


@given(plans(), st.integers(1, 7))
def test_counts_of_stretches_add_up_to_the_epoch(made: tuple[Blocks, RowPlan], length: int) -> None:
    blocks, plan = made
    totals = {"padding": 0, "bos": 0}
    for first in range(0, len(plan), length):
        chosen, mask = plan.blocks_of(first, min(first + length, len(plan)))
        for name, count in _static_counts(blocks, plan, chosen, mask).items():
            totals[name] += count
    visited = plan.usable(np.arange(len(blocks))).any(1)  # a block without any row is in no stretch
    keep = blocks.keep.numpy()[visited]
    assert totals["padding"] == (~keep).sum()
    assert totals["padding"] + totals["bos"] + len(plan) == keep.size


def test_no_two_purposes_share_a_stream() -> None:
    drawn = {tuple(generator(draw, *key).integers(0, 2**32, 2)) for draw in Draw for key in ((1,), (1, 2), (1, 2, 3))}
    assert len(drawn) == 3 * len(Draw)
