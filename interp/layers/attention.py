"""Where heads look, on text: entropy, the sink at position 0, the token before. One row for each head of a model.

With A[i, j] the attention from position i to position j, averaged over positions i >= 1 that hold a real token,

    entropy    -sum_j A_ij ln A_ij / ln(i + 1): 1 looks at all positions alike, 0 at a single one
    sink       A_i0
    previous   A_i,i-1

Position 0 can only look at itself and is left out. What heads do on repeated random tokens is in `interp.layers.heads`,
what their weights say in `interp.layers.copying` and `interp.layers.composition`; `head_table` puts all of it together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.layers.composition import compositions
from interp.layers.copying import copying_scores, copying_top
from interp.layers.heads import head_scores, layer_patterns, portions
from interp.models.handle import ModelHandle

if TYPE_CHECKING:
    import pyarrow as pa

ON_TEXT = ("entropy", "sink", "previous")
"""Numbers of a head on text."""


def pattern_statistics(
    pattern: Float[Tensor, "*batch query key"], real: Bool[Tensor, "*rows query"]
) -> dict[str, Float[Tensor, "*batch"]]:
    """Return {"entropy", "sink", "previous"} of causal attention patterns, averaged over real queries but the first.

    Args:
        pattern: attention, each row a distribution over keys up to the query.
        real: which queries count, broadcast against the leading axes; NaN comes back where none does.

    Raises:
        ValueError: a single position, which can only look at itself.
    """
    length = pattern.shape[-1]
    if length < 2:
        raise ValueError("Attention of a single position says nothing; give texts of 2 tokens or more.")
    places = torch.arange(1, length, device=pattern.device)
    later = pattern[..., 1:, :].double()
    entropy = -torch.special.xlogy(later, later).sum(-1) / (places + 1).double().log()
    found = {"entropy": entropy, "sink": later[..., 0], "previous": later[..., places - 1, places - 1]}
    weights = real[..., 1:].to(pattern.device).double()
    return {name: (values * weights).sum(-1) / weights.sum(-1) for name, values in found.items()}


class PatternSums:
    """Means over sequences of what the heads of a model do on text."""

    def __init__(self, handle: ModelHandle) -> None:
        """Begin without sequences."""
        self.handle = handle
        self._found: dict[str, list[Tensor]] = {name: [] for name in ON_TEXT}

    def add(self, tokens: Int[Tensor, "sequence pos"], real: Bool[Tensor, "sequence pos"]) -> None:
        """Let the model read sequences through the bridge, and add what its heads do; those of one token are left out.

        Args:
            tokens: token ids; padding is at the end.
            real: which of them are no padding.
        """
        usable = real[:, 1:].any(1).nonzero()[:, 0].cpu()
        if len(usable) == 0:
            return
        begin = 0
        for part in portions(self.handle, tokens[usable]):
            kept = real[usable][begin : begin + len(part)]
            begin += len(part)
            patterns, _ = layer_patterns(self.handle, part)
            rows = [pattern_statistics(pattern, kept[:, None]) for pattern in patterns]
            for name, values in self._found.items():
                values.append(torch.stack([row[name] for row in rows]).cpu())

    @property
    def sequences(self) -> int:
        """Sequences that were added."""
        return sum(one.shape[1] for one in self._found["entropy"])

    def values(self) -> dict[str, Float[Tensor, "layer sequence head"]]:
        """Return {measure: values}, a mean for each sequence.

        Raises:
            ValueError: there is none.
        """
        if not self.sequences:
            raise ValueError("No sequence of 2 tokens or more was read; give more text.")
        return {name: torch.cat(values, 1) for name, values in self._found.items()}


def head_table(
    handle: ModelHandle,
    on_text: dict[str, Float[Tensor, "layer head"]] | None = None,
    *,
    sequences: int = 16,
    tokens: int = 64,
    k: int = 5,
    offset: int = 0,
    seed: int = 0,
) -> pa.Table:
    """Return a row for each head: what it does on text and on repeated tokens, and what its weights say.

    Args:
        handle: the model.
        on_text: means over sequences from `PatternSums`, [layer head] each; None leaves these columns out.
        sequences: sequences of repeated random tokens.
        tokens: tokens whose copying is tried.
        k: likeliest tokens among which a copied one must be.
        offset: positions from the key to the query, for rotary models (`interp.layers.composition`).
        seed: of the random tokens.

    Returns:
        A table with the columns layer, head; entropy, sink, previous; induction, previous_random, duplicate; copying,
        copying_positive, copying_top; and for each of q, k, v: X_composition (the largest, above what random matrices
        give), X_layer, X_head (the earlier head it is with; null in the first layer).

    Raises:
        ValueError: the model's weights cannot be read as matrices.
    """
    columns = {name: values.double() for name, values in (on_text or {}).items()}
    scores = head_scores(handle, sequences=sequences, seed=seed)
    columns |= {"induction": scores.induction, "previous_random": scores.previous, "duplicate": scores.duplicate}
    columns |= copying_scores(handle)
    columns["copying_top"] = copying_top(handle, k=k, tokens=tokens, seed=seed)
    return _table(handle, columns, compositions(handle, offset=offset))


def _table(
    handle: ModelHandle,
    columns: dict[str, Float[Tensor, "layer head"]],
    pairs: dict[str, Float[Tensor, "layer head source_layer source_head"]],
) -> pa.Table:
    """Return the table of these columns, and of each head's strongest composition."""
    import pyarrow as pa

    layers, heads = handle.n_layers, handle.n_heads
    rows = [(layer, head) for layer in range(layers) for head in range(heads)]
    found: dict[str, Sequence] = {"layer": [row[0] for row in rows], "head": [row[1] for row in rows]}
    found |= {name: values.double().flatten().tolist() for name, values in columns.items()}
    for name, values in pairs.items():
        best, place = values.nan_to_num(nan=-math.inf).flatten(2).max(-1)
        known = torch.isfinite(best).flatten().tolist()
        numbers = (best.flatten().tolist(), (place // heads).flatten().tolist(), (place % heads).flatten().tolist())
        for column, part in zip((f"{name}_composition", f"{name}_layer", f"{name}_head"), numbers, strict=True):
            found[column] = [value if there else None for value, there in zip(part, known, strict=True)]
    kinds = {name: pa.int32() if name.rpartition("_")[2] in ("layer", "head") else pa.float64() for name in found}
    return pa.table({name: pa.array(values, kinds[name]) for name, values in found.items()})
