"""Evaluate a dictionary in its model: what it explains, and what the model loses when it runs through it.

Four runs of the model on the same tokens: clean, spliced (x replaced by x_hat), zero-ablated and mean-ablated. Every
intervention touches the kept positions only; BOS, padding, outliers and non-finite rows pass through untouched and
leave FVU, L0 and density, and their share is part of the result.

x is the activation that the dictionary reconstructs, wherever that is (`sae.placement`): a transcoder is measured and
replaced at the site that it writes. Of a crosscoder each site is measured and replaced by itself (`Part`), and all
sites of a model together; FVU and bias in all are means over the blocks, since the block with the largest activations
would make up nearly all of a pooled one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.activations.outliers import near, norms, typical_norm
from interp.data import Blocks
from interp.hooks import patch
from interp.metrics import Reconstruction, ce_recovered, finite_rows, kl_divergence, next_token_loss
from interp.models import ModelHandle
from interp.sites import Site
from interp.types import Dictionary
from sae.placement import Found, Placement

LOGIT_FLOATS = 1 << 24
"""Largest batch of logits, in floats (64 MiB in float32); three of its size are held at once."""
LOSSES = ("spliced", "zero", "mean")


@dataclass(frozen=True)
class Part:
    """What a crosscoder does at one site, or at all sites of a model at once."""

    model: int
    """0, or with two models 1 for the second."""
    site: str
    """The site, or "all"."""
    fvu: float
    """Fraction of variance unexplained there; of several the mean."""
    bias: float
    """E||x_hat||^2 / E<x, x_hat>; of several the mean."""
    ce_clean: float
    """Loss of the model as it is."""
    ce_spliced: float
    """Loss when x_hat replaces x there."""
    ce_zero: float
    """Loss when zeros do."""
    ce_mean: float
    """Loss when the mean does."""
    kl: float
    """KL(clean || spliced)."""


@dataclass(frozen=True)
class Evaluation:
    """What one dictionary does to one model on held-out tokens. Losses and divergences are in nats per token."""

    tokens: int
    """Token positions seen, excluded ones included."""
    excluded_share: float
    """Share of them that was neither spliced nor measured."""
    nonfinite: int
    """Rows with NaN or infinity among them."""
    fvu: float
    """Fraction of variance unexplained, pooled; of a crosscoder the mean over its blocks."""
    l0: float
    """Active latents per kept token."""
    dead_share: float
    """Share of latents that never fired on these tokens."""
    bias: float
    """E||x_hat||^2 / E<x, x_hat>; of a crosscoder the mean over its blocks."""
    ce_clean: float
    """Loss of the model as it is; of two models the first one's, like all losses here."""
    ce_spliced: float
    """Loss when x_hat replaces x; of a crosscoder at all sites at once."""
    ce_zero: float
    """Loss when zeros replace x."""
    ce_mean: float
    """Loss when the mean of x replaces x."""
    kl: float
    """KL(clean || spliced)."""
    unpredicted: int
    """Next tokens left out of every loss, because the model's own loss there is not finite."""
    parts: tuple[Part, ...] = ()
    """A crosscoder's sites one by one, and all sites of each model."""

    @property
    def ce_delta(self) -> float:
        """What the splice costs."""
        return self.ce_spliced - self.ce_clean

    @property
    def ce_recovered_zero(self) -> float:
        """CE recovered against zero-ablation (flatters on the residual stream)."""
        return ce_recovered(self.ce_clean, self.ce_spliced, self.ce_zero)

    @property
    def ce_recovered_mean(self) -> float:
        """CE recovered against mean-ablation."""
        return ce_recovered(self.ce_clean, self.ce_spliced, self.ce_mean)

    def to_dict(self) -> dict[str, float]:
        """Return every number in all, the derived ones included."""
        derived = ("ce_delta", "ce_recovered_zero", "ce_recovered_mean")
        numbers = {name: value for name, value in asdict(self).items() if name != "parts"}
        return numbers | {name: getattr(self, name) for name in derived}


def measured_positions(
    usable: Bool[Tensor, "batch pos"],
    x: Float[Tensor, "batch pos d_in"],
    *,
    outlier_norm: float | None = None,
    typical: float = 0.0,
) -> Bool[Tensor, "batch pos"]:
    """Return the usable positions that are measured: finite, and at most `outlier_norm` times `typical` long."""
    kept = usable & finite_rows(x)
    if outlier_norm is not None:
        kept &= near(norms(x), outlier_norm, typical).to(kept.device)
    return kept


class _Totals:
    """Sums over the batches of an evaluation."""

    def __init__(self, place: Placement, d_sae: int) -> None:
        self.reconstructions = [Reconstruction() for _ in place.blocks]
        self.counts = torch.zeros(d_sae, dtype=torch.long)
        self.positions = self.kept = self.nonfinite = 0
        self.predicted, self.unpredicted = ([0] * len(place.models) for _ in range(2))
        self.clean = [0.0] * len(place.models)
        self.losses: dict[tuple[int, ...], dict[str, float]] = {
            blocks: dict.fromkeys((*LOSSES, "kl"), 0.0) for blocks in _replaced_together(place)
        }


def _replaced_together(place: Placement) -> list[tuple[int, ...]]:
    """Return which blocks are replaced in one run: each by itself, then all of one model."""
    found: list[tuple[int, ...]] = []
    for number in range(len(place.models)):
        own = [block for block, (model, _) in enumerate(place.blocks) if model == number]
        found += [(block,) for block in own] + ([tuple(own)] if len(own) > 1 else [])
    return found


@torch.inference_mode()
def evaluate(
    handle: ModelHandle,
    site: Site | str | Placement,
    sae: Dictionary,
    blocks: Blocks,
    *,
    drop_bos: bool = True,
    outlier_norm: float | None = None,
    batch_blocks: int | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[Evaluation, Float[Tensor, " d_sae"]]:
    """Return (evaluation, density of each latent) on `blocks`.

    Args:
        handle: the model; of two, the first.
        site: where the dictionary belongs; a `Placement` where it does not write what it reads, or reads several.
        sae: the dictionary.
        blocks: the text.
        drop_bos: leave BOS alone.
        outlier_norm: leave alone what is longer than this many times the median norm, at any site.
        batch_blocks: blocks in a forward pass; None takes as many as keep the logits small.
        on_progress: hears the number of blocks done so far.

    Raises:
        ValueError: the dictionary does not fit, or no position is kept.
    """
    place = Placement.of(handle, site)
    place.check(sae)
    if batch_blocks is None:
        batch_blocks = max(1, min(16, LOGIT_FLOATS // (blocks.context * handle.d_vocab)))
    usable = blocks.keep & ~blocks.bos() if drop_bos else blocks.keep
    batches = [
        tuple(part.to(handle.device) for part in parts)
        for parts in zip(*(t.split(batch_blocks) for t in (blocks.tokens.long(), blocks.keep, usable)), strict=True)
    ]
    means, typical = _typical(place, [(tokens, able) for tokens, _, able in batches])
    totals, done = _Totals(place, sae.d_sae), 0
    for tokens, keep, able in batches:
        clean, found = place.forward(tokens)
        kept = able
        for length, x in zip(typical, _everywhere(found), strict=True):
            kept = measured_positions(kept, x, outlier_norm=outlier_norm, typical=length)
        totals.positions += int(keep.sum())
        totals.nonfinite += int((able & ~_finite(found)).sum())
        totals.kept += int(kept.sum())
        values = _reconstruct(totals, place, sae, found, kept, means)
        _add_losses(totals, place, tokens, keep, kept, clean, values, means)
        done += len(tokens)
        on_progress(done)
    if totals.kept == 0:
        raise ValueError(
            f"None of the {totals.positions} positions can be measured: {totals.nonfinite} are NaN or infinite, the "
            "rest BOS, padding or outliers. Evaluate on more text, or check the model with `mechscope models verify`."
        )
    return _summary(totals, place, sae.d_sae), totals.counts / totals.kept


def _everywhere(found: Found) -> list[Float[Tensor, "batch pos _"]]:
    """Return the activations of every model and site."""
    return [x for taken in found for x in taken.values()]


def _finite(found: Found) -> Bool[Tensor, "batch pos"]:
    """Return which positions are finite at every site."""
    return torch.stack([finite_rows(x) for x in _everywhere(found)]).all(0)


def _typical(
    place: Placement, batches: list[tuple[Tensor, Tensor]], limit: int = 64
) -> tuple[list[Float[Tensor, " _"]], list[float]]:
    """Return (mean of each block that is written, median norm at every site) of up to `limit` evenly spread batches.

    They are over the usable rows that are finite everywhere.
    """
    rows: list[list[Tensor]] = []
    for tokens, able in batches[:: max(1, -(-len(batches) // limit))]:
        found = place.activations(tokens)
        usable = able & _finite(found)
        rows.append([x[usable] for x in _everywhere(found)])
    names = [(number, site) for number in range(len(place.models)) for site in place.sites]
    x = {name: torch.cat(parts) for name, parts in zip(names, zip(*rows, strict=True), strict=True)}
    if not len(x[names[0]]):
        return [x[name].new_zeros(x[name].shape[-1]) for name in place.blocks], [0.0] * len(names)
    means = [x[name].double().mean(0).to(x[name].dtype) for name in place.blocks]
    return means, [typical_norm(norms(x[name])) for name in names]


def _reconstruct(
    totals: _Totals,
    place: Placement,
    sae: Dictionary,
    found: Found,
    kept: Bool[Tensor, "batch pos"],
    means: list[Float[Tensor, " _"]],
) -> list[Float[Tensor, "batch pos _"]]:
    """Return each block with its reconstruction at the kept positions, and add what it explains."""
    clean = [found[number][site] for number, site in place.blocks]
    if not kept.any():
        return clean
    x = place.rows(found)[kept]
    # Dictionaries compute in float32 at least; a model in half precision gets its own format back.
    recon, code = sae.forward(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)
    totals.counts += code.counts().cpu()
    spots, values = kept.nonzero(as_tuple=True), []
    for sums, y, y_hat, mean in zip(totals.reconstructions, clean, place.parts(recon), means, strict=True):
        sums.add(y[kept], y_hat.to(y.device), mean)
        values.append(y.index_put(spots, y_hat.to(y)))
    return values


def _add_losses(
    totals: _Totals,
    place: Placement,
    tokens: Int[Tensor, "batch pos"],
    keep: Bool[Tensor, "batch pos"],
    kept: Bool[Tensor, "batch pos"],
    clean: list[Float[Tensor, "batch pos d_vocab"]],
    values: list[Float[Tensor, "batch pos _"]],
    means: list[Float[Tensor, " _"]],
) -> None:
    """Add the losses of the clean runs and of every intervention over all real next tokens."""
    real, predicted = keep[:, 1:] & keep[:, :-1], []
    for number, logits in enumerate(clean):
        losses = next_token_loss(logits, tokens)
        predicted.append(real & torch.isfinite(losses))
        totals.predicted[number] += int(predicted[number].sum())
        totals.unpredicted[number] += int((real & ~predicted[number]).sum())
        totals.clean[number] += float(losses[predicted[number]].double().sum())
    for blocks, sums in totals.losses.items():
        number = place.blocks[blocks[0]][0]
        # One at a time: with a large vocabulary each set of logits is most of the memory.
        for name in LOSSES:
            new = {"spliced": values, "zero": [torch.zeros_like(mean) for mean in means], "mean": means}[name]
            with _replaced(place, {block: new[block] for block in blocks}, kept):
                logits = place.models[number].logits(tokens)
            if name == "spliced":
                divergence = kl_divergence(clean[number], logits)[:, :-1][predicted[number]]
                sums["kl"] += float(divergence.double().sum())
            sums[name] += float(next_token_loss(logits, tokens)[predicted[number]].double().sum())


@contextmanager
def _replaced(place: Placement, values: dict[int, Tensor], kept: Bool[Tensor, "batch pos"]) -> Iterator[None]:
    """Replace the kept positions of each block by its value; what is not kept is whatever the model makes of it."""

    def edit(x: Tensor, value: Tensor) -> Tensor:
        flat = x.flatten(2)
        return torch.where(kept[..., None], value.to(flat.dtype), flat).view_as(x)

    with ExitStack() as stack:
        for block, value in values.items():
            number, site = place.blocks[block]
            stack.enter_context(patch(place.models[number], site, partial(edit, value=value)))
        yield


def _summary(totals: _Totals, place: Placement, d_sae: int) -> Evaluation:
    parts = tuple(_part(totals, place, blocks) for blocks in totals.losses)
    several = len(place.blocks) > 1
    # The first model with everything replaced: the only run, or the one after its sites one by one.
    first = parts[len(place.writes) if len(place.writes) > 1 else 0]
    return Evaluation(
        tokens=totals.positions,
        excluded_share=1 - totals.kept / totals.positions,
        nonfinite=totals.nonfinite,
        fvu=_mean([sums.fvu for sums in totals.reconstructions]),
        l0=int(totals.counts.sum()) / totals.kept,
        dead_share=int((totals.counts == 0).sum()) / d_sae,
        bias=_mean([sums.bias for sums in totals.reconstructions]),
        ce_clean=first.ce_clean,
        ce_spliced=first.ce_spliced,
        ce_zero=first.ce_zero,
        ce_mean=first.ce_mean,
        kl=first.kl,
        unpredicted=totals.unpredicted[0],
        parts=parts if several else (),
    )


def _part(totals: _Totals, place: Placement, blocks: tuple[int, ...]) -> Part:
    """Return what was measured with `blocks` replaced."""
    number, site = place.blocks[blocks[0]]
    count = max(1, totals.predicted[number])
    losses = {name: value / count for name, value in totals.losses[blocks].items()}
    return Part(
        model=number,
        site=str(site) if len(blocks) == 1 else "all",
        fvu=_mean([totals.reconstructions[block].fvu for block in blocks]),
        bias=_mean([totals.reconstructions[block].bias for block in blocks]),
        ce_clean=totals.clean[number] / count,
        ce_spliced=losses["spliced"],
        ce_zero=losses["zero"],
        ce_mean=losses["mean"],
        kl=losses["kl"],
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
