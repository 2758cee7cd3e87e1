"""Relevance: methods on one question, one cell in all of them, how they agree, and what the page survives."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import streamlit as st

from app.widgets.attributions import open_scored
from app.widgets.questions import newest, questions
from app.widgets.text import number
from app.widgets.top_cells import _take
from interp.attribution.agreement import pearson
from interp.runs import find_runs, start_run
from tests.attribution_runs import (
    HEADS,
    LAYERS,
    POSITIONS,
    PROMPTS,
    STRONGEST,
    truth,
    write_attribution_run,
    write_attributions,
)
from tests.explorer_runs import HOSTILE


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of two questions; not to be changed."""
    return write_attributions(tmp_path_factory.mktemp("asked") / "runs")


def key_of(root: Path, task: str) -> str:
    return next(one.key for one in questions(root) if one.task == task)


def heat(at) -> list[np.ndarray]:
    """Return the values of the heat maps of the page, in their order."""
    specs = [json.loads(chart.proto.spec) for chart in at.get("plotly_chart")]
    return [values(spec["data"][0]["z"]) for spec in specs if spec["data"] and spec["data"][0]["type"] == "heatmap"]


def values(z) -> np.ndarray:
    """Return an array that Plotly wrote, as a list or in base 64."""
    if isinstance(z, dict):
        shape = [int(n) for n in str(z["shape"]).split(",")]
        return np.frombuffer(base64.b64decode(z["bdata"]), dtype=z["dtype"]).reshape(shape)
    return np.array([[np.nan if v is None else v for v in line] for line in z], dtype=float)


def test_runs_of_one_model_task_and_metric_are_one_question(asked: Path) -> None:
    first, second = questions(asked)
    assert (first.task, len(first.runs), first.variants) == ("agreement", 5, ["denoising", "noising"])
    assert (second.task, len(second.runs)) == ("other", 1)
    assert first.key != second.key
    runs = [open_scored(run) for run in first.runs]
    assert list(newest(runs, "mlp_out", "pos")) == ["patching", "atp", "cp_lrp"]
    assert newest(runs, "head_out", "head")["patching"].found.parts("head_out") == ("head",)


def test_every_method_has_a_map_on_one_scale(asked: Path, open_page, text_of) -> None:
    at = open_page(asked, "relevance", kind="mlp_out")
    assert not at.exception
    assert "ms-problem" not in text_of(at)
    text = text_of(at)
    places = [text.index(f'<p class="ms-curve">{name}<span>') for name in ("patching", "atp", "cp_lrp")]
    assert places == sorted(places)
    np.testing.assert_allclose(heat(at)[0], truth("mlp_out").astype(float).mean(-1), rtol=1e-6)
    tops = [json.loads(chart.proto.spec)["data"][0].get("zmax") for chart in at.get("plotly_chart")[:3]]
    assert tops[0] == tops[1] == tops[2]
    at.toggle(key="own").set_value(True).run()
    tops = [json.loads(chart.proto.spec)["data"][0].get("zmax") for chart in at.get("plotly_chart")[:3]]
    assert len(set(tops)) == 3


def test_heads_at_positions_are_added_up_beside_heads(asked: Path, open_page, text_of) -> None:
    at = open_page(asked, "relevance", kind="head_out")
    assert "added up over positions" in text_of(at)
    lrp = next(run for run in find_runs(asked, kind="attribution") if run.config["method"] == "cp_lrp")
    expected = open_scored(lrp).found.map("head_out").sum(1)
    assert expected.shape == (LAYERS, HEADS)
    np.testing.assert_allclose(heat(at)[2], expected)


def test_the_cell_of_the_address_is_shown_under_every_method(asked: Path, open_page, text_of) -> None:
    at = open_page(asked, "relevance", kind="mlp_out", l=0, p=1)
    text = text_of(at)
    score = truth("mlp_out")[0, 1].astype(float).mean()
    assert "mlp_out.0, position 1" in text
    assert f"<td>patching</td><td class=n>{number(score)}</td>" in text
    specs = [json.loads(chart.proto.spec)["data"] for chart in at.get("plotly_chart")]
    dots = next(data[0] for data in specs if data[0].get("name") == "patching")
    drawn = {int(data[0]): y for data, y in zip(dots["customdata"], dots["y"], strict=True)}
    np.testing.assert_allclose([drawn[i] for i in range(PROMPTS)], truth("mlp_out")[0, 1], rtol=1e-6)


def test_without_an_address_it_is_the_strongest_cell_of_the_measured_map(asked: Path, open_page) -> None:
    at = open_page(asked, "relevance", kind="mlp_out")
    assert (at.query_params["kind"], at.query_params["l"], at.query_params["p"]) == (
        STRONGEST[0], str(STRONGEST[1]), str(STRONGEST[2]),
    )  # fmt: skip


def test_the_boxes_choose_a_cell(asked: Path, open_page, text_of) -> None:
    at = open_page(asked, "relevance", kind="mlp_out")
    at.selectbox(key="cell-l").select("2").run()
    assert at.query_params["l"] == "2"
    assert "mlp_out.2, position 3" in text_of(at)


def test_a_row_of_the_strongest_cells_is_a_cell(asked: Path, open_page) -> None:
    at = open_page(asked, "relevance", rank="atp")
    table = at.dataframe[0].value
    assert list(table.columns) == ["cell", "score", "± stderr", "measured", "cp_lrp"]
    assert (np.diff(table["score"].abs()) <= 0).all()
    by_hand = dict(zip(table["cell"], table["measured"], strict=True))
    kind, layer, position = STRONGEST
    expected = truth(kind)[layer, position].astype(float).mean()
    assert by_hand[f"{kind}.{layer} pos {position}"] == pytest.approx(expected)
    rows = [{"kind": "mlp_out", "layer": 2, "pos": 1, "head": None}, {"kind": "q", "layer": 0, "pos": 0, "head": None}]
    st.session_state["top-cells"] = {"selection": {"rows": [0], "columns": [], "cells": []}}
    _take(rows, ["mlp_out"])
    assert [st.query_params[key] for key in ("kind", "l", "p")] == ["mlp_out", "2", "1"]
    st.session_state["top-cells"] = {"selection": {"rows": [1], "columns": [], "cells": []}}
    _take(rows, ["mlp_out"])
    assert st.query_params["kind"] == "mlp_out", "a kind that is not drawn was chosen"


def test_tokens_are_shaded_by_each_method(asked: Path, open_page, text_of) -> None:
    text = text_of(open_page(asked, "relevance", n=2))
    strips = next(part for part in text.split("\n") if "ms-strips" in part)
    assert re.findall(r'class="m">(\w+)<', strips) == ["patching", "atp", "cp_lrp"]
    assert strips.count(">·the2<") == 3
    sums = truth("resid_pre")[0, :, 2].astype(float).sum()
    assert f"<small>sum {number(sums)}</small>" in strips


def test_agreement_says_what_the_library_says(asked: Path, open_page, text_of) -> None:
    text = text_of(open_page(asked, "relevance", kind="mlp_out"))
    runs = newest([open_scored(run) for run in questions(asked)[0].runs], "mlp_out", "pos")
    r, n = pearson(runs["patching"].found, runs["atp"].found, "mlp_out")
    assert n == LAYERS * POSITIONS
    assert f'title="{n} cells">{r:.3f}</td>' in text
    assert "patching is the truth" in text


def test_without_patching_the_checked_cells_are_the_truth(tmp_path: Path, open_page, text_of) -> None:
    write_attribution_run(tmp_path, "atp")
    at = open_page(tmp_path, "relevance", kind="mlp_out")
    assert not at.exception
    text = text_of(at)
    assert "measured by each method&#x27;s own check" in text
    assert "there is no truth" in text


def test_relevance_alone_has_no_variant(tmp_path: Path, open_page, text_of) -> None:
    write_attribution_run(tmp_path, "cp_lrp")
    at = open_page(tmp_path, "relevance")
    assert not at.exception
    assert "dir" not in at.query_params
    assert "No estimate of these effects" in text_of(at)


def test_other_variants_are_left_out(asked: Path, open_page, text_of) -> None:
    text = text_of(open_page(asked, "relevance", dir="noising", kind="mlp_out"))
    assert '<p class="ms-curve">patching<span>' in text
    assert '<p class="ms-curve">atp<span>' not in text
    assert '<p class="ms-curve">cp_lrp<span>' in text


def test_an_address_that_means_nothing_falls_back(asked: Path, open_page, text_of) -> None:
    at = open_page(asked, "relevance", ask="nonsense", kind="<b>x", l="99", p="-1", n="9999", rank="who")
    assert not at.exception
    text = text_of(at)
    assert text.count("The address asked for") == 6
    assert "<b>x" not in text


def test_hostile_tokens_stay_text(asked: Path, open_page, text_of) -> None:
    text = text_of(open_page(asked, "relevance", ask=key_of(asked, "other")))
    for token in HOSTILE:
        if "<" in token:
            assert token not in text


def test_an_empty_folder_says_which_command(tmp_path: Path, open_page, text_of) -> None:
    at = open_page(tmp_path, "relevance")
    assert not at.exception
    assert "Nothing attributed here yet" in text_of(at)
    assert at.code[0].value == "mechscope attribute tiny --task agreement"


def test_unfinished_and_damaged_runs_cost_a_line(asked: Path, tmp_path: Path, open_page, text_of) -> None:
    root = Path(shutil.copytree(asked, tmp_path / "runs"))
    runs = {run.config["method"]: run for run in find_runs(root, kind="attribution", where={"task": "agreement"})}
    (runs["atp"].path / "nodes.parquet").write_bytes(b"PAR1 but no more")
    with start_run("attribution", {"method": "relp"}, slug="tiny.agreement.relp", root=root) as run:
        run.save_table("nodes.parquet", pa.table({"x": [1]}))
    at = open_page(root, "relevance")
    assert not at.exception
    text = text_of(at)
    assert "is interrupted; it is shown when it is finished" in text
    assert "tiny.agreement.atp" in next(part for part in text.split("\n") if "ms-problem" in part)
    assert '<p class="ms-curve">patching<span>' in text


@pytest.mark.parametrize(
    "table",
    [
        {"kind": ["mlp_out"], "layer": [0]},
        {"kind": ["![x](http://evil.example)"], "layer": [0], "score": [1.0]},
        {"kind": ["mlp_out"], "layer": [-1], "score": [1.0]},
        {"kind": ["mlp_out", "mlp_out"], "layer": [0, 2**30], "score": [1.0, 1.0]},
        {"kind": ["mlp_out"], "layer": [0], "score": ["one"]},
        {"kind": [], "layer": [], "score": []},
    ],
    ids=["no score", "hostile kind", "layer below 0", "huge", "text", "no cell"],
)
def test_foreign_tables_are_left_out_with_the_reason(tmp_path: Path, table: dict, open_page, text_of) -> None:
    write_attribution_run(tmp_path)
    run = write_attribution_run(tmp_path, "atp")
    n = len(table["kind"])
    parts = {"pos": pa.array([0] * n, pa.int32())} | {x: pa.nulls(n, pa.int32()) for x in ("head", "neuron", "latent")}
    (run.path / "nodes.parquet").unlink()
    pq.write_table(pa.table(table | parts), run.path / "nodes.parquet")
    manifest = json.loads((run.path / "manifest.json").read_text())
    del manifest["files"]["nodes.parquet"]
    manifest.pop("digest", None)
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    at = open_page(tmp_path, "relevance")
    assert not at.exception
    text = text_of(at)
    assert f"{run.ref} is left out" in text or f"attribution/{run.name}:" in text
    assert '<p class="ms-curve">patching<span>' in text
    assert "evil.example)<" not in text
