"""Every notebook runs from its first cell to its last, offline, in a folder of its own; none is stored with outputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "offline"}
DEAD = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
LEAST = {
    "01_capture_train_look": (3, 3, 3),
    "02_rules_compared": (5, 1, 0),
    "03_feature_hunting_and_steering": (5, 10, 4),
    "04_probes_and_concept_depth": (3, 0, 0),
    "05_lrp_and_relevance_patching": (12, 4, 0),
    "06_world_model": (5, 0, 0),
    "07_layers": (7, 0, 0),
}
"""Notebook -> figures, token strips and feature cards that it shows at least."""
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_notebooks_are_numbered_from_one_on() -> None:
    assert [int(path.name[:2]) for path in NOTEBOOKS] == list(range(1, len(NOTEBOOKS) + 1))
    assert {path.stem for path in NOTEBOOKS} == LEAST.keys()


@by_name
def test_a_notebook_is_stored_clean(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert cells[0].metadata.get("tags") == ["parameters"], "the first code cell holds the parameters"
    assert "MECHSCOPE_SMOKE" in cells[0].source
    for cell in cells:
        assert cell.outputs == [], f"stored with outputs: clear them\n{cell.source}"
        assert cell.execution_count is None
        assert max(map(len, cell.source.splitlines()), default=0) <= 120, cell.source
        assert not re.search(r"pip3? install|conda install|apt(-get)? install", cell.source), cell.source
    for cell in notebook.cells:
        found = re.search(r"""(?<![\w.:/])(/(home|root|Users|tmp|work|mnt|opt|data)/|[A-Z]:\\)""", cell.source)
        assert not found, f"names a folder of one machine:\n{cell.source}"


@pytest.mark.slow
@by_name
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    folders = {"MECHSCOPE_RUNS": tmp_path / "runs", "IPYTHONDIR": tmp_path / "ipython", "HOME": tmp_path}
    settings = {"MECHSCOPE_SMOKE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | OFFLINE | DEAD
    for name, value in (settings | {name: str(folder) for name, folder in folders.items()}).items():
        monkeypatch.setenv(name, value)
    notebook = read(path)
    (tmp_path / "here").mkdir()
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path / "here")}}
    )
    client.execute()  # raises with the cell and its traceback
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [output.get("data", {}) for output in outputs]
    figures, strips, cards = LEAST[path.stem]
    assert sum("application/vnd.plotly.v1+json" in data for data in shown) >= figures, "figures"
    html = [data["text/html"] for data in shown if "text/html" in data]
    assert sum("ms-strip" in text for text in html) >= strips, "token strips"
    assert sum("ms-card" in text for text in html) >= cards, "feature cards"
    assert not any(re.search(r"(src|href)\s*=\s*.https?:", text) for text in html), "something is fetched"
    assert list((tmp_path / "runs").glob("*/*/manifest.json"))
    assert not list((tmp_path / "here").iterdir()), "a notebook writes into runs only"
