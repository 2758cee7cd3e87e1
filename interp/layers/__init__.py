"""What each layer holds: the logit lens, similarity of representations, scores of heads."""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "HeadScores": "interp.layers.heads",
        "Hsic": "interp.layers.similarity",
        "head_scores": "interp.layers.heads",
        "lens_logits": "interp.layers.lens",
        "linear_cka": "interp.layers.similarity",
        "repeated_tokens": "interp.layers.heads",
    },
)
