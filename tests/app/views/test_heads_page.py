"""Heads: maps of a score, one head with its partners and tokens, a pattern on the reader's text by the live model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from app.widgets.head_pattern import read_pattern
from app.widgets.head_scores import HeadScores
from app.widgets.profiles import Shown, open_profile
from interp.hooks import capture
from interp.models import load_model
from interp.runs import find_runs
from interp.sites import Site
from tests.layer_runs import HEADS, LAYERS, write_profile


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A folder with two profiles of a model that can be loaded; not to be changed."""
    root = tmp_path_factory.mktemp("heads") / "runs"
    write_profile(root, "other", shift=0.2, model=str(model_folder))
    write_profile(root, "mine", model=str(model_folder))
    return root


def scores_of(root: Path, label: str) -> HeadScores:
    run = next(one for one in find_runs(root, "layers") if one.summary["model_label"] == label)
    return HeadScores(Shown(run, open_profile(run), label))


def heat(at, i: int) -> np.ndarray:
    chart = json.loads(at.get("plotly_chart")[i].proto.spec)
    z = chart["data"][0]["z"]
    if isinstance(z, dict):
        import base64

        return np.frombuffer(base64.b64decode(z["bdata"]), dtype=z["dtype"]).reshape(
            [int(n) for n in str(z["shape"]).split(",")]
        )
    return np.array(z, dtype=float)


def test_scores_of_both_tables_join(profiled: Path) -> None:
    scores = scores_of(profiled, "mine")
    assert scores.shape == (LAYERS, HEADS)
    assert scores.scores == ["induction", "entropy", "ov_rank", "k_composition"]  # in the order in which they are met
    assert scores.grid("induction")[LAYERS - 1, 1] == pytest.approx(0.9)
    assert np.isnan(scores.grid("k_composition")[0]).all()
    assert scores.partners(1, 3) == [("k", 0, 2, pytest.approx(0.23))]
    assert scores.partners(0, 0) == []
    readers = scores.readers(0, 2)
    assert [one[:3] for one in readers] == [("k", 1, head) for head in (3, 2, 1, 0)]


def test_it_opens_on_the_strongest_head(profiled: Path, open_page, text_of) -> None:
    at = open_page(profiled, "heads")
    assert not at.exception
    text = text_of(at)
    assert "ms-problem" not in text
    assert f"Head {LAYERS - 1}.1" in text
    np.testing.assert_allclose(heat(at, 0), scores_of(profiled, "mine").grid("induction"))
    assert len(at.dataframe[0].value) == LAYERS * HEADS


def test_two_models_and_their_difference(profiled: Path, open_page) -> None:
    other = scores_of(profiled, "other")
    at = open_page(profiled, "heads", **{"with": other.shown.run.name})
    a, b = scores_of(profiled, "mine").grid("induction"), other.grid("induction")
    np.testing.assert_allclose(heat(at, 2), b - a)
    assert abs((b - a)[LAYERS - 1, 1] + 0.2) < 1e-9


def test_partners_and_tokens_of_a_head(profiled: Path, open_page, text_of) -> None:
    at = open_page(profiled, "heads", layer=1, head=2, hs="k_composition")
    labels = [link.proto.label for link in at.get("page_link")]
    assert "reads 0.2" in labels
    assert [label for label in labels if label.startswith("is read by")] == [f"is read by 2.{h}" for h in (3, 2, 1, 0)]
    text = text_of(at)
    assert "First direction of OV" in text
    assert "&lt;script&gt;" in text
    assert "<script>" not in text


def test_the_embeddings_have_no_heads(profiled: Path, open_page, text_of) -> None:
    at = open_page(profiled, "heads", layer=-1)
    assert "The address asked for" not in text_of(at)
    assert "Head 0." in text_of(at)


def test_the_pattern_is_that_of_the_model(profiled: Path, open_page, text_of, model_folder: Path) -> None:
    at = open_page(profiled, "heads", layer=1, head=3)
    before = len(at.get("plotly_chart"))
    at.text_input(key="head-text").input("the cat sat")
    next(button for button in at.button if button.label == "Run").click().run()
    assert not at.exception
    assert len(at.get("plotly_chart")) == before + 1
    run = scores_of(profiled, "mine").shown.run
    words, patterns, cut = read_pattern(run, "the cat sat", 1)
    model = load_model(str(model_folder))
    tokens = model.tokens("the cat sat")
    with torch.no_grad(), capture(model, Site(1, "pattern"), view="bridge") as acts:
        model.forward(tokens, view="bridge")
    np.testing.assert_allclose(patterns, acts["pattern.1"][0].numpy(), atol=1e-5)
    assert words == model.token_strings(tokens[0].tolist())
    assert not cut


def test_a_profile_without_heads_says_so(tmp_path: Path, open_page, text_of) -> None:
    write_profile(tmp_path, "plain", families=("stream",))
    at = open_page(tmp_path, "heads")
    assert not at.exception
    assert "holds no table of heads" in text_of(at)
    assert "mechscope layers tiny" in [code.value for code in at.code]
