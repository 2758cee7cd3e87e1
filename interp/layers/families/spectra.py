"""Family `spectra`: the spectra of each block's weight matrices (`interp.layers.spectra`); the text is not read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.layers.family import Batch, FamilyResult, Measure, layer_table
from interp.layers.pruning_ratios import alpha_ratios, block_alphas
from interp.layers.spectra import RULES, Farms, spectra_rows
from interp.layers.weights import block_matrices
from interp.names import unknown
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

CURVES = ("alpha_windows", "alpha", "stable_rank", "effective_rank", "spectral_norm")


class SpectraFamily:
    """Heavy-tail exponent with and without windows, ranks and norms of every matrix, and what to prune by them."""

    name = "spectra"
    measures = (
        Measure(
            "alpha_windows", "tail exponent, windows", "alpha", "Of windows of one shape: matrices can be compared."
        ),
        Measure(
            "alpha", "tail exponent, whole matrix", "alpha", "Grows with the aspect ratio: compare along a line only."
        ),
        Measure("stable_rank", "stable rank", "dimensions", "One large singular value decides it."),
        Measure(
            "effective_rank",
            "effective rank of weights",
            "dimensions",
            "Exponential of the entropy of singular values.",
        ),
        Measure("spectral_norm", "largest singular value", "", "Depends on the scale of the weights."),
        Measure(
            "prune_share",
            "share to prune",
            "share",
            "Of half of all weights: linear in the block's mean windowed alpha.",
        ),
    )

    def __init__(self, rule: str = "xmin_mid", rows: int = 64, target: float = 0.5) -> None:
        """Fit tails by `rule`, on windows of `rows` x `rows`; `target` is the share of all weights to prune.

        Raises:
            ValueError: nobody knows the rule, or a number is out of range.
        """
        if rule not in RULES:
            raise ValueError(unknown("rule for the tail", rule, RULES))
        if not 0 <= target < 1:
            raise ValueError(f"target must lie in [0, 1), got {target}.")
        self.rule, self.farms, self.target = rule, Farms(rows, aspect=1), target

    def sites(self, handle: ModelHandle) -> tuple[Site, ...]:  # noqa: ARG002
        """Return none."""
        return ()

    def begin(self, handle: ModelHandle, blocks: Blocks) -> None:  # noqa: ARG002
        """Look for the matrices.

        Raises:
            ValueError: a module has no weight matrix.
        """
        self._matrices = list(block_matrices(handle))  # views of the weights

    def update(self, batch: Batch) -> None:
        """Do nothing."""

    def finish(self) -> FamilyResult:
        """Return the curves of each matrix, and the table `matrices`."""
        import pyarrow as pa

        rows = spectra_rows(iter(self._matrices), self.rule, self.farms)
        found = [(row["layer"], name, row["name"], row[name]) for row in rows for name in CURVES]
        alphas, sizes = block_alphas(rows, "alpha_windows")
        summary: dict[str, int | float | str | None] = {
            "alpha_mean": float(alphas.mean()),
            "alpha_lowest_layer": int(alphas.argmin()),
            "alpha_highest_layer": int(alphas.argmax()),
            "rule": self.rule,
        }
        if bool(alphas.isfinite().all()):
            ratios = alpha_ratios(alphas, self.target, sizes=sizes).tolist()
            found += [(layer, "prune_share", "", ratio) for layer, ratio in enumerate(ratios)]
        return FamilyResult(summary, layer_table(found), {"matrices": pa.Table.from_pylist(rows)})
