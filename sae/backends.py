"""Which kernels a training takes: on a CPU always the sparse ones, on a GPU whatever is fastest on its shapes.

    sparse     plain torch on the slots (`sae.sparse`); the reference, and what evaluation and analysis always take
    triton     the same sums as Triton kernels (`sae.triton_kernels`)
    dense      products with the code spread into a matrix, in bfloat16 where the GPU has units for it (`sae.dense`)
    compiled   the dense ones through torch.compile

A training opens `using(Choices())`. At the first batch of a shape the candidates that give the right numbers are
timed, and the choice is kept: `Choices.taken` goes into the checkpoint, so that a resumed training sums in the same
order as the one that was broken off. `MECHSCOPE_KERNELS`, or `Choices(forced=...)`, names the kernels instead.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from jaxtyping import Float
from torch import Tensor

from interp.names import unknown
from sae import sparse
from sae.code import Code

log = logging.getLogger(__name__)

KERNELS = "MECHSCOPE_KERNELS"
"""Environment variable that names the kernels of a training; unset or "auto" leaves them to the clock."""
NAMES = ("sparse", "triton", "dense", "compiled")
WARM, TIMED, ROUNDS = 2, 5, 3
"""Steps before the clock starts, steps of a round, and rounds, of which the fastest counts."""
TOLERANCE = 0.02
"""Largest error of a candidate's result, as a share of the result's norm: several times what bfloat16 costs."""


@dataclass(frozen=True)
class Backend:
    """One way to do the slots' arithmetic."""

    name: str
    """One of `NAMES`."""
    to_rows: Callable[[Code, Tensor, Tensor], Tensor]
    """(code, values [nnz], weight [d_sae d]) -> [batch d]: for each row the sum of value times `weight[latent]`."""
    to_latents: Callable[[Code, Tensor, Tensor], Tensor]
    """(code, values [nnz], rows [batch d]) -> [d_sae d]: for each latent the sum of value times `rows[row]`."""
    sampled: Callable[[Tensor, Tensor, Code], Tensor]
    """(left [batch d], right [d_sae d], code) -> [nnz]: <left[row], right[latent]> at each slot."""
    totals: Callable[[Code, Tensor], Tensor]
    """(code, values [nnz]) -> [d_sae]: for each latent the sum of its values."""


SPARSE = Backend("sparse", sparse.to_rows, sparse.to_latents, sparse.sampled_product, sparse.totals)


def build(name: str, device: torch.device) -> Backend:
    """Return the kernels `name` for `device`.

    Raises:
        ValueError: there are no such kernels, or they do not run there.
    """
    if name not in NAMES:
        raise ValueError(unknown("kernels", name, (*NAMES, "auto")))
    if name == "sparse":
        return SPARSE
    if name == "triton":
        interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"
        if importlib.util.find_spec("triton") is None or not (device.type == "cuda" or interpreted):
            raise ValueError(f"Kernels 'triton' need Triton and a GPU ({device.type} here); {KERNELS} names others.")
        from sae import triton_kernels as kernels

        return Backend(name, kernels.to_rows, kernels.to_latents, kernels.sampled_product, kernels.totals)
    from sae.dense import Dense

    dense = Dense(_compiler if name == "compiled" else None)
    return Backend(name, dense.to_rows, dense.to_latents, dense.sampled, dense.totals)


def _compiler(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, fullgraph=True, dynamic=True)


class Choices:
    """The kernels of one training: one choice for each device and shape, made when it first comes up."""

    def __init__(
        self,
        forced: str | None = None,
        *,
        builders: Mapping[str, Callable[[torch.device], Backend]] | None = None,
        timed: Collection[str] = ("cuda",),
    ) -> None:
        """Leave the choice to the clock, or take the kernels `forced` (None: what `MECHSCOPE_KERNELS` says).

        Args:
            forced: one of `NAMES`, or "auto".
            builders: what makes the candidates' kernels for a device, by name; None takes all of `NAMES`.
            timed: types of device on which there is a choice; on others the sparse kernels are taken.

        Raises:
            ValueError: `forced`, or the variable, names no kernels.
        """
        wanted = os.environ.get(KERNELS, "") if forced is None else forced
        if wanted not in ("", "auto", *NAMES):
            raise ValueError(unknown("kernels" if forced is not None else f"kernels in ${KERNELS}:", wanted, NAMES))
        self.forced = None if wanted in ("", "auto") else wanted
        self.taken: dict[str, str] = {}
        """The choices so far, shape by shape: {`shape_key`: name}. A checkpoint holds them."""
        self._builders = {name: partial(build, name) for name in NAMES} if builders is None else builders
        self._timed = timed
        self._built: dict[tuple[str, torch.device], Backend] = {}

    @property
    def names(self) -> str:
        """The kernels in use, such as "triton" or "dense+triton"."""
        return "+".join(sorted(set(self.taken.values()))) or self.forced or "sparse"

    def backend(self, code: Code, weight: Float[Tensor, "d_sae d"]) -> Backend:
        """Return the kernels for a code like this and weights like these; what is forced wins, then what was taken."""
        key = shape_key(code, weight)
        name = self.forced or self.taken.get(key)
        if name is None:
            name = self._fastest(code, weight) if weight.device.type in self._timed else "sparse"
            log.info("kernels for %s: %s", key, name)
        self.taken[key] = name
        return self._build(name, weight.device)

    def _build(self, name: str, device: torch.device) -> Backend:
        if name not in self._builders:
            raise ValueError(unknown("kernels", name, self._builders))
        if (name, device) not in self._built:
            self._built[name, device] = self._builders[name](device)
        return self._built[name, device]

    @torch.no_grad()
    def _fastest(self, code: Code, weight: Tensor) -> str:
        """Return the fastest of the candidates that run and agree with the sparse kernels."""
        generator = torch.Generator(weight.device).manual_seed(0)
        x = torch.randn(len(code), weight.shape[1], device=weight.device, dtype=weight.dtype, generator=generator)
        expected = _round(SPARSE, code, weight.detach(), x)
        seconds: dict[str, float] = {}
        for name in self._builders:
            try:
                backend = self._build(name, weight.device)
                for ours, theirs in zip(_round(backend, code, weight.detach(), x), expected, strict=True):
                    error = (ours - theirs).norm() / theirs.norm().clamp_min(torch.finfo(theirs.dtype).tiny)
                    if not error <= TOLERANCE:
                        raise ArithmeticError(f"off by {float(error):.2g} of the result's norm")
                seconds[name] = _time(lambda backend=backend: _round(backend, code, weight.detach(), x), weight.device)
            except Exception as problem:  # a compiler may fail in its own ways; what does not run is not taken
                log.warning("kernels %r are left out: %s: %s", name, type(problem).__name__, problem)
        return min(seconds, key=seconds.__getitem__) if seconds else "sparse"


def shape_key(code: Code, weight: Float[Tensor, "d_sae d"]) -> str:
    """Return the device and shape that a choice holds for; rows and slots per row count by powers of two.

    Codes of variable support so come to a few choices, not to one for each batch.
    """
    device = torch.cuda.get_device_name(weight.device) if weight.is_cuda else weight.device.type
    rows, slots = len(code), code.indices.numel() // max(1, len(code))
    d_sae, width = weight.shape
    return f"{device} {str(weight.dtype)[6:]} {_power(rows)}x{_power(slots)} of {d_sae}x{width}"


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _round(backend: Backend, code: Code, weight: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Return what one training step computes: the reconstruction, and the gradients of values and both weights."""
    fresh = Code(code.indices, code.values.detach(), code.d_sae, code.pointers)  # its slots are yet to be sorted
    values = fresh.values.flatten()
    grad = backend.sampled(x, weight, fresh)
    out = backend.to_rows(fresh, values, weight)
    return out, grad, backend.to_latents(fresh, values, x), backend.to_latents(fresh, grad, x)


def _time(job: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one `job`, the fastest of a few rounds."""
    for _ in range(WARM):
        job()
    best = float("inf")
    for _ in range(ROUNDS):
        _wait(device)
        begun = perf_counter()
        for _ in range(TIMED):
            job()
        _wait(device)
        best = min(best, perf_counter() - begun)
    return best / TIMED


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_current: ContextVar[Choices | None] = ContextVar("kernels", default=None)


def current() -> Choices | None:
    """Return the choices of the training that is under way here, or None: then the sparse kernels are taken."""
    return _current.get()


@contextmanager
def using(choices: Choices) -> Iterator[Choices]:
    """Take the kernels of `choices` for whatever is trained in this block."""
    token = _current.set(choices)
    try:
        yield choices
    finally:
        _current.reset(token)
