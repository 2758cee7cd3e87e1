"""The heat map's choice: a click, the boxes and the address say the same cell."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest

from app.widgets.heat_map import Axis, picked

AXIS = Axis("r", ["tiny-0000aaaa", "tiny-1111bbbb", "other-2222bbbb"], ["a", "b", "c"], "row")


def page() -> None:
    """A page with one map; `took` in the session calls the callback of a click, which a test session never does."""
    import streamlit as st

    from app.widgets.heat_map import Axis, chosen, heat_map, take

    rows = Axis("r", ["low", "mid", "high"], ["L<b>", "M", "H"], "layer")
    columns = Axis("c", [str(i) for i in range(1, 6)], [f"t{i}" for i in range(1, 6)], "token")
    if st.session_state.pop("took", False):
        take("map", rows, columns)
    cell = chosen(rows, default=2), chosen(columns)
    heat_map("map", [[r * c for c in range(5)] for r in range(3)], rows, columns, cell=cell, signed=True)
    st.text(f"{cell}")


def click(at: AppTest, row: int | None, column: int = 0) -> AppTest:
    points = [] if row is None else [{"x": column, "y": row, "customdata": [row, column]}]
    at.session_state["map"] = {"selection": {"points": points, "point_indices": [], "box": [], "lasso": []}}
    at.session_state["took"] = True
    return at.run()


def opened(**query: str) -> AppTest:
    at = AppTest.from_function(page, default_timeout=60)
    for key, value in query.items():
        at.query_params[key] = value
    return at.run()


def test_a_click_is_in_the_address() -> None:
    at = click(opened(), 1, 3)
    assert not at.exception
    assert at.text[0].value == "(1, 3)"
    assert at.query_params["r"] == "mid"
    assert at.query_params["c"] == "4"


def test_without_an_address_the_default_is_chosen_and_written() -> None:
    at = opened()
    assert at.text[0].value == "(2, 0)"
    assert (at.query_params["r"], at.query_params["c"]) == ("high", "1")


def test_an_address_chooses_a_cell() -> None:
    at = opened(r="low", c="5")
    assert at.text[0].value == "(0, 4)"
    assert [box.value for box in at.selectbox] == ["low", "5"]


def test_the_boxes_choose_a_cell() -> None:
    at = opened()
    at.selectbox[0].set_value("low").run()
    at.selectbox[1].set_value("3").run()
    assert at.text[0].value == "(0, 2)"
    assert at.query_params["r"] == "low"


def test_a_second_click_on_the_same_cell_chooses_it_again() -> None:
    """Plotly takes the selection away then; meanwhile the boxes may have moved on."""
    at = click(opened(), 1, 3)
    at.selectbox[1].set_value("1").run()
    assert at.text[0].value == "(1, 0)"
    assert click(at, None).text[0].value == "(1, 3)"


def test_nothing_clicked_changes_nothing() -> None:
    assert click(opened(r="mid", c="2"), None).text[0].value == "(1, 1)"


def test_a_click_that_cannot_be_changes_nothing() -> None:
    assert click(opened(r="mid", c="2"), 7, 7).text[0].value == "(1, 1)"


def test_an_address_that_means_nothing_is_replaced_with_a_note() -> None:
    at = opened(r="<script>", c="99")
    assert at.text[0].value == "(2, 0)"
    notes = "".join(element.value for element in at.get("html"))
    assert "asked for r=&lt;script&gt;, which is not one of 3: low to high; this is high." in notes
    assert "asked for c=99" in notes


def test_an_id_is_read_whole_or_by_its_hash() -> None:
    assert AXIS.read("tiny-0000aaaa") == "tiny-0000aaaa"
    assert AXIS.read("0000aaaa") == "tiny-0000aaaa"
    assert AXIS.read("aaaa") is None
    assert AXIS.read("") is None


def test_what_a_browser_sends_is_read() -> None:
    assert picked({"selection": {"points": [{"customdata": [1, 2]}]}}) == (1, 2)
    assert picked({"selection": {"points": [{"customdata": {"0": 1, "1": 2}}]}}) == (1, 2)
    assert picked({"selection": {"points": []}}) is None
    assert picked({"selection": {"points": [{}]}}) is None
    assert picked(None) is None
