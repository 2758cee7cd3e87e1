"""The token strip: shading, merging, marks, escapes."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.widgets.text import visible
from interp.figures.token_strip import TokenStrip, shade


class Reader(HTMLParser):
    """Collects what a browser would make of a strip: tags, attribute names, and text."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def tips(self) -> list[str]:
        return [value or "" for name, value in self.attributes if name == "data-tip"]


tokens = st.lists(st.tuples(st.text(max_size=12), st.floats(-9, 9) | st.just(0.0)), min_size=1, max_size=20)


@given(tokens)
def test_any_text_is_shown_and_nothing_of_it_is_markup(pairs) -> None:
    texts, values = [t for t, _ in pairs], [v for _, v in pairs]
    read = Reader(TokenStrip(texts, values, ids=list(range(len(texts))), spaces=True).html())
    assert set(read.tags) <= {"div", "span"}
    assert {name for name, _ in read.attributes} <= {"class", "style", "data-tip"}
    assert read.text == "".join(map(visible, texts))
    assert all(c.isprintable() for c in read.text)


def test_runs_of_zeros_are_one_span() -> None:
    strip = TokenStrip([f"t{i}" for i in range(49)], [0.0] * 24 + [2.0] + [0.0] * 24)
    assert strip.html().count("<span") == 3
    assert TokenStrip(["a", "b"], [0.0, 0.0]).html().count("<span") == 1


def test_hovering_says_token_id_position_and_value() -> None:
    tips = Reader(TokenStrip([" the", " cat", "s", "!"], [0, 1.234, 0, 0], ids=[5, 6, 7, 8], start=30).html()).tips
    assert tips == ["position 30 · id 5 · silent", "·cat · id 6 · position 31 · 1.23", "positions 32 to 33 · silent"]


def test_spaces_and_newlines_can_be_seen() -> None:
    text = Reader(TokenStrip([" on", "\n", "\t", " off"], [1.0, 1.0, 1.0, 0.0]).html()).text
    assert text == "·on↵⇥ off"
    assert Reader(TokenStrip([" off", "\n"], [0, 0], spaces=True).html()).text == "·off↵"


def test_the_peak_is_underlined_and_may_be_chosen() -> None:
    def underlined(strip: TokenStrip) -> list[str]:
        return re.findall(r'class="t p"[^>]*>([^<]*)<', strip.html())

    assert underlined(TokenStrip(["a", "b", "c"], [1.0, -3.0, 2.0])) == ["b"]
    assert underlined(TokenStrip(["a", "b", "c"], [1.0, -3.0, 2.0], peak=0)) == ["a"]
    assert underlined(TokenStrip(["a", "b", "c"], [0.0, 0.0, 0.0], peak=2)) == ["c"]  # a near miss
    assert underlined(TokenStrip(["a", "b"], [0.0, 0.0])) == []
    assert underlined(TokenStrip(["a", "b"], [1.0, 0.0], peak=-1)) == []
    assert underlined(TokenStrip(["a", "b"], [1.0, 0.0], peak=9)) == []


def test_a_shared_scale_keeps_strips_comparable() -> None:
    own = TokenStrip(["a"], [1.0]).html()
    shared = TokenStrip(["a"], [1.0], scale=10.0).html()
    assert shade(1.0, 1.0) in own
    assert shade(1.0, 10.0) in shared
    assert shade(1.0, 1.0) != shade(1.0, 10.0)


def test_signs_have_different_hues_and_strength_grows() -> None:
    def rgb(css: str) -> tuple[int, ...]:
        return tuple(int(n) for n in re.findall(r"\d+", css)[:3])

    blue, orange = rgb(shade(1.0, 1.0)), rgb(shade(-1.0, 1.0))
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]
    reds = [rgb(shade(v, 1.0))[0] for v in (0.1, 0.4, 0.7, 1.0)]
    assert reds == sorted(reds, reverse=True)
    assert shade(5.0, 1.0) == shade(1.0, 1.0)


def test_text_on_every_shade_has_enough_contrast() -> None:
    """WCAG 2: above 4.2 everywhere, so that shades may lie between white and full colour without a gap."""

    def luminance(color: tuple[int, ...]) -> float:
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for sign in (1, -1):
        for step in range(1, 101):
            css = shade(sign * step / 100, 1.0)
            back = tuple(int(n) for n in re.findall(r"\d+", css)[:3])
            ink = (255, 255, 255) if css.endswith("#ffffff") else (11, 18, 24)
            low, high = sorted((luminance(back), luminance(ink)))
            assert (high + 0.05) / (low + 0.05) >= 4.2, css


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_drawn(value) -> None:
    assert Reader(TokenStrip(["a", "b"], [value, 1.0]).html()).text == "ab"


def test_a_notebook_gets_the_style_with_it() -> None:
    markup = TokenStrip(["a"], [1.0])._repr_html_()
    assert markup.startswith("<style>")
    assert "http" not in markup
    assert str(TokenStrip([" a", "b"], [1.0, 0.0])) == "[·a]b"


def test_unequal_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="each of its 2 tokens, got 1 values and no ids"):
        TokenStrip(["a", "b"], [1.0])
    with pytest.raises(ValueError, match="got 2 values and 3 ids"):
        TokenStrip(["a", "b"], [1.0, 2.0], ids=[1, 2, 3])


def test_long_silent_text_is_cut() -> None:
    assert len(Reader(TokenStrip(["word "] * 1000, [0.0] * 1000).html()).text) < 500
