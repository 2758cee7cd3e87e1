"""Alignment quality of a model on labelled texts: `probes.alignment` on what its layers hold of each text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from interp.data.labelled import Labelled
from interp.models import ModelHandle
from probes.alignment import quality_by_layer
from probes.capturing import capture_texts
from probes.study import StudyResult


def alignment_quality(
    handle: ModelHandle,
    labelled: Labelled,
    sites: Sequence[str] = ("resid_post",),
    *,
    positions: str = "last",
    context: int = 128,
    test: float = 0.5,
    draws: int = 200,
    sparsity: float = 0.02,
    seed: int = 0,
    on_progress: Callable[[int], object] = lambda _: None,
) -> StudyResult:
    """Return the indices of each site and of all pooled, as `quality_by_layer` does.

    Args:
        handle: the model.
        labelled: the texts; matched pairs belong in one group.
        sites: kinds for all layers, or sites, of one width.
        positions: `last`, `mean`, or a number, as in `capture_texts`.
        context: longest text in tokens.
        test: share of the texts that is measured on.
        draws: shufflings of the labels.
        sparsity: of the pooled layers' weights.
        seed: of the division, the pairs and the shufflings.
        on_progress: hears the number of texts done so far.

    Raises:
        ValueError: sites of several widths, or what `capture_texts` and `quality_by_layer` refuse.
    """
    held = capture_texts(handle, labelled.texts, sites, [positions], context=context, on_progress=on_progress)
    widths = {site: held.values[site].shape[2] for site in held.sites}
    if len(set(widths.values())) > 1:
        wide = ", ".join(f"{site} {width}" for site, width in widths.items())
        raise ValueError(f"Layers are pooled, so all sites must have one width; got {wide}. Name one kind of site.")
    x = np.stack([held.rows(site, held.positions[0]) for site in held.sites], 1)
    settings = {"test": test, "draws": draws, "sparsity": sparsity, "seed": seed}
    return quality_by_layer(x, labelled.labels, list(labelled.groups), names=held.sites, **settings)
