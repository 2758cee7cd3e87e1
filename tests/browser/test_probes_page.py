"""Probes in a real browser: curves at both widths, a click chooses the layer, the causal box moves the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.commands.explore import Explorer
from tests.browser.test_explorer import Visit, browser, serving, visiting, wait_address  # noqa: F401
from tests.probe_runs import LAYERS, write_live_sweep, write_transfer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def probe_server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    """The explorer on a transfer study and on a sweep of a model that can be loaded."""
    root = tmp_path_factory.mktemp("browser-probes") / "runs"
    write_transfer(root)
    write_live_sweep(root, model_folder)
    yield from serving(root)


@pytest.fixture
def visit(browser: Browser, probe_server: Explorer, tmp_path: Path) -> Iterator[Visit]:  # noqa: F811
    yield from visiting(browser, probe_server, tmp_path, 1300)


@pytest.mark.parametrize("width", [1400, 420])
def test_the_page_opens_without_an_error(visit: Visit, width: int) -> None:
    visit.page.set_viewport_size({"width": width, "height": 1300})
    visit.open("/probes")
    visit.page.wait_for_selector(".js-plotly-plot .nsewdrag")
    visit.shot(f"probes-{width}")
    overflow = visit.page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth")
    assert overflow <= width, "the page scrolls sideways"
    visit.check()


def test_a_click_on_a_point_chooses_its_layer(visit: Visit) -> None:
    visit.open("/probes?layer=2&at=last")
    area = visit.page.locator(".st-key-curve-accuracy .nsewdrag.drag")
    area.wait_for()
    box = area.bounding_box()
    assert box is not None
    room = 0.25  # layers beside the first and the last
    x = box["x"] + box["width"] * (0 + room) / (LAYERS - 1 + 2 * room)
    for share in (0.9, 0.85, 0.95, 0.8, 0.75):  # the first point is one of the lowest
        visit.page.mouse.move(x - 4, box["y"] + box["height"] * share)
        visit.page.mouse.move(x, box["y"] + box["height"] * share, steps=4)
        visit.page.wait_for_timeout(200)
        if visit.page.locator(".hoverlayer .hovertext", has_text="layer 0").count():
            break
    visit.page.mouse.down()
    visit.page.mouse.up()
    wait_address(visit, layer="0")
    visit.page.locator("h2.ms-h", has_text="layer 0 is shown below").wait_for()
    visit.check()


def test_the_causal_box_answers(visit: Visit) -> None:
    visit.open("/probes?layer=1&at=last")
    assert visit.page.locator(".st-key-cause-kl").count() == 0
    visit.page.get_by_role("button", name="Run").click()
    visit.page.wait_for_selector(".st-key-cause-kl .nsewdrag", timeout=90_000)
    visit.page.locator(".ms-text", has_text="random directions of the same length change it less").wait_for()
    visit.shot("probes-cause")
    visit.check()
