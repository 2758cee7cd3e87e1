"""Tasks: pairs of clean and corrupted prompts with known answers, and the metrics that score a model on them."""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Custom": "interp.tasks.metrics",
        "Kl": "interp.tasks.metrics",
        "LogitDiff": "interp.tasks.metrics",
        "METRICS": "interp.tasks.metrics",
        "Metric": "interp.tasks.metrics",
        "NOTHING": "interp.tasks.pairs",
        "Pairs": "interp.tasks.pairs",
        "Probability": "interp.tasks.metrics",
        "ProbabilityDiff": "interp.tasks.metrics",
        "SequenceLogProb": "interp.tasks.metrics",
        "measured": "interp.tasks.metrics",
        "metric_for": "interp.tasks.metrics",
    },
)
