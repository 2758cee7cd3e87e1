"""The explorer in a real browser: every page, clicks, hostile text, no error and no request to anywhere else.

Screenshots go to $MECHSCOPE_SHOTS, or to a temporary folder.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from app.commands.explore import Explorer, start
from tests.comparison_runs import Compared, write_comparisons
from tests.dictionary_runs import write_dictionaries
from tests.explorer_runs import HOSTILE, Written, random_dictionary, write_runs
from tests.signed_runs import dictionary_with_atoms, write_signed

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
]
TIMEOUT = 60_000  # milliseconds


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    return write_comparisons(write_runs(tmp_path_factory.mktemp("browser") / "runs"))


@pytest.fixture(scope="module")
def written(compared: Compared) -> Written:
    return compared.written


def serving(root: Path) -> Iterator[Explorer]:
    """The explorer on the runs of a folder, for a fixture to yield from."""
    process = start(root)
    try:
        process.wait_ready()
        yield process
    finally:
        process.stop()


@pytest.fixture(scope="module")
def server(written: Written) -> Iterator[Explorer]:
    yield from serving(written.root)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
    if BROWSER is None:
        pytest.skip("there is no chromium on the path (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, headless=True, args=FLAGS)
        yield opened
        opened.close()


PROMPT = "the cat <b>sat</b> on ![x](http://evil.example/x.png) </style> $z$"


@pytest.fixture(scope="module")
def live_server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    """The explorer on two dictionaries that can be loaded, of a random model."""
    root = tmp_path_factory.mktemp("browser-live") / "runs"
    for site in ("resid_post.2", "mlp_out.1"):
        write_runs(root, model=str(model_folder), site=site, d_sae=64, d_in=32, save=random_dictionary)
    yield from serving(root)


class Visit:
    """One page of the browser that keeps a record of what went wrong in it."""

    def __init__(self, page: Page, url: str, shots: Path) -> None:
        self.page, self.url, self.shots = page, url, shots
        self.wrong: list[str] = []
        page.set_default_timeout(TIMEOUT)
        page.on("request", self._request)
        page.on("response", self._response)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.wrong.append(f"exception: {error}"))
        page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.url, self.url.replace("http", "ws", 1), "data:", "blob:")):
            self.wrong.append(f"request to {request.url}")

    def _response(self, response: Any) -> None:
        # Streamlit looks for its own end points below the page's path first, and then at the root.
        if response.status >= 400 and "/_stcore/" not in response.url:
            self.wrong.append(f"status {response.status} of {response.url}")

    def _console(self, message: Any) -> None:
        if message.type == "error" and "404" not in message.text:  # judged in `_response`, which knows the address
            self.wrong.append(f"console: {message.text}")

    def open(self, path: str, ready: str = ".ms-foot") -> None:
        self.page.goto(self.url + path)
        self.settle(ready)

    def settle(self, ready: str = ".ms-foot") -> None:
        """Wait until the page is drawn and nothing runs any more."""
        self.page.wait_for_selector(ready)
        self.page.wait_for_function("!document.querySelector('[data-testid=stStatusWidget]')")

    def shot(self, name: str) -> None:
        self.page.screenshot(path=self.shots / f"{name}.png")

    def check(self) -> None:
        """Nothing went wrong, and no box of an exception is on the page."""
        assert self.page.locator("[data-testid=stException], [data-testid=stDialog]").count() == 0
        assert self.wrong == []

    def latent(self) -> int:
        return int(self.page.locator(".ms-head .number").inner_text())

    def wait_latent(self, latent: int) -> None:
        self.page.wait_for_function(f"document.querySelector('.ms-head .number')?.innerText === '{latent}'")
        self.page.wait_for_function(f"new URLSearchParams(location.search).get('f') === '{latent}'")


def visiting(browser: Browser, server: Explorer, tmp_path: Path, height: int) -> Iterator[Visit]:
    """A visit in a new page, for a fixture to yield from; $MECHSCOPE_SHOTS keeps its pictures."""
    shots = Path(os.environ.get("MECHSCOPE_SHOTS") or tmp_path)
    shots.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1400, "height": height})
    yield Visit(page, server.url, shots)
    page.close()


@pytest.fixture
def visit(browser: Browser, server: Explorer, tmp_path: Path) -> Iterator[Visit]:
    yield from visiting(browser, server, tmp_path, 1300)


@pytest.mark.parametrize("width", [1400, 800])
@pytest.mark.parametrize(
    ("name", "path", "ready"),
    [
        ("home", "/", ".ms-run"),
        ("dictionaries", "/dictionaries", ".js-plotly-plot"),
        ("features", "/features", ".js-plotly-plot"),
        ("feature", "/feature?f=12", ".js-plotly-plot"),
        ("feature-dead", "/feature?f=23", ".ms-foot"),
        ("prompt", "/prompt?text=hello", ".ms-foot"),
        ("compare", "/compare", ".js-plotly-plot"),
        ("compare-features", "/compare?part=Features", ".ms-pairs"),
        ("compare-predictions", "/compare?part=Predictions", ".ms-narrow"),
    ],
)
def test_every_page_opens_without_an_error(visit: Visit, name: str, path: str, ready: str, width: int) -> None:
    visit.page.set_viewport_size({"width": width, "height": 1300})
    visit.open(path, ready)
    visit.shot(f"{name}-{width}")
    overflow = visit.page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth")
    assert overflow <= width, "the page scrolls sideways"
    visit.check()


@pytest.mark.parametrize("group", ["Top", "Quantiles", "Random", "Near misses"])
def test_hostile_text_is_read_and_not_obeyed(visit: Visit, written: Written, group: str) -> None:
    visit.open(f"/feature?f={written.hostile}&ex={group}")
    visit.shot(f"hostile-{group.split()[0].lower()}")
    shown = visit.page.locator(".ms-examples").inner_text()
    assert "</style>" in shown.replace("·", " ")
    assert visit.page.locator(".ms-examples :is(script, img, style, a)").count() == 0
    visit.check()


def test_hostile_text_is_literal_in_table_and_picture(visit: Visit) -> None:
    visit.open("/features?q=alert", ".js-plotly-plot")
    hover(visit, ".scatterlayer .trace:last-child path.point")
    visit.page.wait_for_selector(".hoverlayer .hovertext")
    visit.shot("hostile-features")
    text = visit.page.locator(".hoverlayer .hovertext").text_content() or ""
    assert any(token[:8] in text.replace("·", " ") for token in HOSTILE if "alert" in token)
    visit.check()


def hover(visit: Visit, selector: str) -> None:
    """Move the mouse onto the first point of the picture; a click follows at the same place."""
    box = visit.page.locator(selector).first.bounding_box()
    assert box is not None
    visit.page.mouse.move(box["x"] - 20, box["y"] - 20)
    visit.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=5)


def test_a_click_in_the_table_opens_the_latent_and_back_returns(visit: Visit, written: Written) -> None:
    visit.open("/features?show=all&sort=latent&order=up", ".js-plotly-plot")
    canvas = visit.page.locator("[data-testid=stDataFrame] canvas").first
    box = canvas.bounding_box()
    assert box is not None
    visit.page.mouse.click(box["x"] + 450, box["y"] + 32 + 30 * 3 + 15)  # the fourth row
    visit.wait_latent(3)
    visit.settle()
    assert visit.page.evaluate("new URLSearchParams(location.search).get('run')") == written.features.name
    visit.page.go_back()
    visit.page.wait_for_function("new URLSearchParams(location.search).get('sort') === 'latent'")
    visit.page.wait_for_selector("[data-testid=stDataFrame]")
    visit.settle()
    visit.check()


def test_a_click_on_a_point_opens_its_latent(visit: Visit, written: Written) -> None:
    visit.open("/features?show=dense", ".js-plotly-plot")
    hover(visit, ".scatterlayer .trace:last-child path.point")
    visit.page.wait_for_selector(".hoverlayer .hovertext")
    text = visit.page.locator(".hoverlayer .hovertext").text_content() or ""
    wanted = int(re.findall(r"latent (\d+)", text)[0])
    visit.page.mouse.down()
    visit.page.mouse.up()
    visit.wait_latent(wanted)
    visit.check()


def test_buttons_keys_and_links_walk_and_the_address_follows(visit: Visit) -> None:
    visit.open("/feature?f=12")
    visit.page.locator(".st-key-go-Right button").click()
    visit.wait_latent(13)
    visit.settle()
    visit.page.keyboard.press("ArrowLeft")
    visit.wait_latent(12)
    visit.settle()
    link = visit.page.locator(".st-key-links-decoder a").first
    near = int(link.inner_text())
    link.click()
    visit.wait_latent(near)
    visit.settle()
    visit.page.go_back()
    visit.wait_latent(12)
    visit.check()


def test_a_tab_is_in_the_address_and_stays_on_the_next_latent(visit: Visit) -> None:
    visit.open("/feature?f=12")
    visit.page.get_by_role("tab", name="Near misses").click()
    visit.page.wait_for_function("new URLSearchParams(location.search).get('ex') === 'Near misses'")
    visit.settle()
    visit.page.locator(".st-key-go-Right button").click()
    visit.wait_latent(13)
    visit.settle()
    assert visit.page.get_by_role("tab", name="Near misses").get_attribute("aria-selected") == "true"
    visit.check()


def test_hovering_a_token_says_what_it_is(visit: Visit) -> None:
    visit.open("/feature?f=12")
    token = visit.page.locator(".ms-examples .t.p").first
    token.hover()
    tip = token.evaluate("e => getComputedStyle(e, '::after').content")
    assert "position" in tip
    assert "id" in tip
    visit.check()


def test_an_address_that_means_nothing_falls_back(visit: Visit, written: Written) -> None:
    visit.open("/feature?run=<script>alert(1)</script>&f=zz&ex=9&scale=x")
    visit.wait_latent(1)
    assert "which is not a finished features run" in visit.page.locator(".ms-note").first.inner_text()
    visit.check()


def test_a_label_is_saved_and_found_again(visit: Visit) -> None:
    visit.open("/feature?f=30")
    visit.page.get_by_text("Label and notes").click()
    visit.page.get_by_label("Label", exact=True).fill("<i>sea</i>")
    visit.page.get_by_role("button", name="Save").click()
    visit.page.wait_for_selector(".ms-head .label:has-text('<i>sea</i>')")
    visit.settle()
    visit.open("/features?show=labelled", "[data-testid=stDataFrame]")
    visit.shot("labelled")
    visit.check()


@pytest.fixture
def prompt(browser: Browser, live_server: Explorer, tmp_path: Path) -> Iterator[Visit]:
    """The Prompt page with an answer on it."""
    shots = Path(os.environ.get("MECHSCOPE_SHOTS") or tmp_path)
    shots.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1400, "height": 1300})
    visit = Visit(page, live_server.url, shots)
    visit.open(f"/prompt?text={quote(PROMPT)}")
    page.get_by_role("button", name="Run", exact=True).click()
    visit.settle(".js-plotly-plot .nsewdrag")
    yield visit
    page.close()


def wait_address(visit: Visit, **wanted: str) -> None:
    for key, value in wanted.items():
        visit.page.wait_for_function(
            "([key, value]) => (new URLSearchParams(location.search).get(key) || '').includes(value)", arg=[key, value]
        )


def click_cell(visit: Visit, site: str, row: int, rows: int, column: int, columns: int) -> None:
    """Click near the lower right corner of a cell of the map, once the chart has its place and knows the cell."""
    layer = visit.page.locator(".nsewdrag.drag").first
    for _ in range(100):
        box = layer.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] * (column + 0.8) / columns, box["y"] + box["height"] * (row + 0.8) / rows
        visit.page.mouse.move(x - 4, y - 4)
        visit.page.mouse.move(x, y, steps=4)
        visit.page.wait_for_timeout(200)
        label = visit.page.locator(".hoverlayer .hovertext")
        shown = (label.first.text_content() or "") if label.count() else ""
        if shown.startswith(f"{site} · {column + 1} ") and layer.bounding_box() == box:
            break
    visit.page.mouse.down()
    visit.page.mouse.up()


def test_a_click_on_a_token_and_on_a_cell_choose_them(prompt: Visit) -> None:
    tokens = prompt.page.locator(".ms-strip .t")
    n = tokens.count()
    tokens.nth(4).click()
    wait_address(prompt, pos="5")
    prompt.settle()
    prompt.page.wait_for_selector(".ms-strip .t:nth-child(5)[aria-pressed=true]")
    same_figures(prompt)
    click_cell(prompt, "mlp_out.1", row=0, rows=2, column=8, columns=n)
    wait_address(prompt, pos="9", sae="mlp_out.1")
    prompt.settle()
    wait_mark(prompt, "map", row=0, rows=2, column=8, columns=n)
    assert same_figures(prompt), "a click drew the figure anew"
    prompt.page.wait_for_selector(".ms-strip .t:nth-child(9)[aria-pressed=true]")
    prompt.page.locator(".st-key-fire-chosen", has_text="mlp_out.1").wait_for()
    prompt.shot("prompt-answer")
    prompt.check()


def test_a_cell_that_was_left_by_the_keyboard_can_be_clicked_again(prompt: Visit) -> None:
    n = prompt.page.locator(".ms-strip .t").count()
    click_cell(prompt, "resid_post.2", row=1, rows=2, column=3, columns=n)
    wait_address(prompt, pos="4", sae="resid_post.2")
    prompt.settle()
    prompt.page.keyboard.press("ArrowRight")
    wait_address(prompt, pos="5")
    prompt.settle()
    click_cell(prompt, "resid_post.2", row=1, rows=2, column=3, columns=n)
    wait_address(prompt, pos="4")
    prompt.check()


def test_tokens_answer_the_keyboard(prompt: Visit) -> None:
    prompt.page.locator(".ms-strip .t").nth(2).focus()
    prompt.page.keyboard.press("Enter")
    wait_address(prompt, pos="3")
    prompt.settle()
    prompt.check()


def test_a_prompt_is_shown_and_not_obeyed(prompt: Visit) -> None:
    shown = prompt.page.locator(".ms-strip").inner_text().replace("\n", "").replace("·", " ")
    assert PROMPT.replace(" ", "") in shown.replace(" ", "")
    assert prompt.page.locator(".ms-strip :is(script, img, style, a, b)").count() == 0
    prompt.check()


def test_a_feature_that_fires_opens_with_the_text_and_back_returns(prompt: Visit) -> None:
    link = prompt.page.locator(".st-key-fire-chosen a").first
    latent = int(link.inner_text())
    link.click()
    prompt.wait_latent(latent)
    prompt.settle(".ms-answer")  # the model is there already, so the text is read at once
    wait_address(prompt, text="the cat")
    prompt.page.locator(".st-key-nav a", has_text="Prompt").click()
    prompt.settle(".js-plotly-plot .nsewdrag")
    wait_address(prompt, text="the cat")
    prompt.check()


def same_figures(visit: Visit) -> bool:
    """Return whether the page's figures are those of the call before, drawn from the same data."""
    return visit.page.evaluate(
        """() => {
            const data = [...document.querySelectorAll(".js-plotly-plot")].map((plot) => plot.data)
            const same = data.length === window.figures?.length && data.every((one, i) => one === window.figures[i])
            window.figures = data
            return same
        }"""
    )


def wait_mark(visit: Visit, chart: str, row: int, rows: int, column: int, columns: int) -> None:
    """Wait until the frame lies on that cell of the map, within two pixels."""
    visit.page.wait_for_function(
        """([chart, x, y]) => {
            const area = document.querySelector(`.st-key-${chart} .nsewdrag.drag`)?.getBoundingClientRect()
            const mark = document.querySelector(`.st-key-${chart} .ms-mark`)?.getBoundingClientRect()
            return area && mark && Math.abs(mark.left + mark.width / 2 - area.left - x * area.width) < 2
                && Math.abs(mark.top + mark.height / 2 - area.top - y * area.height) < 2
        }""",
        arg=[chart, (column + 0.5) / columns, (row + 0.5) / rows],
    )


def test_a_click_on_a_head_frames_it_in_all_three_maps(visit: Visit, compared: Compared) -> None:
    visit.open(f"/compare?vs={compared.four.name}&part=Heads&layer=0&head=0", ".ms-mark")
    for key in "abd":
        wait_mark(visit, f"heads-{key}", row=0, rows=6, column=0, columns=4)
    same_figures(visit)
    area = visit.page.locator(".st-key-heads-b .nsewdrag.drag")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] * 2.6 / 4, box["y"] + box["height"] * 3.4 / 6
    visit.page.mouse.move(x - 5, y - 5)
    visit.page.mouse.move(x, y, steps=4)
    visit.page.locator(".hoverlayer .hovertext", has_text="layer 3 head 2").wait_for()
    visit.page.mouse.down()
    visit.page.mouse.up()
    wait_address(visit, layer="3", head="2")
    for key in "abd":
        wait_mark(visit, f"heads-{key}", row=3, rows=6, column=2, columns=4)
    visit.page.locator(".ms-note", has_text="Layer 3, head 2: induction").wait_for()
    assert same_figures(visit), "a click drew the figures anew"
    visit.shot("compare-heads")
    visit.check()


def test_a_click_on_a_point_and_on_a_row_choose_the_feature(visit: Visit, compared: Compared) -> None:
    visit.open(f"/compare?vs={compared.four.name}&part=Features", ".ms-pairs")
    plot = visit.page.locator(".st-key-survivors")
    plot.scroll_into_view_if_needed()
    hover(visit, ".st-key-survivors .scatterlayer .trace:last-child path.point")
    label = visit.page.locator(".st-key-survivors .hoverlayer .hovertext")
    label.wait_for()
    wanted = re.findall(r"latent (\d+)", label.text_content() or "")[0]
    visit.page.mouse.down()
    visit.page.mouse.up()
    wait_feature(visit, wanted)
    table = compared.four.table("survival.latents.parquet").to_pandas()
    table = table[table["state"].isin(["kept", "blurred", "lost", "new"])].sort_values("r", kind="stable")
    canvas = visit.page.locator(".st-key-changed canvas").first
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + 200, box["y"] + 32 + 30 * 2 + 15  # the third row
    visit.page.mouse.move(x - 50, y - 30)
    visit.page.mouse.move(x, y, steps=15)  # the table must have seen the mouse come
    visit.page.wait_for_timeout(200)
    visit.page.mouse.click(x, y, delay=60)
    wait_feature(visit, str(int(table["latent"].iloc[2])))
    visit.check()


def wait_feature(visit: Visit, latent: str) -> None:
    """Wait until the part Features shows this one."""
    visit.page.wait_for_function(
        """latent => document.querySelector(".st-key-latent-widget input").value === latent
            && new URLSearchParams(location.search).get("latent") === latent""",
        arg=latent,
    )
    visit.settle(".ms-pairs")
    visit.page.wait_for_timeout(500)  # the table takes no click while the page is being put together


def test_comparisons_beside_it_and_a_narrow_screen(visit: Visit, compared: Compared) -> None:
    visit.page.set_viewport_size({"width": 700, "height": 1300})
    visit.open(
        f"/compare?vs={compared.four.name}&beside={','.join(run.id for run in compared.others)}", ".js-plotly-plot"
    )
    assert visit.page.locator(".ms-wide tr").first.is_visible()
    assert visit.page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 700
    visit.shot("compare-beside-700")
    visit.check()


def test_hostile_text_is_literal_in_both_models(visit: Visit, written: Written, compared: Compared) -> None:
    visit.open(f"/compare?vs={compared.four.name}&part=Features&latent={written.hostile}", ".ms-pairs")
    shown = visit.page.locator(".ms-pairs").inner_text()
    assert "</style>" in shown.replace("·", " ")
    assert visit.page.locator(".ms-pairs :is(script, img, style, a)").count() == 0
    visit.check()


def test_a_second_model_on_the_feature_page_stays_on_the_next_latent(visit: Visit, compared: Compared) -> None:
    visit.open("/feature?f=12")
    visit.page.locator(".st-key-vs-pick [data-baseweb=select], .st-key-vs-pick [role=combobox]").first.click()
    visit.page.get_by_role("option", name="with rtn 4-bit group 64").click()
    wait_address(visit, vs=compared.four.name)
    visit.settle(".ms-pairs")
    visit.page.locator(".st-key-go-Right button").click()
    visit.wait_latent(13)
    visit.settle(".ms-pairs")
    wait_address(visit, vs=compared.four.name)
    visit.shot("feature-second-model")
    visit.check()


@pytest.fixture(scope="module")
def shelf_server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    """The explorer on dictionaries of several rules, and on a signed one of a random model that can be steered by."""
    root = tmp_path_factory.mktemp("browser-shelf") / "runs"
    write_dictionaries(root)
    made = {"model": str(model_folder), "site": "resid_post.1", "d_sae": 64, "d_in": 32}
    write_signed(write_runs(root, save=dictionary_with_atoms, **made))
    yield from serving(root)


@pytest.fixture
def shelf(browser: Browser, shelf_server: Explorer, tmp_path: Path) -> Iterator[Visit]:
    yield from visiting(browser, shelf_server, tmp_path, 1500)


@pytest.mark.parametrize("width", [1400, 420])
def test_dictionaries_of_several_rules_fit_every_screen(shelf: Visit, width: int) -> None:
    shelf.page.set_viewport_size({"width": width, "height": 1500})
    shelf.open("/dictionaries", ".js-plotly-plot")
    shelf.settle()
    assert shelf.page.locator(".ms-side").count() == 4  # the heads and three rules
    assert shelf.page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= width
    shelf.shot(f"dictionaries-rules-{width}")
    shelf.check()


def test_a_click_on_a_point_and_on_a_rule_choose_the_dictionary(shelf: Visit) -> None:
    shelf.open("/dictionaries", ".js-plotly-plot")
    shelf.settle()
    name = shelf.page.locator(".ms-run .name")
    assert "topk-128" in name.inner_text()
    hover(shelf, ".st-key-pareto .scatterlayer .trace path.point")
    shelf.page.locator(".st-key-pareto .hoverlayer .hovertext", has_text="abs_topk").wait_for()
    shelf.page.mouse.down()
    shelf.page.mouse.up()
    shelf.page.locator(".ms-run .name", has_text="abs_topk").wait_for()
    wait_address(shelf, dict="abs_topk")
    shelf.settle()
    shelf.page.locator(".st-key-links-sides a", has_text="batch_topk").click()
    shelf.page.locator(".ms-run .name", has_text="batch_topk").wait_for()
    wait_address(shelf, dict="batch_topk")
    shelf.settle()
    shelf.page.locator(".st-key-pareto .ms-mark").wait_for()
    shelf.check()


def test_a_signed_latent_is_steered_and_the_address_keeps_the_answer(shelf: Visit) -> None:
    shelf.open("/feature?f=12")
    assert shelf.page.locator(".ms-examples .q").all_inner_texts() == ["most positive", "most negative"]
    box = shelf.page.get_by_placeholder("A text for the model to read")
    box.fill("the cat <b>sat</b> $z$")
    shelf.page.locator(".st-key-steer-how").get_by_text("add", exact=True).click()
    shelf.page.locator(".st-key-steer-run button").click()
    shelf.page.locator(".ms-steer").wait_for()
    wait_address(shelf, steer="")
    shelf.page.wait_for_function("new URLSearchParams(location.search).get('steer')?.length === 8")
    shelf.settle()
    shelf.page.locator(".st-key-steer-run").scroll_into_view_if_needed()
    shelf.shot("steer")
    said = shelf.page.locator(".ms-said").inner_text()
    assert "<b>sat</b>" in said
    assert shelf.page.locator(".ms-said :is(b, script, img)").count() == 0
    sentence = shelf.page.locator(".ms-note", has_text="KL(before").inner_text()
    shelf.page.reload()
    shelf.page.locator(".ms-note", has_text="KL(before").wait_for()
    assert shelf.page.locator(".ms-note", has_text="KL(before").inner_text() == sentence
    shelf.check()


def test_an_impossible_steering_is_a_sentence(shelf: Visit) -> None:
    shelf.open("/feature?f=13")
    shelf.page.get_by_placeholder("A text for the model to read").fill("word " * 90)
    shelf.page.locator(".st-key-steer-run button").click()
    shelf.page.locator(".ms-problem", has_text="n_ctx=64").wait_for()
    shelf.settle()
    shelf.check()
