"""Relevance and Patching in a real browser: clicks on cells, prompts and the attention button, no request elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.commands.explore import Explorer
from tests.attribution_runs import LAYERS, POSITIONS, write_attribution_run, write_attributions
from tests.browser.test_explorer import Visit, browser, same_figures, serving, visiting, wait_address, wait_mark  # noqa: F401
from tests.comparison_runs import write_comparisons
from tests.explorer_runs import write_runs

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def attribution_server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    """The explorer on runs of three questions, one of them on a model that can be loaded, and on comparisons."""
    root = tmp_path_factory.mktemp("browser-attribution") / "runs"
    write_comparisons(write_runs(root))
    write_attribution_run(root, task="live", kinds=("head_out",), model=str(model_folder))
    write_attributions(root)
    yield from serving(root)


@pytest.fixture
def visit(browser: Browser, attribution_server: Explorer, tmp_path: Path) -> Iterator[Visit]:  # noqa: F811
    yield from visiting(browser, attribution_server, tmp_path, 1300)


def click(visit: Visit, chart: str, row: int, rows: int, column: int, columns: int, label: str) -> None:
    """Click on a cell of the map, once the chart says by its label that it knows the cell."""
    area = visit.page.locator(f".st-key-{chart} .nsewdrag.drag")
    area.scroll_into_view_if_needed()
    for _ in range(100):
        box = area.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] * (column + 0.6) / columns, box["y"] + box["height"] * (row + 0.6) / rows
        visit.page.mouse.move(x - 5, y - 5)
        visit.page.mouse.move(x, y, steps=4)
        visit.page.wait_for_timeout(200)
        shown = visit.page.locator(".hoverlayer .hovertext", has_text=label)
        if shown.count() and area.bounding_box() == box:
            break
    visit.page.mouse.down()
    visit.page.mouse.up()


@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize("name", ["relevance", "patching"])
def test_the_pages_open_without_an_error(visit: Visit, name: str, width: int) -> None:
    visit.page.set_viewport_size({"width": width, "height": 1300})
    visit.open(f"/{name}")
    visit.page.wait_for_selector(".js-plotly-plot .nsewdrag")
    visit.shot(f"{name}-{width}")
    overflow = visit.page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth")
    assert overflow <= width, "the page scrolls sideways"
    visit.check()


def test_a_click_frames_the_cell_under_every_method(visit: Visit) -> None:
    visit.open("/relevance?kind=mlp_out&l=1&p=3", ".ms-mark")
    for i in range(3):
        wait_mark(visit, f"method-{i}", row=1, rows=LAYERS, column=3, columns=POSITIONS)
    same_figures(visit)
    click(visit, "method-1", 2, LAYERS, 0, POSITIONS, "layer 2 position 0 bos")
    wait_address(visit, l="2", p="0")
    for i in range(3):
        wait_mark(visit, f"method-{i}", row=2, rows=LAYERS, column=0, columns=POSITIONS)
    visit.page.locator("h2.ms-h", has_text="mlp_out.2, position 0").wait_for()
    visit.check()
    visit.page.get_by_role("link", name="The prompts behind this cell").click()
    visit.page.locator("h2.ms-h", has_text="mlp_out.2, position 0").wait_for()
    wait_address(visit, map="mlp_out", l="2", p="0")
    visit.check()


def test_a_click_on_another_map_takes_its_direction_along(visit: Visit) -> None:
    visit.open("/patching?map=mlp_out&dir=denoising&l=1&p=3", ".ms-mark")
    visit.page.locator(".ms-note", has_text="Prompt 0: denoising").wait_for()
    click(visit, "head-0-1", 0, LAYERS, 1, 2, "layer 0 head 1")
    wait_address(visit, map="head_out", dir="noising", l="0", h="1")
    visit.page.locator("h2.ms-h", has_text="head_out.0, head 1").wait_for()
    visit.page.get_by_role("link", name="What this head does on repeated tokens").wait_for()
    visit.shot("patching-head")
    visit.check()


def test_attention_is_drawn_when_it_is_asked_for(visit: Visit) -> None:
    visit.open("/patching?map=head_out&l=1&h=1")
    visit.page.locator(".st-key-ask-widget input").click()
    visit.page.get_by_role("option", name="live").click()
    visit.page.locator('.ms-foot dd:text-is("live")').wait_for()
    assert visit.page.locator(".st-key-attention-clean").count() == 0
    visit.page.get_by_role("button", name="Show attention").click()
    visit.page.wait_for_selector(".st-key-attention-clean .nsewdrag")
    visit.page.wait_for_selector(".st-key-attention-corrupt .nsewdrag")
    visit.shot("patching-attention")
    visit.check()
