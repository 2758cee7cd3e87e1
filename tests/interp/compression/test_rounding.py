from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from interp.compression.steps import Rtn
from interp.compression.steps.rounding import MODES, round_rows, round_tokens


def gaussian(rows: int, inputs: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))


def slowly(w: Tensor, bits: int, mode: str) -> Tensor:
    """One row, number by number, from the definition (Python rounds half to even, as torch does)."""
    out = []
    row = [float(x) for x in w.double()]
    if mode == "symmetric":
        scale = max(abs(x) for x in row) / ((2**bits - 1) / 2)
        for x in row:
            out.append(min(max(round(x / scale), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1) * scale)
    else:
        low, high = min(*row, 0.0), max(*row, 0.0)
        scale = (high - low) / (2**bits - 1)
        zero = round(-low / scale)
        for x in row:
            out.append((min(max(round(x / scale) + zero, 0), 2**bits - 1) - zero) * scale)
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rows_equal_the_definition(mode: str, bits: int) -> None:
    w = gaussian(5, 24).double()
    w[0] = w[0].abs() + 1  # a row without a zero between its ends
    w[1, w[1].abs().argmax()] *= -1
    w += 1e-3  # off the ties, where two ways of dividing may fall to different sides
    found = round_rows(w, bits, mode)
    for row, expected in zip(found, w, strict=True):
        peak = expected.abs().argmax()  # symmetric: on the border of two codes by construction
        left = torch.arange(len(row)) != peak if mode == "symmetric" else torch.ones(len(row), dtype=torch.bool)
        assert torch.allclose(row[left], slowly(expected, bits, mode)[left], atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", range(2, 9))
def test_there_are_at_most_two_to_the_bits_levels(mode: str, bits: int) -> None:
    for rounded in (round_rows(gaussian(3, 4096), bits, mode), round_tokens(gaussian(3, 4096), bits, mode)):
        for row in rounded:
            assert 2 ** (bits - 1) < len(row.unique()) + 2 <= 2**bits + 2


@pytest.mark.parametrize("mode", MODES)
def test_squared_error_falls_fourfold_with_each_bit(mode: str) -> None:
    w = gaussian(64, 256)
    errors = [float((round_rows(w, bits, mode) - w).square().mean()) for bits in range(3, 9)]
    for coarse, fine in itertools.pairwise(errors):
        assert 3.5 < coarse / fine < 6.0
    assert 3.8 < errors[-2] / errors[-1] < 4.2


@pytest.mark.parametrize("mode", MODES)
@given(seed=st.integers(0, 1000), bits=st.integers(2, 8))
@settings(max_examples=20, deadline=None)
def test_zero_stays_zero_and_the_error_is_at_most_a_step(mode: str, seed: int, bits: int) -> None:
    w = gaussian(4, 12, seed) * 10 ** (seed % 7 - 3)
    w[:, ::3] = 0
    for rounded, steps in ((round_rows(w, bits, mode), 2**bits - 1), (round_tokens(w, bits, mode), 2**bits - 2)):
        assert torch.equal(rounded[:, ::3], torch.zeros(4, 4))
        spread = 2 * w.abs().amax(1) if mode == "symmetric" else w.amax(1).clamp(min=0) - w.amin(1).clamp(max=0)
        assert ((rounded - w).abs() <= 1.001 * spread[:, None] / steps).all()


@pytest.mark.parametrize("mode", MODES)
def test_groups_are_rows_of_their_own(mode: str) -> None:
    w = gaussian(6, 32)
    w[:, 8:16] *= 100  # an outlier group does not touch the others
    found = round_rows(w, 4, mode, group=8)
    apart = torch.cat([round_rows(w[:, i : i + 8], 4, mode) for i in range(0, 32, 8)], dim=1)
    assert torch.equal(found, apart)
    assert (found - w)[:, :8].norm() < 0.5 * (round_rows(w, 4, mode) - w)[:, :8].norm()


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_zeros_and_of_tiny_numbers(mode: str) -> None:
    w = torch.zeros(2, 4)
    w[1] = torch.tensor([1e-42, -1e-42, 0, 1e-42])
    found = round_rows(w, 4, mode)
    assert torch.isfinite(found).all()
    assert torch.equal(found[0], w[0])


def test_the_largest_activation_has_a_code_of_its_own() -> None:
    """On the border of two codes, the last bit would decide, and the two views of a model would differ by a step."""
    x = gaussian(7, 33).double()
    peaks = x.abs().argmax(1, keepdim=True)
    for wobble in (1 - 1e-13, 1.0, 1 + 1e-13):
        rounded = round_tokens(x * wobble, 8, "symmetric")
        assert torch.allclose(rounded.gather(1, peaks), x.gather(1, peaks), rtol=1e-12)
        assert torch.allclose(rounded, round_tokens(x, 8, "symmetric"), atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_int8_equals_torchao(family: str, make_module: object) -> None:
    """Per-row symmetric int8, scale max|w| / 127.5: bit for bit what torchao computes for the Linears of the blocks."""
    import importlib.util

    if importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed (extra `compress`): our int8 is not compared with it")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's own, when it is imported
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        theirs, ours = make_module(family), make_module(family)  # type: ignore[operator]
        quantize_(theirs, Int8WeightOnlyConfig(), lambda leaf, name: isinstance(leaf, nn.Linear) and "layers" in name)
    report = Rtn(8).apply(ours)
    assert len(report.changes) == {"llama": 21, "neox": 12}[family]
    for change in report.changes:
        expected = theirs.get_submodule(change.module).weight.dequantize()
        assert torch.equal(ours.get_submodule(change.module).weight, expected), change.module
        assert math.isclose(change.error or 0, 0.006, rel_tol=0.6)
