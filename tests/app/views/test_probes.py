"""Probes: curves with controls, examples by confidence and error, the causal box, other studies, damaged runs."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from app.widgets import probe_cause
from app.widgets.probe_cause import check, verdict
from app.widgets.probe_examples import pick
from app.widgets.probe_studies import Study
from interp.runs import open_run, start_run
from tests.explorer_runs import HOSTILE
from tests.probe_runs import (
    LABELS,
    LAYERS,
    TEXTS,
    prediction_rows,
    sweep_rows,
    truth,
    write_live_sweep,
    write_sweep,
    write_transfer,
)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep and, made before it, a transfer study; not to be changed."""
    root = tmp_path_factory.mktemp("probed") / "runs"
    write_transfer(root)
    write_sweep(root)
    return root


def figure(at: Any, i: int) -> dict:
    return json.loads(at.get("plotly_chart")[i].proto.spec)


def grid(spec: dict) -> np.ndarray:
    z = spec["data"][0]["z"]
    return np.frombuffer(base64.b64decode(z["bdata"]), z["dtype"]).reshape([int(n) for n in z["shape"].split(",")])


def line(spec: dict, name: str) -> list[float]:
    (found,) = [trace["y"] for trace in spec["data"] if trace.get("name") == name]
    return found


def test_the_curves_are_the_table(probed: Path, open_page, text_of) -> None:
    at = open_page(probed, "probes", study=next((probed / "probes").glob("*.sweep-*")).name)
    assert not at.exception
    assert "ms-problem" not in text_of(at)
    np.testing.assert_allclose(line(figure(at, 0), "accuracy"), [truth(layer, "last") for layer in range(LAYERS)])
    assert line(figure(at, 0), "random weights") == [0.6] * LAYERS
    names = [trace.get("name") for trace in figure(at, 1)["data"]]
    assert "AUC" in names
    assert "random weights" not in names  # a baseline is an accuracy
    assert f"{100 * (truth(2, 'last') - 0.6):+.1f} points" in text_of(at)


def test_it_opens_on_the_best_layer_and_the_address_chooses(probed: Path, open_page, text_of) -> None:
    name = next((probed / "probes").glob("*.sweep-*")).name
    at = open_page(probed, "probes", study=name)
    assert at.query_params["layer"] == [str(LAYERS - 1)] or at.query_params["layer"] == str(LAYERS - 1)
    at = open_page(probed, "probes", study=name, layer=1, at="-2")
    assert "resid_post.1, position -2" in text_of(at)
    np.testing.assert_allclose(line(figure(at, 0), "accuracy"), [truth(layer, "-2") for layer in range(LAYERS)])


def test_an_address_that_means_nothing_falls_back_with_a_note(probed: Path, open_page, text_of) -> None:
    at = open_page(probed, "probes", study="../../etc", layer="99", at="<script>")
    assert not at.exception
    assert "which is not" in text_of(at)
    assert "<script>" not in text_of(at)


def test_errors_come_first_and_by_confidence(probed: Path, open_page) -> None:
    at = open_page(probed, "probes", study=next((probed / "probes").glob("*.sweep-*")).name)
    table = at.dataframe[0].value
    assert table["text"].tolist() == ["text number 0 of the set"]
    assert (table["label"].tolist(), table["predicted"].tolist()) == ([LABELS[0]], [LABELS[1]])
    np.testing.assert_allclose(table["by layer"].tolist()[0], [0.1] * LAYERS)


def test_groups_of_examples_are_in_their_order() -> None:
    rows = prediction_rows()[:TEXTS]
    assert [row["text"] for row in pick(rows, "wrong")] == [0]
    assert [row["text"] for row in pick(rows, "right")] == list(range(TEXTS - 1, 0, -1))
    assert [row["confidence"] for row in pick(rows, "unsure")] == sorted(row["confidence"] for row in rows)


def test_hostile_texts_are_shown_literally(tmp_path: Path, open_page, text_of) -> None:
    write_sweep(tmp_path, texts=[*HOSTILE[: TEXTS - 1], "plain"], data={"name": "<script>alert(1)</script>"})
    at = open_page(tmp_path, "probes", show="right")
    assert not at.exception
    assert "<script>" not in text_of(at)
    assert max(len(text) for text in at.dataframe[0].value["text"]) <= 400


def test_a_transfer_study_is_a_map_and_its_table(probed: Path, open_page, text_of) -> None:
    at = open_page(probed, "probes", study=next((probed / "probes").glob("*.transfer-*")).name)
    assert not at.exception
    np.testing.assert_array_equal(grid(figure(at, 0)), [[0.9, 0.3], [0.4, 0.8]])
    assert at.dataframe[0].value["accuracy"].tolist() == [0.9, 0.3, 0.4, 0.8]
    assert "mass mean transfer" in text_of(at).replace("·", " ")


def test_an_empty_folder_says_what_to_run(tmp_path: Path, open_page, text_of) -> None:
    at = open_page(tmp_path, "probes")
    assert "Nothing probed here yet" in text_of(at)
    assert "mechscope probe tiny" in at.code[0].value


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"site": "x"}], "lacks kind, layer"),
        ([sweep_rows()[0] | {"site": "../../x"}], "names a place that is none"),
    ],
)
def test_a_sweep_that_does_not_fit_is_a_sentence(
    rows: list[dict], said: str, tmp_path: Path, open_page, text_of
) -> None:
    with start_run("probes", {"study": "sweep"}, slug="odd", root=tmp_path) as run:
        run.save_table("sweep.parquet", pa.Table.from_pylist(rows))
        run.finish({})
    at = open_page(tmp_path, "probes")
    assert not at.exception
    assert said in text_of(at)


def test_an_unfinished_study_is_named(tmp_path: Path, open_page, text_of) -> None:
    write_sweep(tmp_path)
    with pytest.raises(KeyboardInterrupt), start_run("probes", {"study": "depth"}, slug="half", root=tmp_path):
        raise KeyboardInterrupt
    assert "it is shown when it is finished" in text_of(open_page(tmp_path, "probes"))


def test_the_causal_box_moves_the_model(model_folder: Path, tmp_path: Path) -> None:
    """The numbers are those of the function that the box calls, and random directions stand beside the probe."""
    live = write_live_sweep(tmp_path, model_folder)
    rows = check.__wrapped__(str(tmp_path), live.ref, 0, "resid_post", 1, "last", "open", ("", ""))
    assert {row["direction"] for row in rows} == {"probe", "mean_difference", "random"}
    assert all(row["kl"] == 0 for row in rows if row["strength"] == 0)
    assert all(row["kl"] > 0 for row in rows if row["strength"] != 0)
    assert "random directions" in verdict(rows, "kl")
    with pytest.raises(ValueError, match="some for the class and some against"):
        check.__wrapped__(str(tmp_path), live.ref, 0, "resid_post", 1, "last", "open", ("good", ""))


def test_the_causal_box_reads_texts_as_the_probe_did(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = write_live_sweep(tmp_path, model_folder, settings={"probe": "logistic", "template": "Judge: {}."})
    heard: list[str] = []
    monkeypatch.setattr(
        "probes.causal.causal_check", lambda _handle, _probe, texts, **_: heard.extend(texts) or pa.table({})
    )
    check.__wrapped__(str(tmp_path), live.ref, 0, "resid_post", 1, "last", "open", ("", ""))
    assert heard
    assert all(text.startswith("Judge: the ") and text.endswith(".") for text in heard)


def test_the_verdict_counts_the_random_directions_below() -> None:
    rows = [{"direction": "probe", "strength": 1.0, "kl": 0.5}]
    rows += [{"direction": "random", "strength": 1.0, "kl": value} for value in (0.1, 0.2, 0.9)]
    assert "2 of 3 random directions" in verdict(rows, "kl")
    assert probe_cause.verdict(rows[:1], "kl") == "There are no random directions to compare with."


def test_a_study_knows_its_positions(probed: Path) -> None:
    study = Study(open_run("probes/" + next((probed / "probes").glob("*.sweep-*")).name, probed))
    assert study.spots("resid_post") == ["last", "-2"]
    assert study.label == "tiny · quoted_speech · sweep"
