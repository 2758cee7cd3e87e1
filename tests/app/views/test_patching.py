"""Patching: maps of every kind, both directions side by side, one cell at every prompt, attention on a button."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
import torch

from app.widgets.attention import read_patterns
from app.widgets.attributions import open_scored
from app.widgets.heat_map import Axis, take
from app.widgets.questions import questions
from app.widgets.text import number
from interp.hooks import capture
from interp.models import load_model
from interp.runs import find_runs
from interp.sites import Site
from tests.attribution_runs import CLEAN, CORRUPT, PROMPTS, STRONGEST, truth, write_attribution_run, write_attributions
from tests.explorer_runs import HOSTILE


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of two questions; not to be changed."""
    return write_attributions(tmp_path_factory.mktemp("patched") / "runs")


def titles(text: str) -> list[str]:
    """Return the titles of the maps, in their order."""
    parts = text.split('<p class="ms-curve">')[1:]
    return [part.split("</span>")[0].replace("<span>", " ") for part in parts]


def spec(at, i: int) -> dict:
    return json.loads(at.get("plotly_chart")[i].proto.spec)


def test_both_directions_stand_side_by_side(patched: Path, open_page, text_of) -> None:
    at = open_page(patched, "patching")
    assert not at.exception
    assert "ms-problem" not in text_of(at)
    assert titles(text_of(at)) == [
        "resid_pre denoising, layer by position",
        "attn_out denoising, layer by position",
        "mlp_out denoising, layer by position",
        "mlp_out noising, layer by position",
        "head_out denoising, layer by head",
        "head_out noising, layer by head",
        "head_out at position 3 denoising, layer by head",
    ]


def test_it_opens_on_the_strongest_cell_outside_the_stream(tmp_path: Path, open_page) -> None:
    write_attribution_run(tmp_path, kinds=("resid_pre", "mlp_out"))
    at = open_page(tmp_path, "patching")
    kind, layer, position = STRONGEST
    assert [at.query_params[key] for key in ("map", "l", "p")] == [kind, str(layer), str(position)]


def test_the_drill_down_has_the_effect_at_every_prompt(patched: Path, open_page, text_of) -> None:
    at = open_page(patched, "patching", map="mlp_out", l=1, p=3, n=4)
    text = text_of(at)
    values = truth("mlp_out")[1, 3].astype(float)
    other = truth("mlp_out", seed=1)[1, 3].astype(float)
    assert f"<dt>denoising</dt><dd>{number(values.mean())}</dd>" in text
    assert f"{100 * values.mean() / (CLEAN - CORRUPT):.1f}% of the effect" in text
    assert f"Prompt 4: denoising {number(values[4])} · noising {number(other[4])}" in text
    assert f"metric clean {number(CLEAN)} · metric corrupted {number(CORRUPT)}" in text
    table = at.dataframe[0].value
    assert table["prompt"].tolist() == list(np.argsort(-values, kind="stable"))
    np.testing.assert_allclose(table["effect"], np.sort(values)[::-1], rtol=1e-6)
    assert table["right"].tolist() == ["is"] * PROMPTS or table["right"].tolist() == [" is"] * PROMPTS


def test_the_pair_stands_position_by_position(patched: Path, open_page, text_of) -> None:
    text = text_of(open_page(patched, "patching", map="mlp_out", l=1, p=3, n=1))
    table = next(part for part in text.split("\n") if "ms-align" in part)
    assert '<td class="t on" style="">·cat</td>' in table
    assert '<td class="t d on" style="">·others</td>' in table
    assert '<td class="t s " style="">·old</td>' in table
    assert table.count(f">{number(float(truth('mlp_out')[1, 3, 1]))}</td>") == 1


def test_a_share_of_the_effect_divides_by_it(patched: Path, open_page) -> None:
    at = open_page(patched, "patching", share="true")
    shown = spec(at, 0)["data"][1]["text"]
    first = truth("resid_pre")[0, 0].astype(float).mean() / (CLEAN - CORRUPT)
    assert shown[0].endswith(f"share of effect {first:.4g}")


def test_a_head_at_a_position_follows_the_position(patched: Path, open_page, text_of) -> None:
    at = open_page(patched, "patching", map="head_out.pos", p=2, l=0, h=1)
    text = text_of(at)
    assert "head_out at position 2 denoising, layer by head" in titles(text)
    assert "head_out.0, position 2, head 1" in text
    at.selectbox(key="patched-position").select("1").run()
    assert at.query_params["p"] == "1"
    assert "head_out at position 1 denoising, layer by head" in titles(text_of(at))


def test_a_click_names_its_map_and_direction() -> None:
    rows, columns = Axis("l", ["0", "1"], ["0", "1"], "layer"), Axis("h", ["0", "1"], ["0", "1"], "head")
    st.session_state["clicked"] = {"selection": {"points": [{"customdata": [1, 0]}]}}
    take("clicked", rows, columns, {"map": "head_out", "dir": "noising"})
    assert [st.query_params[key] for key in ("l", "h", "map", "dir")] == ["1", "0", "head_out", "noising"]


def test_estimates_are_not_on_this_page(tmp_path: Path, open_page, text_of) -> None:
    write_attribution_run(tmp_path, "atp")
    at = open_page(tmp_path, "patching")
    assert "Nothing attributed here yet" in text_of(at)
    assert at.code[0].value.startswith("mechscope attribute tiny")


def test_without_prompts_the_maps_remain(patched: Path, tmp_path: Path, open_page, text_of) -> None:
    root = Path(shutil.copytree(patched, tmp_path / "runs"))
    for run in find_runs(root, kind="attribution"):
        (run.path / "prompts.parquet").unlink()
        manifest = json.loads((run.path / "manifest.json").read_text())
        del manifest["files"]["prompts.parquet"]
        manifest.pop("digest", None)
        (run.path / "manifest.json").write_text(json.dumps(manifest))
    at = open_page(root, "patching")
    assert not at.exception
    text = text_of(at)
    assert "does not hold its prompts" in text or "ms-problem" in text


def test_hostile_tokens_stay_text(patched: Path, open_page, text_of) -> None:
    key = next(one.key for one in questions(patched) if one.task == "other")
    text = "".join(text_of(open_page(patched, "patching", ask=key, n=n)) for n in range(3))
    for token in HOSTILE:
        if "<" in token:
            assert token not in text


def test_attention_waits_for_the_button(patched: Path, open_page, text_of, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> np.ndarray:
        return np.tril(np.ones((2, 2, 4, 4), dtype=np.float32)) / 4

    monkeypatch.setattr("app.widgets.attention.read_patterns", read)
    at = open_page(patched, "patching", map="head_out", l=1, h=1)
    before = len(at.get("plotly_chart"))
    assert "from each token" not in text_of(at)
    next(button for button in at.button if button.label == "Show attention").click().run()
    assert not at.exception
    assert len(at.get("plotly_chart")) == before + 2
    assert "clean prompt: from each token (row) to those before" in text_of(at)
    at.selectbox(key="patched-l").select("2").run()
    assert len(at.get("plotly_chart")) == before, "another layer was not asked for"


def test_attention_is_that_of_the_model(tmp_path: Path, model_folder: Path) -> None:
    model = load_model(str(model_folder))
    run = write_attribution_run(tmp_path, model=str(model_folder))
    found = read_patterns(open_scored(run), 1, 2)
    row = open_scored(run).prompts[2]
    with capture(model, "pattern.1", view="bridge") as cache:
        model.forward(torch.tensor([row["clean"], row["corrupt"]]), view="bridge")
    np.testing.assert_allclose(found, cache[Site(1, "pattern")].numpy(), atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=1e-5)


def test_a_model_that_is_gone_costs_a_sentence(patched: Path, tmp_path: Path, open_page, text_of) -> None:
    write_attribution_run(tmp_path, model=str(tmp_path / "gone"))
    at = open_page(tmp_path, "patching", map="head_out")
    next(button for button in at.button if button.label == "Show attention").click().run()
    assert not at.exception
    assert "ms-problem" in text_of(at)
