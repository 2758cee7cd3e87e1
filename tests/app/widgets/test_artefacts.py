"""Reading artefacts: once for each file and date, by name, and never more than a sentence when something is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from app.widgets import artefacts
from app.widgets.artefacts import Unreadable, latents_with_text, latents_with_top_token, open_features


def test_it_is_read_once_until_it_changes(own: Path) -> None:
    path = next((own / "features").iterdir())
    first = open_features(path)
    assert open_features(path) is first
    os.utime(path / "manifest.json", ns=(1, 1))
    assert open_features(path) is not first


def test_a_latent_has_its_own_row_histogram_and_examples(written) -> None:
    features = open_features(written.features.path)
    row, (counts, edges) = features.row(12), features.histogram(12)
    stored = written.features.tensors("histograms.safetensors")
    assert row["latent"] == 12
    assert counts.tolist() == stored["counts"][12].tolist()
    assert len(edges) == len(counts) + 1
    top = features.examples(12, "top")
    assert [example.rank for example in top] == list(range(24))
    assert all(example.values[example.centre] == pytest.approx(example.value) for example in top)
    quantiles = [example.quantile for example in features.examples(12, "quantile")]
    assert quantiles == sorted(quantiles, reverse=True)


def test_a_column_cannot_be_written(written) -> None:
    with pytest.raises(ValueError, match="read-only"):
        open_features(written.features.path).column("density")[0] = 1


def test_a_latent_that_is_not_there_is_refused(written) -> None:
    with pytest.raises(Unreadable, match=r"has no latent 9999; it has 0 to 319"):
        open_features(written.features.path).row(9999)


def test_an_id_outside_the_vocabulary_is_shown_as_such(written) -> None:
    assert open_features(written.features.path).texts([-5, 10**6]) == ["<-5>", "<1000000>"]


def test_the_search_is_the_same_in_small_batches(written, monkeypatch: pytest.MonkeyPatch) -> None:
    features = open_features(written.features.path)
    whole = latents_with_text(features, "the lantern")
    monkeypatch.setattr(artefacts, "_SEARCHED_AT_ONCE", 7)
    artefacts._latents_with_text.clear()
    assert latents_with_text(features, "THE LANTERN") == whole != []


def test_a_search_takes_no_pattern(written) -> None:
    features = open_features(written.features.path)
    assert latents_with_top_token(features, ".*") == []
    assert latents_with_text(features, "[a-z]") == []
    assert latents_with_top_token(features, "</style>") != []


def test_sums_of_the_fixture_are_those_of_a_run(written) -> None:
    features = open_features(written.features.path)
    assert features.sae_ref == written.sae.ref
    assert features.sae is not None
    assert features.evaluation is not None
    assert features.evaluation.ref == written.evaluation.ref
    assert features.tokens == 200_000
    assert np.isnan(features.column("max")[written.dead])


@pytest.mark.parametrize("name", ["latents.parquet", "manifest.json", "run.json"])
def test_a_damaged_file_is_a_sentence(own: Path, name: str) -> None:
    path = next((own / "features").iterdir())
    (path / name).write_bytes(b"\x00PAR1 no table")
    with pytest.raises(Unreadable, match=name.split(".")[0]):
        open_features(path)
