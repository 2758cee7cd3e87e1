"""Text and numbers as pages write them."""

from __future__ import annotations

import math

import pytest

from app.widgets.text import count, number, safe, share, token_html, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "·the"),
        ("a\nb\tc", "a↵b⇥c"),
        ("\x00\x1b[31m", "\\x00\\x1b[31m"),
        ("a\u200bb\u202ec\ufeff", "a\\u200bb\\u202ec\\ufeff"),
        ("\ud800", "\\ud800"),
        ("שלום 🦉", "שלום·🦉"),
        ("x" * 100, "x" * 60 + "…(+40)"),
        ("", ""),
    ],
)
def test_nothing_is_hidden(text, shown) -> None:
    assert visible(text) == shown


def test_markup_is_text() -> None:
    assert safe("<a href='x'>&\"") == "&lt;a href=&#x27;x&#x27;&gt;&amp;&quot;"
    assert token_html("</style>") == '<span class="ms-token">&lt;/style&gt;</span>'
    assert "∅" in token_html("")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (1.2345, "1.23"), (-12.345, "-12.3"), (1234.5, "1,234"), (0.01234, "0.012"), (0.00012, "1.2e-04"),
     (2.5e7, "2.5e+07"), (None, "–"), (math.nan, "–"), (math.inf, "–")],
)  # fmt: skip
def test_numbers_are_short(value, shown) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0%"),
        (0.5, "50.0%"),
        (0.0345, "3.45%"),
        (0.002, "0.20%"),
        (0.00001, "0.0010%"),
        (1e-8, "1.0e-06%"),
        (None, "–"),
    ],
)
def test_shares_keep_two_digits(value, shown) -> None:
    assert share(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(999, "999"), (1234, "1,234"), (123456, "123.5k"), (4e6, "4.0M"), (None, "–")]
)
def test_counts_are_short(value, shown) -> None:
    assert count(value) == shown
