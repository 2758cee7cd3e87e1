"""The tuned lens: an affine map for each layer, to where the last stream would be (Belrose et al. 2023).

    lens_l(h) = W_U norm_f(h + A_l h + b_l) + b_U,     A_l, b_l = argmin  E KL(p_final || lens_l)

A and b begin at 0, so that the lens begins as the logit lens. Norm and unembedding stay the model's own. All layers
learn in one loop: the model reads a batch once, and each layer's loss touches its own A and b only.

The optimiser is Adam with a rate that falls linearly to 0. The gradient of A_l grows with the square of the stream's
size, which differs between layers by a factor of ten and more; the steps of Adam do not depend on it, so that one rate
serves all layers. Position 0 is left out: a norm a hundred times that of other tokens would decide A.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.checkpoint import load_optimizer_tensors, optimizer_tensors, read_checkpoint, write_checkpoint
from interp.hooks import capture
from interp.layers.lens import Prediction, TrainedLens, lens_logits, row_chunk, stream_site
from interp.layers.lens_config import TunedLensConfig
from interp.layers.lens_runs import load_lens, save_lens
from interp.layers.sampling import kept_positions
from interp.runs import Run

if TYPE_CHECKING:
    import pyarrow as pa

    from interp.data import Blocks
    from interp.models import ModelHandle

CHECKPOINT = "checkpoint.safetensors"
SAVE_SECONDS = 30.0
"""Seconds between checkpoints."""
MEASURED = 8192
"""Held-out positions that are measured before and after."""


def train_tuned_lens(
    handle: ModelHandle,
    blocks: Blocks,
    config: TunedLensConfig | None = None,
    run: Run | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> TrainedLens:
    """Return the tuned lens of a model, trained, gone on with, or taken from a finished run.

    Args:
        handle: the model; its weights stay as they are.
        blocks: the text to learn from; a share of it is kept apart and measured.
        config: how; None takes the defaults.
        run: where it is kept (`interp.layers.lens_runs.lens_run`), finished here; None keeps it nowhere.
        on_progress: hears (steps done, steps in all); an exception in it stops the training, which can be resumed.

    Raises:
        ValueError: there is no position to learn from.
    """
    if run is not None and run.finished:
        return load_lens(run, handle)
    config = config or TunedLensConfig()
    parts = blocks.split(config.heldout, config.seed) if config.heldout and len(blocks) > 1 else (blocks, None)
    training = _Training(handle, parts[0], config)
    if run is not None and run.file(CHECKPOINT).is_file():
        training.restore(run.file(CHECKPOINT))
        run.truncate_metrics(training.step)
    _loop(training, run, on_progress)
    lens = training.lens()
    if run is not None:
        save_lens(run, lens)
        summary: dict[str, float | int | str] = {"lens": "tuned", "steps": config.steps}
        if parts[1] is not None:
            table = lens_gain(handle, parts[1], lens)
            run.save_table("layers.parquet", table)
            summary |= {f"{name}_mean": float(np.mean(table[name].to_numpy())) for name in ("kl_logit", "kl_lens")}
        run.file(CHECKPOINT).unlink(missing_ok=True)
        run.finish(summary)
    return lens


def _loop(training: _Training, run: Run | None, on_progress: Callable[[int, int], object] | None) -> None:
    steps, saved = training.config.steps, time.monotonic()
    while training.step < steps:
        losses = training.advance()
        if run is not None:
            run.log(
                training.step, loss=float(losses.mean()), **{f"loss.{i - 1}": x for i, x in enumerate(losses.tolist())}
            )
            run.progress(training.step, steps, "steps")
            if time.monotonic() - saved > SAVE_SECONDS:
                training.save(run.file(CHECKPOINT))
                saved = time.monotonic()
        if on_progress is not None:
            try:
                on_progress(training.step, steps)
            except BaseException:
                if run is not None:
                    training.save(run.file(CHECKPOINT))
                raise


class _Training:
    """A and b of each stream but the last, their optimiser, and which text comes at which step."""

    def __init__(self, handle: ModelHandle, blocks: Blocks, config: TunedLensConfig) -> None:
        self.handle, self.blocks, self.config, self.step = handle, blocks, config, 0
        self.keep = kept_positions(blocks)
        self.readable = self.keep.any(1).nonzero()[:, 0].numpy()
        if len(self.readable) == 0:
            raise ValueError("The text has no position after the first to learn from; give more text.")
        d, device = handle.d_model, handle.device
        self.delta = [nn.Parameter(torch.zeros(d, d, device=device)) for _ in range(handle.n_layers)]
        self.bias = [nn.Parameter(torch.zeros(d, device=device)) for _ in range(handle.n_layers)]
        self.optimizer = torch.optim.Adam([*self.delta, *self.bias], lr=config.lr)

    def advance(self) -> Float[Tensor, " stream"]:
        """Take one step; return the loss of each stream, mean KL(final || lens) in nats."""
        streams, final = self._batch()
        losses = torch.zeros(len(streams), dtype=torch.float64)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * (1 - self.step / self.config.steps)
        self.optimizer.zero_grad()
        for rows in torch.arange(len(final), device=final.device).split(row_chunk(final.shape[1], final.device)):
            target = Prediction(final[rows])
            for i, stream in enumerate(streams):
                x = stream[rows].float()
                moved = x + (x @ self.delta[i].T + self.bias[i])
                lens = Prediction(lens_logits(self.handle, moved.to(stream.dtype)))
                loss = target.kl_to(lens).sum() / len(final)
                loss.backward()
                losses[i] += float(loss.detach())
        self.optimizer.step()
        self.step += 1
        return losses

    def _batch(self) -> tuple[list[Float[Tensor, "rows d_model"]], Float[Tensor, "rows d_vocab"]]:
        """Return the streams and the model's logits at the positions of this step."""
        chosen = self._chosen_blocks()
        sites = [stream_site(layer) for layer in range(-1, self.handle.n_layers - 1)]
        with capture(self.handle, sites) as acts:
            logits = self.handle.logits(self.blocks.tokens[chosen])
        places = self.keep[chosen].flatten().nonzero()[:, 0]
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        places = places[torch.randperm(len(places), generator=generator)[: self.config.positions]].to(logits.device)
        return [acts[site].flatten(0, 1)[places] for site in sites], logits.flatten(0, 1)[places]

    def _chosen_blocks(self) -> Int[Tensor, " chosen"]:
        """Return the blocks of this step: the text in a new order each time it is passed."""
        count, wanted = len(self.readable), self.config.blocks
        places = range(self.step * wanted, (self.step + 1) * wanted)
        orders = {p // count for p in places}
        order = {n: np.random.default_rng([self.config.seed, n]).permutation(self.readable) for n in orders}
        return torch.tensor(sorted({int(order[p // count][p % count]) for p in places}))

    def lens(self) -> TrainedLens:
        """Return the lens as it is now."""
        delta, bias = (torch.stack([one.detach().cpu() for one in part]) for part in (self.delta, self.bias))
        return TrainedLens("tuned", delta, bias, self.handle.digest())

    def save(self, path: Path) -> None:
        """Write the state after the last whole step."""
        tensors = {name: value.cpu() for name, value in optimizer_tensors(self.optimizer, "optimizer.").items()}
        lens = self.lens()
        write_checkpoint(path, tensors | {"delta": lens.delta, "bias": lens.bias}, {"step": self.step})

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint."""
        tensors, meta = read_checkpoint(path)
        with torch.no_grad():
            for part, name in ((self.delta, "delta"), (self.bias, "bias")):
                for mine, saved in zip(part, tensors[name], strict=True):
                    mine.copy_(saved)
        load_optimizer_tensors(self.optimizer, tensors, "optimizer.")
        self.step = int(meta["step"])


def lens_gain(handle: ModelHandle, blocks: Blocks, lens: TrainedLens, positions: int = MEASURED) -> pa.Table:
    """Return mean KL(final || lens) by layer of the logit lens and of `lens` on some text, in nats.

    Args:
        handle: the model.
        blocks: text that the lens has not learned from.
        lens: the lens.
        positions: positions that are looked at, at most: those of the first blocks.

    Returns:
        A table with the columns layer, kl_logit, kl_lens; the last layer, where both are the model, is left out.
    """
    import pyarrow as pa

    sums, count = torch.zeros(2, handle.n_layers, dtype=torch.float64), 0
    for streams, final in _measured(handle, blocks, positions):
        target = Prediction(final)
        count += len(final)
        for i, stream in enumerate(streams):
            for j, moved in enumerate((stream, lens.translate(i - 1, stream))):
                sums[j, i] += float(target.kl_to(Prediction(lens_logits(handle, moved))).double().sum())
    kl_logit, kl_lens = (sums / max(count, 1)).tolist()
    layers = pa.array(range(-1, handle.n_layers - 1), pa.int32())
    return pa.table({"layer": layers, "kl_logit": kl_logit, "kl_lens": kl_lens})


def _measured(handle: ModelHandle, blocks: Blocks, positions: int) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield streams and logits of rows, block by block."""
    sites = [stream_site(layer) for layer in range(-1, handle.n_layers - 1)]
    for tokens, keep in zip(blocks.tokens, kept_positions(blocks), strict=True):
        places = keep.nonzero()[:positions, 0].to(handle.device)
        if len(places) == 0:
            continue
        positions -= len(places)
        with capture(handle, sites) as acts:
            logits = handle.logits(tokens)[0]
        for rows in places.split(row_chunk(handle.d_vocab, logits.device)):
            yield [acts[site][0, rows] for site in sites], logits[rows]
