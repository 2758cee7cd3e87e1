"""Small multiples on one axis of layers, and figures for a dark page."""

from __future__ import annotations

import math

import pytest

from interp.figures import LayerLine, Multiple, heat_map, in_dark, layer_multiples
from interp.figures.small_multiples import LABELLED, MODELS
from interp.figures.style import BLUE, DARK, FAINT, INK, figure


def line(part: str = "", values=(1.0, 2.0, 3.0), **more) -> LayerLine:
    return LayerLine(part, range(len(values)), values, **more)


def drawn(fig) -> list:
    return [trace for trace in fig.data if trace.customdata is not None]


def test_figures_of_a_group_stand_in_rows_under_its_name() -> None:
    many = [Multiple(f"m{i}", [line()], group="a" if i < 5 else "b") for i in range(6)]
    fig = layer_multiples(many, columns=3)
    layout = fig.layout
    tops = [layout[f"yaxis{i or ''}"].domain[1] for i in ("", 2, 3, 4, 5, 6)]
    assert tops[0] == tops[1] == tops[2] > tops[3] == tops[4] > tops[5]
    lefts = [layout[f"xaxis{i}"].domain[0] for i in ("", 2, 3, 4)]
    assert lefts[0] < lefts[1] < lefts[2]
    assert lefts[3] == lefts[0]
    ranges = {tuple(layout[f"xaxis{i}"].range) for i in ("", 2, 3, 4, 5, 6)}
    assert len(ranges) == 1
    texts = [note.text for note in layout.annotations]
    assert "<b>a</b>" in texts
    assert "<b>b</b>" in texts
    without = layer_multiples(many, columns=3, headings=False)
    assert without.layout.height < layout.height


def test_titles_carry_unit_and_note_and_nothing_is_markup() -> None:
    one = Multiple("<b>loss</b>", [line("<i>q</i>")], unit="nats", note="Low is <u>good</u>.")
    fig = layer_multiples([one])
    title = next(note for note in fig.layout.annotations if "loss" in note.text)
    assert title.text.startswith("&lt;b&gt;loss&lt;/b&gt;")
    assert "nats" in title.text
    assert title.hovertext == "Low is &lt;u&gt;good&lt;/u&gt;."
    assert any(note.text == "&lt;i&gt;q&lt;/i&gt;" for note in fig.layout.annotations)
    long = layer_multiples([Multiple("w" * 44, [line()], unit="nats per token")])
    assert not any("nats" in note.text for note in long.layout.annotations)
    assert "nats per token" in drawn(long)[0].hovertemplate


def test_two_models_are_two_colours_and_parts_are_dashes() -> None:
    lines = [line(part, model=model) for model in (0, 1) for part in ("q", "k")]
    found = drawn(layer_multiples([Multiple("m", lines)], ["a", "b"]))
    assert [trace.line.color for trace in found] == [MODELS[0], MODELS[0], MODELS[1], MODELS[1]]
    assert found[0].line.dash == found[2].line.dash != found[1].line.dash
    assert found[3].customdata[1].tolist() == [1, 1] if hasattr(found[3].customdata[1], "tolist") else True
    alone = drawn(layer_multiples([Multiple("m", [line("q"), line("k")])]))
    assert alone[0].line.color != alone[1].line.color
    assert {trace.line.dash for trace in alone} == {"solid"}


def test_intervals_are_bands_and_gaps_stay_gaps() -> None:
    nan = math.nan
    banded = line(values=(1.0, nan, 3.0), low=(0.5, nan, 2.5), high=(1.5, nan, 3.5))
    fig = layer_multiples([Multiple("m", [banded])])
    (band,) = [trace for trace in fig.data if trace.fill == "toself"]
    assert list(band.x) == [0, 2, 2, 0]
    assert list(band.y) == [1.5, 3.5, 2.5, 0.5]
    assert math.isnan(drawn(fig)[0].y[1])
    low, high = fig.layout.yaxis.range
    assert low <= 0.5
    assert high >= 3.5
    none = layer_multiples([Multiple("m", [line(values=(nan, nan, nan))])])
    assert all(map(math.isfinite, none.layout.yaxis.range))


def test_large_spans_are_logarithmic_and_shares_are_not() -> None:
    for values, kind in (((1.0, 2.0, 900.0), "log"), ((1e-6, 1e-5, 0.9), None), ((-1.0, 2.0, 900.0), None)):
        fig = layer_multiples([Multiple("m", [line(values=values)])])
        assert fig.layout.yaxis.type == kind, values


def test_relative_depth_puts_last_layers_at_one() -> None:
    lines = [
        LayerLine("", (-1, 0, 1), (1, 2, 3), blocks=2),
        LayerLine("", (0, 1, 2, 3), (1, 2, 3, 4), model=1, blocks=4),
    ]
    fig = layer_multiples([Multiple("m", lines)], ["a", "b"])
    a, b = drawn(fig)
    assert list(a.x) == [0, 0.5, 1]
    assert list(b.x) == [0.25, 0.5, 0.75, 1]
    assert any("depth" in note.text for note in fig.layout.annotations)


def test_of_many_parts_none_is_written() -> None:
    fig = layer_multiples([Multiple("m", [line(f"head {i}") for i in range(LABELLED + 1)])])
    assert not any("head" in note.text for note in fig.layout.annotations)
    few = layer_multiples([Multiple("m", [line(f"head {i}") for i in range(LABELLED)])])
    assert sum("head" in note.text for note in few.layout.annotations) == LABELLED


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one figure and one column, got 0, 4"):
        layer_multiples([])
    with pytest.raises(ValueError, match="model must lie in 0..0"):
        layer_multiples([Multiple("m", [line(model=1)])])


def test_a_dark_figure_has_the_same_numbers_in_other_colours() -> None:
    fig = layer_multiples([Multiple(BLUE, [line("q")], unit="nats")])
    dark = in_dark(fig)
    assert fig.layout.template.layout.font.color == INK  # the original stays
    assert dark.layout.template.layout.font.color == DARK[INK]
    assert drawn(dark)[0].line.color == DARK[BLUE]
    assert list(drawn(dark)[0].y) == list(drawn(fig)[0].y)
    title = next(note for note in dark.layout.annotations if "nats" in note.text)
    assert title.text.startswith(BLUE)  # a text that looks like a colour is a text
    assert DARK[FAINT] in title.text
    assert FAINT not in title.text


def test_dark_heat_maps_go_from_the_page_to_the_brightest() -> None:
    def light(color: str) -> float:
        return sum(int(color[i : i + 2], 16) for i in (1, 3, 5)) / 3

    for signed in (False, True):
        scale = in_dark(heat_map([[0.0, 1.0]], ["a"], ["b", "c"], signed=signed)).data[0].colorscale
        levels = [light(color) for _, color in scale]
        middle = len(levels) // 2 if signed else 0
        assert min(levels) == levels[middle] < 40
        assert levels[middle:] == sorted(levels[middle:])


def test_dark_text_can_be_read_on_the_dark_page() -> None:
    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    page = luminance("#14181d")
    for name in (INK, FAINT, BLUE, "#3d4a57", "#4a5866", "#D55E00", "#009E73", "#CC79A7"):
        assert (luminance(DARK[name]) + 0.05) / (page + 0.05) > 4.5, name
    assert figure(100).layout.template.layout.font.color == INK
