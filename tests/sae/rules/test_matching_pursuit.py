"""Matching pursuit against its definition one row at a time, its gradient against the loop's, and its stops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.config import TrainConfig
from sae.training import Training


def matching_pursuit_reference(
    x: Tensor, atoms: Tensor, k: int, residual: float = 0.0, until_repeat: bool = False
) -> Tensor:
    """Return the dense code of centred rows, differentiable, one step of one row at a time."""
    out = []
    for row in x:
        left, z, seen = row, torch.zeros(len(atoms), dtype=x.dtype), set()
        for _ in range(k):
            scores = atoms @ left
            i = int(scores.detach().argmax())
            if left.norm() <= residual * row.norm() or scores[i] <= 0 or (until_repeat and i in seen):
                break
            seen.add(i)
            z = z + scores[i] * torch.nn.functional.one_hot(torch.tensor(i), len(atoms))
            left = left - scores[i] * atoms[i]
        out.append(z)
    return torch.stack(out)


STOPS = [{"k": 5}, {"k": 30}, {"k": 30, "residual": 0.3}, {"k": 30, "until_repeat": True}]


@pytest.mark.parametrize("atoms", ["unit", "free"])
@pytest.mark.parametrize("args", STOPS)
def test_code_equals_the_slow_reference(args: dict, atoms: str, built: Callable, rows: Callable) -> None:
    sae = built("matching_pursuit", atoms=atoms, **args)
    x, _ = sae.normaliser.into(rows(30, seed=3))
    with torch.no_grad():
        code = sae.encode_normalised(x)
        expected = matching_pursuit_reference(x - sae.b_dec, sae.unit()[2], **args)
    assert torch.allclose(code.dense(), expected, atol=1e-4)
    assert (code.values > 0).all(), "no slot for what was not taken"


def test_the_stops_stop_before_k(built: Callable, rows: Callable) -> None:
    sae = built("matching_pursuit", k=30, residual=0.5).eval()
    with torch.no_grad():
        x, _ = sae.normaliser.into(rows(200, seed=4))
        code = sae.encode_normalised(x)
        left = (sae.decode_normalised(code) - x).norm(dim=1) / (x - sae.b_dec).norm(dim=1)
        assert ((left <= 0.5) | (code.l0() > 8)).all()
        assert float((left <= 0.5).double().mean()) > 0.9
        assert len(code.l0().unique()) > 3, "rows take as many latents as they need"
        once = built("matching_pursuit", k=30, until_repeat=True).encode_normalised(x).l0()
        all_steps = built("matching_pursuit", k=30).encode_normalised(x).l0()
    assert (once <= all_steps).all()
    assert (once < all_steps).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("atoms", ["unit", "free"])
def test_gradients_equal_autograd_through_the_loop(
    dtype: torch.dtype, atoms: str, built: Callable, rows: Callable
) -> None:
    sae = built("matching_pursuit", "none", atoms, k=12).to(dtype).train()
    x = rows(40, seed=5).to(dtype)
    code = sae.encode_normalised(x)
    assert int(code.l0().min()) < 12, "some atom comes up twice"
    loss = (x - sae.decode_normalised(code)).square().mean() + 0.1 * code.values.square().sum()
    z = matching_pursuit_reference(x - sae.b_dec, sae.unit()[2], 12)
    dense = (x - z @ sae.unit()[2] - sae.b_dec).square().mean() + 0.1 * z.square().sum()
    ours, theirs = (torch.autograd.grad(each, [sae.W_dec, sae.b_dec]) for each in (loss, dense))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= (1e-5 if dtype == torch.float32 else 1e-12) * b.norm()


def test_the_residual_falls_with_every_step_and_codes_are_prefixes(built: Callable, rows: Callable) -> None:
    sae = built("matching_pursuit", k=40).eval()
    x, _ = sae.normaliser.into(rows(50, seed=6))
    before, last = torch.zeros(50, 40), torch.full((50,), torch.inf)
    for k in range(1, 25):
        sae.rule.k_eval = k
        with torch.no_grad():
            code = sae.encode_normalised(x)
            left = (x - sae.decode_normalised(code)).norm(dim=1)
        z = code.dense()
        assert (left <= last * (1 + 1e-6)).all()
        step = z - before
        assert ((step.abs() > 1e-6).sum(1) <= 1).all(), "one step more changes one latent"
        assert (step >= -1e-6).all()
        before, last = z, left
    assert (last < (x - sae.b_dec).norm(dim=1)).all()


def test_what_is_left_is_orthogonal_to_the_last_atom(built: Callable, rows: Callable) -> None:
    sae = built("matching_pursuit", "none", k=40).double().eval()
    sae.W_dec.data /= sae.W_dec.norm(dim=1, keepdim=True)
    x = rows(50, seed=7).double()
    codes = []
    for k in (4, 5):
        sae.rule.k_eval = k
        with torch.no_grad():
            codes.append(sae.encode_normalised(x))
    last = (codes[1].dense() - codes[0].dense()).argmax(1)
    left = x - sae.decode_normalised(codes[1])
    assert (left * sae.W_dec[last]).sum(1).abs().max() < 1e-12


def test_evaluation_may_take_other_steps_than_training(built: Callable, rows: Callable) -> None:
    sae, x = built("matching_pursuit", k=2, k_eval=6), rows(50, seed=8)
    with torch.no_grad():
        assert int(sae.train().encode(x).l0().max()) == 2
        assert int(sae.eval().encode(x).l0().max()) > 2


def test_the_encoder_learns_nothing_and_is_the_atoms_in_the_end(built: Callable, rows: Callable) -> None:
    sae = built("matching_pursuit", k=4)
    training = Training(sae.train(), TrainConfig(tokens=20 * 64, batch=64, lr=5e-3, dead_after=64))
    for step in range(20):
        training.advance(rows(64, seed=60 + step))
    assert sae.W_enc.grad is None
    sae.finalise()
    assert torch.equal(sae.W_enc, sae.W_dec)


def test_a_row_that_is_not_finite_is_not_hidden(built: Callable, rows: Callable) -> None:
    sae, x = built("matching_pursuit", k=3, residual=0.1).eval(), rows(4, seed=9)
    x[2, 5] = torch.nan
    with torch.no_grad():
        recon, _ = sae(x)
    assert recon.isnan().any(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("k", 41, r"k must lie in 1\.\.d_sae=40, got 41"), ("k_eval", 0, "k must lie in"), ("residual", -0.1, "0..1")],
)
def test_arguments_out_of_range_are_refused(name: str, value: float, message: str, built: Callable) -> None:
    with pytest.raises(ValueError, match=message):
        built("matching_pursuit", **{name: value})
