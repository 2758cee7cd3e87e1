"""Really patching latents: the activation changes by what one latent, or the rest, has in the other run and not here.

    x' = x + (f_i d_i of the other run) - (f_i d_i of this run)     at one position, or at all

f_i d_i is what the reconstruction loses when the latent is set to 0, so that a dictionary has to decode by its code
alone. Everything else of x, the dictionary's error too, stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.attribution.estimates.check import picked_cells, with_measured
from interp.attribution.estimates.question import Progress, Question, read, read_other
from interp.attribution.result import Attribution
from interp.hooks import patch
from interp.sites import Site
from interp.types import Dictionary


def checked_latents(
    found: Attribution,
    question: Question,
    dictionaries: Mapping[Site, Dictionary],
    top: int = 10,
    random: int = 10,
    *,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Attribution:
    """Return `found` with the measured effect of its top cells and of random other ones, as `check.checked` does.

    Where a dictionary cannot decode without its rows nothing is measured, and `about["check"]` says why.
    """
    picked = picked_cells(found.nodes["score"].to_numpy(), top, random, seed)
    if len(picked) == 0:
        return found
    cells = found.nodes.take(picked).to_pylist()
    try:
        effects = measure_latents(question, dictionaries, cells, on_progress)
    except Undecodable as error:
        return replace(found, about=found.about | {"check": str(error)})
    spread = effects.std(1, ddof=1) / np.sqrt(effects.shape[1]) if effects.shape[1] > 1 else np.full(len(cells), np.nan)
    return with_measured(found, picked, effects.mean(1), spread)


class Undecodable(ValueError):
    """A dictionary cannot say what one latent adds to the activation."""


@torch.no_grad()
def measure_latents(
    question: Question,
    dictionaries: Mapping[Site, Dictionary],
    cells: list[dict[str, Any]],
    on_progress: Progress | None = None,
) -> Float[np.ndarray, "cell prompt"]:
    """Return the effect of patching each cell (a row of nodes) on each prompt, in units of the metric.

    Raises:
        Undecodable: a dictionary needs more than a code to decode.
    """
    effects = np.zeros((len(cells), len(question.pairs)))
    batches = question.batches()
    for number, rows in enumerate(batches):
        base = read(question, rows)
        other = read_other(question, rows, base)
        for i, cell in enumerate(cells):
            site = Site(cell["layer"], cell["kind"].rpartition(".")[2])
            acts = (other.acts[site], base.acts[site])
            change = _change(dictionaries[site], acts, cell["latent"], cell["pos"])
            with patch(question.handle, site, lambda x, change=change: x + change.to(x), view=question.view):
                values = read(question, rows, ()).values
            effects[i, rows.cpu().numpy()] = question.plan.sign * (values - base.values).cpu().double().numpy()
            if on_progress is not None:
                on_progress(number * len(cells) + i + 1, len(batches) * len(cells))
    return effects


def _change(dictionary: Dictionary, acts: tuple[Tensor, Tensor], latent: int | None, pos: int | None) -> Tensor:
    """Return what is added to the activation; `acts` are those of the other and of the base run."""
    parts = []
    for act in acts:
        at = act if pos is None else act[:, pos : pos + 1]
        rows = at.flatten(2).flatten(0, 1)
        parts.append(_part(dictionary, rows, latent).reshape(at.shape))
    change = parts[0] - parts[1]
    if pos is None:
        return change
    whole = torch.zeros_like(acts[1])
    whole[:, pos : pos + 1] = change
    return whole


def _part(dictionary: Dictionary, rows: Float[Tensor, "row d_in"], latent: int | None) -> Float[Tensor, "row d_in"]:
    """Return what `latent` adds to each row, or (None) what the dictionary leaves out of it."""
    wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    code = dictionary.encode(wide)
    try:
        whole = dictionary.decode(code)
    except ValueError as error:
        raise Undecodable(f"Nothing was measured. {error}") from error
    if latent is None:
        return wide - whole
    code.values[code.indices == latent] = 0  # the code is this function's own
    return whole - dictionary.decode(code)
