"""How features are described, as a frozen dataclass (no torch here: `--help` reads it)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FeaturesConfig:
    """What `describe_features` collects for each latent."""

    n_top: int = 20
    """Examples at each end (largest, and of signed latents most negative), at most two from one block."""
    n_quantiles: int = 10
    """Equally filled bins of |activation| that examples are drawn from."""
    per_quantile: int = 5
    """Examples from each of those bins."""
    n_random: int = 10
    """Examples drawn uniformly from all tokens on which the latent is active."""
    n_near_miss: int = 10
    """Silent tokens with the highest pre-activation, at most one from one block."""
    window: int = 24
    """Tokens shown on either side of an example, within its block."""
    neighbours: int = 10
    """Latents listed by decoder cosine, by encoder cosine and by co-activation."""
    logits: int = 10
    """Tokens listed at either end of the direct logit weights."""
    seed: int = 0
    """Of the examples that are drawn."""
    outlier_norm: float | None = None
    """Leave out activations longer than this multiple of the median norm; None keeps them."""

    def __post_init__(self) -> None:
        """Refuse counts that make no sense or do not fit the tables."""
        limits = {"n_top": 10_000, "n_random": 10_000, "n_near_miss": 10_000, "per_quantile": 200, "n_quantiles": 100}
        for name in (*limits, "window", "neighbours", "logits", "seed"):
            value, limit = getattr(self, name), limits.get(name)
            if value < 0 or (limit is not None and value > limit):
                raise ValueError(f"{name} must {f'lie in 0..{limit}' if limit else 'be 0 or more'}, got {value}.")
        if self.outlier_norm is not None and not self.outlier_norm > 1:
            raise ValueError(
                f"outlier_norm is a multiple of the median norm and must be above 1, got {self.outlier_norm}; "
                "None keeps all rows."
            )
