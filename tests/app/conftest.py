"""The explorer's pages under Streamlit's test session, on a folder of runs written once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.comparison_runs import Compared, write_comparisons
from tests.explorer_runs import Written, write_runs

MAIN = Path(__file__).resolve().parents[2] / "app" / "main.py"
NAMES = (
    "dictionaries", "features", "feature", "prompt", "compare", "relevance", "patching", "board", "probes", "layers",
    "heads",
)  # fmt: skip
PAGES = {name: f"views/{name}.py" for name in NAMES} | {"home": None}
OpenPage = Callable[..., AppTest]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A folder of runs as the pipeline leaves it; not to be changed."""
    return write_runs(tmp_path_factory.mktemp("explorer") / "runs")


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """A folder of runs with comparisons; not to be changed."""
    return write_comparisons(write_runs(tmp_path_factory.mktemp("compared") / "runs"))


@pytest.fixture
def own(written: Written, tmp_path: Path) -> Path:
    """A copy of the folder of runs that a test may change."""
    return Path(shutil.copytree(written.root, tmp_path / "runs"))


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> OpenPage:
    """Return a function that opens a page: `open_page(root, "feature", f=7)`; it has been run."""

    def open_it(root: Path, page: str = "home", /, **query: object) -> AppTest:
        monkeypatch.setenv("MECHSCOPE_RUNS", str(root))
        at = AppTest.from_file(str(MAIN), default_timeout=60)
        if PAGES[page] is not None:  # a page can be chosen when the first run has listed them
            at.run()
            at.switch_page(PAGES[page])
        for key, value in query.items():
            at.query_params[key] = str(value)
        return at.run()

    return open_it


@pytest.fixture
def text_of() -> Callable[[AppTest], str]:
    """Return a function: the HTML of a page, without the style sheet."""

    def read(at: AppTest) -> str:
        return "\n".join(element.value for element in at.get("html") if not element.value.startswith("<style>"))

    return read
