"""The studies that need no dictionary, on a model: transfer between sets, and alignment quality by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.studies.alignment_quality import alignment_quality
from app.studies.probe_transfer import denial_pairs, joined, probe_transfer
from interp.data.labelled import Labelled, read_labelled
from interp.data.sets import labelled_set
from interp.hooks import capture
from interp.models import ModelHandle, load_model
from probes.alignment import quality_by_layer


def labelled(word: str = "cat", groups: int = 20) -> Labelled:
    rows = [
        (f"{group} the {word} is{no} {what}", "true" if (what == "calm") == (no == "") else "false", str(group))
        for group in range(groups)
        for what in ("calm", "gone")
        for no in ("", " not")
    ]
    return Labelled(*zip(*rows, strict=True))


def test_pairs_are_statements_and_their_denials() -> None:
    texts = labelled()
    pairs = denial_pairs(texts)
    assert pairs is not None
    assert len(pairs) == 40
    for plain, denied in pairs.tolist():
        assert texts.texts[plain] == texts.texts[denied].replace(" not ", " ")
        assert texts.groups[plain] == texts.groups[denied]
        assert texts.labels[plain] != texts.labels[denied]
    assert denial_pairs(labelled(groups=2)) is None
    both = labelled_set("true_false")
    found = denial_pairs(both)
    assert found is not None
    assert len(found) == len(both) / 2


def test_transfer_reads_the_model_where_it_says(gpt2: ModelHandle) -> None:
    sets = {"cats": labelled(), "dogs": labelled("dog")}
    heard: list[int] = []
    found = probe_transfer(gpt2, sets, "resid_post.1", probes=["lda"], resamples=30, on_progress=heard.append)
    rows = found.tables["transfer"].to_pylist()
    assert [(r["fitted_on"], r["measured_on"]) for r in rows] == [(a, b) for a in sets for b in sets]
    assert heard[-1] == 160
    assert heard == sorted(heard)
    bad = Labelled(("a", "b", "c"), ("x", "y", "z"), ("1", "2", "3"))
    with pytest.raises(ValueError, match="The set 'cats' must have two labels, got 3"):
        probe_transfer(gpt2, {"cats": bad}, "resid_post.1")


def test_joined_sets_hold_all_texts() -> None:
    found = joined(labelled(), labelled("dog"))
    assert len(found) == 160
    assert found.texts[80:] == labelled("dog").texts


def test_quality_is_that_of_the_last_tokens(gpt2: ModelHandle) -> None:
    texts = labelled(groups=8)
    found = alignment_quality(gpt2, texts, draws=10)
    sites = [f"resid_post.{layer}" for layer in range(3)]
    x = np.empty((len(texts), 3, 32))
    for row, text in enumerate(texts.texts):
        with capture(gpt2, sites) as taken:
            gpt2.forward(gpt2.tokens(text))
        x[row] = [taken[site][0, -1].numpy() for site in sites]
    wanted = quality_by_layer(x, texts.labels, list(texts.groups), names=sites, draws=10).tables["quality"]
    for one, other in zip(found.tables["quality"].to_pylist(), wanted.to_pylist(), strict=True):
        assert one["of"] == other["of"]
        assert one["aqi"] == pytest.approx(other["aqi"], rel=1e-3)
    with pytest.raises(ValueError, match="all sites must have one width; got resid_post.0 32, mlp_act.0 128"):
        alignment_quality(gpt2, texts, ["resid_post.0", "mlp_act.0"])


@pytest.mark.slow
def test_tiny_knows_quotations_late_and_no_truth() -> None:
    """The figures of the docs page, loosely: what separates, and what does not."""
    handle = load_model("tiny")
    quoted = alignment_quality(handle, labelled_set("quoted_speech"), draws=50)
    rows = {row["of"]: row for row in quoted.tables["quality"].to_pylist()}
    assert rows["resid_post.0"]["p"] > 0.02 < rows["resid_post.3"]["aqi"]
    assert rows["resid_post.3"]["p"] < 0.05
    truth = alignment_quality(handle, labelled_set("true_false"), draws=50)
    assert float(str(truth.summary["best_aqi"])) < float(str(quoted.summary["best_aqi"])) / 3


@pytest.mark.slow
@pytest.mark.data
def test_a_small_model_has_no_direction_of_truth(data_dir: Path) -> None:
    """Cities and their denials: what little differs between true and false is opposite in the two."""
    folder = data_dir / "probes" / "geometry-of-truth"
    sets = {
        name: read_labelled(folder / f"{name}.csv", "statement", "label", "city").sample(600)
        for name in ("cities", "neg_cities")
    }
    found = probe_transfer(load_model("tiny"), sets, "resid_post.2", probes=["mass_mean"], resamples=50)
    assert found.tables["directions"].to_pylist()[0]["cosine"] < -0.5
    assert all(abs(row["auc"] - 0.5) < 0.12 for row in found.tables["transfer"].to_pylist())
