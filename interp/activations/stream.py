"""The streaming store: shuffled batches of activations, computed when they are asked for.

An epoch visits all blocks in a random order. Its rows are cut into *pools*, each about `pool_blocks` blocks long; a
pool is captured in one pass at all sites, its rows are shuffled, and it yields a fixed number of batches. So

    step -> (epoch, pool, batch within the pool)

is arithmetic, and a batch is a pure function of (seed, step): steps may be asked for in any order, and a training
resumes exactly. A batch of 2,048 rows from a pool of 256 blocks holds on average 8 rows of each of 256 texts that were
drawn from the whole corpus; it mixes over the pool, not over the whole corpus.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.activations.config import check_outlier_norm
from interp.activations.rows import REASONS, Draw, RowPlan, Stretch, capture_rows, generator
from interp.data.blocks import Blocks
from interp.sites import Site, parse_sites

if TYPE_CHECKING:
    from interp.models import ModelHandle


@dataclass(frozen=True)
class _Pool:
    number: tuple[int, int]
    """Epoch, and which pool of it."""
    rows: Stretch
    order: Tensor
    """The rows of its batches, one batch after the other."""


class ActivationStore:
    """Shuffled batches of the activations of `model` on `blocks`, at one site or several.

    Every usable row comes once per epoch, except the last `rows % batch` of the epoch's order, which the next epoch
    draws anew. Rows that the model makes unusable (outliers, NaN or infinity) are replaced by others of the same pool,
    drawn at random, so that counts stay fixed; `report` says how many. At several sites the same positions are used,
    so rows of one step are aligned across sites.

    Args:
        model: runs as it is; its lock is held one forward pass at a time.
        blocks: the text; `Blocks.describe` says what attends to what.
        sites: one site or several, captured in one pass that stops after the deepest.
        batch: rows per batch.
        pool_blocks: blocks whose rows are shuffled together; more of them mix better and take more memory.
        seed: of all draws.
        drop_bos: leave out BOS, whose norm is often hundreds of times that of other positions.
        outlier_norm: leave out rows whose norm is above this multiple of the pool's median norm; None keeps them.
        dtype: of the batches.
        gradient: also give the gradient of the model's loss at the sites (about three times the time).
    """

    def __init__(
        self,
        model: ModelHandle,
        blocks: Blocks,
        sites: Site | str | Iterable[Site | str],
        *,
        batch: int = 2048,
        pool_blocks: int = 256,
        seed: int = 0,
        drop_bos: bool = True,
        outlier_norm: float | None = None,
        dtype: torch.dtype = torch.float32,
        gradient: bool = False,
    ) -> None:
        """See the class."""
        _check(batch=batch, pool_blocks=pool_blocks, seed=seed, outlier_norm=outlier_norm)
        self.model, self.blocks, self.sites = model, blocks, sorted(parse_sites(sites))
        self.widths = {site: model.width(site) for site in self.sites}
        self.batch_rows, self.seed, self.dtype = batch, seed, dtype
        self._drop_bos, self._outlier_norm = drop_bos, outlier_norm
        self.gives = ("gradient",) if gradient else ()
        self.rows = len(RowPlan(blocks, np.arange(len(blocks)), drop_bos=drop_bos))
        self.batches_per_epoch = self.rows // batch
        if not self.batches_per_epoch:
            raise ValueError(
                f"The text gives {self.rows} usable rows, fewer than one batch of {batch}. "
                "Use more text or a smaller batch."
            )
        self.batches_per_pool = max(1, round(pool_blocks * self.rows / len(blocks) / batch))
        self._lock = threading.Lock()
        self._pool: _Pool | None = None
        self._plan: tuple[int, RowPlan] | None = None
        self._buffers: dict[Site, Tensor] = {}
        self._counts: dict[tuple[int, int], dict[str, int]] = {}

    @property
    def d_in(self) -> int:
        """Width of the activations; with several sites use `widths`."""
        return self.widths[self._site(None)]

    @property
    def report(self) -> dict[str, int]:
        """Positions of the pools captured so far, each pool once, by what became of them.

        `rows` were usable; `padding`, `bos`, `nonfinite` and `outliers` were left out.
        """
        return {key: sum(counts[key] for counts in self._counts.values()) for key in ("rows", *REASONS)}

    def batch(self, step: int, site: Site | str | None = None) -> Float[Tensor, "batch d_in"]:
        """Return the activations of `step`: on the model's device, in `dtype`, a pure function of (seed, step).

        Args:
            step: from 0 on; epochs follow each other without end.
            site: which one, where the store has several.

        Raises:
            ValueError: a negative step, a site the store does not have, a pool without any usable row, a value beyond
                the range of `dtype`.
        """
        chosen = self._site(site)
        with self._lock, torch.inference_mode(False):
            rows, places = self._find(step)
            values = rows.values[chosen]
            return in_dtype(values.index_select(0, places.to(values.device)), self.dtype, chosen)

    def gradient(self, step: int, site: Site | str | None = None) -> Float[Tensor, "batch d_in"]:
        """Return the gradient of the model's loss at the rows of `batch(step)`, in nats per unit of x.

        The loss is the sum over all next tokens of a row's block, so neither the batch nor the number of blocks in a
        pass changes it.

        Raises:
            ValueError: the store was not made with `gradient=True`, or as `batch` does.
        """
        if not self.gives:
            raise ValueError("The store keeps no gradients; make it with ActivationStore(..., gradient=True).")
        chosen = self._site(site)
        with self._lock, torch.inference_mode(False):
            rows, places = self._find(step)
            slopes = rows.gradients[chosen]
            return in_dtype(slopes.index_select(0, places.to(slopes.device)), self.dtype, chosen)

    def origin(self, step: int) -> dict[str, Int[Tensor, " batch"]]:
        """Return where the rows of `batch(step)` are from: their `token` ids, `block` and `position`."""
        with self._lock:
            rows, places = self._find(step)
        block, position = rows.block[places], rows.position[places]
        return {"token": self.blocks.tokens[block, position], "block": block, "position": position}

    def locate(self, step: int) -> tuple[int, int, int]:
        """Return (epoch, pool within the epoch, batch within the pool) of `step`."""
        if step < 0:
            raise ValueError(f"step must be 0 or more, got {step}.")
        epoch, rest = divmod(step, self.batches_per_epoch)
        return (epoch, *divmod(rest, self.batches_per_pool))

    def sample(self, n: int, seed: int = 0, site: Site | str | None = None) -> Float[Tensor, "row d_in"]:
        """Return up to `n` usable rows from randomly drawn blocks, a pure function of (store seed, `seed`)."""
        chosen = self._site(site)
        order = generator(Draw.SAMPLE, self.seed, seed).permutation(len(self.blocks))
        plan = RowPlan(self.blocks, order, drop_bos=self._drop_bos)
        rows = self._rows(plan, 0, min(n, len(plan)), [chosen], {})
        values = rows.values[chosen]
        return in_dtype(values[rows.usable.to(values.device)], self.dtype, chosen)

    def _site(self, site: Site | str | None) -> Site:
        if site is None and len(self.sites) > 1:
            raise ValueError(f"The store has several sites; say which: {', '.join(map(str, self.sites))}.")
        wanted = self.sites[0] if site is None else Site.parse(site)
        if wanted not in self.widths:
            raise ValueError(f"The store has no site {wanted}; it captures {', '.join(map(str, self.sites))}.")
        return wanted

    def _find(self, step: int) -> tuple[Stretch, Int[Tensor, " batch"]]:
        """Return the pool of `step` and which of its rows the batch is; captures it unless it is at hand."""
        epoch, pool, index = self.locate(step)
        if self._pool is None or self._pool.number != (epoch, pool):
            self._pool = None  # its values are views of the buffers that are about to be filled again
            self._pool = self._capture(epoch, pool)
        return self._pool.rows, self._pool.order[index * self.batch_rows : (index + 1) * self.batch_rows]

    def _capture(self, epoch: int, pool: int) -> _Pool:
        """Capture the pool and draw the order of its rows; every slot of an unusable row goes to another row."""
        if self._plan is None or self._plan[0] != epoch:
            order = generator(Draw.EPOCH, self.seed, epoch).permutation(len(self.blocks))
            self._plan = epoch, RowPlan(self.blocks, order, drop_bos=self._drop_bos)
        first = pool * self.batches_per_pool
        last = min(first + self.batches_per_pool, self.batches_per_epoch)
        found = self._rows(self._plan[1], first * self.batch_rows, last * self.batch_rows, self.sites, self._buffers)
        self._counts[epoch, pool] = found.counts
        rng = generator(Draw.POOL, self.seed, epoch, pool)
        usable = found.usable.numpy()
        source = np.arange(len(usable))
        source[~usable] = rng.choice(np.flatnonzero(usable), size=int((~usable).sum()))
        return _Pool((epoch, pool), found, torch.from_numpy(source[rng.permutation(len(source))]))

    def _rows(self, plan: RowPlan, first: int, last: int, sites: list[Site], buffers: dict[Site, Tensor]) -> Stretch:
        found = capture_rows(
            self.model,
            self.blocks,
            sites,
            plan,
            first,
            last,
            outlier_norm=self._outlier_norm,
            buffers=buffers,
            gradient=bool(self.gives),
        )
        if not found.usable.any():
            raise ValueError(
                f"None of {len(found.usable)} rows at {', '.join(map(str, sites))} can be used: "
                f"{found.counts['nonfinite']} hold NaN or infinity, {found.counts['outliers']} are outliers. "
                "Check the model (`mechscope models verify`), its dtype and outlier_norm."
            )
        return found


def in_dtype(values: Float[Tensor, "row width"], dtype: torch.dtype, site: Site) -> Float[Tensor, "row width"]:
    """Return finite `values` in `dtype`.

    Raises:
        ValueError: a value lies beyond the range of `dtype`; it would become infinite.
    """
    cast = values.to(dtype)
    if cast.dtype != values.dtype and not torch.isfinite(cast).all():
        largest, limit = float(values.abs().max()), torch.finfo(dtype).max
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{site} reaches {largest:.4g}, beyond the largest {name}, {limit:.4g}. "
            "Use float32, or drop outliers (outlier_norm)."
        )
    return cast


def _check(*, batch: int, pool_blocks: int, seed: int, outlier_norm: float | None) -> None:
    for name, value, least in (("batch", batch, 1), ("pool_blocks", pool_blocks, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}.")
    check_outlier_norm(outlier_norm)
