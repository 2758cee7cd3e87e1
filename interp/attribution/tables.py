"""The tables of an `Attribution`, from what a method found for every cell on every prompt.

A score is the mean over prompts; its standard error is the standard deviation over prompts (n - 1) over sqrt(n).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from interp.attribution.result import CELL

if TYPE_CHECKING:
    import pyarrow as pa

    from interp.models import ModelHandle
    from interp.tasks import Pairs


def standard_error(per_prompt: Float[np.ndarray, "cell prompt"]) -> Float[np.ndarray, " cell"]:
    """Return the standard error of each cell's mean over prompts, NaN for one prompt."""
    n = per_prompt.shape[1]
    return per_prompt.std(1, ddof=1) / np.sqrt(n) if n > 1 else np.full(len(per_prompt), np.nan)


def score_columns(per_prompt: Float[np.ndarray, "cell prompt"]) -> dict[str, pa.Array]:
    """Return the columns score, stderr (null for one prompt) and per_prompt (single precision) of nodes or edges."""
    import pyarrow as pa

    cells, prompts = per_prompt.shape
    flat = pa.array(np.ascontiguousarray(per_prompt, dtype=np.float32).reshape(-1))
    offsets = pa.array(np.arange(cells + 1, dtype=np.int32) * prompts)
    return {
        "score": pa.array(per_prompt.mean(1), pa.float64()),
        "stderr": pa.array(standard_error(per_prompt), pa.float64(), from_pandas=True),
        "per_prompt": pa.ListArray.from_arrays(offsets, flat),
    }


def nodes_table(
    cells: Mapping[str, Sequence[Any] | np.ndarray], per_prompt: Float[np.ndarray, "cell prompt"], measured: bool
) -> pa.Table:
    """Return the table `Attribution.nodes`.

    Args:
        cells: column of `CELL` -> its value for each cell, None for all of that axis; a column left out is null.
        per_prompt: what was found.
        measured: whether that is the measured effect itself; otherwise the columns for it are null.
    """
    import pyarrow as pa

    count = len(per_prompt)
    columns: dict[str, Any] = {}
    for name in CELL:
        kind = pa.string() if name == "kind" else pa.int32()
        columns[name] = pa.array(cells[name], kind) if name in cells else pa.nulls(count, kind)
    columns |= score_columns(per_prompt)
    for name, found in (("measured", "score"), ("measured_stderr", "stderr")):
        columns[name] = columns[found] if measured else pa.nulls(count, pa.float64())
    return pa.table(columns)


def nodes_of(
    kind: str, layer: int, names: list[str], indices: list[np.ndarray], values: Float[np.ndarray, "prompt cell"]
) -> pa.Table:
    """Return the table `nodes` of the cells of one site; `names` and `indices` say which part each cell is."""
    count = values.shape[1]
    parts = {name: index.astype(np.int32) for name, index in zip(names, indices, strict=True)}
    return nodes_table({"kind": [kind] * count, "layer": [layer] * count, **parts}, values.T, measured=False)


def completeness_table(rows: Iterable[tuple[str, int, str, float, float]]) -> pa.Table:
    """Return the table `Attribution.completeness` of rows (kind, layer, part, explained, total)."""
    import pyarrow as pa

    names = {"kind": pa.string(), "layer": pa.int32(), "part": pa.string()}
    schema = pa.schema(names | dict.fromkeys(("explained", "total", "gap"), pa.float64()))
    full = [(*row, row[4] - row[3]) for row in rows]
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in full], schema)


def token_labels(handle: ModelHandle, pairs: Pairs) -> tuple[str, ...]:
    """Return what stands at each position: its role, or else the token (or id) of the first clean prompt."""
    return pairs.roles or token_texts(handle, pairs.clean[0])


def token_texts(handle: ModelHandle, ids: Any) -> tuple[str, ...]:
    """Return the tokens of one prompt as text, their ids where the model has no tokenizer."""
    return tuple(handle.token_strings(ids)) if handle.tokenizer is not None else tuple(map(str, ids.tolist()))
