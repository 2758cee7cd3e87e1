"""Signed codes at both ends: on the Feature page, in the list, in the search, and as before where a run is unsigned."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from app.widgets.artefacts import open_features
from app.widgets.feature_card import FeatureCard
from app.widgets.text import number, share
from sae.features import load_features
from tests.explorer_runs import write_runs
from tests.signed_runs import ONLY_NEGATIVE, ONLY_POSITIVE, write_signed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose newest features run is signed; not to be changed."""
    written = write_runs(tmp_path_factory.mktemp("signed") / "runs")
    write_signed(written)
    return written.root


@pytest.fixture(scope="module")
def signed(root: Path) -> str:
    return next(root.glob("features/signed-*")).name


def row_of(root: Path, run: str, latent: int) -> dict:
    return load_features(f"features/{run}", root).latents.slice(latent, 1).to_pylist()[0]


def ends_of(text: str) -> list[tuple[str, int, list[float]]]:
    """Return (heading, number of examples, their values) of each end."""
    page = next(part for part in text.split("\n") if part.startswith('<div class="ms-examples">'))
    parts = page.split('<div class="q">')[1:]
    found = []
    for part in parts:
        values = [piece.split('">')[1].split("<")[0] for piece in part.split('<div class="g" ')[1:]]
        found.append((part.split("<")[0], part.count('<div class="e">'), [float(v.replace(",", "")) for v in values]))
    return found


def test_a_feature_shows_both_ends(root: Path, signed: str, open_page, text_of) -> None:
    at = open_page(root, "feature", run=signed, f=12)
    assert not at.exception
    assert "ms-problem" not in text_of(at)
    (top, n_top, above), (bottom, n_bottom, below) = ends_of(text_of(at))
    assert (top, n_top) == ("most positive", 10)
    assert (bottom, n_bottom) == ("most negative", 6)
    assert min(above) > 0 > max(below)
    assert "ms-badge signed" in text_of(at)


def test_the_head_says_density_and_extreme_of_both_signs(root: Path, signed: str, open_page, text_of) -> None:
    row = row_of(root, signed, 12)
    page = text_of(open_page(root, "feature", run=signed, f=12))
    head = next(part for part in page.split("\n") if part.startswith('<div class="ms-head">'))
    above = row["count"] - row["count_negative"]
    mean = (row["mean"] * row["count"] - row["mean_negative"] * row["count_negative"]) / above
    for title, value in (
        ("above 0", f"{share(row['density'] - row['density_negative'])}, mean {number(mean)}"),
        ("below 0", f"{share(row['density_negative'])}, mean {number(row['mean_negative'])}"),
        ("largest", number(row["max"])),
        ("most negative", number(row["min"])),
    ):
        assert f"<dt>{title}</dt><dd>{value}</dd>" in head


def test_the_histogram_has_both_sides(root: Path, signed: str, open_page) -> None:
    chart = json.loads(open_page(root, "feature", run=signed, f=12).get("plotly_chart")[0].proto.spec)
    left, right = chart["data"]
    stored = load_features(f"features/{signed}", root).histogram(12)
    assert stored.negative is not None
    assert heights(left).sum() == stored.negative.sum() > 0
    assert heights(right).sum() == (stored.counts - stored.negative).sum() > 0


def heights(trace: dict) -> np.ndarray:
    """Return the bars of a trace, which Plotly writes as bytes."""
    return np.frombuffer(base64.b64decode(trace["y"]["bdata"]), trace["y"]["dtype"])


def test_latents_with_one_sign(root: Path, signed: str, open_page, text_of) -> None:
    page = text_of(open_page(root, "feature", run=signed, f=ONLY_POSITIVE))
    assert "ms-badge signed" not in page
    assert "most negative" not in page
    page = text_of(open_page(root, "feature", run=signed, f=ONLY_NEGATIVE))
    assert "<dt>above 0</dt><dd>0%, mean –</dd>" in page
    assert "ms-badge signed" in page


def test_an_older_run_is_unsigned(root: Path, open_page, text_of) -> None:
    old = next(path.name for path in root.glob("features/*") if not path.name.startswith("signed"))
    at = open_page(root, "feature", run=old, f=12)
    assert not at.exception
    assert "most negative" not in text_of(at)
    assert "below 0" not in text_of(at)
    assert text_of(at).count('<div class="e">') == 20
    listed = open_page(root, "features", run=old)
    assert not {"bottom tokens", "density_negative", "min"} & set(listed.dataframe[0].value.columns)
    assert open_features(root / "features" / old).negative(12) is None


def test_the_list_says_the_same_of_both_ends(root: Path, signed: str, open_page) -> None:
    at = open_page(root, "features", run=signed, sort="latent", order="up", show="all")
    listed = at.dataframe[0].value.set_index("latent")
    row = row_of(root, signed, 12)
    assert listed.loc[12, "density_negative"] == pytest.approx(100 * row["density_negative"])
    assert listed.loc[12, "min"] == pytest.approx(row["min"])
    assert len(listed.loc[12, "bottom tokens"]) == len(dict.fromkeys(row["bottom_tokens"]))


def test_the_filter_two_signs(root: Path, signed: str, open_page) -> None:
    at = open_page(root, "features", run=signed, sort="latent", order="up", show="two signs")
    found = at.dataframe[0].value["latent"].tolist()
    assert {4, 5, 6} <= set(found)
    assert not {0, ONLY_POSITIVE, ONLY_NEGATIVE} & set(found)


def test_a_search_finds_tokens_of_the_negative_end(root: Path, signed: str) -> None:
    from app.widgets.artefacts import latents_with_top_token

    features = open_features(root / "features" / signed)
    wanted = next(
        (latent, token)
        for latent in range(1, 300)
        for token in features.row(latent)["bottom_tokens"]
        if token.strip().isalpha() and token not in features.row(latent)["top_tokens"][:1]
    )
    assert wanted[0] in latents_with_top_token(features, wanted[1])
    assert features.top_tokens(wanted[0], -1.0) == features.row(wanted[0])["bottom_tokens"]
    assert features.top_tokens(wanted[0], 1.0) == features.row(wanted[0])["top_tokens"]


def test_a_card_in_a_notebook_shows_both_ends(root: Path, signed: str) -> None:
    row = row_of(root, signed, 12)
    card = FeatureCard(row)._repr_html_()
    assert "ms-badge signed" in card
    assert f"min {number(row['min'])} · below 0 {share(row['density_negative'])}" in card
    assert card.index('ms-end">+') < card.index('ms-end">−')
    plain = {key: value for key, value in row.items() if not key.endswith("negative") and key != "bottom_tokens"}
    assert "ms-end" not in FeatureCard(plain).html()
    assert "ms-badge signed" not in FeatureCard(plain).html()


def test_the_notebook_line_counts_latents_with_both_signs(root: Path, signed: str) -> None:
    features = load_features(f"features/{signed}", root)
    below = features.latents["count_negative"].to_numpy()
    both = int(((below > 0) & (below < features.latents["count"].to_numpy())).sum())
    assert f"{both:,} with both signs" in features._repr_html_()
    assert features.signed
    assert np.all(np.array(features.examples(12, "bottom")["value"].to_pylist()) < 0)
