"""The Triton kernels: their sums in Triton's interpreter, their code through its compiler, their speed on a GPU.

Triton comes with torch for NVIDIA GPUs only. The first two need it installed but no GPU, each in a process of its own:
whether kernels are interpreted is settled when they are defined.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sae.backends import NAMES, SPARSE, Choices, build, shape_key, using
from sae.code import Code
from sae.config import SaeConfig, TrainConfig
from sae.model import Sae
from sae.training import Training

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

INTERPRETED = """
import torch
from sae import kernels
from sae.backends import SPARSE, Choices, build, using
from sae.code import Code

torch.set_num_threads(1)
g = torch.Generator().manual_seed(1)
triton = build("triton", torch.device("cpu"))

def codes(dtype, d_sae=24):
    dense = torch.randn(4, d_sae, generator=g, dtype=dtype)
    values, indices = dense.topk(19, sorted=False)
    yield Code(indices, values, d_sae)
    yield Code.from_dense(dense * (dense > 0.3))
    dense[2] = 0  # a row without slots
    yield Code.from_dense(dense * (dense > 2))

for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
    for code in codes(dtype):
        for d in (1, 130):
            rows, weight = (torch.randn(n, d, generator=g, dtype=dtype) for n in (4, 24))
            values = code.values.flatten()
            for name, arguments in (
                ("to_rows", (code, values, weight)),
                ("to_latents", (code, values, rows)),
                ("sampled", (rows, weight, code)),
                ("totals", (code, values)),
            ):
                ours, theirs = getattr(triton, name)(*arguments), getattr(SPARSE, name)(*arguments)
                assert ours.dtype == dtype and ours.shape == theirs.shape
                assert (ours - theirs).norm() <= tolerance * theirs.norm(), (name, dtype, d)
                assert torch.equal(ours, getattr(triton, name)(*arguments))

empty = Code(torch.zeros(0, dtype=torch.long), torch.zeros(0), 4, torch.zeros(4, dtype=torch.long))
assert torch.equal(triton.to_rows(empty, empty.values, torch.ones(4, 6)), torch.zeros(3, 6))
assert triton.sampled(torch.ones(3, 6), torch.ones(4, 6), empty).shape == (0,)

x, w_enc, w_dec = (torch.randn(n, 3, generator=g, dtype=torch.float64).requires_grad_() for n in (4, 6, 6))
b_enc, b_dec = (torch.randn(n, generator=g, dtype=torch.float64).requires_grad_() for n in (6, 3))
indices = torch.stack([torch.randperm(6, generator=g)[:2] for _ in range(4)])

def step(x, w_enc, b_enc, w_dec, b_dec):
    values = ((x - b_dec) @ w_enc.t() + b_enc).gather(1, indices).detach()
    code = kernels.preactivation(x, w_enc, b_enc, Code(indices, values, 6), b_dec)
    return kernels.decode(code, w_dec, b_dec)

with using(Choices("triton")) as choices:
    assert torch.autograd.gradcheck(step, (x, w_enc, b_enc, w_dec, b_dec))
    assert choices.names == "triton"
print("same")
"""

COMPILED = """
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sae import triton_kernels as kernels

for kernel in (kernels._bag, kernels._sampled):
    for width, columns in (("i32", kernels.COLUMNS), ("constexpr", 1)):
        kinds = {"slots": "*i64", "latents": "*i64", "offsets": "*i64", "width": width}
        kinds |= dict.fromkeys(("bags", "batch", "nnz"), "i32")
        kinds |= dict.fromkeys(("SLOTS", "COLUMNS", "ACCUMULATE"), "constexpr")
        signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
        fixed = {"SLOTS": kernels.SLOTS, "COLUMNS": columns, "ACCUMULATE": tl.float32}
        fixed |= {"width": 1} if width == "constexpr" else {}
        source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
        made = triton.compile(source, target=GPUTarget("cuda", 80, 32))
        assert not re.search(r"\\b(atom|red)[.]", made.asm["ptx"])
print("compiled")
"""


def said(script: str, tmp_path: Path, interpret: bool) -> str:
    """Run `script` in a process of its own and return its last line."""
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_INTERPRET": str(int(interpret)),
    }
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@needs_triton
def test_interpreted_they_give_the_sparse_kernels_sums_and_pass_gradcheck(tmp_path: Path) -> None:
    assert said(INTERPRETED, tmp_path, interpret=True) == "same"


@needs_triton
def test_they_compile_for_a_gpu_without_atomics(tmp_path: Path) -> None:
    assert said(COMPILED, tmp_path, interpret=False) == "compiled"


@pytest.fixture
def gpu() -> torch.device:
    """Return the GPU, or skip."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu_every_backend_agrees_with_the_cpu_and_with_itself(name: str, gpu: torch.device) -> None:
    g = torch.Generator().manual_seed(0)
    pre = torch.randn(256, 512, generator=g)
    values, indices = pre.topk(16, sorted=False)
    rows, weight = (torch.randn(n, 96, generator=g) for n in (256, 512))
    ours, tolerance = build(name, gpu), 0.01 if name in ("dense", "compiled") else 1e-5
    for code in (Code(indices, values, 512), Code.from_dense(pre * (pre > 2))):
        there = Code(
            code.indices.to(gpu), code.values.to(gpu), 512, None if code.pointers is None else code.pointers.to(gpu)
        )
        flat = code.values.flatten()
        for job, arguments, moved in (
            ("to_rows", (code, flat, weight), (there, flat.to(gpu), weight.to(gpu))),
            ("to_latents", (code, flat, rows), (there, flat.to(gpu), rows.to(gpu))),
            ("sampled", (rows, weight, code), (rows.to(gpu), weight.to(gpu), there)),
            ("totals", (code, flat), (there, flat.to(gpu))),
        ):
            expected, found = getattr(SPARSE, job)(*arguments), getattr(ours, job)(*moved)
            assert torch.equal(found, getattr(ours, job)(*moved))
            assert (found.cpu() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.gpu
def test_on_a_gpu_a_training_chooses_and_repeats_itself(gpu: torch.device) -> None:
    weights, taken = [], {}
    for _ in range(2):
        torch.manual_seed(0)
        sae = Sae(SaeConfig(64, 512, "topk", {"k": 8}, "none"))
        torch.nn.init.normal_(sae.W_enc)
        sae.W_dec.data = torch.nn.functional.normalize(sae.W_enc.data, dim=1)
        training = Training(sae.to(gpu).train(), TrainConfig(tokens=10_240, batch=1024, lr=1e-3))
        with using(Choices()) as choices:
            choices.taken.update(taken)
            for step in range(10):
                training.advance(torch.randn(1024, 64, generator=torch.Generator().manual_seed(step)))
        taken = choices.taken
        weights.append(sae.W_dec.detach().cpu())
    key = shape_key(Code(torch.zeros(1024, 8, dtype=torch.long), torch.zeros(1024, 8), 512), sae.W_dec)
    assert taken[key] in NAMES
    assert torch.equal(*weights)
