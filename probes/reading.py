"""Reading a model with a probe: its activations are captured where the probe was fitted, and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.hooks import capture
from interp.sites import Site
from probes.base import BaseProbe
from probes.source import Source

if TYPE_CHECKING:
    from interp.models import ModelHandle


def read(
    handle: ModelHandle,
    probe: BaseProbe,
    tokens: Int[Tensor, "batch pos"],
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    same_weights: bool = True,
) -> Float[np.ndarray, "batch pos"] | Float[np.ndarray, "batch pos output"]:
    """Return the probe's scores at every position, as `decision_function` gives them.

    Args:
        handle: the model that the probe was fitted on.
        probe: a fitted probe that knows its source; at positions unlike those it was fitted on its scores are a guess.
        tokens: token ids.
        mask: True at real tokens; scores at padding mean nothing.
        same_weights: False where the same site of another model is meant.

    Raises:
        ValueError: the probe does not know its source, or this is another model.
    """
    if probe.source is None:
        raise ValueError(
            f"This {type(probe).__name__} does not know what it was fitted on; make it with "
            "source=Source.of(handle, site)."
        )
    site = Site.parse(probe.source.site)
    probe.check_source(Source.of(handle, site, probe.source.positions), same_weights=same_weights)
    with capture(handle, site, stop=True) as taken:
        handle.forward(tokens, mask=mask)
    x = taken[site].flatten(2)
    scores = probe.decision_function(x.flatten(0, 1))
    return scores.reshape(*x.shape[:2], *scores.shape[1:])
