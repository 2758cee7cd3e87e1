"""Where else a cell is described: a head in a comparison of the same model, a stream's features in its dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from app.widgets import state
from app.widgets.attributions import Scored
from app.widgets.loaded import model_key
from interp.runs import Run, find_runs

if TYPE_CHECKING:
    from app.widgets.patched_cell import Spot

MOST = 3  # dictionaries that are offered


def cell_links(one: Scored, spot: Spot) -> None:
    """Draw links to the heads of a comparison and to the features of dictionaries at this site, where there are any."""
    comparison = heads_of(one.run) if "head" in spot.parts else None
    dictionaries = features_of(one.run, spot.kind, spot.layer)
    if comparison is None and not dictionaries:
        return
    with st.container(horizontal=True, gap="medium", key="links-cell"):
        if comparison is not None:
            head = {"layer": str(spot.layer), "head": str(spot.parts["head"])}
            address = {"vs": comparison.name, "part": "Heads", **head}
            st.page_link(state.COMPARE_PAGE, label="What this head does on repeated tokens", query_params=address)
        for run in dictionaries[:MOST]:
            label = f"Features of {spot.kind}.{spot.layer} ({run.id})"
            st.page_link(state.FEATURES_PAGE, label=label, query_params={"run": run.name})


def heads_of(run: Run) -> Run | None:
    """Return the newest comparison whose first model is that of `run` and that scored its heads, None without one."""
    key = model_key(run.config)
    found = (one for one in find_runs(run.root, kind="compare", finished=True) if "heads.heads.parquet" in one.files)
    return next((one for one in found if key and model_key({"model": one.config.get("a")}) == key), None)


def features_of(run: Run, kind: str, layer: int) -> list[Run]:
    """Return the features runs of dictionaries of the same model that read this site."""
    key, sites = model_key(run.config), {f"{kind}.{layer}"}
    if kind == "resid_pre" and layer:  # the same activation by its other name
        sites.add(f"resid_post.{layer - 1}")
    found = find_runs(run.root, kind="features", finished=True)
    return [one for one in found if key and one.config.get("site") in sites and _model(one) == key]


def _model(run: Run) -> str:
    """Return the model of a features run; its record holds a hash of the weights besides."""
    model = run.config.get("model") or run.info.get("model")
    if isinstance(model, dict):
        model = {name: value for name, value in model.items() if name != "digest"}
    return model_key({"model": model})
