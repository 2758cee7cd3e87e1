"""Tasks: pairs of clean and corrupted prompts with known answers, and the metrics that score a model on them."""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Custom": "interp.tasks.metrics",
        "Drawn": "interp.tasks.templates",
        "Induction": "interp.tasks.induction",
        "Kl": "interp.tasks.metrics",
        "LogitDiff": "interp.tasks.metrics",
        "METRICS": "interp.tasks.metrics",
        "Metric": "interp.tasks.metrics",
        "NOTHING": "interp.tasks.pairs",
        "Pairs": "interp.tasks.pairs",
        "Probability": "interp.tasks.metrics",
        "ProbabilityDiff": "interp.tasks.metrics",
        "PublishedCircuit": "interp.tasks.published",
        "Puzzles": "interp.tasks.puzzles",
        "SequenceLogProb": "interp.tasks.metrics",
        "TASKS": "interp.tasks.registry",
        "Task": "interp.tasks.registry",
        "TemplateTask": "interp.tasks.templates",
        "check_accuracy": "interp.tasks.accuracy",
        "measured": "interp.tasks.metrics",
        "metric_for": "interp.tasks.metrics",
        "pairs_from_file": "interp.tasks.files",
        "published_circuit": "interp.tasks.published",
        "task": "interp.tasks.registry",
        "task_table": "interp.tasks.accuracy",
        "usable": "interp.tasks.accuracy",
    },
)
