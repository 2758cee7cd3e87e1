"""`mechscope compare --probe-data`: the panel in the run, on the page, and wrong requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.command import main
from interp.compression.compare import load_results
from interp.runs import Run, open_run, verify_run

SMALL = ("--recipe", "int3", "--panels", "behaviour", "--tokens", "600", "--probe-data", "tense", "--probe-texts", "60")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of a comparison with probes."""
    root = tmp_path_factory.mktemp("runs")
    assert main(["compare", "tiny", *SMALL, "--runs", str(root)]) == 0
    (folder,) = (root / "compare").iterdir()
    return open_run(folder, root=root)


@pytest.mark.slow
def test_the_run_holds_what_the_panel_says(compared: Run, capsys: Any) -> None:
    assert verify_run(compared) == []
    found = load_results(compared)["probes"]
    rows = found.tables["layers"].to_pylist()
    assert [row["site"] for row in rows] == [f"resid_post.{layer}" for layer in range(4)]
    for column in ("drop", "transfer_drop"):
        assert found.summary[f"probe_{column}"] == pytest.approx(np.mean([row[column] for row in rows]))
    best = [max(rows, key=lambda row: row[f"auc_{name}"])["layer"] for name in ("a", "retrained")]
    assert found.summary["probe_layer_shift"] == best[1] - best[0]
    assert compared.summary["probe_drop"] == found.summary["probe_drop"]
    assert compared.config["panels"]["probes"]["data"]["name"] == "tense"
    assert main(["compare", "tiny", *SMALL, "--runs", str(compared.root)]) == 0
    said = capsys.readouterr()
    assert "finished already" in said.err
    assert "probes auc_transfer" in said.out


@pytest.mark.slow
def test_the_page_shows_curves_and_table(compared: Run, open_page: Any, text_of: Any) -> None:
    at = open_page(compared.root, "compare", part="Probes")
    assert not at.exception
    text = text_of(at)
    row = load_results(compared)["probes"].tables["layers"].to_pylist()[2]
    assert "resid_post.2" in text
    assert f"{row['auc_transfer']:.3f}" in text or f"{row['auc_transfer']:.3g}" in text
    assert "60 texts with the labels past, present" in text
    assert len(at.get("plotly_chart")) == 2


@pytest.mark.slow
def test_a_comparison_without_texts_says_how_to_give_some(compared: Run, tmp_path: Path, open_page: Any) -> None:
    assert main(["compare", "tiny", *SMALL[:6], "--runs", str(tmp_path)]) == 0
    at = open_page(tmp_path, "compare", part="Probes")
    assert not at.exception
    assert any("--probe-data tense" in code.value for code in at.code)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--panels", "probes"), "needs labelled texts: give --probe-data"),
        (("--probe-fields", "a", "b"), "give that too"),
        (("--probe-data", "tense", "--probe-fields", "a"), "text, label and"),
        (("--probe-data", "tens"), "tense"),
        (("--probe-data", "tense", "--probe-texts", "1"), "2 or more"),
        (("--panels", "probe"), "probes"),
    ],
)
def test_mistakes_are_told(options: tuple[str, ...], message: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["compare", "tiny", "--recipe", "int8", *options, "--runs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
