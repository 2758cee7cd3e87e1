"""A code is the same thing in all its forms, for any sign and any support."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.code import Code


@st.composite
def codes(draw: st.DrawFn) -> Code:
    """Draw a `[batch k]` code: unique indices in a row, signed values, some of them 0."""
    d_sae = draw(st.integers(1, 12))
    k = draw(st.integers(1, d_sae))
    batch = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    indices = torch.stack([torch.randperm(d_sae, generator=generator)[:k] for _ in range(batch)])
    values = torch.randn(batch, k, generator=generator) * (torch.rand(batch, k, generator=generator) < 0.7)
    return Code(indices, values, d_sae)


@settings(deadline=None)
@given(codes())
def test_every_form_holds_the_same_numbers(code: Code) -> None:
    dense = torch.zeros(len(code), code.d_sae)
    for row in range(len(code)):
        for slot in range(code.indices.shape[1]):
            dense[row, code.indices[row, slot]] = code.values[row, slot]
    for form in (code, code.sparse(), Code.from_dense(dense)):
        assert torch.equal(form.dense(), dense)
        assert torch.equal(form.l0(), (dense != 0).sum(1))
        assert torch.equal(form.counts(), (dense != 0).sum(0))
        assert torch.equal(form.fired(), (dense != 0).any(0))
        assert len(form) == len(dense)


@settings(deadline=None)
@given(codes())
def test_sparse_form_holds_active_slots_only_and_in_order(code: Code) -> None:
    sparse = code.sparse()
    assert sparse.pointers is not None
    assert (sparse.values != 0).all()
    for start, stop in zip(sparse.pointers[:-1].tolist(), sparse.pointers[1:].tolist(), strict=True):
        latents = sparse.indices[start:stop].tolist()
        assert latents == sorted(set(latents))


@settings(deadline=None)
@given(codes())
def test_sorting_by_latent_finds_each_latents_rows(code: Code) -> None:
    for form in (code, code.sparse()):
        order, rows, offsets = form.by_latent
        ends = [*offsets[1:].tolist(), len(order)]
        for latent, (start, stop) in enumerate(zip(offsets.tolist(), ends, strict=True)):
            assert (form.indices.flatten()[order[start:stop]] == latent).all()
            assert sorted(rows[start:stop].tolist()) == sorted(form.rows[form.indices.flatten() == latent].tolist())


@settings(deadline=None)
@given(codes(), codes())
def test_concatenation_stacks_rows(first: Code, second: Code) -> None:
    second = Code(second.indices % first.d_sae, second.values, first.d_sae)
    for a, b in ((first, first), (first.sparse(), second.sparse())):
        assert torch.equal(Code.concatenate([a, b]).dense(), torch.cat([a.dense(), b.dense()]))


@settings(deadline=None)
@given(codes())
def test_slots_that_are_silent_fire_nothing_in_any_form(code: Code) -> None:
    silent = code.with_values(torch.zeros_like(code.values))
    flat = Code(
        silent.indices.flatten(),
        silent.values.flatten(),
        code.d_sae,
        torch.arange(len(code) + 1) * code.indices.shape[1],
    )
    for form in (silent, silent.sparse(), flat):
        assert not form.fired().any()
        assert int(form.l0().sum()) == int(form.counts().sum()) == 0


def test_code_at_places_of_a_matrix() -> None:
    dense = torch.arange(12.0).view(3, 4)
    code = Code.at(dense, torch.tensor([1, 2, 11]))
    assert code.pointers is not None
    assert code.pointers.tolist() == [0, 2, 2, 3]
    assert code.indices.tolist() == [1, 2, 3]
    assert code.values.tolist() == [1.0, 2.0, 11.0]
