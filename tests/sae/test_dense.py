"""The dense kernels, on a CPU in the inputs' format, against the sparse ones; where products may be bfloat16."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sae.backends import SPARSE, build
from sae.code import Code
from sae.dense import product_dtype

CPU = torch.device("cpu")


def code(dtype: torch.dtype, pointers: bool) -> Code:
    """Return a random code of 9 rows and 20 latents."""
    g = torch.Generator().manual_seed(1)
    values = torch.randn(9, 20, generator=g, dtype=dtype)
    if pointers:
        return Code.from_dense(values * (values > 0.8))
    values, indices = values.topk(4, sorted=False)
    return Code(indices, values, 20)


@pytest.mark.parametrize("pointers", [False, True], ids=["fixed", "csr"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_every_operation_equals_the_sparse_one(pointers: bool, dtype: torch.dtype, tolerance: float) -> None:
    slots, dense = code(dtype, pointers), build("dense", CPU)
    g = torch.Generator().manual_seed(2)
    rows, weight = (torch.randn(n, 6, generator=g, dtype=dtype) for n in (9, 20))
    values = slots.values.flatten()
    for ours, theirs in (
        (dense.to_rows(slots, values, weight), SPARSE.to_rows(slots, values, weight)),
        (dense.to_latents(slots, values, rows), SPARSE.to_latents(slots, values, rows)),
        (dense.sampled(rows, weight, slots), SPARSE.sampled(rows, weight, slots)),
        (dense.totals(slots, values), SPARSE.totals(slots, values)),
    ):
        assert ours.dtype == dtype
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_a_code_without_slots_gives_zeros() -> None:
    empty = Code(torch.zeros(0, dtype=torch.long), torch.zeros(0), 20, torch.zeros(10, dtype=torch.long))
    dense = build("dense", CPU)
    assert torch.equal(dense.to_rows(empty, empty.values, torch.ones(20, 6)), torch.zeros(9, 6))
    assert torch.equal(dense.to_latents(empty, empty.values, torch.ones(9, 6)), torch.zeros(20, 6))
    assert dense.sampled(torch.ones(9, 6), torch.ones(20, 6), empty).shape == (0,)


def test_a_cpu_never_multiplies_in_bfloat16_and_a_gpu_without_units_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    product_dtype.cache_clear()
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert product_dtype(CPU, torch.float32) == product_dtype(gpu, torch.float32) == torch.float32
    product_dtype.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert product_dtype(CPU, torch.float32) == torch.float32
    assert product_dtype(gpu, torch.float32) == torch.bfloat16
    assert product_dtype(gpu, torch.float64) == torch.float64
    product_dtype.cache_clear()


COMPILED = """
import torch
from sae.backends import SPARSE
from sae.code import Code
from sae.dense import Dense

def compiled(function):
    return torch.compile(function, fullgraph=True, dynamic=True, backend="eager")

g = torch.Generator().manual_seed(1)
pre, rows, weight = (torch.randn(n, d, generator=g) for n, d in ((9, 20), (9, 6), (20, 6)))
values, indices = pre.topk(4, sorted=False)
traced = Dense(compiled)
for code in (Code(indices, values, 20), Code.from_dense(pre * (pre > 0.8)), Code.from_dense(pre * (pre > 1.5))):
    flat = code.values.flatten()
    assert torch.allclose(traced.to_rows(code, flat, weight), SPARSE.to_rows(code, flat, weight), atol=1e-5)
    assert torch.allclose(traced.to_latents(code, flat, rows), SPARSE.to_latents(code, flat, rows), atol=1e-5)
    assert torch.allclose(traced.sampled(rows, weight, code), SPARSE.sampled(rows, weight, code), atol=1e-5)
    assert torch.allclose(traced.totals(code, flat), SPARSE.totals(code, flat), atol=1e-5)
print("same")
"""


@pytest.mark.slow
def test_the_operations_can_be_compiled_whole() -> None:
    """Traced without a break in the graph; what the compiler makes of it is for a GPU to say.

    In a process of its own: no tracer sees through the type checks that tests put around every function.
    """
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", COMPILED], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout == "same\n", done.stderr
