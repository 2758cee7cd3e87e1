"""The slots' arithmetic by dense products, for GPUs, whose matrix units may do in no time what a sparse loop avoids.

The code is spread into a matrix Z [batch d_sae], 0 where a latent is silent:

    rows    Z W        latents  Z^T X        sampled  (L R^T)[slots]        totals  sum of Z over the batch

On a GPU with bfloat16 units the products run in bfloat16, as under autocast (results come back in the inputs' format,
with about three digits); anywhere else in the inputs' format. A CPU without such units takes five times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.code import Code


@cache
def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the number format in which products of `dtype` are computed on `device`."""
    fast = device.type == "cuda" and dtype == torch.float32 and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else dtype


def _spread(where: Int[Tensor, " nnz"], values: Tensor, batch: int, d_sae: int, dtype: torch.dtype) -> Tensor:
    """Return Z: `values` at the places `where` of the flattened matrix. Places are distinct, so nothing is added."""
    return values.new_zeros(batch * d_sae, dtype=dtype).scatter(0, where, values.to(dtype)).view(batch, d_sae)


def _rows(where: Tensor, values: Tensor, weight: Tensor, batch: int, dtype: torch.dtype) -> Tensor:
    return (_spread(where, values, batch, weight.shape[0], dtype) @ weight.to(dtype)).to(weight.dtype)


def _latents(where: Tensor, values: Tensor, rows: Tensor, d_sae: int, dtype: torch.dtype) -> Tensor:
    return (_spread(where, values, rows.shape[0], d_sae, dtype).t() @ rows.to(dtype)).to(rows.dtype)


def _sampled(where: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    return (left.to(dtype) @ right.to(dtype).t()).flatten().gather(0, where).to(left.dtype)


def _totals(where: Tensor, values: Tensor, batch: int, d_sae: int) -> Tensor:
    return _spread(where, values, batch, d_sae, values.dtype).sum(0)


class Dense:
    """The four operations; `compiled` runs each through a compiler such as torch.compile."""

    def __init__(self, compiled: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] | None = None) -> None:
        """Take the operations as they are, or compiled on first use."""
        functions: list[Any] = [_rows, _latents, _sampled, _totals]
        self._rows, self._latents, self._sampled, self._totals = (
            functions if compiled is None else map(compiled, functions)
        )

    def to_rows(
        self, code: Code, values: Float[Tensor, " nnz"], weight: Float[Tensor, "d_sae d"]
    ) -> Float[Tensor, "batch d"]:
        """Return for each row of `code` the sum over its slots of value times `weight[latent]`."""
        dtype = product_dtype(weight.device, weight.dtype)
        return self._rows(_places(code), values.detach(), weight.detach(), len(code), dtype)

    def to_latents(
        self, code: Code, values: Float[Tensor, " nnz"], rows: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "d_sae d"]:
        """Return for each latent the sum over its slots of value times `rows[row]`."""
        dtype = product_dtype(rows.device, rows.dtype)
        return self._latents(_places(code), values.detach(), rows.detach(), code.d_sae, dtype)

    def sampled(
        self, left: Float[Tensor, "batch d"], right: Float[Tensor, "d_sae d"], code: Code
    ) -> Float[Tensor, " nnz"]:
        """Return <left[row], right[latent]> at each slot of `code`, flattened."""
        dtype = product_dtype(left.device, left.dtype)
        return self._sampled(_places(code), left.detach(), right.detach(), dtype)

    def totals(self, code: Code, values: Float[Tensor, " nnz"]) -> Float[Tensor, " d_sae"]:
        """Return for each latent the sum of its slots' values, in their own format."""
        return self._totals(_places(code), values.detach(), len(code), code.d_sae)


def _places(code: Code) -> Int[Tensor, " nnz"]:
    """Return the place of each slot in the flattened matrix [batch d_sae]."""
    if code.pointers is None:
        first = torch.arange(0, len(code) * code.d_sae, code.d_sae, device=code.indices.device)
        return (code.indices + first.unsqueeze(1)).flatten()
    return code.rows * code.d_sae + code.indices
