"""Home: cards, lineage, damaged runs, unfinished runs, the empty folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interp.runs import start_run


def test_it_shows_each_dictionary_with_its_figures(written, open_page, text_of) -> None:
    at = open_page(written.root)
    page = text_of(at)
    assert not at.exception
    assert "ms-problem" not in page
    assert written.sae.name in page
    assert "tiny · resid_post.2 · topk (k 32) · 192 → 320" in page
    for figure in ("0.131", "31.8", "4.10%", "0.967", "0.149"):
        assert f"<dd>{figure}</dd>" in page
    assert "data:image/svg+xml;base64," in page
    assert "FVU over training, from 1.03 to" in page


def test_it_lists_every_run_with_its_parents(written, open_page, text_of) -> None:
    page = text_of(open_page(written.root))
    for run in (written.activations, written.sae, written.evaluation, written.features):
        assert f"<td>{run.name}</td>" in page
    assert f'<td class="d">{written.sae.ref}</td>' in page


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_folder_says_which_command_to_type(tmp_path, open_page, text_of, exists) -> None:
    root = tmp_path / "runs & <b>"
    if exists:
        root.mkdir()
    at = open_page(root)
    assert [code.value for code in at.code] == ["mechscope demo", "mechscope explore --runs DIR"]
    assert "runs &amp; &lt;b&gt;" in text_of(at)
    assert not at.exception


def test_a_dictionary_without_features_says_how_to_make_them(tmp_path, open_page) -> None:
    run = start_run("sae", {"site": "mlp_out.0"}, slug="bare", root=tmp_path)
    run.finish({"fvu": 0.5})
    at = open_page(tmp_path)
    assert f"mechscope features --sae {run.ref}" in at.code[0].value
    assert f"mechscope evaluate --sae {run.ref}" in at.code[0].value


def test_a_damaged_run_is_named_with_reason_and_remedy(own: Path, open_page, text_of) -> None:
    table = next(own.glob("features/*/logits.parquet"))
    table.write_bytes(table.read_bytes()[:-100])
    page = text_of(open_page(own))
    assert "Damaged runs" in page
    assert "logits.parquet" in page.split("Damaged runs")[1]
    assert "cut off or changed" in page
    assert "restore it from a copy" in page


def test_a_run_of_a_newer_version_is_refused_by_name(own: Path, open_page, text_of) -> None:
    info = next(own.glob("evaluation/*/run.json"))
    info.write_text(json.dumps(json.loads(info.read_text()) | {"schema": 7}))
    page = text_of(open_page(own))
    assert "has schema 7; this version reads 1. Upgrade mechscope." in page


def test_an_unfinished_run_shows_how_far_it_is(own: Path, open_page, text_of) -> None:
    with start_run("sae", {"site": "mlp_out.1"}, slug="open", root=own) as run:
        run.progress(250_000, 1_000_000, "tokens")
    page = text_of(open_page(own))
    assert "Not finished" in page
    assert "250.0k of 1.0M tokens (25%)" in page
    assert "the same command resumes it" in page


def test_text_in_a_run_is_shown_literally(own: Path, open_page, text_of) -> None:
    run = start_run("sae", {"x": 1}, slug="failing", root=own)
    run.fail("<script>alert(1)</script>")
    page = text_of(open_page(own))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>" not in page
