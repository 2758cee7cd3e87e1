"""What a page calls the run of an attribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.widgets.attributions import Scored
from app.widgets.questions import newest
from interp.runs import start_run


def scored(root: Path, **config: Any) -> Scored:
    with start_run("attribution", config, slug="tiny.agreement.x", root=root) as run:
        run.finish({})
    return Scored(run)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"method": "cp_lrp"}, "cp_lrp"),
        ({"method": "cp_lrp", "through": ["head_out.2:1,3", "resid_pre.0@-1"]},
         "cp_lrp through head_out.2:1,3 resid_pre.0@-1"),
        ({"method": "paths", "receivers": ["k.1:0", "logits"]}, "paths to k.1:0 logits"),
        ({"method": "<b>cp_lrp"}, "unnamed method"),
        ({"method": "cp_lrp", "through": ["<b>head_out.2"]}, "unnamed method"),
        ({"method": "cp_lrp", "through": "head_out.2"}, "unnamed method"),
    ],
)  # fmt: skip
def test_a_method_is_called_by_what_it_was_held_to(config: dict[str, Any], name: str, tmp_path: Path) -> None:
    assert scored(tmp_path, **config).method == name


def test_a_condition_does_not_stand_in_for_the_whole(tmp_path: Path) -> None:
    """Relevance through one head, asked for later, must not take the place of all relevance."""
    runs = [scored(tmp_path, method="cp_lrp", through=["head_out.1:1"]), scored(tmp_path, method="cp_lrp")]
    assert list(newest(runs)) == ["cp_lrp", "cp_lrp through head_out.1:1"]
