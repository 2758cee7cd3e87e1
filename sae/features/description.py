"""Describe every latent of a dictionary: one pass over the text, then latent by latent, then the weights.

Cost: the model up to the site, the encoder, and less than half of the encoder again for near misses, statistics and
the spool. Memory, whatever the number of tokens: about 1 GiB beside the model and the dictionary (256 MiB of spooled
codes, 256 MiB of pair counts, the encoder's buffer, and some dozen bytes for each slot of the chunk in hand), and for a
latent that is active on every token about 60 bytes per token. Disk: 8 bytes per active slot while it runs.

Direct logits of a transcoder are those of its atoms at the site that it writes, of a crosscoder those of the part of an
atom at the last site of the (first) model; a crosscoder's cosines are over all blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

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
from sae.features.weights import RESIDUAL, direct_logits, nearest, unit
from sae.features.writing import ROW_GROUP, examples_table, save, write_latents, write_logits, write_neighbours, writing
from sae.model import Sae
from sae.placement import Placement
from sae.targets import block_norms, relative_norms

Progress = Callable[[int, int, str], None]
"""Called with (done, total, unit); the unit is "tokens" in the pass and "latents" after it."""


def describe_features(
    handle: ModelHandle,
    site: Site | str | Placement,
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
        handle: the model; of two, the first.
        site: where the dictionary was trained; a `Placement` where it does not write what it reads, or reads several.
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
    place = Placement.of(handle, site)
    if sae.training:
        raise ValueError("Features are described in evaluation mode, where a token's code is its own; call sae.eval().")
    place.check(sae)
    with Spool(sae.d_sae, run.path) as spool:
        collector = Collector(sae, spool, config.n_near_miss)
        total = blocks.tokens.numel()
        counts = collect(
            place,
            collector,
            blocks,
            outlier_norm=config.outlier_norm,
            batch_blocks=batch_blocks,
            on_progress=lambda done: hear(done, total, "tokens"),
        )
        words = vocabulary(handle)
        ends, examples = _write_activations(run, collector, blocks, config, hear)
        together = coactive(spool, counts.kept, config.neighbours)
    decoder, encoder = (nearest(rows.detach(), max(config.neighbours, 1)) for rows in (sae.W_dec, sae.W_enc))
    moments = collector.moments
    statistics = moments.columns() | weight_columns(place, sae)
    write_latents(run, sae, statistics, decoder, ends, blocks.tokens.numpy(), words)
    last = len(place.writes) - 1
    atoms = place.parts(sae.W_dec.detach())[last]
    write_logits(run, direct_logits(place.models[0], place.writes[last], atoms, config.logits))
    write_neighbours(run, decoder, encoder, together, config.neighbours)
    save(run, tables.VOCAB, {"token_id": np.arange(len(words)), "text": words})
    return _summary(moments, counts, examples)


def weight_columns(place: Placement, sae: Sae) -> dict[str, Tensor]:
    """Return columns of latents.parquet that depend on the place.

    `enc_dec_cosine` is NaN where encoder row and atom lie in different spaces. A crosscoder has `decoder_norm.SITE`,
    the length of the atom in each block in normalised units; of two models `decoder_norm.a.SITE` and
    `decoder_norm.b.SITE`, and `relative_norm`, the first model's share: 1 is all the first's, 0 all the second's.
    """
    encoder, atoms = sae.W_enc.detach(), sae.W_dec.detach()
    comparable = place.reads == place.writes or RESIDUAL.issuperset(site.kind for site in place.sites)
    cosine = (unit(encoder) * unit(atoms)).sum(1) if comparable else torch.full((sae.d_sae,), torch.nan)
    columns = {"enc_dec_cosine": cosine}
    if sae.config.target.blocks:
        lengths = block_norms(sae)
        columns |= {f"decoder_norm.{name}": lengths[:, i] for i, name in enumerate(place.names)}
    if sae.config.target.models == 2:
        columns["relative_norm"] = relative_norms(sae)
    return columns


def _summary(moments: Moments, counts: Counts, examples: int) -> dict[str, float]:
    alive = moments.density[moments.count > 0]
    summary: dict[str, float] = {
        "latents": len(moments.count),
        "tokens": counts.kept,
        "dead": moments.dead,
        "median_density": float(np.median(alive)) if len(alive) else 0.0,
        "examples": examples,
        "l0": moments.l0,
        "excluded_share": 1 - counts.kept / counts.positions,
        "nonfinite": counts.nonfinite,
    }
    if moments.signed:
        summary["signed"] = int(((moments.below > 0) & (moments.below < moments.count)).sum())
    return summary


def _silent(done: int, total: int, unit: str) -> None:
    """Hear nothing."""


def vocabulary(handle: ModelHandle) -> list[str]:
    """Return the text of every token id; of a model without a tokenizer the ids themselves."""
    return [str(i) for i in range(handle.d_vocab)] if handle.tokenizer is None else handle.vocabulary()


def _write_activations(
    run: Run, collector: Collector, blocks: Blocks, config: FeaturesConfig, on_progress: Progress
) -> tuple[Examples, int]:
    """Write examples and histograms, a few latents at a time; return (the examples of both ends, number of all)."""
    moments, spool, d_sae = collector.moments, collector.spool, collector.sae.d_sae
    extremes = np.abs([moments.largest, moments.smallest])[:, moments.count > 0]
    edges = histogram_edges(_least_magnitude(spool), float(extremes.max(initial=0)))
    lengths = blocks.keep.sum(1).numpy()
    token_ids = blocks.tokens.to(torch.int32).numpy()
    near_values, near_tokens = collector.near.values.cpu().numpy(), collector.near.tokens.cpu().numpy()
    counts, below, ends, written = [], [], [], 0
    with writing(run, tables.EXAMPLES) as writer:
        for chunk in spool.chunks():
            part = slice(chunk.first, chunk.last)
            found = choose(chunk, blocks.context, config, near_values[part], near_tokens[part])
            writer.write_table(examples_table(found, chunk, token_ids, lengths, config.window), ROW_GROUP)
            counts.append(histogram(chunk.latents, chunk.values, edges, len(chunk)))
            if moments.signed:
                negative = chunk.values < 0
                below.append(histogram(chunk.latents[negative], chunk.values[negative], edges, len(chunk)))
            end = found.take(np.isin(found.groups, [GROUPS.index(name) for name in ("top", "bottom")]))
            ends.append(end._replace(latents=end.latents + chunk.first))
            written += len(found.latents)
            on_progress(chunk.last, d_sae, "latents")
    signed = {"negative": np.concatenate(below)} if below else {}
    run.save_tensors(tables.HISTOGRAMS, {"counts": np.concatenate(counts), "edges": edges, **signed})
    return Examples.concatenate(ends), written


def _least_magnitude(spool: Spool) -> float:
    return min((float(np.abs(piece.values).min()) for piece in spool.pieces() if len(piece.values)), default=0.0)
