"""What the explorer loads, and what its files may be called."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from tests.attribution_runs import write_attributions

ROOT = Path(__file__).resolve().parents[2]
MODEL_LIBRARIES = ("torch", "transformers", "transformer_lens", "datasets", "wandb")
CODE = """
import json, sys
from streamlit.testing.v1 import AppTest
from app.commands import explore
at = AppTest.from_file(sys.argv[1], default_timeout=120).run()
pages = ("dictionaries", "features", "feature", "prompt", "compare", "relevance", "patching")
for page in (f"views/{name}.py" for name in pages):
    at.switch_page(page).run()
    assert not at.exception
    assert at.get("plotly_chart") or at.text_area, "the page is empty"
print(json.dumps(sorted(set(sys.modules))))
"""


def test_the_pages_open_without_a_model_library(compared, tmp_path: Path) -> None:
    root = write_attributions(Path(shutil.copytree(compared.root, tmp_path / "runs")))
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(ROOT / "app" / "main.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MECHSCOPE_RUNS": str(root)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & set(MODEL_LIBRARIES)


def test_no_module_of_app_carries_the_name_of_a_library() -> None:
    """Streamlit puts the folder of its script first on the path, so `app/plotly.py` would replace plotly."""
    ours = {path.stem for path in (ROOT / "app").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not ours & (set(packages_distributions()) | set(sys.stdlib_module_names)) - {"__init__", "__main__"}
    assert "pages" not in ours
