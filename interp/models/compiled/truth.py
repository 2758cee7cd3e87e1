"""The truth about a compiled model as a table: for each cell, whether it is in the circuit, and its exact effect.

Each compiled model says in plain formulas, without running a network, what its metric is when a cell is taken from
another prompt. With m(base; cell from source) that number,

    denoising   m(corrupt; cell from clean) - m(corrupt)
    noising     m(clean) - m(clean; cell from corrupt)

averaged over prompts. A cell is in the circuit if either is not 0 for some prompt, or the model's own code says so
(an AND gate shows in noising only when both of its inputs are needed at once).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from interp.names import unknown
from interp.sites import Cell

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("kind", "layer", "pos", "head", "neuron", "latent", "role", "in_circuit", "effect")
"""Columns of a truth: the cell as in `Attribution.nodes`, its role, whether it is in the circuit, its mean effect."""

DIRECTIONS = ("denoising", "noising")
NOTICED = 1e-9
"""An effect of a prompt below this is none: what a softmax leaves of e^-40."""


Patched = Callable[[Sequence[Cell | None], np.ndarray, np.ndarray], Float[np.ndarray, "cell prompt"]]
"""(cells, tokens of the base prompts, of the source) -> the metric with each cell from the source; None: no cell."""


def every_cell(layers: int, heads: int, n_pos: int, neurons: int = 0) -> list[Cell]:
    """Return the cells of every site by position, by head, by both, and the neurons of MLPs by position and in all."""
    cells = []
    places = [*range(n_pos), None]
    for layer in range(layers):
        for kind in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"):
            cells += [Cell(kind, layer, pos) for pos in range(n_pos)]
        for kind in ("q", "k", "v", "head_out"):
            cells += [Cell(kind, layer, pos, head) for head in range(heads) for pos in places]
        cells += [Cell("mlp_act", layer, pos, None, neuron) for neuron in range(neurons) for pos in places]
    return cells


def truth_table(
    patched: Patched,
    cells: Sequence[Cell],
    clean: np.ndarray,
    corrupt: np.ndarray,
    roles: Sequence[str],
    direction: str,
) -> pa.Table:
    """Return the table of `COLUMNS` for `cells`.

    Args:
        patched: the model's own account of itself.
        cells: the rows.
        clean: token ids of the clean prompts.
        corrupt: token ids of the corrupted ones.
        roles: what stands at each position; may be empty.
        direction: `denoising` or `noising`.

    Raises:
        ValueError: `direction` is neither.
    """
    import pyarrow as pa

    if direction not in DIRECTIONS:
        raise ValueError(unknown("direction", direction, DIRECTIONS))
    raised, lowered = patched([None, *cells], corrupt, clean), patched([None, *cells], clean, corrupt)
    both = {"denoising": raised[1:] - raised[0], "noising": lowered[0] - lowered[1:]}
    effects = both[direction].mean(1)
    members = np.any([(np.abs(values) > NOTICED).any(1) for values in both.values()], axis=0)
    numbers = {
        name: pa.array([getattr(cell, name) for cell in cells], pa.int32()) for name in ("pos", "head", "neuron")
    }
    named = [roles[cell.pos] if roles and cell.pos is not None else None for cell in cells]
    return pa.table(
        {
            "kind": pa.array([cell.kind for cell in cells], pa.string()),
            "layer": pa.array([cell.layer for cell in cells], pa.int32()),
            "pos": numbers["pos"],
            "head": numbers["head"],
            "neuron": numbers["neuron"],
            "latent": pa.nulls(len(cells), pa.int32()),
            "role": pa.array(named, pa.string()),
            "in_circuit": pa.array(members, pa.bool_()),
            "effect": pa.array(effects, pa.float64()),
        }
    )
