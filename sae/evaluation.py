"""Evaluate a dictionary in its model: what it explains, and what the model loses when it runs through it.

Four runs of the model on the same tokens: clean, spliced (x replaced by x_hat), zero-ablated and mean-ablated. Every
intervention touches the kept positions only; BOS, padding, outliers and non-finite rows pass through untouched and
leave FVU, L0 and density, and their share is part of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.activations.outliers import near, norms, typical_norm
from interp.data import Blocks
from interp.hooks import capture, patch, splice
from interp.metrics import Reconstruction, ce_recovered, finite_rows, kl_divergence, next_token_loss
from interp.models import ModelHandle
from interp.sites import Site
from interp.types import Dictionary

LOGIT_FLOATS = 1 << 24
"""Largest batch of logits, in floats (64 MiB in float32); three of its size are held at once."""


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
    """Fraction of variance unexplained, pooled."""
    l0: float
    """Active latents per kept token."""
    dead_share: float
    """Share of latents that never fired on these tokens."""
    bias: float
    """E||x_hat||^2 / E<x, x_hat>."""
    ce_clean: float
    """Loss of the model as it is."""
    ce_spliced: float
    """Loss when x_hat replaces x."""
    ce_zero: float
    """Loss when zeros replace x."""
    ce_mean: float
    """Loss when the mean of x replaces x."""
    kl: float
    """KL(clean || spliced)."""
    unpredicted: int
    """Next tokens left out of every loss, because the model's own loss there is not finite."""

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
        """Return every number, the derived ones included."""
        derived = ("ce_delta", "ce_recovered_zero", "ce_recovered_mean")
        return asdict(self) | {name: getattr(self, name) for name in derived}


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

    def __init__(self, d_sae: int) -> None:
        self.reconstruction = Reconstruction()
        self.counts = torch.zeros(d_sae, dtype=torch.long)
        self.positions = self.kept = self.nonfinite = self.predicted = self.unpredicted = 0
        self.losses: dict[str, float] = dict.fromkeys(("clean", "spliced", "zero", "mean", "kl"), 0.0)


@torch.inference_mode()
def evaluate(
    handle: ModelHandle,
    site: Site | str,
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
        handle: the model.
        site: where the dictionary belongs.
        sae: the dictionary.
        blocks: the text.
        drop_bos: leave BOS alone.
        outlier_norm: leave alone what is longer than this many times the median norm.
        batch_blocks: blocks in a forward pass; None takes as many as keep the logits small.
        on_progress: hears the number of blocks done so far.

    Raises:
        ValueError: no position is kept.
    """
    place = handle.check_site(site)
    if batch_blocks is None:
        batch_blocks = max(1, min(16, LOGIT_FLOATS // (blocks.context * handle.d_vocab)))
    usable = blocks.keep & ~blocks.bos() if drop_bos else blocks.keep
    batches = [
        tuple(part.to(handle.device) for part in parts)
        for parts in zip(*(t.split(batch_blocks) for t in (blocks.tokens.long(), blocks.keep, usable)), strict=True)
    ]
    mean, typical = _mean_activation(handle, place, [(tokens, able) for tokens, _, able in batches])
    totals, done = _Totals(sae.d_sae), 0
    for tokens, keep, able in batches:
        with capture(handle, [place]) as taken:
            clean = handle.logits(tokens)
        x = taken[place].flatten(2)
        kept = measured_positions(able, x, outlier_norm=outlier_norm, typical=typical)
        totals.positions += int(keep.sum())
        totals.nonfinite += int((able & ~finite_rows(x)).sum())
        totals.kept += int(kept.sum())
        if kept.any():
            recon, code = sae.forward(x[kept])
            totals.reconstruction.add(x[kept], recon, mean)
            totals.counts += code.counts().cpu()
        _add_losses(totals, handle, place, sae, tokens, keep, kept, clean, mean)
        done += len(tokens)
        on_progress(done)
    if totals.kept == 0:
        raise ValueError(
            f"None of the {totals.positions} positions can be measured: {totals.nonfinite} are NaN or infinite, the "
            "rest BOS, padding or outliers. Evaluate on more text, or check the model with `mechscope models verify`."
        )
    return _summary(totals, sae.d_sae), totals.counts / totals.kept


def _mean_activation(
    handle: ModelHandle, site: Site, batches: list[tuple[Tensor, Tensor]], limit: int = 64
) -> tuple[Float[Tensor, " d_in"], float]:
    """Return (mean activation, median norm) over the usable rows of up to `limit` evenly spread batches."""
    rows = []
    for tokens, able in batches[:: max(1, -(-len(batches) // limit))]:
        with capture(handle, [site], stop=True) as taken:
            handle.forward(tokens)
        x = taken[site].flatten(2)
        rows.append(x[measured_positions(able, x)])
    x = torch.cat(rows)
    if len(x) == 0:
        return x.new_zeros(x.shape[-1]), 0.0
    return x.double().mean(0).to(x.dtype), typical_norm(norms(x))


def _add_losses(
    totals: _Totals,
    handle: ModelHandle,
    site: Site,
    sae: Dictionary,
    tokens: Int[Tensor, "batch pos"],
    keep: Bool[Tensor, "batch pos"],
    kept: Bool[Tensor, "batch pos"],
    clean: Float[Tensor, "batch pos d_vocab"],
    mean: Float[Tensor, " d_in"],
) -> None:
    """Add the losses of the clean run and of the three interventions over all real next tokens."""
    losses = next_token_loss(clean, tokens)
    real = keep[:, 1:] & keep[:, :-1]
    predicted = real & torch.isfinite(losses)
    totals.predicted += int(predicted.sum())
    totals.unpredicted += int((real & ~predicted).sum())
    totals.losses["clean"] += float(losses[predicted].double().sum())

    def replaced(value: Tensor) -> Tensor:
        def edit(x: Tensor) -> Tensor:
            flat = x.flatten(2)
            return torch.where(kept[..., None], value.to(flat.dtype), flat).view_as(x)

        with patch(handle, site, edit):
            return handle.logits(tokens)

    with splice(handle, site, sae, keep=kept):
        spliced = handle.logits(tokens)
    totals.losses["kl"] += float(kl_divergence(clean, spliced)[:, :-1][predicted].double().sum())
    # One at a time: with a large vocabulary each set of logits is most of the memory.
    runs = {
        "spliced": lambda: spliced,
        "zero": lambda: replaced(torch.zeros_like(mean)),
        "mean": lambda: replaced(mean),
    }
    for name, logits in runs.items():
        totals.losses[name] += float(next_token_loss(logits(), tokens)[predicted].double().sum())


def _summary(totals: _Totals, d_sae: int) -> Evaluation:
    losses = {name: value / max(1, totals.predicted) for name, value in totals.losses.items()}
    return Evaluation(
        tokens=totals.positions,
        excluded_share=1 - totals.kept / totals.positions,
        nonfinite=totals.nonfinite,
        fvu=totals.reconstruction.fvu,
        l0=int(totals.counts.sum()) / totals.kept,
        dead_share=int((totals.counts == 0).sum()) / d_sae,
        bias=totals.reconstruction.bias,
        ce_clean=losses["clean"],
        ce_spliced=losses["spliced"],
        ce_zero=losses["zero"],
        ce_mean=losses["mean"],
        kl=losses["kl"],
        unpredicted=totals.unpredicted,
    )
