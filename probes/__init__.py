"""Estimators over activations, to scikit-learn's contract. Empty in this release: probes come with a later one."""

from __future__ import annotations

__all__: list[str] = []
