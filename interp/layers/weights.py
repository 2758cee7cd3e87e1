"""The weight matrices of each block under one set of names, fused projections taken apart, rows as outputs.

GPT-2 stores [in out] and q, k and v side by side; GPT-NeoX stacks q, k and v head by head; Llama has them apart and a
gate. A spectrum of a fused matrix is that of three matrices mixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from interp.models.handle import ModelHandle
from interp.models.taps import BLOCKS

_QKV = "q k v"
NAMES = {
    "gpt2": {"attn.c_attn": _QKV, "attn.c_proj": "o", "mlp.c_fc": "mlp_in", "mlp.c_proj": "mlp_out"},
    "gpt_neox": {
        "attention.query_key_value": _QKV,
        "attention.dense": "o",
        "mlp.dense_h_to_4h": "mlp_in",
        "mlp.dense_4h_to_h": "mlp_out",
    },
    "llama": {
        "self_attn.q_proj": "q",
        "self_attn.k_proj": "k",
        "self_attn.v_proj": "v",
        "self_attn.o_proj": "o",
        "mlp.gate_proj": "mlp_gate",
        "mlp.up_proj": "mlp_in",
        "mlp.down_proj": "mlp_out",
    },
}
"""Family -> module within a block -> what its matrix is; `q k v` is a fused one."""


@dataclass(frozen=True, eq=False)
class BlockMatrix:
    """One weight matrix of a block."""

    layer: int
    """Block, counted from 0."""
    name: str
    """`q`, `k`, `v`, `o`, `mlp_gate`, `mlp_in` or `mlp_out`."""
    matrix: Float[Tensor, "out in"]
    """The weight, a view of the model's own where it is stored by itself."""


def block_matrices(handle: ModelHandle, layers: Iterable[int] | None = None) -> Iterator[BlockMatrix]:
    """Yield the weight matrices of `layers` (None: of all blocks), layer by layer.

    Raises:
        ValueError: a module has no weight matrix, as after a quantisation that packs it.
    """
    for layer in range(handle.n_layers) if layers is None else layers:
        for path, names in NAMES[handle.family].items():
            module = f"{BLOCKS[handle.family]}.{layer}.{path}"
            weight = getattr(handle.module.get_submodule(module), "weight", None)
            if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
                raise ValueError(f"{module} has no weight matrix to read (is it packed?); load the model unpacked.")
            matrix = weight.detach().T if handle.family == "gpt2" else weight.detach()
            for name, part in split_qkv(handle, names, matrix):
                yield BlockMatrix(layer, name, part)


def layer_matrices(handle: ModelHandle, layer: int) -> dict[str, Float[Tensor, "_ _"]]:
    """Return {name: matrix} of one block."""
    return {one.name: one.matrix for one in block_matrices(handle, [layer])}


def layer_bias(handle: ModelHandle, layer: int, name: str) -> Float[Tensor, " out"] | None:
    """Return the bias that goes with a matrix of a block, None where there is none."""
    for path, names in NAMES[handle.family].items():
        if name in names.split():
            bias = getattr(handle.module.get_submodule(f"{BLOCKS[handle.family]}.{layer}.{path}"), "bias", None)
            if not isinstance(bias, Tensor):
                return None
            return dict(split_qkv(handle, names, bias.detach()))[name]
    return None


def split_qkv(
    handle: ModelHandle, names: str, matrix: Float[Tensor, "out ..."]
) -> Iterator[tuple[str, Float[Tensor, "part ..."]]]:
    """Yield (name, rows) of each matrix that a module with these `names` of `NAMES` holds; `matrix` has its outputs."""
    if names != _QKV:
        yield names, matrix
        return
    # GPT-2: [q | k | v]; GPT-NeoX: for each head [q_h | k_h | v_h]
    groups = 1 if handle.family == "gpt2" else handle.n_heads
    thirds = matrix.reshape(groups, 3, -1, *matrix.shape[1:])
    for i, name in enumerate(names.split()):
        yield name, thirds[:, i].reshape(-1, *matrix.shape[1:])
