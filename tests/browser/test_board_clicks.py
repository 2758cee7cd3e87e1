"""Board in a real browser: the boards are drawn, a click and a key choose a square, the change is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from app.commands.explore import Explorer
from app.widgets.board_game import drawn_game
from interp.data.othello import replay, square_names
from tests.board_runs import save_othello_folder, write_board_run
from tests.browser.test_explorer import Visit, browser, serving, visiting, wait_address  # noqa: F401

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
SIDE, AT = 4, 4


@pytest.fixture(scope="module")
def board_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    """The explorer on a study of a random model that can be loaded."""
    folder = tmp_path_factory.mktemp("browser-board")
    write_board_run(folder / "runs", save_othello_folder(folder / "model"))
    yield from serving(folder / "runs")


@pytest.fixture
def visit(browser: Browser, board_server: Explorer, tmp_path: Path) -> Iterator[Visit]:  # noqa: F811
    yield from visiting(browser, board_server, tmp_path, 1300)


def occupied(colour: int) -> str:
    """Return a square that holds a disc of this colour after the moves that are looked at."""
    held = replay(np.array([drawn_game(SIDE, 0)]), SIDE).absolute()[0, AT]
    return square_names(SIDE)[int(np.flatnonzero(held == colour)[0])]


@pytest.mark.parametrize("width", [1400, 420])
def test_the_page_opens_without_an_error(visit: Visit, width: int) -> None:
    visit.page.set_viewport_size({"width": width, "height": 1300})
    visit.open(f"/board?live=true&t={AT}")
    visit.page.locator(".ms-boards figure").nth(4).wait_for()
    assert visit.page.locator(".ms-boards figure").count() == 5  # the board, the moves, three layers
    visit.shot(f"board-{width}")
    overflow = visit.page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth")
    assert overflow <= width, "the page scrolls sideways"
    visit.check()


def test_a_click_on_a_square_changes_it_and_says_what_comes_of_it(visit: Visit) -> None:
    name = occupied(2)
    visit.open(f"/board?live=true&t={AT}")
    square = visit.page.locator(".ms-boards figure").first.locator(".sq", has_text=f"{name}:")
    square.click()
    wait_address(visit, sq=name)
    visit.page.locator(".ms-sentence", has_text=f"With {name} black").wait_for()
    visit.page.locator(".ms-boards figure", has_text="After the edit").wait_for()
    chosen = visit.page.locator(".ms-boards .sq[aria-pressed=true]")
    assert chosen.count() == visit.page.locator(".ms-boards figure").count()
    visit.shot("board-changed")
    visit.check()


def test_arrows_and_enter_choose_a_square(visit: Visit) -> None:
    visit.open(f"/board?t={AT}")
    first = visit.page.locator(".ms-boards figure").first
    first.locator(".sq[tabindex='0']").focus()
    visit.page.keyboard.press("ArrowRight")
    visit.page.keyboard.press("ArrowDown")
    visit.page.keyboard.press("Enter")
    wait_address(visit, sq="b2")
    first.locator(".sq[aria-pressed=true]", has_text="b2:").wait_for()
    visit.check()


def test_steps_and_a_typed_game(visit: Visit) -> None:
    visit.open(f"/board?t={AT}")
    visit.page.locator(".st-key-step-on button").click()
    wait_address(visit, t=str(AT + 1))
    box = visit.page.get_by_label("Moves", exact=True)
    box.fill("a1")
    visit.page.get_by_role("button", name="Take").click()
    visit.page.locator(".ms-problem", has_text="Move 1, a1, is not legal").wait_for()
    moves = drawn_game(SIDE, 3)[:3]
    text = " ".join(square_names(SIDE)[move] for move in moves)
    box.fill(text)
    visit.page.get_by_role("button", name="Take").click()
    wait_address(visit, game=text.replace(" ", ""), t="3")
    visit.check()
