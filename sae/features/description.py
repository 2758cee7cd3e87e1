"""Describe every latent of a dictionary: one pass over the text, then latent by latent, then the weights.

Cost: the model up to the site, the encoder, and less than half of the encoder again for near misses, statistics and
the spool. Memory, whatever the number of tokens: about 1 GiB beside the model and the dictionary (256 MiB of spooled
codes, 256 MiB of pair counts, the encoder's buffer, and some dozen bytes for each slot of the chunk in hand), and for a
latent that is active on every token about 60 bytes per token. Disk: 8 bytes per active slot while it runs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from interp.data import Blocks
from interp.models import ModelHandle
from interp.runs import Run
from interp.sites import Site
from sae.features import tables
from sae.features.coactivation import coactive
from sae.features.collection import Collector, Counts, collect
from sae.features.config import FeaturesConfig
from sae.features.examples import GROUPS, Examples, choose
from sae.features.spool import Spool
from sae.features.statistics import Moments, histogram, histogram_edges
from sae.features.weights import direct_logits, nearest
from sae.features.writing import ROW_GROUP, examples_table, save, write_latents, write_logits, write_neighbours, writing
from sae.model import Sae

Progress = Callable[[int, int, str], None]
"""Called with (done, total, unit); the unit is "tokens" in the pass and "latents" after it."""


def describe_features(
    handle: ModelHandle,
    site: Site | str,
    sae: Sae,
    blocks: Blocks,
    run: Run,
    *,
    config: FeaturesConfig | None = None,
    batch_blocks: int | None = None,
    on_progress: Progress | None = None,
) -> dict[str, float]:
    """Write the description of every latent into `run` and return the summary that the run is to be finished with.

    Args:
        handle: the model.
        site: where the dictionary was trained.
        sae: the dictionary.
        blocks: the text.
        run: a run of kind "features", open for writing; `sae.features.tables` says what comes to lie in it.
        config: what to collect.
        batch_blocks: blocks in one forward; None takes what fits.
        on_progress: hears (done, total, unit).

    Raises:
        ValueError: the dictionary is in training mode or does not fit the site, or no position of the text can be kept.
    """
    config, hear = config or FeaturesConfig(), on_progress or _silent
    place = handle.check_site(site)
    if sae.training:
        raise ValueError("Features are described in evaluation mode, where a token's code is its own; call sae.eval().")
    if sae.d_in != handle.width(place):
        raise ValueError(f"The dictionary reads d_in={sae.d_in} numbers, but {place} has {handle.width(place)}.")
    with Spool(sae.d_sae, run.path) as spool:
        collector = Collector(sae, spool, config.n_near_miss)
        total = blocks.tokens.numel()
        counts = collect(
            handle,
            place,
            collector,
            blocks,
            outlier_norm=config.outlier_norm,
            batch_blocks=batch_blocks,
            on_progress=lambda done: hear(done, total, "tokens"),
        )
        words = vocabulary(handle)
        top, examples = _write_activations(run, collector, blocks, config, hear)
        together = coactive(spool, counts.kept, config.neighbours)
    decoder, encoder = (nearest(rows.detach(), max(config.neighbours, 1)) for rows in (sae.W_dec, sae.W_enc))
    moments = collector.moments
    write_latents(run, sae, moments.columns(), decoder, top, blocks.tokens.numpy(), words)
    write_logits(run, direct_logits(handle, place, sae.W_dec.detach(), config.logits))
    write_neighbours(run, decoder, encoder, together, config.neighbours)
    save(run, tables.VOCAB, {"token_id": np.arange(len(words)), "text": words})
    return _summary(moments, counts, examples)


def _summary(moments: Moments, counts: Counts, examples: int) -> dict[str, float]:
    alive = moments.density[moments.count > 0]
    return {
        "latents": len(moments.count),
        "tokens": counts.kept,
        "dead": moments.dead,
        "median_density": float(np.median(alive)) if len(alive) else 0.0,
        "examples": examples,
        "l0": moments.l0,
        "excluded_share": 1 - counts.kept / counts.positions,
        "nonfinite": counts.nonfinite,
    }


def _silent(done: int, total: int, unit: str) -> None:
    """Hear nothing."""


def vocabulary(handle: ModelHandle) -> list[str]:
    """Return the text of every token id; of a model without a tokenizer the ids themselves."""
    return [str(i) for i in range(handle.d_vocab)] if handle.tokenizer is None else handle.vocabulary()


def _write_activations(
    run: Run, collector: Collector, blocks: Blocks, config: FeaturesConfig, on_progress: Progress
) -> tuple[Examples, int]:
    """Write examples and histograms, a few latents at a time; return (the top examples of all, number of examples)."""
    moments, spool, d_sae = collector.moments, collector.spool, collector.sae.d_sae
    extremes = np.abs([moments.largest, moments.smallest])[:, moments.count > 0]
    edges = histogram_edges(_least_magnitude(spool), float(extremes.max(initial=0)))
    lengths = blocks.keep.sum(1).numpy()
    token_ids = blocks.tokens.to(torch.int32).numpy()
    near_values, near_tokens = collector.near.values.cpu().numpy(), collector.near.tokens.cpu().numpy()
    counts, tops, written = [], [], 0
    with writing(run, tables.EXAMPLES) as writer:
        for chunk in spool.chunks():
            part = slice(chunk.first, chunk.last)
            found = choose(chunk, blocks.context, config, near_values[part], near_tokens[part])
            writer.write_table(examples_table(found, chunk, token_ids, lengths, config.window), ROW_GROUP)
            counts.append(histogram(chunk.latents, chunk.values, edges, len(chunk)))
            top = found.take(found.groups == GROUPS.index("top"))
            tops.append(top._replace(latents=top.latents + chunk.first))
            written += len(found.latents)
            on_progress(chunk.last, d_sae, "latents")
    run.save_tensors(tables.HISTOGRAMS, {"counts": np.concatenate(counts), "edges": edges})
    return Examples.concatenate(tops), written


def _least_magnitude(spool: Spool) -> float:
    return min((float(np.abs(piece.values).min()) for piece in spool.pieces() if len(piece.values)), default=0.0)
