"""Family `geometry`: the shape of the cloud of activations after each block (`interp.layers.geometry`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.layers.family import Batch, FamilyResult, Measure, layer_table
from interp.layers.geometry import Geometry
from interp.layers.sampling import check_text
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle


class GeometryFamily:
    """Dimensions in use, the direction that all tokens share, single huge entries; layer -1 is the embeddings."""

    name = "geometry"
    measures = (
        Measure("participation_ratio", "participation ratio", "dimensions", "One large direction makes it about 1."),
        Measure(
            "effective_rank", "effective rank", "dimensions", "Of standard deviations: above the participation ratio."
        ),
        Measure("anisotropy", "anisotropy", "mean cosine", "Of two different tokens; a shared mean makes it large."),
        Measure("massive", "largest / median entry", "×", "Mean over tokens after position 0."),
        Measure("massive_first", "the same at position 0", "×", "From about 1000 an entry is called massive."),
    )

    def sites(self, handle: ModelHandle) -> tuple[Site, ...]:
        """Return the stream before the first block and after each."""
        return (Site(0, "resid_pre"), *(Site(layer, "resid_post") for layer in range(handle.n_layers)))

    def begin(self, handle: ModelHandle, blocks: Blocks) -> None:
        """Begin.

        Raises:
            ValueError: the text has no position that counts.
        """
        check_text(blocks)
        self._found = {site: Geometry() for site in self.sites(handle)}

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        for site, one in self._found.items():
            one.update(batch.acts[site], batch.with_first)

    def finish(self) -> FamilyResult:
        """Return the curves, and the table `sites` of all that is measured."""
        import pyarrow as pa

        rows = [
            {"site": str(site), "layer": -1 if site.kind == "resid_pre" else site.layer, **one.finish()}
            for site, one in self._found.items()
        ]
        columns = {measure.name: measure.name for measure in self.measures} | {"massive": "massive_mean"}
        table = layer_table((row["layer"], name, "", row[column]) for row in rows for name, column in columns.items())
        top = max(rows, key=lambda row: float(row["peak"]))
        summary = {
            "participation_ratio_last": rows[-1]["participation_ratio"],
            "anisotropy_last": rows[-1]["anisotropy"],
            "massive_most": max(float(row["massive_max"]) for row in rows),
            "peak_dim": top["peak_dim"],
            "tokens": rows[0]["tokens"],
        }
        return FamilyResult(summary, table, {"sites": pa.Table.from_pylist(rows)})
