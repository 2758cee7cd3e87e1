"""Probes: estimators over activations to scikit-learn's contract, with the controls and intervals that they need.

Names are imported when first used: `import probes` loads neither torch nor scikit-learn.
"""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "AurocStream": "probes.roc",
        "BoardProbe": "probes.board",
        "CCS": "probes.ccs",
        "Hyperplane": "probes.hyperplane",
        "Interval": "probes.intervals",
        "KSparse": "probes.sparse",
        "L1": "probes.sparse",
        "LDA": "probes.lda",
        "LogisticProbe": "probes.logistic",
        "MLPProbe": "probes.mlp",
        "MassMean": "probes.mass_mean",
        "RidgeProbe": "probes.ridge",
        "Source": "probes.source",
        "Split": "probes.splits",
        "auroc": "probes.roc",
        "bootstrap": "probes.intervals",
        "causal_check": "probes.causal",
        "edit": "probes.editing",
        "evaluate": "probes.report",
        "grouped_split": "probes.splits",
        "load_probe": "probes.saving",
        "max_null": "probes.roc",
        "mean_differences": "probes.steering_vectors",
        "read": "probes.reading",
        "save_probe": "probes.saving",
        "steer_along": "probes.steering_vectors",
    },
)
