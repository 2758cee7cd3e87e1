"""A features run of a signed dictionary beside that of `tests.explorer_runs`: the same tables with a negative end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from interp.runs import Run, start_run
from tests.explorer_runs import Written

ONLY_POSITIVE, ONLY_NEGATIVE = 2, 3
"""Latents with one sign; all other living ones have both."""


def dictionary_with_atoms(run: Run) -> None:
    """Save a random dictionary that writes something: the `save` of `write_runs` for steering."""
    import torch

    from interp.config import from_json
    from sae.config import SaeConfig
    from sae.model import Sae

    torch.manual_seed(0)
    sae = Sae(from_json(SaeConfig, run.config["sae"]))
    for rows in (sae.W_enc, sae.W_dec):
        torch.nn.init.normal_(rows)
    sae.save(run)


def write_signed(written: Written) -> Run:
    """Write the run: a third of each latent's activations become negative."""
    old = written.features
    run = start_run("features", {**old.config, "signed": True}, slug="signed", parents=old.parents, root=written.root)
    latents, examples = old.table("latents.parquet"), old.table("examples.parquet")
    count = latents["count"].to_numpy()
    share = np.full(len(count), 1 / 3)
    share[[ONLY_POSITIVE, ONLY_NEGATIVE]] = 0, 1
    below = np.rint(count * share).astype(np.int64)
    top, mean = (latents[name].to_numpy(zero_copy_only=False) for name in ("max", "mean"))
    tokens = [list(reversed(texts or [])) for texts in latents["top_tokens"].to_pylist()]
    turned = {
        "count_negative": below,
        "density_negative": latents["density"].to_numpy() * below / np.maximum(count, 1),
        "mean_negative": pa.array(np.where(below > 0, -mean / 2, np.nan), from_pandas=True),
        "bottom_tokens": pa.array([t if n else [] for t, n in zip(tokens, below, strict=True)], pa.list_(pa.string())),
    }
    low = pa.array(np.where(below > 0, -0.8 * top, 0.05 * top), pa.float32(), from_pandas=True)
    latents = latents.set_column(latents.column_names.index("min"), "min", low)
    for name, column in turned.items():
        latents = latents.append_column(name, column if isinstance(column, pa.Array) else pa.array(column))
    run.save_table("latents.parquet", latents)
    run.save_table("examples.parquet", pa.concat_tables([examples, _bottom(examples, below)]), row_group_size=512)
    stored = old.tensors("histograms.safetensors")
    part = np.rint(stored["counts"] * share[:, None]).astype(np.int64)
    run.save_tensors("histograms.safetensors", {**stored, "negative": part})
    for name in ("logits.parquet", "neighbours.parquet", "vocab.parquet"):
        run.save_table(name, old.table(name))
    run.finish({**old.summary, "signed": int(((below > 0) & (below < count)).sum())})
    return run


def _bottom(examples: pa.Table, below: np.ndarray) -> pa.Table:
    """Return the examples of the group `bottom`: the first eight of `random`, with the other sign."""
    rows: list[dict[str, Any]] = []
    for row in examples.to_pylist():
        if row["group"] == "random" and below[row["latent"]]:
            values = [-value for value in row["values"]]
            rows.append({**row, "group": "bottom", "value": -row["value"], "values": values})
    return pa.Table.from_pylist(rows, examples.schema)
