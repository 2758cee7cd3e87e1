"""Family `stream`: how much attention and MLP of each block write, and in which direction (`interp.layers.stream`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.layers.family import Batch, FamilyResult, Measure, layer_table
from interp.layers.sampling import check_text
from interp.layers.stream import Contributions, is_parallel
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

PARTS = ("attn", "mlp", "block")


class StreamFamily:
    """Norms, contribution ratios and cosines of attention and MLP, over the tokens after position 0."""

    name = "stream"
    measures = (
        Measure("norm", "norm of the stream", "length", "After the block; it grows with depth in pre-norm models."),
        Measure("norm_first", "norm at position 0", "length", "Often hundreds of times that of other tokens."),
        Measure("share", "size of what is written", "× stream", "Against the stream that the part reads; mean."),
        Measure("share_p95", "the same, 95th percentile", "× stream", "A few tokens may decide a mean."),
        Measure(
            "cosine", "direction of what is written", "cosine", "Below 0 erases, about 0 is new, above 0 strengthens."
        ),
        Measure("stream_cosine", "stream after and before", "cosine", "Near 1 late, where the stream is long anyway."),
    )

    def sites(self, handle: ModelHandle) -> tuple[Site, ...]:
        """Return the stream before and after each block, and what attention and MLP add."""
        return tuple(Contributions(handle.n_layers, parallel=is_parallel(handle)).sites)

    def begin(self, handle: ModelHandle, blocks: Blocks) -> None:
        """Begin.

        Raises:
            ValueError: the text has no position that counts.
        """
        check_text(blocks)
        self._found = Contributions(handle.n_layers, parallel=is_parallel(handle))

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        self._found.update(batch.acts, batch.with_first)

    def finish(self) -> FamilyResult:
        """Return the curves, and the table `blocks` of all that is measured.

        Raises:
            ValueError: blocks do more than add to the stream.
        """
        import pyarrow as pa

        rows, found = self._found.finish(), []
        for row in rows:
            layer = int(row["layer"])
            found += [(layer, "norm", "mean", row["norm_mean"]), (layer, "norm", "95%", row["norm_p95"])]
            found += [(layer, "norm_first", "", row["norm_first"])]
            for part in PARTS:
                found += [
                    (layer, "share", part, row[f"{part}_share_mean"]),
                    (layer, "share_p95", part, row[f"{part}_share_p95"]),
                    (layer, "cosine", part, row[f"{part}_cosine_mean"]),
                ]
            found += [(layer, "stream_cosine", "", row["stream_cosine_mean"])]
        growth = rows[-1]["norm_mean"] / rows[0]["norm_mean"] if rows[0]["norm_mean"] else None
        half = len(rows) // 2
        shares = [row["block_share_mean"] for row in rows]
        summary = {
            "norm_last": rows[-1]["norm_mean"],
            "norm_growth": growth,
            "first_over_rest": max(row["norm_first"] / row["norm_mean"] for row in rows),
            "share_second_half": sum(shares[half:]) / len(shares[half:]),
            "left_out": sum(row["left_out"] for row in rows),
        }
        return FamilyResult(summary, layer_table(found), {"blocks": pa.Table.from_pylist(rows)})
