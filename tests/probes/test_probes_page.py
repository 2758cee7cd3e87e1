"""The Python of docs/probes.md runs, from top to bottom."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "probes.md"


def test_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    space: dict[str, object] = {}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile("\n".join(blocks), str(PAGE), "exec"), space)
    assert "these activations are from resid_post.0" in said.getvalue()
    assert space["back"].predict(space["neurons"]).tolist() == space["probe"].predict(space["neurons"]).tolist()  # type: ignore[attr-defined]
