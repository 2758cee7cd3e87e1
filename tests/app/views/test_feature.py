"""Feature: what it shows of a latent, how it walks, what it writes, and what it survives."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import pytest

from app.widgets.text import number, share
from tests.explorer_runs import HOSTILE, LATENTS, write_runs


def head(at, text_of) -> str:
    return next(part for part in text_of(at).split("\n") if part.startswith('<div class="ms-head">'))


def test_a_link_opens_the_latent(written, open_page, text_of) -> None:
    at = open_page(written.root, "feature", f=12)
    row = written.features.table("latents.parquet", filters=[("latent", "==", 12)]).to_pylist()[0]
    assert not at.exception
    assert "ms-problem" not in text_of(at)
    assert '<span class="number">12</span>' in head(at, text_of)
    for figure in (share(row["density"]), number(row["max"]), number(row["mean"])):
        assert f"<dd>{figure}</dd>" in head(at, text_of)
    assert len(at.get("plotly_chart")) == 1
    assert text_of(at).count('class="ms-strip"') == 20


def test_without_an_address_it_opens_the_first_living_latent(written, open_page) -> None:
    at = open_page(written.root, "feature")
    assert at.query_params["f"] == "1"  # 0 is dead


@pytest.mark.parametrize("f", ["999999", "-1", "zz", "<script>", "1e3", "²", "", "9" * 5000])
def test_an_address_that_means_nothing_falls_back_with_a_note(written, open_page, text_of, f) -> None:
    at = open_page(written.root, "feature", f=f, ex="Nowhere", scale="none")
    assert not at.exception
    assert at.query_params["f"] == "1"
    assert f"which is not a latent of this dictionary (0 to {LATENTS - 1}); this is 1." in text_of(at)
    assert "ex=Nowhere" in text_of(at)
    assert "<script>" not in text_of(at)


def test_the_buttons_walk_and_the_address_follows(written, open_page) -> None:
    at = open_page(written.root, "feature", f=12)
    at.button(key="go-Right").click().run()
    assert at.query_params["f"] == "13"
    at.button(key="go-Left").click().run()
    at.button(key="go-Left").click().run()
    assert at.query_params["f"] == "11"
    assert at.number_input[0].value == 11
    at.number_input[0].set_value(300).run()
    assert at.query_params["f"] == "300"


def test_random_takes_a_living_latent(written, open_page) -> None:
    at = open_page(written.root, "feature", f=12)
    density = written.features.table("latents.parquet")["density"].to_pylist()
    next(button for button in at.button if button.label == "Random").click().run()
    assert density[int(at.query_params["f"])] > 0


def test_the_ends_have_no_further_step(written, open_page) -> None:
    assert open_page(written.root, "feature", f=0).button(key="go-Left").disabled
    assert open_page(written.root, "feature", f=LATENTS - 1).button(key="go-Right").disabled


@pytest.mark.parametrize(("group", "n"), [("Top", 20), ("Quantiles", 10), ("Random", 6), ("Near misses", 4)])
def test_each_group_of_examples_is_in_the_address(written, open_page, text_of, group, n) -> None:
    at = open_page(written.root, "feature", f=12, ex=group)
    assert text_of(at).count('<div class="e">') == n
    assert ("quantile 10" in text_of(at)) == (group == "Quantiles")


def test_more_examples_are_on_the_next_page(written, open_page, text_of) -> None:
    at = open_page(written.root, "feature", f=12)
    at.session_state["page-top"] = 2
    at.run()
    assert text_of(at).count('<div class="e">') == 4


def test_a_dead_latent_says_so(written, open_page, text_of) -> None:
    at = open_page(written.root, "feature", f=written.dead)
    assert not at.exception
    assert "ms-badge dead" in head(at, text_of)
    assert "It never fired on the 200.0k tokens read." in text_of(at)
    assert len(at.get("plotly_chart")) == 0


def test_a_dense_latent_is_marked(written, open_page, text_of) -> None:
    assert "ms-badge dense" in head(open_page(written.root, "feature", f=5), text_of)


def test_neighbours_link_to_their_pages(written, open_page) -> None:
    at = open_page(written.root, "feature", f=12, ex="Random")
    near = written.features.table("neighbours.parquet", filters=[("latent", "==", 12)]).to_pylist()
    links = [link.proto for link in at.get("page_link") if link.proto.label.isdigit()]
    assert [int(link.label) for link in links] == [row["other"] for row in near]
    assert all(link.query_string == f"run={written.features.name}&f={link.label}&ex=Random" for link in links)


@pytest.mark.parametrize("group", ["Top", "Quantiles", "Random", "Near misses"])
def test_hostile_tokens_are_shown_literally(written, open_page, text_of, group) -> None:
    at = open_page(written.root, "feature", f=written.hostile, ex=group)
    page = text_of(at)
    assert not at.exception
    for markup in ("<script", "<img", "</style", "</body", "\u202e", "\u200b", "\x00", "\x1b"):
        assert markup not in page
    assert "x" * 100 not in page


def test_every_hostile_token_can_be_read(written, open_page, text_of) -> None:
    pages = "".join(text_of(open_page(written.root, "feature", f=f, ex="Top")) for f in (7, 15, 23 + 8, 39))
    for token in HOSTILE[:5]:
        assert escape(token[:12].replace(" ", "·"), quote=True) in pages or escape(token[:12], quote=True) in pages
    assert r"\u202eevil\u202c" in pages
    assert r"zero\u200bwidth\u200d" in pages


def test_nothing_of_a_model_goes_through_markdown(written, open_page) -> None:
    at = open_page(written.root, "feature", f=written.hostile)
    marked = " ".join(element.value for element in [*at.markdown, *at.caption, *at.title, *at.text])
    assert not any(token in marked for token in HOSTILE if token.strip())


def test_a_label_is_kept_in_the_workspace_and_shown(own: Path, open_page, text_of) -> None:
    at = open_page(own, "feature", f=12)
    next(box for box in at.text_input if box.label == "Label").set_value("<b>harbours</b>")
    next(box for box in at.text_area if box.label == "Notes").set_value("seen in 3 of 5")
    at.checkbox[0].check()
    next(button for button in at.button if button.label == "Save").click().run()
    assert "&lt;b&gt;harbours&lt;/b&gt;" in head(at, text_of)
    assert "★" in head(at, text_of)
    stored = json.loads(next((own.parent / "workspace").glob("sae.*.json")).read_text())
    assert stored["features"]["12"]["label"] == "<b>harbours</b>"
    listed = open_page(own, "features", show="labelled")
    assert listed.dataframe[0].value["label"].tolist() == ["★ <b>harbours</b>"]


def test_a_damaged_workspace_costs_the_labels_only(own: Path, written, open_page, text_of) -> None:
    folder = own.parent / "workspace"
    folder.mkdir()
    path = folder / f"{written.sae.ref.replace('/', '.')}.json"
    path.write_text("<<<<<<< ours\n{}")
    at = open_page(own, "feature", f=12)
    assert "it holds a git conflict, resolve it" in text_of(at)
    assert '<span class="number">12</span>' in head(at, text_of)
    next(button for button in at.button if button.label == "Save").click().run()
    assert not at.exception
    assert path.read_text() == "<<<<<<< ours\n{}"


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("examples.parquet", "Direct logits"),
        ("neighbours.parquet", "ms-logits"),
        ("histograms.safetensors", "ms-logits"),
    ],
)
def test_a_lost_file_costs_its_section_only(own: Path, open_page, text_of, name, kept) -> None:
    """A file that the manifest does not list cannot be missed when a run is opened, only when it is read."""
    path = next(own.glob(f"features/*/{name}"))
    path.unlink()
    manifest = path.parent / "manifest.json"
    record = json.loads(manifest.read_text())
    del record["files"][name]
    record.pop("digest", None)
    manifest.write_text(json.dumps(record))
    at = open_page(own, "feature", f=12)
    page = text_of(at)
    assert not at.exception
    assert f"has no file &#x27;{name}&#x27;" in page
    assert kept in page
    assert "ms-foot" in page


def test_the_footer_says_where_the_numbers_come_from(written, open_page, text_of) -> None:
    page = text_of(open_page(written.root, "feature", f=12))
    foot = page[page.index('class="ms-foot"') :]
    for text in (
        written.features.ref,
        written.sae.ref,
        written.evaluation.ref,
        "tiny",
        "resid_post.2",
        "200.0k",
        "UTC",
    ):
        assert text in foot


def test_a_dictionary_that_is_gone_does_not_stop_the_page(own: Path, open_page, text_of) -> None:
    import shutil

    shutil.rmtree(own / "sae")
    at = open_page(own, "feature", f=12, text="hello there")
    assert not at.exception
    next(button for button in at.button if button.label == "Run").click().run()
    assert "is not in this folder, so no text can be read" in text_of(at)


def test_a_model_that_is_missing_is_named(tmp_path: Path, open_page, text_of) -> None:
    written = write_runs(tmp_path / "runs", model=str(tmp_path / "no-such-model"), d_sae=24)
    at = open_page(written.root, "feature", f=3, text="hello there")
    assert "no-such-model" not in "".join(part for part in text_of(at).split("\n") if "ms-problem" in part)
    next(button for button in at.button if button.label == "Run").click().run()
    assert not at.exception
    assert "no-such-model" in "".join(part for part in text_of(at).split("\n") if "ms-problem" in part)


def test_the_python_of_the_page_runs(written, open_page) -> None:
    at = open_page(written.root, "feature", f=12)
    code = next(block.value for block in at.code if "load_features" in block.value)
    scope: dict = {}
    exec(code.split("\n\nfrom interp.runs")[0], scope)
    assert len(scope["features"]) == LATENTS
    assert set(scope["examples"]["latent"]) == {12}
    assert set(scope["neighbours"]["kind"]) == {"decoder", "encoder", "coactivation"}
