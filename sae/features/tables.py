"""The tables of a "features" run: their columns, and `load_features`, which reads them. No torch here.

    latents.parquet          one row for each latent
    examples.parquet         tokens it responds to (`sae.features.examples`), in row groups of some dozen latents
    histograms.safetensors   counts [d_sae bins] of |activation| between edges [bins + 1]; of signed codes also
                             negative [d_sae bins], those of them below 0
    logits.parquet           ends of the direct logit weights
    neighbours.parquet       nearest latents by decoder, by encoder and by co-activation
    vocab.parquet            text of each token id; any character can be in it

All are sorted by latent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from interp.names import unknown
from interp.runs import Run, open_run

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

KIND = "features"
"""Kind of the run."""
LATENTS, EXAMPLES, LOGITS = "latents.parquet", "examples.parquet", "logits.parquet"
NEIGHBOURS, VOCAB, HISTOGRAMS = "neighbours.parquet", "vocab.parquet", "histograms.safetensors"

_i16, _i32, _f32, _f64, _text = pa.int16(), pa.int32(), pa.float32(), pa.float64(), pa.string()
_list = pa.list_(_text)

SCHEMAS = {
    LATENTS: pa.schema(
        [
            ("latent", _i32),
            ("count", pa.int64()),
            ("density", _f64),
            ("mean", _f64),
            ("second_moment", _f64),
            ("skew", _f64),
            ("kurtosis", _f64),
            ("max", _f32),
            ("min", _f32),
            ("enc_dec_cosine", _f32),
            ("decoder_norm", _f32),
            ("encoder_norm", _f32),
            ("bias", _f32),
            ("top_tokens", _list),
            ("token_entropy", _f32),
            ("nearest", _i32),
            ("nearest_cosine", _f32),
        ]
    ),
    EXAMPLES: pa.schema(
        [
            ("latent", _i32),
            ("group", _text),
            ("rank", _i16),
            ("quantile", pa.int8()),
            ("value", _f32),
            ("block", _i32),
            ("position", _i32),
            ("start", _i32),
            ("token_ids", pa.list_(_i32)),
            ("values", pa.list_(_f32)),
        ]
    ),
    LOGITS: pa.schema([("latent", _i32), ("side", _text), ("rank", _i16), ("token_id", _i32), ("value", _f32)]),
    NEIGHBOURS: pa.schema([("latent", _i32), ("kind", _text), ("rank", _i16), ("other", _i32), ("value", _f32)]),
    VOCAB: pa.schema([("token_id", _i32), ("text", _text)]),
}
"""Columns of each table. What a latent that was never active lacks (mean, max, ...) is null.

Latents.parquet of a crosscoder has more (`sae.features.description.weight_columns`), and so has that of a signed code
(`SIGNED`).
"""

SIGNED = pa.schema(
    [("count_negative", pa.int64()), ("density_negative", _f64), ("mean_negative", _f64), ("bottom_tokens", _list)]
)
"""Further columns of latents.parquet where any activation was negative; a table without them is of a code that is never
negative. `count`, `density`, `mean` are of both signs together, `top_tokens` of the largest activations above 0."""
GROUPS = ("top", "quantile", "random", "near_miss", "bottom")
"""Groups of examples, in the order in which a latent's examples stand. `bottom`, the most negative ones, only signed
codes have."""


class Histogram(NamedTuple):
    """Activations of one latent by size."""

    counts: NDArray[np.int64]
    """Tokens in each bin."""
    edges: NDArray[np.float32]
    """Edges of |activation|, geometric, one more than bins; the first bin also holds what is smaller."""
    negative: NDArray[np.int64] | None = None
    """Tokens in each bin whose activation is below 0, already in `counts`; None where the code has no such values."""


@dataclass(frozen=True)
class Features:
    """What a finished "features" run says; every table is read when it is first asked for."""

    run: Run = field(repr=False)
    """The run."""

    def __len__(self) -> int:
        """Return the number of latents."""
        return self.latents.num_rows

    @cached_property
    def latents(self) -> pa.Table:
        """One row for each latent: density, moments, norms, top tokens."""
        return self.run.table(LATENTS)

    @property
    def signed(self) -> bool:
        """Whether the code takes negative values, so that a latent has two ends."""
        return SIGNED.names[0] in self.latents.column_names

    @cached_property
    def vocabulary(self) -> list[str]:
        """The text of each token id."""
        return self.run.table(VOCAB).column("text").to_pylist()

    def examples(self, latent: int, group: str | None = None) -> pa.Table:
        """Return the examples of one latent, of one group (see `GROUPS`) or of all."""
        found = self._of(EXAMPLES, latent)
        return found if group is None else self._only(found, "group", group, GROUPS)

    def logits(self, latent: int) -> pa.Table:
        """Return the ends of the direct logit weights of one latent; empty where the site has no direct path."""
        return self._of(LOGITS, latent)

    def neighbours(self, latent: int, kind: str | None = None) -> pa.Table:
        """Return the neighbours of one latent, of one kind ("decoder", "encoder", "coactivation") or of all."""
        found = self._of(NEIGHBOURS, latent)
        return found if kind is None else self._only(found, "kind", kind, ("decoder", "encoder", "coactivation"))

    def histogram(self, latent: int) -> Histogram:
        """Return the histogram of one latent."""
        self._check(latent)
        negative = self.run.rows(HISTOGRAMS, "negative", latent) if self._has_negative else None
        return Histogram(self.run.rows(HISTOGRAMS, "counts", latent), self._edges, negative)

    def __repr__(self) -> str:
        """Return the run and the number of latents."""
        return f"Features({self.run.ref}, {self.run.summary.get('latents')} latents)"

    def _repr_html_(self) -> str:
        """Return one line for notebooks."""
        told = self.run.summary
        figures = [f"{told[key]:,} {key}" for key in ("latents", "dead", "tokens", "examples") if key in told]
        figures += [f"{told['signed']:,} with both signs"] if told.get("signed") else []
        return f"<b>{escape(self.run.ref)}</b> · {escape(str(self.run.config.get('site')))} · {' · '.join(figures)}"

    @cached_property
    def _edges(self) -> NDArray[np.float32]:
        return self.run.rows(HISTOGRAMS, "edges", slice(None))

    @cached_property
    def _has_negative(self) -> bool:
        return "negative" in self.run.tensor_info(HISTOGRAMS)[0]

    def _check(self, latent: int) -> None:
        if not 0 <= latent < len(self):
            raise ValueError(f"latent must lie in 0..{len(self) - 1} for {self.run.ref}, got {latent}.")

    def _of(self, name: str, latent: int) -> pa.Table:
        self._check(latent)
        return self.run.table(name, filters=[("latent", "==", latent)])

    @staticmethod
    def _only(table: pa.Table, column: str, value: str, known: tuple[str, ...]) -> pa.Table:
        if value not in known:
            raise ValueError(unknown(column, value, known))
        return table.filter(pc.field(column) == value)


def load_features(run: Run | str, root: str | Path | None = None) -> Features:
    """Return what a run of kind "features" says.

    Args:
        run: the run, or what names it.
        root: folder of the runs, where `run` is a name; as in `interp.runs.open_run`.

    Raises:
        ValueError: the run is of another kind or not finished.
    """
    if isinstance(run, str):
        run = open_run(run, root)
    if run.kind != KIND:
        raise ValueError(f"{run.ref} is a run of kind {run.kind!r}; features are in a run of kind {KIND!r}.")
    if not run.finished:
        raise ValueError(f"{run.ref} is {run.status}; run `mechscope features` again to finish it.")
    return Features(run)
