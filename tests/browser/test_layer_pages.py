"""Layers and Heads in a real browser, in both themes: clicks, the line of a layer, the live pattern, no request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.commands.explore import Explorer
from tests.browser.test_explorer import Visit, browser, serving, visiting, wait_address  # noqa: F401
from tests.comparison_runs import write_comparisons
from tests.explorer_runs import write_runs
from tests.layer_runs import HEADS, LAYERS, write_profile

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser
PAGES = ("", "dictionaries", "features", "feature", "prompt", "compare", "layers", "heads")


@pytest.fixture(scope="module")
def profile_server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    """The explorer on profiles of a model that can be loaded, and of a deeper one, beside other runs."""
    root = tmp_path_factory.mktemp("browser-layers") / "runs"
    write_comparisons(write_runs(root))
    write_profile(root, "deep", layers=5)
    write_profile(root, "copy", shift=0.1, model=str(model_folder))
    write_profile(root, "mine", model=str(model_folder))
    yield from serving(root)


@pytest.fixture
def visit(browser: Browser, profile_server: Explorer, tmp_path: Path) -> Iterator[Visit]:  # noqa: F811
    yield from visiting(browser, profile_server, tmp_path, 1200)


def marks(page: Page, count: int) -> list[float]:
    """Return how far along their plotting areas the lines of the layer lie, once there are `count`."""
    page.wait_for_function(f"document.querySelectorAll('.ms-layer-mark').length === {count}")
    return page.evaluate(
        """() => [...document.querySelectorAll('.ms-layer-marks')].flatMap((box) => {
          const areas = [...box.parentElement.querySelectorAll('.nsewdrag.drag')].map((a) => a.getBoundingClientRect())
          return [...box.children].map((line, i) => {
            const at = line.getBoundingClientRect().left
            return (at - areas[i].left) / areas[i].width
          })
        })"""
    )


def click(visit: Visit, target: Locator, across: float, down: float, label: str) -> None:
    """Click at shares of `target`, once the chart says `label` there and nothing on the page moves any more."""
    target.scroll_into_view_if_needed()
    for _ in range(100):
        box = target.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] * across, box["y"] + box["height"] * down
        visit.page.mouse.move(x - 6, y - 6)
        visit.page.mouse.move(x, y, steps=4)
        visit.page.wait_for_timeout(300)
        shown = visit.page.locator(".hoverlayer .hovertext", has_text=label)
        if shown.count() and target.bounding_box() == box:
            break
    visit.page.mouse.down()
    visit.page.mouse.up()


def test_a_click_on_a_point_marks_its_layer_in_every_figure(visit: Visit) -> None:
    visit.open("/layers?fam=stream,similarity&layer=0", ".ms-layer-mark")
    before = marks(visit.page, 3)
    point = visit.page.locator(".st-key-family-stream .scatterlayer .trace .points path").nth(LAYERS - 1)
    click(visit, point, 0.5, 0.5, f"layer {LAYERS - 1}")
    wait_address(visit, layer=str(LAYERS - 1))
    visit.page.locator("h2.ms-h", has_text=f"Layer {LAYERS - 1}").wait_for()
    after = marks(visit.page, 3)
    assert all(new > old + 0.3 for old, new in zip(before, after, strict=True))
    visit.page.get_by_role("link", name="Heads of this layer").click()
    visit.page.locator("h2.ms-h", has_text=f"Head {LAYERS - 1}.").wait_for()
    visit.shot("heads")
    visit.check()


def test_a_second_model_is_chosen_on_the_page(visit: Visit) -> None:
    visit.open("/layers?fam=stream")
    visit.page.wait_for_selector(".st-key-family-stream .nsewdrag")
    assert visit.page.locator(".st-key-family-stream .legendtext").count() == 0
    visit.page.locator(".st-key-with-widget input").click()
    visit.page.get_by_role("option", name="copy").click()
    visit.page.locator(".st-key-family-stream .legendtext", has_text="copy").wait_for()
    visit.shot("layers-two")
    visit.check()


def test_a_head_is_chosen_on_the_map_and_its_pattern_drawn(visit: Visit) -> None:
    visit.open("/heads", ".ms-mark")
    area = visit.page.locator(".st-key-heads-0 .nsewdrag.drag")
    click(visit, area, 2.6 / HEADS, 0.6 / LAYERS, "layer 0 head 2")
    wait_address(visit, layer="0", head="2")
    visit.page.locator("h2.ms-h", has_text="Head 0.2").wait_for()
    visit.page.get_by_role("button", name="Run").click()
    visit.page.wait_for_selector(".st-key-head-pattern-0 .nsewdrag")
    visit.shot("heads-pattern")
    visit.page.get_by_role("link", name="is read by 1.3").click()
    wait_address(visit, layer="1", head="3")
    visit.check()


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_dark_where_the_browser_is(visit: Visit, name: str) -> None:
    visit.page.emulate_media(color_scheme="dark")
    visit.open(f"/{name}", ".ms-foot" if name else ".ms-title")
    visit.page.wait_for_timeout(1500)
    visit.shot(f"dark-{name or 'home'}")
    pale = visit.page.evaluate(
        """() => {
          const light = (text) => {
            const [r, g, b, a = 1] = (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number)
            return a > 0.5 ? (r + g + b) / 3 : 0
          }
          const big = (box) => box.width > 200 && box.height > 60
          return [...document.querySelectorAll('[data-testid=stMain] *')]
            .filter((one) => big(one.getBoundingClientRect()) && light(getComputedStyle(one).backgroundColor) > 140)
            .map((one) => one.outerHTML.slice(0, 120))
        }"""
    )
    assert pale == [], "a large pale ground on a dark page"
    dim = visit.page.evaluate(
        """() => {
          const level = (text) => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number); return (r + g + b) / 3 }
          return [...document.querySelectorAll('h2.ms-h, .ms-table td, .ms-note, .ms-where b, .js-plotly-plot text')]
            .filter((one) => one.textContent.trim() && one.getBoundingClientRect().width)
            .filter((one) => level(getComputedStyle(one)[one.tagName === 'text' ? 'fill' : 'color']) < 70)
            .map((one) => one.textContent.slice(0, 40))
        }"""
    )
    assert dim == [], "dark text on a dark page"
    visit.check()


@pytest.mark.parametrize("width", [1280, 420])
@pytest.mark.parametrize("name", ["layers", "heads"])
def test_the_pages_fit_their_width(visit: Visit, name: str, width: int) -> None:
    visit.page.set_viewport_size({"width": width, "height": 1200})
    visit.open(f"/{name}")
    visit.page.wait_for_selector(".js-plotly-plot .nsewdrag")
    visit.shot(f"{name}-{width}")
    overflow = visit.page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth")
    assert overflow <= width, "the page scrolls sideways"
    if width == 1280:
        heights = visit.page.evaluate(
            "[...document.querySelectorAll('.st-key-nav a')].map((one) => Math.round(one.getBoundingClientRect().top))"
        )
        assert max(heights) - min(heights) <= 4, "the bar of links takes more than one line"
    visit.check()
