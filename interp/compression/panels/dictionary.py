"""Dictionary: how well a dictionary explains both models, and what each loses when it runs through it.

    FVU (pooled), L0, dead share        over all counted tokens
    CE recovered = (CE_mean - CE_spliced) / (CE_mean - CE_clean)      CE delta = CE_spliced - CE_clean

with x replaced by x_hat (spliced) or by the model's own mean activation (mean ablation). Both cost further passes of
both models, so they are taken on an even share of the blocks, about `ce_tokens` tokens; CE_clean is that of the same
blocks. Positions that are not counted pass through untouched; `excluded_share` is their share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.compression.coding import Coded, check_dictionary, encode_pair, typical
from interp.compression.panel import Pair, PanelResult, Spread
from interp.hooks import patch
from interp.metrics import Reconstruction, ce_recovered, next_token_loss
from interp.sites import Site
from interp.types import Dictionary

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

LOSSES = ("clean", "spliced", "mean")


class _Side:
    """Sums of one model."""

    def __init__(self, handle: ModelHandle, site: Site, blocks: Blocks, d_sae: int) -> None:
        self.handle, self.site = handle, site
        self.mean, self.norm = typical(handle, site, blocks)
        self.reconstruction = Reconstruction()
        self.counts = torch.zeros(d_sae, dtype=torch.long)
        self.losses = dict.fromkeys(LOSSES, 0.0)

    def replaced(self, tokens: Tensor, kept: Tensor, value: Tensor) -> Tensor:
        """Return the losses when the rows `kept` are `value`, one row or as many as there are."""

        def edit(x: Tensor) -> Tensor:
            rows = x.flatten(2)
            rows[kept] = value.to(rows.dtype)
            return rows.view_as(x)

        with patch(self.handle, self.site, edit):
            return next_token_loss(self.handle.logits(tokens), tokens)


class DictionaryFit:
    """FVU, L0 and CE of one dictionary on both models."""

    name = "dictionary"

    def __init__(
        self,
        site: Site | str,
        dictionary: Dictionary,
        *,
        ce_tokens: int | None = 32_768,
        outlier_norm: float | None = None,
    ) -> None:
        """Read `site` of both models through `dictionary`.

        Args:
            site: where.
            dictionary: what reads it.
            ce_tokens: tokens for the losses, at most; None takes all, 0 leaves the losses out.
            outlier_norm: leave out rows longer than this many times the median norm in a; None keeps them.
        """
        if ce_tokens is not None and ce_tokens < 0:
            raise ValueError(f"ce_tokens must be 0 or more, got {ce_tokens}.")
        self.site, self.dictionary = Site.parse(site), dictionary
        self.ce_tokens, self.outlier_norm = ce_tokens, outlier_norm

    def sites(self, a: ModelHandle) -> tuple[Site, ...]:
        """Return the dictionary's site."""
        return (a.check_site(self.site),)

    def begin(self, a: ModelHandle, b: ModelHandle, blocks: Blocks) -> None:
        """Begin; the dictionary must fit both models."""
        check_dictionary(self.dictionary, self.site, a, b)
        self._sides = [_Side(model, self.site, blocks, self.dictionary.d_sae) for model in (a, b)]
        self._longest = None if self.outlier_norm is None else self.outlier_norm * self._sides[0].norm
        wanted = None if self.ce_tokens is None else -(-self.ce_tokens // blocks.context)
        self._spread = Spread(len(blocks), wanted)
        self._real = self._kept = self._predicted = 0

    def update(self, pair: Pair) -> None:
        """Add one batch."""
        coded = encode_pair(pair, self.site, self.dictionary, self._longest)
        self._real += int(pair.real.sum())
        self._kept += int(coded.kept.sum())
        for side, x, estimate, code in zip(self._sides, coded.x, coded.estimates, coded.codes, strict=True):
            if len(x):
                side.reconstruction.add(x, estimate, side.mean)
            side.counts += torch.bincount(code.latents, minlength=len(side.counts)).cpu()
        chosen = self._spread.next(len(pair.tokens)).to(pair.tokens.device)
        if len(chosen):
            self._add_losses(pair, coded, chosen)

    def _add_losses(self, pair: Pair, coded: Coded, chosen: Tensor) -> None:
        """Add the losses of the blocks `chosen` of the batch."""
        tokens, kept = pair.tokens[chosen], coded.kept[chosen]
        # Row numbers of the chosen blocks' positions among all coded rows.
        numbers = (coded.kept.flatten().cumsum(0) - 1).view_as(coded.kept)[chosen][kept]
        found = []
        for side, logits, estimate in zip(self._sides, (pair.logits_a, pair.logits_b), coded.estimates, strict=True):
            clean = next_token_loss(logits[chosen], tokens)
            spliced = side.replaced(tokens, kept, estimate[numbers])
            found.append((clean, spliced, side.replaced(tokens, kept, side.mean)))
        predicted = pair.predicts[chosen][:, :-1].clone()
        for clean, *_ in found:
            predicted &= torch.isfinite(clean)
        self._predicted += int(predicted.sum())
        for side, losses in zip(self._sides, found, strict=True):
            for name, loss in zip(LOSSES, losses, strict=True):
                side.losses[name] += float(loss[predicted].double().sum())

    def finish(self) -> PanelResult:
        """Return the summary; there are no tables."""
        summary: dict[str, int | float | str | None] = {
            "site": str(self.site),
            "excluded_share": 1 - self._kept / max(self._real, 1),
            "tokens": self._kept,
            "ce_tokens": self._predicted,
        }
        for name, side in zip(("a", "b"), self._sides, strict=True):
            nan = float("nan")
            clean, spliced, mean = (side.losses[loss] / self._predicted if self._predicted else nan for loss in LOSSES)
            summary |= {
                f"fvu_{name}": side.reconstruction.fvu,
                f"l0_{name}": int(side.counts.sum()) / max(self._kept, 1),
                f"dead_{name}": int((side.counts == 0).sum()) / len(side.counts),
                f"ce_clean_{name}": clean,
                f"ce_spliced_{name}": spliced,
                f"ce_mean_{name}": mean,
                f"ce_recovered_{name}": ce_recovered(clean, spliced, mean),
                f"ce_delta_{name}": spliced - clean,
            }
        return PanelResult(summary, {})
