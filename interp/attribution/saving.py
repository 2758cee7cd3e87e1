"""An `Attribution` as a run of kind "attribution": what it holds, and the prompts that it was measured on.

Files: nodes.parquet, completeness.parquet and, where there are any, edges.parquet (the tables of `Attribution`);
prompts.parquet (prompt; clean, corrupt, correct, wrong: lists of token ids; clean_tokens and so on: their texts, null
without a tokenizer; clean_value, corrupt_value: the metric); attribution.json (the rest).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.attribution.result import Attribution
from interp.runs import RunDamaged

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from jaxtyping import Float
    from torch import Tensor

    from interp.models import ModelHandle
    from interp.runs import Run
    from interp.tasks import Pairs

KIND = "attribution"
FIELDS = ("method", "target", "baseline", "direction", "tokens", "values", "about")
"""What attribution.json holds."""
NODES_AT_ONCE = 4096
"""Rows of nodes.parquet that are read together: the values of one cell are found without reading those of all."""


def prompts_table(
    handle: ModelHandle,
    pairs: Pairs,
    clean: Float[Tensor, " prompt"] | None = None,
    corrupt: Float[Tensor, " prompt"] | None = None,
) -> pa.Table:
    """Return the pairs as a table, one row for each prompt; `clean` and `corrupt` are the metric on each."""
    import pyarrow as pa

    from interp.tasks.pairs import NOTHING

    words = handle.vocabulary() if handle.tokenizer is not None else None
    columns: dict[str, Any] = {"prompt": list(range(len(pairs)))}
    for side in ("clean", "corrupt", "correct", "wrong"):
        ids = [[i for i in row if i != NOTHING] for row in getattr(pairs, side).tolist()]
        columns[side] = ids
        texts = [None] * len(ids) if words is None else [[words[i] for i in row] for row in ids]
        columns[f"{side}_tokens"] = pa.array(texts, pa.list_(pa.string()))
    for side, values in (("clean", clean), ("corrupt", corrupt)):
        found = [None] * len(pairs) if values is None else values.tolist()
        columns[f"{side}_value"] = pa.array(found, pa.float64())
    return pa.table(columns)


def write_attribution(run: Run, found: Attribution, prompts: pa.Table | None = None) -> None:
    """Write the files of `found` into a run that is being made; the caller finishes it with a summary."""
    run.save_table("nodes.parquet", found.nodes, row_group_size=NODES_AT_ONCE)
    run.save_table("completeness.parquet", found.completeness)
    if found.edges is not None:
        run.save_table("edges.parquet", found.edges)
    if prompts is not None:
        run.save_table("prompts.parquet", prompts)
    run.save_json("attribution.json", {name: getattr(found, name) for name in FIELDS})


def load_attribution(run: Run, columns: Sequence[str] | None = None) -> Attribution:
    """Return the attribution that a finished run holds; of its nodes only `columns`, where they are given.

    Raises:
        ValueError: the run is of another kind.
        RunDamaged: a file cannot be read.
    """
    if run.kind != KIND:
        raise ValueError(f"{run.ref} holds no attribution: its kind is {run.kind!r}, not {KIND!r}.")
    fields = run.json("attribution.json")
    missing = [name for name in FIELDS if not isinstance(fields, dict) or name not in fields]
    if missing:
        raise RunDamaged(f"attribution.json of {run.ref} lacks {', '.join(missing)}. Make the run again.")
    tables = {"nodes": run.table("nodes.parquet", columns=columns), "completeness": run.table("completeness.parquet")}
    if "edges.parquet" in run.files:
        tables["edges"] = run.table("edges.parquet")
    fields = {name: fields[name] for name in FIELDS} | {"tokens": tuple(fields["tokens"])}
    return Attribution(**fields, **tables)


def summary(found: Attribution) -> dict[str, Any]:
    """Return the headline numbers of a run: those of `values`, and the cell that counts most."""
    top = found.top(1).to_pylist()
    best = {"top": cell_name(top[0]), "top_score": top[0]["score"]} if top else {}
    return {**found.values, "cells": found.nodes.num_rows, **best}


def cell_name(cell: dict[str, Any]) -> str:
    """Return a cell's row as text: `head_out.3 head 2 pos 5`."""
    parts = [f"{part} {cell[part]}" for part in ("head", "neuron", "latent", "pos") if cell.get(part) is not None]
    site = "logits" if cell["kind"] == "logits" else f"{cell['kind']}.{cell['layer']}"
    return " ".join([site, *parts])
