"""Family `coding`: coding rates of the stream and within heads, and sparsity of the MLP (`interp.layers.coding`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.layers.coding import EPS_SQUARED, CodingRates, Sparsity
from interp.layers.family import Batch, FamilyResult, Measure, layer_table
from interp.layers.sampling import check_text
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle


class CodingFamily:
    """What white-box transformers compress and sparsify, measured on any model; sequences with padding are left out."""

    name = "coding"
    measures = (
        Measure(
            "rate", "coding rate of the stream", "nats", "Of a sequence's tokens at unit norm; grows with its length."
        ),
        Measure(
            "head_rate",
            "coding rate within heads",
            "nats",
            "Of each head's v, added up; blocks of a white-box model lower it.",
        ),
        Measure("active", "active MLP entries", "share", "Above 0.001 of the token's largest."),
        Measure("zero", "MLP entries exactly 0", "share", "0 for GELU, which never is."),
        Measure("hoyer", "sparsity of the MLP (Hoyer)", "", "0 dense to 1 one entry."),
    )

    def __init__(self, eps_squared: float = EPS_SQUARED) -> None:
        """Code to the squared precision `eps_squared`."""
        self.eps_squared = eps_squared

    def sites(self, handle: ModelHandle) -> tuple[Site, ...]:
        """Return stream, v and the MLP's activations of every block."""
        return tuple(Site(layer, kind) for layer in range(handle.n_layers) for kind in ("resid_post", "v", "mlp_act"))

    def begin(self, handle: ModelHandle, blocks: Blocks) -> None:
        """Begin.

        Raises:
            ValueError: the text has no position that counts.
        """
        check_text(blocks)
        self._heads, self._layers = handle.n_kv_heads, range(handle.n_layers)
        whole = int(blocks.keep.all(1).sum())
        self._coded = whole > 0 and blocks.context > 1
        self._rates = [CodingRates(self.eps_squared) for _ in self._layers]
        self._head_rates = [CodingRates(self.eps_squared) for _ in self._layers]
        self._sparsity = [Sparsity() for _ in self._layers]
        self._left_out = len(blocks) - whole

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        whole = batch.real.all(1)
        for layer in self._layers:
            if self._coded and bool(whole.any()):
                values = batch.acts[Site(layer, "v")][whole]
                self._rates[layer].update(batch.acts[Site(layer, "resid_post")][whole])
                self._head_rates[layer].update(values.unflatten(2, (self._heads, -1)))
            self._sparsity[layer].update(batch.acts[Site(layer, "mlp_act")], batch.keep)

    def finish(self) -> FamilyResult:
        """Return the curves; the bands are one standard deviation over sequences."""
        found = []
        for layer in self._layers:
            for name, rates in (("rate", self._rates[layer]), ("head_rate", self._head_rates[layer])):
                one = rates.finish()
                mean, std = one["rate_mean"], one["rate_std"]
                found.append((layer, name, "", mean, mean - std, mean + std))
            sparse = self._sparsity[layer].finish()
            found += [(layer, name, "", sparse[f"{name}_mean"]) for name in ("active", "zero", "hoyer")]
        by = {(row[0], row[1]): row[3] for row in found}
        last = self._layers[-1]
        summary = {
            "rate_first": by[0, "rate"],
            "rate_last": by[last, "rate"],
            "active_mean": sum(by[layer, "active"] for layer in self._layers) / len(self._layers),
            "blocks_left_out": self._left_out,
        }
        return FamilyResult(summary, layer_table(found))
