"""Family `attention`: what the heads of each layer do on text and on repeated tokens, and what their weights say.

Patterns come from the bridge, which is slower than the plain model, so that `sequences` blocks of the text are read.
The table `heads` has a row for each head (`interp.layers.attention.head_table`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interp.layers.attention import ON_TEXT, PatternSums, head_table
from interp.layers.family import Batch, FamilyResult, Measure, layer_table
from interp.layers.sampling import Spread, bootstrap
from interp.sites import Site

if TYPE_CHECKING:
    import pyarrow as pa

    from interp.data import Blocks
    from interp.models import ModelHandle


class AttentionFamily:
    """Entropy, sinks, previous-token, induction and copying heads, composition: mean and largest head of each layer."""

    name = "attention"
    measures = (
        Measure("entropy", "entropy of attention", "of ln(i + 1)", "1 looks everywhere alike, 0 at one token."),
        Measure("sink", "attention to position 0", "share", "Where a head rests that has nothing to do."),
        Measure("previous", "attention to the token before", "share", "On text."),
        Measure("induction", "induction score", "share", "On repeated random tokens; read the largest head."),
        Measure("duplicate", "duplicate-token score", "share", "On repeated random tokens."),
        Measure("copying", "copying, eigenvalues", "Σλ / Σ|λ|", "1 copies, -1 suppresses; position and MLPs aside."),
        Measure("copying_top", "copying, likeliest tokens", "share", "Of tokens that a head puts among the likeliest."),
        Measure("q_composition", "Q-composition", "above random", "With the earlier head it reads most of."),
        Measure("k_composition", "K-composition", "above random", "As an induction head reads a previous-token head."),
        Measure("v_composition", "V-composition", "above random", "With the earlier head it reads most of."),
    )

    def __init__(
        self, sequences: int = 16, repeated: int = 16, tokens: int = 64, k: int = 5, offset: int = 0, seed: int = 0
    ) -> None:
        """Read `sequences` blocks of the text and `repeated` sequences of random tokens.

        Args:
            sequences: blocks, spread over the text.
            repeated: sequences of repeated random tokens.
            tokens: tokens whose copying is tried, at most.
            k: likeliest tokens among which a copied one must be.
            offset: positions from the key to the query, for the composition of rotary models.
            seed: of the random tokens.

        Raises:
            ValueError: a number below 1.
        """
        numbers = {"sequences": sequences, "repeated": repeated, "tokens": tokens, "k": k}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        self.sequences, self.repeated, self.tokens, self.k = sequences, repeated, tokens, k
        self.offset, self.seed = offset, seed

    def sites(self, handle: ModelHandle) -> tuple[Site, ...]:  # noqa: ARG002
        """Return no site: patterns come from the bridge."""
        return ()

    def begin(self, handle: ModelHandle, blocks: Blocks) -> None:
        """Begin."""
        self._handle, self._found = handle, PatternSums(handle)
        self._spread = Spread(len(blocks), self.sequences)

    def update(self, batch: Batch) -> None:
        """Read the blocks of this batch that were chosen."""
        chosen = self._spread.next(len(batch.tokens)).to(batch.tokens.device)
        if len(chosen):
            self._found.add(batch.tokens[chosen], batch.real[chosen])

    def finish(self) -> FamilyResult:
        """Return the curves, and the table `heads`.

        Raises:
            ValueError: blocks of one token, or weights that are no matrices.
        """
        values = self._found.values()
        table = head_table(
            self._handle,
            {name: by_sequence.mean(1) for name, by_sequence in values.items()},
            sequences=self.repeated,
            tokens=min(self.tokens, self._handle.d_vocab - 1),
            k=min(self.k, self._handle.d_vocab),
            offset=self.offset,
            seed=self.seed,
        )
        ends = {
            (name, layer): bootstrap(heads.mean(1).numpy(), np.ones(len(heads), dtype=int), 500, 0)
            for name in ON_TEXT
            for layer, heads in enumerate(values[name])
        }
        rows = []
        for row_name in [measure.name for measure in self.measures]:
            column = np.array(table[row_name].to_pylist(), dtype=float).reshape(self._handle.n_layers, -1)
            for layer, of_layer in enumerate(column):
                if np.isfinite(of_layer).any():
                    low, high = ends.get((row_name, layer), (None, None))
                    low, high = (None if end is None or np.isnan(end) else end for end in (low, high))
                    rows.append((layer, row_name, "mean", float(np.nanmean(of_layer)), low, high))
                    rows.append((layer, row_name, "max head", float(np.nanmax(of_layer))))
        return FamilyResult(self._summary(table), layer_table(rows), {"heads": table})

    def _summary(self, table: pa.Table) -> dict[str, int | float | str | None]:
        """Return the head that does each thing most."""
        found: dict[str, int | float | str | None] = {}
        for name in ("previous", "induction", "duplicate", "copying", "k_composition"):
            values = np.array(table[name].to_pylist(), dtype=float)
            if np.isfinite(values).any():
                best = int(np.nanargmax(values))
                found[f"{name}_head"] = f"{table['layer'][best]}.{table['head'][best]}"
                found[f"{name}_best"] = float(values[best])
        mean = {name: float(np.nanmean(np.array(table[name].to_pylist(), dtype=float))) for name in ("entropy", "sink")}
        return found | mean | {"sequences": self._found.sequences}
