"""What a dictionary reconstructs: its input, another site, several sites or models at once, or what the model says.

    input        x_hat = z W_dec + b_dec                       loss: mean (x - x_hat)^2
    transcoder   y_hat = z W_dec + b_dec (+ x W_skip^T)        loss: mean (y - y_hat)^2, y at another site
                 pre = x W_enc^T + b_enc: b_dec lives where y does, so the encoder's centre is in b_enc from the start
    crosscoder   x = [x_1 | x_2 | ...], one scale for each block; an atom's length is sum_l ||W_dec[i, l]||
    end_to_end   x_hat as above                                loss: KL(logits || logits with x_hat in the place of x)

Transcoders: Dunefsky, Chlenski and Nanda 2024, arXiv 2406.11944; with a skip: Paulo, Shabalin and Belrose 2025, arXiv
2501.18823. Crosscoders: Lindsey et al. 2024, transformer-circuits.pub. End to end: Braun et al. 2024, arXiv 2405.12241.

With length as above and atoms of length 1 a latent's value is f_i sum_l ||W_dec[i, l]||, which is what a crosscoder's
L1 charges and its BatchTopK ranks by: every rule so works on a crosscoder as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.linalg import vector_norm

from sae.batches import Batch
from sae.config import SaeConfig
from sae.normaliser import Normaliser, Scale

if TYPE_CHECKING:
    from sae.model import Sae
    from sae.rules import Rule

LOCAL = ("gated", "matryoshka", "top_afa")
"""Rules whose penalties compare a reconstruction of their own with the activation itself."""


class Target(nn.Module):
    """What is reconstructed: here the input. A target owns the parameters that only it needs."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Fields of `Batch` beside x that its loss reads."""
    centred: ClassVar[bool] = True
    """Whether the encoder subtracts b_dec, which then lies among the inputs."""

    def __init__(self, config: SaeConfig) -> None:
        """Build what `config.target` asks for."""
        super().__init__()
        self.config = config.target

    def fit(self, y: Float[Tensor, "batch d_out"], centre: Float[Tensor, " d_out"]) -> None:
        """Fit to a sample of what is reconstructed, raw, and its centre; called where that is not the input."""

    def wanted(self, batch: Batch, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:  # noqa: ARG002
        """Return what is to be reconstructed, normalised; `x` is the normalised input."""
        return x

    def bypass(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"] | None:  # noqa: ARG002
        """Return what reaches the reconstruction beside the code, from the normalised input."""
        return None

    def scale(self, scale: Scale) -> Scale:
        """Return what makes a reconstruction raw, given the `scale` of its input."""
        return scale

    def length(self, atoms: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, " d_sae"]:
        """Return the length of each atom, in units of which a latent's value counts."""
        return vector_norm(atoms, dim=1)

    def losses(
        self,
        mse: Float[Tensor, ""],
        raw: Callable[[], Float[Tensor, "batch d_out"]],  # noqa: ARG002
        batch: Batch,  # noqa: ARG002
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted losses of a reconstruction.

        Args:
            mse: its mean squared error, in normalised units.
            raw: gives the reconstruction in raw units.
            batch: what was read.
        """
        return {"mse": mse}


class Transcoder(Target):
    """Reads one site, writes another; with a skip, plus a linear map of what it reads."""

    needs = ("y",)
    centred = False

    def __init__(self, config: SaeConfig) -> None:
        """Own the scale of y and, with a skip, W_skip [d_out d_in], which starts at 0."""
        super().__init__(config)
        # A token's own mean and spread are not known before y is: y has one scale for all tokens, or none.
        self.normaliser = Normaliser("none" if config.normalise == "none" else "scalar")
        if self.config.skip:
            self.W_skip = nn.Parameter(torch.zeros(config.d_out, config.d_in))

    def fit(self, y: Float[Tensor, "batch d_out"], centre: Float[Tensor, " d_out"]) -> None:
        """Fit the scale of y."""
        self.normaliser.fit(y, centre)

    def wanted(self, batch: Batch, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        """Return y, normalised."""
        if batch.y is None:
            raise ValueError("A transcoder is trained on pairs; give Batch(x, y), or sae.batches.Pairs as the source.")
        return self.normaliser.into(batch.y.to(x.device, x.dtype))[0]

    def bypass(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"] | None:
        """Return x W_skip^T."""
        return x @ self.W_skip.t() if self.config.skip else None

    def scale(self, scale: Scale) -> Scale:  # noqa: ARG002
        """Return the scale of y."""
        return Scale(None, self.normaliser.factor)


class Crosscoder(Target):
    """Several blocks side by side: the layers of a model, or a site of two models."""

    def length(self, atoms: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, " d_sae"]:
        """Return the sum of an atom's lengths in the blocks."""
        return torch.stack([vector_norm(part, dim=1) for part in atoms.split(self.config.blocks, dim=1)]).sum(0)


class EndToEnd(Target):
    """The input again, as far as the model's own output depends on it."""

    needs = ("model",)

    def losses(
        self, mse: Float[Tensor, ""], raw: Callable[[], Float[Tensor, "batch d_out"]], batch: Batch
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the KL in nats per next token, and the errors at later sites and at the site itself if weighted."""
        if batch.model is None:
            raise ValueError("End to end needs the model: give Batch(x, model=...), or sae.end_to_end.TextBatches.")
        found = batch.model(raw())
        losses = {"kl": found["kl"]}
        if self.config.downstream:
            if "downstream" not in found:
                raise ValueError("The source measures no later site; name some: TextBatches(..., downstream=[...]).")
            losses["downstream"] = self.config.downstream * found["downstream"]
        if self.config.local:
            losses["mse"] = self.config.local * mse
        return losses


TARGETS: dict[str, type[Target]] = {
    "input": Target,
    "transcoder": Transcoder,
    "crosscoder": Crosscoder,
    "end_to_end": EndToEnd,
}


def build_target(config: SaeConfig) -> Target:
    """Return what `config` asks to reconstruct."""
    return TARGETS[config.target.kind](config)


def check_rule_target(config: SaeConfig, rule: type[Rule] | Rule) -> None:
    """Refuse a rule that makes no sense with the target.

    Raises:
        ValueError: with the reason.
    """
    kind, name = config.target.kind, config.rule
    reason = None
    if kind == "transcoder" and rule.tied:
        reason = "has the atoms for its encoder, and so can only reconstruct what it reads"
    elif kind in ("transcoder", "crosscoder") and name == "top_afa":
        reason = "chooses by the length of the input, which says nothing about " + (
            "the length of another site" if kind == "transcoder" else "atoms whose length is a sum over blocks"
        )
    elif kind == "end_to_end" and name in LOCAL:
        reason = "compares a reconstruction of its own with the activation, which end to end is free to differ"
    if reason:
        raise ValueError(f"The rule {name!r} {reason}; it does not go with the target {kind!r}. Take another rule.")


def block_norms(sae: Sae) -> Float[Tensor, "d_sae blocks"]:
    """Return the length of each atom in each block of a crosscoder, in normalised units (blocks of equal scale)."""
    blocks = sae.config.target.blocks
    if not blocks:
        raise ValueError(f"Only a crosscoder has blocks; this dictionary's target is {sae.config.target.kind!r}.")
    return torch.stack([vector_norm(part, dim=1) for part in sae.unit()[2].detach().split(blocks, dim=1)], dim=1)


def relative_norms(sae: Sae) -> Float[Tensor, " d_sae"]:
    """Return ||w_i^A|| / (||w_i^A|| + ||w_i^B||) of a crosscoder of two models: 1 is all A's, 0 all B's."""
    if sae.config.target.models != 2:
        raise ValueError("Only a crosscoder of two models (models=2) has latents of one and of the other.")
    first, second = block_norms(sae).chunk(2, dim=1)
    return first.sum(1) / (first.sum(1) + second.sum(1)).clamp_min(torch.finfo(first.dtype).tiny)


def exclusive(sae: Sae, share: float = 0.9) -> tuple[Bool[Tensor, " d_sae"], Bool[Tensor, " d_sae"]]:
    """Return which latents are the first model's own and which the second's: at least `share` of their length there.

    An L1 penalty makes a latent that both models have look exclusive, because the smaller half of its atom costs more
    than it explains; a rule that selects (batch_topk) does so far less.

    Raises:
        ValueError: no crosscoder of two models, or a share that both could have.
    """
    if not 0.5 < share <= 1:
        raise ValueError(f"share must lie above 0.5 and at most at 1, got {share}.")
    relative = relative_norms(sae)
    return relative >= share, relative <= 1 - share
