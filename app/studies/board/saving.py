"""A board study as a run of kind "board".

accuracy.parquet   subject, site, layer, label, squares, positions, counted, games, accuracy, low, high
moves.parquet      subject, positions, counted, top1_legal, legal_mass, each with its interval
columns.parquet    source, family, columns, labels, auroc, position_only, within, null, above, above_within, coverage,
                   always_on, reconstruction
labels.parquet     source, family, square, name, state, share, column, auroc, null, position_only, within_column,
                   within, f1_column, threshold, f1, always_on
latents.parquet    source, latent, rank, fires, family, square, name, state, within, auroc
edits.parquet      change, mode, scale, reach, first, last, cases, wrong, low, high, right, length, share
board.json         side, sites of the probe, the dictionaries
board.safetensors  weight_L [site d square state], bias_L, median_L: the linear probe of each label L
sae.safetensors    the study's own dictionary, where it trained one

Layers are numbered as published: 0 the embeddings, k the stream after the k-th block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch

from app.studies.board.intervening import SquareProbe
from app.studies.board.positions import LABELS, TURN
from interp.config import from_json, to_json
from interp.names import unknown
from interp.runs import Run, RunDamaged
from interp.sites import Site
from sae.config import SaeConfig
from sae.model import Sae, read_sae

KIND = "board"
ABOUT, PROBE = "board.json", "board.safetensors"
PARTS = ("weight", "bias", "median")
OWN = "dictionary"
"""What the study's own dictionary of the model is called in its tables."""
TEXTS = {"subject", "site", "label", "squares", "positions", "source", "family", "name", "state", "change", "mode",
         "reach", "first", "last"}  # fmt: skip
COUNTS = {"layer", "counted", "games", "columns", "labels", "column", "above", "above_within", "square",
          "within_column", "f1_column", "latent", "rank", "cases"}  # fmt: skip


def save_table(run: Run, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of equal keys as a table; a missing number is null."""
    if not rows:
        return
    kinds = {key: pa.string() if key in TEXTS else pa.int32() if key in COUNTS else pa.float64() for key in rows[0]}
    columns = {key: pa.array([row.get(key) for row in rows], kind) for key, kind in kinds.items()}
    run.save_table(name, pa.table(columns))


def save_board(
    run: Run, side: int, probes: Mapping[str, SquareProbe], own: tuple[Site, Sae] | None, given: Sequence[str]
) -> None:
    """Write the probe of each label, and the study's own dictionary, into a run that is being made."""
    parts = {f"{name}_{label}": getattr(probe, name) for label, probe in probes.items() for name in PARTS}
    run.save_tensors(PROBE, parts)
    sites = next(iter(probes.values())).sites
    about: dict[str, Any] = {"side": side, "sites": list(map(str, sites)), "dictionaries": list(given)}
    if own is not None:
        site, sae = own
        sae.save(run)
        about["dictionary"] = {"site": str(site), "sae": to_json(sae.config)}
    run.save_json(ABOUT, about)


def load_board(run: Run, label: str = TURN) -> tuple[int, SquareProbe]:
    """Return the side of the board and the probe of a label that a run of kind "board" holds.

    Raises:
        ValueError: the run is of another kind, or an unknown label.
        RunDamaged: its files do not fit together.
    """
    if label not in LABELS:
        raise ValueError(unknown("label", label, LABELS))
    about = _about(run)
    found = {name: torch.from_numpy(value) for name, value in run.tensors(PROBE).items()}
    tensors = {name: found[f"{name}_{label}"] for name in PARTS if f"{name}_{label}" in found}
    sites = [Site.parse(str(site)) for site in about["sites"]]
    squares, n = int(about["side"]) ** 2, len(sites)
    width = tensors["weight"].shape[1] if "weight" in tensors and tensors["weight"].ndim == 4 else 0
    wanted = {"weight": (n, width, squares, 3), "bias": (n, squares, 3), "median": (n, squares, 3, 3)}
    if {name: tuple(value.shape) for name, value in tensors.items()} != wanted:
        raise RunDamaged(f"{PROBE} of {run.ref} does not fit {ABOUT}. Make the run again.")
    return int(about["side"]), SquareProbe(sites, tensors["weight"], tensors["bias"], tensors["median"])


def load_dictionary(run: Run) -> tuple[Site, Sae] | None:
    """Return the study's own dictionary and where it reads, None where it trained none.

    Raises:
        ValueError: the run is of another kind, or the weights do not fit the configuration.
        RunDamaged: its files do not fit together.
    """
    own = _about(run).get("dictionary")
    if own is None:
        return None
    return Site.parse(str(own["site"])), read_sae(run, from_json(SaeConfig, own["sae"]))


def _about(run: Run) -> dict[str, Any]:
    if run.kind != KIND:
        raise ValueError(f"{run.ref} is a run of kind {run.kind!r}; a board study is in a run of kind {KIND!r}.")
    about = run.json(ABOUT)
    if not isinstance(about, dict) or not {"side", "sites"} <= about.keys():
        raise RunDamaged(f"{ABOUT} of {run.ref} does not describe a board. Make the run again.")
    return about
