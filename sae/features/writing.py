"""Writing the tables of a "features" run, each with the columns that `sae.features.tables` promises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from interp.runs import Run
from interp.runs.files import replacing
from sae.features import tables
from sae.features.examples import GROUPS, Examples, windows
from sae.features.groups import ranks
from sae.features.spool import Chunk
from sae.features.statistics import entropy
from sae.features.weights import Extremes
from sae.model import Sae

ROW_GROUP = 4096
"""Examples that are read together: about 45 latents."""
TOP_TOKENS = 5
"""Tokens named in the table of latents."""


def examples_table(
    found: Examples, chunk: Chunk, token_ids: NDArray[np.int32], lengths: NDArray[np.int64], window: int
) -> pa.Table:
    """Return the rows of examples.parquet for the examples of a chunk."""
    shown = windows(found, chunk, token_ids, lengths, window)
    blocks, positions = np.divmod(found.tokens, token_ids.shape[1])
    offsets = pa.array(shown.offsets)
    return _table(
        tables.EXAMPLES,
        {
            "latent": found.latents + chunk.first,
            "group": pa.array(GROUPS).take(pa.array(found.groups)),
            "rank": found.ranks,
            "quantile": found.quantiles,
            "value": found.values,
            "block": blocks,
            "position": positions,
            "start": shown.starts,
            "token_ids": pa.ListArray.from_arrays(offsets, pa.array(shown.token_ids)),
            "values": pa.ListArray.from_arrays(offsets, pa.array(shown.values)),
        },
    )


def write_latents(
    run: Run,
    sae: Sae,
    statistics: dict[str, Any],
    decoder: tuple[Tensor, Tensor],
    ends: Examples,
    tokens: NDArray[np.int32],
    words: list[str],
) -> None:
    """Write latents.parquet: norms, nearest latent, what the examples at its ends say of the tokens, `statistics`."""
    ids = tokens.ravel()[ends.tokens].astype(np.int64)
    top = ends.groups == GROUPS.index("top")
    strong = _of_stronger_end(ends, statistics)
    alone = decoder[0].shape[1] == 0
    columns = {
        "latent": np.arange(sae.d_sae),
        **statistics,
        "decoder_norm": sae.W_dec.detach().norm(dim=1),
        "encoder_norm": sae.W_enc.detach().norm(dim=1),
        "bias": sae.b_enc.detach(),
        "top_tokens": _first_tokens(ends.latents[top], ids[top], sae.d_sae, words),
        "token_entropy": entropy(ends.latents[strong], ids[strong], sae.d_sae, len(words)),
        "nearest": [None] * sae.d_sae if alone else decoder[1][:, 0],
        "nearest_cosine": [None] * sae.d_sae if alone else decoder[0][:, 0],
    }
    if "count_negative" in statistics:
        columns["bottom_tokens"] = _first_tokens(ends.latents[~top], ids[~top], sae.d_sae, words)
    save(run, tables.LATENTS, columns)


def _of_stronger_end(ends: Examples, statistics: dict[str, Any]) -> NDArray[np.bool_]:
    """Return which examples belong to the end of their latent that reaches further: of an unsigned code all."""
    largest, smallest = (np.nan_to_num(statistics[name]) for name in ("max", "min"))
    turned = -smallest > np.maximum(largest, 0)
    return (ends.groups == GROUPS.index("bottom")) == turned[ends.latents]


def _first_tokens(latents: NDArray[np.int64], ids: NDArray[np.int64], d_sae: int, words: list[str]) -> list[list[str]]:
    """Return for each latent the distinct tokens of some of its examples, strongest first."""
    _, first = np.unique(latents * len(words) + ids, return_index=True)
    first = np.sort(first)
    first = first[ranks(latents[first]) < TOP_TOKENS]
    named: list[list[str]] = [[] for _ in range(d_sae)]
    for latent, token in zip(latents[first].tolist(), ids[first].tolist(), strict=True):
        named[latent].append(words[token])
    return named


def write_logits(run: Run, found: Extremes | None) -> None:
    """Write the ends of the direct logit weights; None makes an empty table."""
    if found is None:
        run.save_table(tables.LOGITS, tables.SCHEMAS[tables.LOGITS].empty_table())
        return
    sides = [("+", found.top, found.top_ids), ("-", found.bottom, found.bottom_ids)]
    _save_lists(run, tables.LOGITS, "side", "token_id", [(name, v.numpy(), i.numpy()) for name, v, i in sides])


def write_neighbours(
    run: Run,
    decoder: tuple[Tensor, Tensor],
    encoder: tuple[Tensor, Tensor],
    together: tuple[NDArray[np.float32], NDArray[np.int64]],
    n: int,
) -> None:
    """Write neighbours.parquet: n latents by decoder, by encoder and by co-activation."""
    cosines = [
        (name, v[:, :n].numpy(), i[:, :n].numpy()) for name, (v, i) in (("decoder", decoder), ("encoder", encoder))
    ]
    _save_lists(run, tables.NEIGHBOURS, "kind", "other", [*cosines, ("coactivation", *together)])


def _save_lists(
    run: Run, file: str, label: str, item: str, lists: list[tuple[str, NDArray[np.float32], NDArray[np.int64]]]
) -> None:
    """Save several lists for each latent, [d_sae n] values and items each, in long form; what is -inf is left out."""
    latents, kinds, places, items, values = [], [], [], [], []
    for _, value, other in lists:
        rows, columns = np.nonzero(value > -np.inf)
        latents.append(rows)
        kinds.append(np.full(len(rows), len(kinds)))
        places.append(columns)
        items.append(other[rows, columns])
        values.append(value[rows, columns])
    order = np.argsort(np.concatenate(latents), kind="stable")
    labels = pa.array([name for name, _, _ in lists]).take(pa.array(np.concatenate(kinds)[order]))
    long = {"latent": latents, "rank": places, item: items, "value": values}
    save(run, file, {label: labels, **{key: np.concatenate(parts)[order] for key, parts in long.items()}})


def _table(name: str, columns: dict[str, Any]) -> pa.Table:
    """Return `columns` as the table `name`; NaN becomes null. Further columns come last, as in `SIGNED` or float32."""
    schema = tables.SCHEMAS[name]
    for more in (column for column in columns if column not in schema.names):
        known = tables.SIGNED.field(more) if more in tables.SIGNED.names else pa.field(more, pa.float32())
        schema = schema.append(known)
    arrays = []
    for entry in schema:
        column = columns[entry.name]
        column = column.cpu().numpy() if isinstance(column, Tensor) else column
        arrays.append(column if isinstance(column, pa.Array) else pa.array(column, entry.type, from_pandas=True))
    return pa.Table.from_arrays(arrays, schema=schema)


def save(run: Run, name: str, columns: dict[str, Any]) -> None:
    """Write `columns` as the table `name`."""
    run.save_table(name, _table(name, columns), ROW_GROUP)


@contextmanager
def writing(run: Run, name: str) -> Iterator[pq.ParquetWriter]:
    """Yield a writer of the table `name`, for what is too large to be held at once."""
    with (
        replacing(run.file(name)) as temporary,
        pq.ParquetWriter(temporary, tables.SCHEMAS[name], compression="zstd") as writer,
    ):
        yield writer
