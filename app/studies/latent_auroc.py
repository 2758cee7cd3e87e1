"""Dictionary latents against probes: how well does the best single latent tell a label, and would a neuron do?

    for each label: the column with the largest |AUROC - 1/2| on the training part, its sign from there
    AUROC of that column, measured on the test part, with an interval over groups

Areas are by mid-ranks, since latents are 0 in most rows (`probes.roc`). The best of thousands of columns is good by
chance on the rows it was chosen on: `null` is the best of all columns for labels shuffled among the training rows.
What a latent has to beat: the best neuron (mlp_act of the same layer), the best coordinate of the activation, the best
latent of a random dictionary of the same size and sparsity, and where the text ends (its length in tokens), which for
many labels is not nothing. A logistic probe on all of the activation is what could be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from app.studies.pooled import pool
from app.studies.random_dictionary import random_dictionary
from interp.data.labelled import Labelled
from interp.models import ModelHandle
from interp.sites import Site
from probes.capturing import capture_texts
from probes.intervals import RESAMPLES, Interval, bootstrap, weighted_auroc
from probes.logistic import LogisticProbe
from probes.roc import auroc, max_null
from probes.study import StudyResult
from sae.model import Sae

LATENTS, NEURONS, COORDINATES = "latents", "neurons", "coordinates"
RANDOM, POSITION, PROBE = "random latents", "position", "probe"
SHOWN = 20
"""Latents of each label that the table lists."""


class Best(NamedTuple):
    """The column that was chosen on the training part."""

    column: int
    """Its number."""
    sign: int
    """1 where it is larger with the label, -1 where it is smaller."""
    area: float
    """Its area on the training part, taken with the sign: 0.5 or more."""


def best_column(areas: Float[np.ndarray, " column"]) -> Best:
    """Return the column whose area is furthest from a half, the first of equals."""
    column = int(np.abs(areas - 0.5).argmax())
    sign = 1 if areas[column] >= 0.5 else -1
    return Best(column, sign, 0.5 + abs(float(areas[column]) - 0.5))


def two_sided_null(x: NDArray, y: Bool[np.ndarray, " row"], draws: int, seed: int) -> Float[np.ndarray, " draw"]:
    """Return the best area, of either sign, for each shuffling of the labels."""
    up, down = (max_null(one, y, draws=draws, seed=seed)[:, 0] for one in (x, -x))  # the same shufflings for both
    return np.maximum(up, down)


def latent_auroc(
    handle: ModelHandle,
    sae: Sae,
    site: Site | str,
    labelled: Labelled,
    *,
    positions: str = "last",
    context: int = 128,
    test: float = 0.4,
    draws: int = 20,
    resamples: int = RESAMPLES,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda _: None,
) -> StudyResult:
    """Return the best latent of each label beside the best neuron, what chance gives, and a probe.

    Args:
        handle: the model.
        sae: the dictionary, in evaluation mode.
        site: where it belongs.
        labelled: the texts; of two labels only the second is asked for.
        positions: the `last` token, or the `mean` over the tokens.
        context: longest text in tokens.
        test: share of the texts that is measured on; groups are not divided.
        draws: shufflings of the labels.
        resamples: draws of the bootstrap over groups.
        seed: of the division, the random dictionary, the shufflings and the bootstrap.
        on_progress: hears the number of texts done so far; they are read three times.

    Returns:
        Table `best`: label, columns, n_columns, column, sign, train, test, low, high, null (mean of the draws),
        null_high (95 % of them lie below). Table `top`: label, latent, train, test (areas without the sign) of the
        latents furthest from a half on the training part.

    Raises:
        ValueError: what `pool` refuses, a class that is missing in a part, or a model without mlp_act.
    """
    place = handle.check_site(site)
    train = labelled.split(test, seed)
    settings: dict[str, Any] = {"positions": positions, "context": context}
    pooled = pool(handle, place, sae, labelled.texts, on_progress=on_progress, **settings)
    done = len(labelled)
    signed = bool((pooled.codes < 0).any())
    other = random_dictionary(sae, pooled.active, signed=signed, seed=seed)
    random = pool(handle, place, other, labelled.texts, on_progress=lambda n: on_progress(done + n), **settings)
    inside = f"mlp_act.{place.layer}"
    told = lambda n: on_progress(2 * done + n)  # noqa: E731
    neurons = capture_texts(handle, labelled.texts, [inside], [positions], context=context, on_progress=told)
    columns = {
        LATENTS: pooled.codes.double().numpy(),
        NEURONS: neurons.rows(inside, positions).astype(np.float64),
        COORDINATES: pooled.raw.double().numpy(),
        RANDOM: random.codes.double().numpy(),
        POSITION: neurons.lengths[:, None].astype(np.float64),
    }
    rows, top = [], []
    for label in labelled.classes[1:] if len(labelled.classes) == 2 else labelled.classes:
        y = labelled.is_class(label)
        for kind, x in columns.items():
            found = _best(x, y, train, labelled.groups, draws, resamples, seed)
            rows.append({"label": label, "columns": kind} | found)
        ceiling = _probe(columns[COORDINATES], y, train, labelled.groups, resamples, seed)
        empty = dict.fromkeys(("column", "sign", "train", "null", "null_high"))
        rows.append({"label": label, "columns": PROBE, "n_columns": columns[COORDINATES].shape[1]} | empty | ceiling)
        top += _top(columns[LATENTS], y, train, label)
    return _result(rows, top)


def _interval(
    scores: NDArray, y: NDArray, train: NDArray, groups: tuple[str, ...], resamples: int, seed: int
) -> dict[str, Any]:
    of = np.array(groups)[~train]
    found: Interval = bootstrap(weighted_auroc(scores, y[~train]), of, resamples=resamples, seed=seed)
    return {"test": found.value, "low": found.low, "high": found.high}


def _best(
    x: NDArray, y: NDArray, train: NDArray, groups: tuple[str, ...], draws: int, resamples: int, seed: int
) -> dict[str, Any]:
    best = best_column(auroc(x[train], y[train])[:, 0])
    null = two_sided_null(x[train], y[train], draws, seed)
    found = {"n_columns": x.shape[1], "column": best.column, "sign": best.sign, "train": best.area}
    found |= {"null": float(null.mean()), "null_high": float(np.quantile(null, 0.95))}
    return found | _interval(best.sign * x[~train, best.column], y, train, groups, resamples, seed)


def _probe(
    x: NDArray, y: NDArray, train: NDArray, groups: tuple[str, ...], resamples: int, seed: int
) -> dict[str, Any]:
    probe = LogisticProbe().fit(x[train], y[train], np.array(groups)[train])
    return _interval(probe.decision_function(x[~train]), y, train, groups, resamples, seed)


def _top(codes: NDArray, y: NDArray, train: NDArray, label: str) -> Iterable[dict[str, Any]]:
    before, after = (auroc(codes[rows], y[rows])[:, 0] for rows in (train, ~train))
    for latent in np.argsort(-np.abs(before - 0.5), kind="stable")[:SHOWN].tolist():
        yield {"label": label, "latent": latent, "train": float(before[latent]), "test": float(after[latent])}


def _result(rows: list[dict[str, Any]], top: list[dict[str, Any]]) -> StudyResult:
    import pyarrow as pa

    kinds = [("label", pa.string()), ("columns", pa.string())]
    kinds += [(name, pa.int64()) for name in ("n_columns", "column", "sign")]
    kinds += [(name, pa.float64()) for name in ("train", "test", "low", "high", "null", "null_high")]
    summary: dict[str, float | None] = {}
    for kind in (LATENTS, NEURONS, COORDINATES, RANDOM, POSITION, PROBE):
        found = [row["test"] for row in rows if row["columns"] == kind]
        summary[kind.replace(" ", "_")] = float(np.mean(found))
    return StudyResult(
        {"best": pa.Table.from_pylist(rows, pa.schema(kinds)), "top": pa.Table.from_pylist(top)}, summary
    )
