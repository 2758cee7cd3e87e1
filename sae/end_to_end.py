"""Whole texts for end-to-end training: activations at a site, and what the model says when they are replaced.

    KL = mean over real next tokens of KL(p_clean || p_spliced)                                     nats per token
    downstream = mean over later sites l of  sum ||h_l - h'_l||^2 / sum ||h_l - mean h_l||^2        shares of variance

h_l are the activations of the clean run, h'_l those of the spliced one. Rows come text by text, so a step's rows are
not independent draws: take more rows per step than for a dictionary that is trained on single activations. Rows that
are left out (BOS, padding, outliers, not finite) pass through untouched. Braun et al. 2024, arXiv 2405.12241; there the
downstream error is a plain mean square, so its weights do not carry over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.activations.config import check_outlier_norm
from interp.activations.rows import Draw, generator, loss_backward
from interp.data import Blocks
from interp.hooks import capture, patch
from interp.metrics import finite_rows, kl_divergence, next_token_loss
from interp.models import ModelHandle
from interp.sites import Site, parse_sites
from sae.batches import ModelLoss


@dataclass(frozen=True, eq=False)
class _Pass:
    """One clean run over the texts of a step."""

    step: int
    tokens: Int[Tensor, "block pos"]
    keep: Bool[Tensor, "block pos"]
    """Real tokens."""
    kept: Bool[Tensor, "block pos"]
    """Positions whose rows are given and replaced."""
    found: dict[Site, Tensor]
    """Activations at the site and at the later ones, [block pos d]."""
    logits: Float[Tensor, "block pos d_vocab"]


def check_batch(batch: int, context: int) -> None:
    """Refuse fewer rows per step than one block has tokens."""
    if batch < context:
        raise ValueError(f"End to end reads whole texts: batch must be at least the context, {context}, got {batch}.")


class TextBatches:
    """Rows of whole blocks at one site, and the model that reads on from their reconstruction.

    Args:
        model: runs as it is; its parameters take no gradient.
        blocks: the text; a step takes as many blocks as fit `batch`, and every block comes once per epoch.
        site: where.
        batch: rows per step, at most.
        seed: of the order.
        drop_bos: leave BOS alone.
        outlier_norm: leave rows alone that are longer than this many times the median norm of the step.
        downstream: later sites whose error is measured.

    Raises:
        ValueError: a batch shorter than one block, a site that is not later, a setting out of range.
    """

    gives = ("model", "gradient")

    def __init__(
        self,
        model: ModelHandle,
        blocks: Blocks,
        site: Site | str,
        *,
        batch: int = 2048,
        seed: int = 0,
        drop_bos: bool = True,
        outlier_norm: float | None = None,
        downstream: Sequence[Site | str] = (),
    ) -> None:
        """See the class."""
        check_outlier_norm(outlier_norm)
        self.model_handle, self.blocks, self.site, self.seed = model, blocks, model.check_site(site), seed
        self.downstream = parse_sites(downstream) if downstream else []
        for later in self.downstream:
            if model.check_site(later) <= self.site:
                raise ValueError(f"A downstream site is computed after {self.site}, which {later} is not.")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}.")
        check_batch(batch, blocks.context)
        self.per_step = min(batch // blocks.context, len(blocks))
        self.steps_per_epoch = len(blocks) // self.per_step
        self.d_in = model.width(self.site)
        self._usable = blocks.keep & ~blocks.bos() if drop_bos else blocks.keep
        self._outlier_norm = outlier_norm
        self._held: _Pass | None = None
        self._counts: dict[int, dict[str, int]] = {}

    @property
    def report(self) -> dict[str, int]:
        """Positions of the steps taken so far, each block of an epoch once, by what became of them."""
        return {name: sum(counts[name] for counts in self._counts.values()) for name in ("rows", "left_out")}

    def batch(self, step: int) -> Float[Tensor, "batch d_in"]:
        """Return the rows of `step`, text by text, a pure function of (seed, step)."""
        run = self._pass(step)
        return run.found[self.site][run.kept].float()

    def gradient(self, step: int) -> Float[Tensor, "batch d_in"]:
        """Return the gradient of the model's own loss at the rows of `step`."""
        run = self._pass(step)
        with capture(self.model_handle, self.site, grad=True) as found:
            loss_backward(self.model_handle, run.tokens, run.keep)
        slope = found[self.site].grad
        if slope is None:
            raise ValueError(f"The model's loss does not depend on {self.site}.")
        return slope.flatten(2)[run.kept].float()

    def model(self, step: int) -> ModelLoss:
        """Return what the model makes of a reconstruction of `batch(step)`: {"kl", "downstream"}."""
        run = self._pass(step)

        def losses(recon: Float[Tensor, "batch d_in"]) -> dict[str, Float[Tensor, ""]]:
            return self._losses(run, recon)

        return losses

    def _losses(self, run: _Pass, recon: Float[Tensor, "batch d_in"]) -> dict[str, Float[Tensor, ""]]:
        """Run the model with `recon` in the place of the rows of `run`."""
        places = run.kept.nonzero(as_tuple=True)

        def edit(value: Tensor) -> Tensor:
            flat = value.flatten(2)
            return flat.index_put(places, recon.to(flat.device, flat.dtype)).view_as(value)

        with torch.enable_grad(), patch(self.model_handle, self.site, edit):
            if not self.downstream:
                return {"kl": self._kl(run, self.model_handle.forward(run.tokens, grad=True))}
            with capture(self.model_handle, self.downstream, grad=True) as found:
                losses = {"kl": self._kl(run, self.model_handle.forward(run.tokens, grad=True))}
            errors = [
                _relative(found[site].flatten(2)[run.keep], run.found[site][run.keep]) for site in self.downstream
            ]
            return losses | {"downstream": torch.stack(errors).mean()}

    def _kl(self, run: _Pass, logits: Float[Tensor, "block pos d_vocab"] | None) -> Float[Tensor, ""]:
        """Return KL(clean || spliced) per real next token where the clean model's own loss is finite."""
        if logits is None:
            raise RuntimeError("An open capture(stop=True) around the training ends the pass before the logits.")
        real = run.keep[:, 1:] & run.keep[:, :-1] & torch.isfinite(next_token_loss(run.logits, run.tokens))
        return kl_divergence(run.logits[:, :-1][real], logits[:, :-1][real]).mean()

    def _pass(self, step: int) -> _Pass:
        """Return the clean run of `step`; the last one is kept."""
        if self._held is not None and self._held.step == step:
            return self._held
        if step < 0:
            raise ValueError(f"step must be 0 or more, got {step}.")
        epoch, index = divmod(step, self.steps_per_epoch)
        order = generator(Draw.EPOCH, self.seed, epoch).permutation(len(self.blocks))
        chosen = torch.from_numpy(order[index * self.per_step : (index + 1) * self.per_step])
        device = self.model_handle.device
        tokens = self.blocks.tokens[chosen].long().to(device)
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            capture(self.model_handle, [self.site, *self.downstream]) as taken,
        ):
            logits = self.model_handle.logits(tokens)
        found = {site: taken[site].flatten(2) for site in (self.site, *self.downstream)}
        kept = self._usable[chosen].to(device) & finite_rows(found[self.site])
        if self._outlier_norm is not None and kept.any():
            norms = found[self.site].float().norm(dim=-1)
            kept &= norms <= self._outlier_norm * norms[kept].median()
        if not kept.any():
            raise ValueError(
                f"None of the {kept.numel()} rows of step {step} at {self.site} can be used; check the text."
            )
        keep = self.blocks.keep[chosen].to(device)
        rows = int(kept.sum())
        self._counts[step] = {"rows": rows, "left_out": int(keep.sum()) - rows}
        self._held = _Pass(step, tokens, keep, kept, found, logits)
        return self._held


def _relative(changed: Float[Tensor, "row d"], clean: Float[Tensor, "row d"]) -> Float[Tensor, ""]:
    """Return the squared error as a share of the variance of `clean`."""
    return (changed - clean).square().sum() / (clean - clean.mean(0)).square().sum()
