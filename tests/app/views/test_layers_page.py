"""Layers: an overview and whole families, one model or two, a layer that all share; bad runs cost a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import streamlit as st

from app.views.layers import take
from app.widgets.layer_mark import share_of
from interp.figures.style import figure
from interp.runs import find_runs
from tests.layer_runs import LAYERS, write_profile


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a profile, one of a compressed copy and one of a deeper model; not to be changed."""
    root = tmp_path_factory.mktemp("profiled") / "runs"
    write_profile(root, "deep", layers=5)
    write_profile(root, "tiny rtn-4bit", shift=0.05, refused={"depth": "the text is too short."})
    write_profile(root, "tiny")
    return root


def spec(at, i: int = 0) -> dict:
    return json.loads(at.get("plotly_chart")[i].proto.spec)


def names(root: Path) -> dict[str, str]:
    return {run.summary["model_label"]: run.name for run in find_runs(root, "layers", finished=True)}


def lines(chart: dict) -> list[dict]:
    return [trace for trace in chart["data"] if trace.get("customdata")]


def test_it_opens_on_an_overview_of_the_newest(profiled: Path, open_page, text_of) -> None:
    at = open_page(profiled, "layers")
    assert not at.exception
    text = text_of(at)
    assert "ms-problem" not in text
    assert "<b>tiny</b> · 3 layers · 4 prompts of 16 tokens" in text
    assert len(at.get("plotly_chart")) == 1
    shown = lines(spec(at))
    assert len(shown) == 1 + 1 + 1 + 2  # share, CKA, induction, and both parts of the direct contribution
    assert [point[0] for point in shown[0]["customdata"]] == [0, 1, 2]
    assert at.query_params["layer"] in (["0"], "0")


def test_chosen_families_show_all_they_measure(profiled: Path, open_page, text_of) -> None:
    at = open_page(profiled, "layers", fam="stream,similarity", layer=1)
    charts = [spec(at, i) for i in range(len(at.get("plotly_chart")))]
    assert len(charts) == 3  # two families, and the matrix of every two layers
    assert len(lines(charts[0])) == 3
    titles = [one["text"] for one in charts[0]["layout"]["annotations"]]
    assert any(title.startswith("norm of the stream") for title in titles)
    hover = [one.get("hovertext") for one in charts[0]["layout"]["annotations"]]
    assert 'Grows with &lt;b&gt;depth&lt;/b&gt; &amp; "more".' in hover
    text = text_of(at)
    assert "Every two layers" in text
    assert '<th class="n on">1</th>' in text
    assert "&lt;b&gt;depth&lt;/b&gt;" in text
    assert "<b>depth</b>" not in text


def test_two_models_share_every_figure(profiled: Path, open_page, text_of) -> None:
    other = names(profiled)["tiny rtn-4bit"]
    at = open_page(profiled, "layers", **{"with": other, "fam": "stream"})
    shown = lines(spec(at))
    assert [line["customdata"][0][1] for line in shown] == [0, 0, 1, 1, 0, 1]
    text = text_of(at)
    assert "b: <b>tiny rtn-4bit</b>" in text
    assert "depth is left out of tiny rtn-4bit: the text is too short." in text
    row = next(
        part for part in text.split("<tr>") if "norm of the stream" in part and "mean" in part and "10.0" in part
    )
    assert "10.1" in row or "10.0" in row
    at.selectbox(key="with-widget").select("").run()
    assert "with" not in at.query_params
    assert len(lines(spec(at))) == 3


def test_models_of_different_depth_meet_at_relative_depth(profiled: Path, open_page, text_of) -> None:
    at = open_page(profiled, "layers", **{"with": names(profiled)["deep"], "fam": "stream", "layer": 2})
    shown = lines(spec(at))
    assert shown[0]["x"][-1] == shown[-1]["x"][-1] == 1
    assert "deep, layer 4" in text_of(at)  # the last of five, as layer 2 is of three


def test_a_click_writes_the_layer() -> None:
    st.session_state["family-x"] = {"selection": {"points": [{"customdata": [2, 1]}]}}
    take("family-x")
    assert st.query_params["layer"] == "2"


def test_where_the_line_of_a_layer_lies() -> None:
    fig = figure(100)
    fig.update_xaxes(range=[-0.5, 3.5])
    assert share_of(fig, 1.5) == 0.5
    assert share_of(fig, 4) is None


def test_addresses_that_mean_nothing_are_replaced_with_a_note(profiled: Path, open_page, text_of) -> None:
    at = open_page(profiled, "layers", prof="nothing", layer=99, fam="nonsense", **{"with": "none"})
    assert not at.exception
    text = text_of(at)
    for key in ("prof=nothing", "layer=99", "fam=nonsense", "with=none"):
        assert key in text


def test_an_empty_folder_says_which_command_makes_one(tmp_path: Path, open_page, text_of) -> None:
    for page in ("layers", "heads"):
        at = open_page(tmp_path / "none", page)
        assert not at.exception
        assert "No profile here yet" in text_of(at)
        assert at.code[0].value == "mechscope layers tiny --vs-recipe int4"


def test_damaged_newer_and_unfinished_runs_cost_a_sentence(tmp_path: Path, open_page, text_of) -> None:
    good = write_profile(tmp_path, "tiny")
    for label, break_it in (
        ("cut", lambda path: (path / "stream.layers.parquet").write_bytes(b"PAR1")),
        ("newer", lambda path: (path / "run.json").write_text((path / "run.json").read_text().replace(
            '"schema": 1', '"schema": 99'))),
    ):  # fmt: skip
        break_it(write_profile(tmp_path, label).path)
    write_profile(tmp_path, "open", finish=False)
    at = open_page(tmp_path, "layers")
    assert not at.exception
    text = text_of(at)
    assert "<b>tiny</b>" in text
    assert good.name.startswith("tiny")
    assert text.count("ms-problem") == 2
    assert "layers/cut" in text
    assert "layers/newer" in text
    assert "layers/open" in text


def test_a_summary_that_is_none_is_said(tmp_path: Path, open_page, text_of) -> None:
    from interp.runs import start_run

    with start_run("layers", {"x": 1}, slug="odd", root=tmp_path) as run:
        run.save_json("summary.json", {"families": {"stream": 3}})
        run.finish({})
    at = open_page(tmp_path, "layers")
    assert not at.exception
    assert "is not that of a profile" in text_of(at)


def test_the_layers_of_the_link_to_heads(profiled: Path, open_page) -> None:
    at = open_page(profiled, "layers", layer=LAYERS - 1)
    links = {link.proto.label: link.proto for link in at.get("page_link")}
    assert "Heads of this layer" in links
    assert f"layer={LAYERS - 1}" in str(links["Heads of this layer"].query_string)
