"""The dictionaries of one model, in the order in which the model computes their sites, with what is known of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.widgets.artefacts import FeatureSet, Unreadable, open_features, readable
from app.widgets.loaded import model_key
from app.widgets.text import place_of, visible
from interp.runs import Run, find_runs
from interp.sites import KINDS, Site

DICTIONARIES = 24  # read at once; each takes a row of the map


@dataclass(frozen=True)
class Known:
    """A dictionary, with the density and the largest activation of each of its latents as far as they are known."""

    run: Run
    features: FeatureSet | None
    """The newest features run of it, None where there is none."""
    density: NDArray[np.float64]
    """[latents]; NaN where it is not known. Shorter than the dictionary where nothing is known of the rest."""
    peak: NDArray[np.float64]
    """[latents]: largest |activation| seen."""
    problem: str = ""
    """Why what is known could not be read."""

    @property
    def site(self) -> str:
        """Where it reads and writes, such as "resid_post.2"."""
        return place_of(self.run.config)

    def densities(self, latents: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the density of each of `latents`, NaN where it is not known."""
        return _look(self.density, latents)

    def peaks(self, latents: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the largest |activation| of each of `latents`, NaN where it is not known."""
        return _look(self.peak, latents)


def models_of(runs: Sequence[Run]) -> list[str]:
    """Return the models (see `model_key`) that `runs` name, in their order."""
    return [key for key in dict.fromkeys(model_key(run.config) for run in runs) if key]


def model_name(key: str) -> str:
    """Return a short name of a model, with whatever tells it from another of that name."""
    fields = json.loads(key)
    name = Path(str(fields.pop("name"))).name
    return visible(f"{name} {json.dumps(fields)}" if fields else name)


def finished_dictionaries(root: Path) -> list[Run]:
    """Return the finished dictionaries of the folder `root`, newest first."""
    return find_runs(root, kind="sae", finished=True)


def in_order(runs: Sequence[Run], key: str) -> list[Run]:
    """Return the dictionaries of the model `key` by layer and site, at most `DICTIONARIES` (the newest)."""
    return sorted([run for run in runs if model_key(run.config) == key][:DICTIONARIES], key=_place)


def _place(run: Run) -> tuple[int, int, str]:
    try:
        site = Site.parse(str(run.config.get("site")))
    except ValueError:
        return (1 << 30, 0, run.name)
    return (site.layer, KINDS.index(site.kind), run.name)


def known(runs: Sequence[Run], root: Path) -> list[Known]:
    """Return what the folder `root` knows of each of `runs`."""
    features = find_runs(root, kind="features", finished=True)
    evaluations = find_runs(root, kind="evaluation", finished=True)
    return [_known(run, _made_from(run, features), _made_from(run, evaluations)) for run in runs]


def _made_from(run: Run, others: Sequence[Run]) -> Run | None:
    return next((other for other in others if run.ref in (*other.parents, other.config.get("sae_run"))), None)


def _known(run: Run, features: Run | None, evaluation: Run | None) -> Known:
    nothing = np.zeros(0)
    try:
        if features is not None:
            opened = open_features(features.path)
            biggest = np.fmax(_numbers(opened.column("max")), -_numbers(opened.column("min")))
            return Known(run, opened, _spread(opened.index, opened.column("density")), _spread(opened.index, biggest))
        if evaluation is not None:
            with readable():
                table = evaluation.table("density.parquet", columns=["latent", "density"])
                index = table["latent"].to_numpy().astype(np.int64)
                return Known(run, None, _spread(index, table["density"].to_numpy()), nothing)
    except Unreadable as problem:
        return Known(run, None, nothing, nothing, str(problem))
    return Known(run, None, nothing, nothing)


def _numbers(column: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(column, dtype=np.float64)


def _spread(index: NDArray[np.int64], column: NDArray[Any]) -> NDArray[np.float64]:
    """Return `column` by latent, NaN between."""
    if index.size == 0 or index.min() < 0 or index.max() > 1 << 24:
        return np.zeros(0)
    found = np.full(int(index.max()) + 1, np.nan)
    found[index] = column
    return found


def _look(column: NDArray[np.float64], latents: NDArray[np.int64]) -> NDArray[np.float64]:
    found = np.full(len(latents), np.nan)
    inside = latents < len(column)
    found[inside] = column[latents[inside]]
    return found
