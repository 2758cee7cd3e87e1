"""The feature card: badges, lines, escapes."""

from __future__ import annotations

import pytest

from app.widgets.feature_card import FeatureCard, badges
from interp.figures.token_strip import TokenStrip

ROW = {"latent": 7, "density": 0.01, "max": 3.0, "token_entropy": 1.0, "top_tokens": [" a", " a", "<b>"]}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, []),
        ({"density": 0.0, "token_entropy": None}, ["dead"]),
        ({"density": 0.1}, ["dense"]),
        ({"token_entropy": 0.1}, ["token-pure"]),
        ({"density": 0.4, "token_entropy": 0.0}, ["dense", "token-pure"]),
        ({"token_entropy": float("nan")}, []),
        ({"token_entropy": None}, []),
    ],
)
def test_badges_follow_the_statistics(change, wanted) -> None:
    assert badges(ROW | change) == wanted


def test_the_limit_of_dense_can_be_set() -> None:
    assert badges(ROW, dense_from=0.01) == ["dense"]


def test_a_card_shows_each_token_once_and_literally() -> None:
    markup = FeatureCard(ROW, label="<i>label</i>", strip=TokenStrip(["x"], [1.0]))._repr_html_()
    assert markup.count(">·a<") == 1
    assert "&lt;b&gt;" in markup
    assert "&lt;i&gt;label&lt;/i&gt;" in markup
    assert "ms-strip" in markup


def test_a_line_draws_the_value_to_scale() -> None:
    assert "width:50%" in FeatureCard(ROW, value=2.0, scale=4.0).line()
    assert 'class="neg" style="width:100%"' in FeatureCard(ROW, value=-9.0, scale=4.0).line()
    assert "never fired" in FeatureCard(ROW | {"density": 0.0, "top_tokens": []}).line()
