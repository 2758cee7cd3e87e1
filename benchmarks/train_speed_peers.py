"""Time the TopK trainers that are installed where this runs; `train_speed.py --peer-python` starts it.

    PYTHON train_speed_peers.py ROWS.npy K D_SAE BATCH LR THREADS

Needs nothing of this repository. Each library runs its own training step on the same rows in the same order; a step's
time is what passes between two requests for a batch. A library that is not installed is left out, one that fails is
given with its error. Prints one JSON line: rows per second by library and version.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

import numpy as np
import torch
from torch import Tensor

WARM, TIMED = 4, 12


@dataclass
class Feed:
    """Batches in turn, and when each was asked for."""

    rows: Tensor
    k: int
    d_sae: int
    batch: int
    lr: float
    asked: list[float] = field(default_factory=list)

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self.rows.shape[1]

    def __iter__(self) -> Iterator[Tensor]:
        """Give the batches, for ever."""
        batches = self.rows.split(self.batch)
        while True:
            self.asked.append(perf_counter())
            yield batches[len(self.asked) % len(batches)]

    def steps(self) -> Iterator[tuple[int, Tensor]]:
        """Give as many batches as are timed."""
        yield from zip(range(WARM + TIMED + 1), self, strict=False)


def sae_lens(feed: Feed) -> None:
    """Run sae-lens' `SAETrainer.fit`."""
    from sae_lens import LoggingConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=feed.d_in, d_sae=feed.d_sae, k=feed.k, device="cpu"))
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=(WARM + TIMED + 1) * feed.batch,
        device="cpu",
        autocast=False,
        lr=feed.lr,
        lr_end=feed.lr,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=feed.batch,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(cfg=config, sae=sae, data_provider=iter(feed)).fit()


def dictionary_learning(feed: Feed) -> None:
    """Run dictionary_learning's `TopKTrainer.update`."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=10_000,
        activation_dim=feed.d_in,
        dict_size=feed.d_sae,
        k=feed.k,
        layer=0,
        lm_name="none",
        lr=feed.lr,
        device="cpu",
    )
    for step, x in feed.steps():
        trainer.update(step, x)


def sparsify(feed: Feed) -> None:
    """Run sparsify's `SparseCoder` with the step of its trainer, under Adam."""
    from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(feed.d_in, SparseCoderConfig(num_latents=feed.d_sae, k=feed.k))
    optimizer = torch.optim.Adam(sae.parameters(), lr=feed.lr)
    for _, x in feed.steps():
        sae.set_decoder_norm_to_unit_norm()
        sae(x).fvu.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()


def overcomplete(feed: Feed) -> None:
    """Run overcomplete's `train_sae`."""
    from overcomplete.sae import TopKSAE, train_sae

    class Loader:
        def __iter__(self) -> Iterator[tuple[Tensor]]:
            return ((x,) for _, x in feed.steps())

        def __len__(self) -> int:
            return WARM + TIMED + 1

    def criterion(x: Tensor, x_hat: Tensor, *_: object) -> Tensor:
        return (x - x_hat).square().mean()

    sae = TopKSAE(feed.d_in, nb_concepts=feed.d_sae, top_k=feed.k, device="cpu")
    optimizer = torch.optim.Adam(sae.parameters(), lr=feed.lr)
    train_sae(sae, Loader(), criterion, optimizer, nb_epochs=1, device="cpu")


PEERS: dict[str, tuple[str, Callable[[Feed], None]]] = {
    "sae_lens": ("sae-lens", sae_lens),
    "dictionary_learning": ("dictionary-learning", dictionary_learning),
    "sparsify": ("eai-sparsify", sparsify),
    "overcomplete": ("overcomplete", overcomplete),
}


def main() -> None:
    """Time what is installed and print it."""
    path, k, d_sae, batch, lr, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    rows = torch.from_numpy(np.load(path))
    found: dict[str, float | str] = {}
    for module, (distribution, job) in PEERS.items():
        if importlib.util.find_spec(module) is None:
            continue
        name = f"{distribution} {importlib.metadata.version(distribution)}"
        feed = Feed(rows, int(k), int(d_sae), int(batch), float(lr))
        output, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not mix with the JSON
        try:
            job(feed)
            taken = [after - before for before, after in zip(feed.asked[WARM:], feed.asked[WARM + 1 :], strict=False)]
            found[name] = round(feed.batch / statistics.median(taken))
        except Exception as error:  # a peer that breaks is a result too
            found[name] = f"{type(error).__name__}: {error}"[:200]
        finally:
            sys.stdout = output
    print(json.dumps(found))


if __name__ == "__main__":
    main()
