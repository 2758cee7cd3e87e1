"""Reading a store from disk: mapped shards, any number of readers, batches a pure function of (seed, step).

An epoch visits the shards in a random order and the rows of each in a random order, and cuts the sequence into
batches. A batch mixes over one shard (now and then two): over the whole corpus when the store was written shuffled,
over neighbouring texts when it was not.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.activations.config import ORIGIN
from interp.activations.rows import Draw, generator
from interp.activations.shards import map_shard, read_info, sha256
from interp.names import unknown
from interp.runs import Run, RunDamaged
from interp.runs.errors import RunError
from interp.sites import Site

if TYPE_CHECKING:
    from interp.models import ModelHandle

_HELD = 4
"""Orders of shards that are kept: a batch needs one or two."""


class DiskStore:
    """Shuffled batches from a finished store, at one of its sites.

    Files are mapped, not read; any number of processes may read at once. The hash of each shard is checked when it is
    first used, so changed or damaged rows are refused, never trained on. Stores over one run with equal `batch` and
    `seed` give aligned rows at their several sites.

    Args:
        run: a finished run of kind "activations".
        site: one of its sites; may be left out where it has one only.
        batch: rows per batch.
        seed: of the order.
        model: if given, must be the model whose activations these are.
        device: where batches go.
        dtype: of the batches.

    Raises:
        RunError: unfinished, damaged or foreign store, or that of another model.
        ValueError: a site the store lacks, or fewer rows than a batch.
    """

    def __init__(
        self,
        run: Run,
        site: Site | str | None = None,
        batch: int = 2048,
        seed: int = 0,
        *,
        model: ModelHandle | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """See the class."""
        self.run, self.info, self.batch_rows, self.seed = run, read_info(run), batch, seed
        self._device, self._dtype = device, dtype
        self.site = self._find_site(site)
        self.d_in: int = self.info.widths[str(self.site)]
        self.rows = self.info.rows
        if model is not None and model.digest() != self.info.weights:
            raise RunError(
                f"{run.ref} holds activations of other weights ({self.info.weights[:12]}) than those of "
                f"{model.spec.name!r} ({model.digest()[:12]}). Capture this model, or name the one that was captured."
            )
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}.")
        if not 1 <= batch <= self.rows:
            raise ValueError(f"batch must lie in 1..{self.rows}, the rows of {run.ref}, got {batch}.")
        self.batches_per_epoch = self.rows // batch
        self._shards = [self._map(index) for index in range(len(self.info.shards))]
        self._checked: set[tuple[int, str]] = set()
        self._orders: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    @property
    def report(self) -> dict[str, int]:
        """Positions of the text: `rows` in the store, and `padding`, `bos`, `nonfinite`, `outliers` left out of it."""
        return dict(self.info.counts)

    def batch(self, step: int) -> Float[Tensor, "batch d_in"]:
        """Return the activations of `step`, a pure function of (seed, step).

        Every row comes once per epoch, except the last `rows % batch` of the epoch's order.

        Raises:
            ValueError: a negative step.
            RunDamaged: a shard was changed.
        """
        return self._tensor(
            np.concatenate([self._take(shard, str(self.site), rows) for shard, rows in self._places(step)])
        )

    def origin(self, step: int) -> dict[str, Int[Tensor, " batch"]]:
        """Return where the rows of `batch(step)` are from: their `token` ids, `block` and `position`."""
        places = self._places(step)
        return {
            name: torch.from_numpy(np.concatenate([self._take(s, name, rows) for s, rows in places])) for name in ORIGIN
        }

    def sample(self, n: int, seed: int = 0) -> Float[Tensor, "row d_in"]:
        """Return up to `n` distinct rows from a few random shards, a pure function of (store seed, `seed`)."""
        rng = generator(Draw.SAMPLE, self.seed, seed)
        order, sizes = rng.permutation(len(self._shards)), self._sizes
        enough = int(np.searchsorted(np.cumsum(sizes[order]), n)) + 1
        chosen = order[: max(enough, 4)]  # four texts' worth at least where the store is not shuffled
        drawn = np.sort(rng.permutation(int(sizes[chosen].sum()))[:n])
        starts = np.concatenate([[0], np.cumsum(sizes[chosen])])
        parts = [
            self._take(int(shard), str(self.site), drawn[(drawn >= low) & (drawn < high)] - low)
            for shard, low, high in zip(chosen, starts[:-1], starts[1:], strict=True)
        ]
        return self._tensor(np.concatenate(parts)[rng.permutation(len(drawn))])

    @property
    def _sizes(self) -> np.ndarray:
        return np.array([shard.rows for shard in self.info.shards], dtype=np.int64)

    def _tensor(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).to(self._device, self._dtype)

    def _find_site(self, site: Site | str | None) -> Site:
        names = list(self.info.widths)
        if site is None and len(names) > 1:
            raise ValueError(f"{self.run.ref} has several sites; say which: {', '.join(names)}.")
        wanted = Site.parse(names[0] if site is None else site)
        if str(wanted) not in names:
            raise ValueError(unknown(f"site of {self.run.ref}:", str(wanted), names))
        return wanted

    def _map(self, index: int) -> dict[str, np.ndarray]:
        """Return the mapped tensors of shard `index`, whose header has been checked."""
        shard = self.info.shards[index]
        tensors, meta = map_shard(self.run.file(shard.name))
        name, width = str(self.site), self.d_in
        if (meta.store, meta.index, meta.sha256) != (self.info.key, index, shard.sha256):
            raise RunDamaged(f"{self.run.ref}: {shard.name} belongs to another store or was changed. Capture again.")
        shapes = {name: (shard.rows, width)} | dict.fromkeys(ORIGIN, (shard.rows,))
        for tensor, shape in shapes.items():
            if tensor not in tensors or tensors[tensor].shape != shape:
                raise RunDamaged(
                    f"{self.run.ref}: {shard.name} has no tensor {tensor!r} of shape {list(shape)}. Capture again."
                )
        return {tensor: tensors[tensor] for tensor in shapes}

    def _places(self, step: int) -> list[tuple[int, np.ndarray]]:
        """Return [(shard, rows in it)] that make up the batch of `step`."""
        if step < 0:
            raise ValueError(f"step must be 0 or more, got {step}.")
        epoch, index = divmod(step, self.batches_per_epoch)
        shards = generator(Draw.EPOCH, self.seed, epoch).permutation(len(self._shards))
        ends = np.cumsum(self._sizes[shards])
        first, last = index * self.batch_rows, (index + 1) * self.batch_rows
        places: list[tuple[int, np.ndarray]] = []
        for slot in range(int(np.searchsorted(ends, first, side="right")), len(shards)):
            start = int(ends[slot - 1]) if slot else 0
            if start >= last:
                break
            rows = self._order(epoch, int(shards[slot]))[max(first - start, 0) : last - start]
            places.append((int(shards[slot]), rows))
        return places

    def _order(self, epoch: int, shard: int) -> np.ndarray:
        """Return the order of a shard's rows in this epoch; the last few are kept."""
        key = epoch, shard
        order = self._orders.get(key)
        if order is None:
            order = generator(Draw.READ, self.seed, epoch, shard).permutation(self.info.shards[shard].rows)
            self._orders[key] = order
            while len(self._orders) > _HELD:
                self._orders.popitem(last=False)
        return order

    def _take(self, shard: int, tensor: str, rows: np.ndarray) -> np.ndarray:
        """Return rows of a mapped tensor as an array of its own, after checking the tensor's hash once."""
        mapped = self._shards[shard][tensor]
        if (shard, tensor) not in self._checked:
            info = self.info.shards[shard]
            if sha256(mapped) != info.sha256[tensor]:
                raise RunDamaged(f"{self.run.ref}: {info.name} was changed after it was written. Capture again.")
            self._checked.add((shard, tensor))
        return np.asarray(mapped)[rows]
