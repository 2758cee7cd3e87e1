"""Features: filters, search, order, pages, selections, and addresses that mean nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.explorer_runs import LATENTS


def latents(at) -> list[int]:
    """Return the latents in the table."""
    return [int(i) for i in at.dataframe[0].value["latent"]]


def table(written) -> dict:
    return written.features.table("latents.parquet").to_pydict()


def test_it_opens_on_the_living_latents_most_frequent_first(written, open_page, text_of) -> None:
    at = open_page(written.root, "features")
    density = np.array(table(written)["density"])
    assert not at.exception
    assert "ms-problem" not in text_of(at)
    assert latents(at) == np.argsort(-density, kind="stable")[:25].tolist()
    assert f"{int((density > 0).sum())} of {LATENTS} latents" in text_of(at)
    assert len(at.get("plotly_chart")) == 1
    assert at.query_params["run"] == written.features.name


def test_a_link_restores_filters_order_and_page(written, open_page) -> None:
    at = open_page(written.root, "features", show="sparse", dense="1%", sort="latent", order="up", page=2)
    density = np.array(table(written)["density"])
    wanted = np.flatnonzero((density > 0) & (density < 0.01))
    assert latents(at) == wanted[25:50].tolist()


@pytest.mark.parametrize("show", ["dead", "dense", "token-pure", "all", "labelled"])
def test_each_filter_shows_what_it_says(written, open_page, text_of, show) -> None:
    at = open_page(written.root, "features", show=show, sort="latent", order="up")
    rows = table(written)
    density = np.array(rows["density"])
    entropy = np.array([np.nan if e is None else e for e in rows["token_entropy"]])
    wanted = {
        "dead": density == 0,
        "dense": density >= 0.1,
        "token-pure": (density > 0) & (entropy < 0.35),
        "all": density >= 0,
        "labelled": density < 0,
    }[show]
    if wanted.any():
        assert latents(at) == np.flatnonzero(wanted)[:25].tolist()
    else:
        assert "No latent passes these filters" in text_of(at)


def test_the_search_looks_into_top_tokens(written, open_page) -> None:
    at = open_page(written.root, "features", q="WIND", show="all", sort="latent", order="up")
    tokens = table(written)["top_tokens"]
    wanted = [i for i, found in enumerate(tokens) if any("wind" in t.lower() for t in found)]
    assert wanted
    assert latents(at) == wanted[:25]


def test_the_search_looks_into_the_text_of_examples(written, open_page) -> None:
    at = open_page(written.root, "features", **{"q": "bread was still", "in": "example text", "show": "all"})
    vocab = dict(zip(*written.features.table("vocab.parquet").to_pydict().values(), strict=True))
    wanted = {
        row["latent"]
        for row in written.features.table("examples.parquet").to_pylist()
        if row["group"] != "near_miss" and "bread was still" in "".join(vocab[i] for i in row["token_ids"])
    }
    assert wanted
    assert {int(i) for i in at.dataframe[0].value["latent"]} == set(
        sorted(wanted, key=lambda i: (-table(written)["density"][i], i))[:25]
    )


def test_the_marks_of_a_strip_are_searched_as_what_they_stand_for(written, open_page) -> None:
    dotted = open_page(written.root, "features", q="·the", sort="latent", order="up")
    spaced = open_page(written.root, "features", q=" the", sort="latent", order="up")
    assert latents(dotted) == latents(spaced) != []


@pytest.mark.parametrize(
    ("key", "value"),
    [("show", "<script>"), ("dense", "9"), ("sort", "zz"), ("order", "sideways"), ("y", "density"), ("page", "999")],
)
def test_an_address_that_means_nothing_falls_back_with_a_note(written, open_page, text_of, key, value) -> None:
    at = open_page(written.root, "features", **{key: value})
    plain = open_page(written.root, "features")
    assert not at.exception
    assert "The address asked for" in text_of(at)
    assert "<script>" not in text_of(at)
    assert latents(at) == latents(plain)


def test_an_unknown_run_falls_back_with_a_note(written, open_page, text_of) -> None:
    at = open_page(written.root, "features", run="../../etc/passwd")
    assert "run=../../etc/passwd, which is not a finished features run in this folder" in text_of(at)
    assert at.query_params["run"] == written.features.name


def test_a_short_id_names_the_run(written, open_page, text_of) -> None:
    at = open_page(written.root, "features", run=written.features.id)
    assert "The address asked for" not in text_of(at)
    assert at.query_params["run"] == written.features.name


def test_a_click_in_the_table_opens_the_latent(written, open_page) -> None:
    at = open_page(written.root, "features")
    chosen = latents(at)[3]
    at.session_state["table"] = {"selection": {"rows": [], "columns": [], "cells": [(3, "max")]}}
    at.run()
    assert at.query_params["f"] == str(chosen)
    assert at.number_input[0].value == chosen


def test_a_click_on_a_point_opens_the_latent(written, open_page) -> None:
    at = open_page(written.root, "features")
    at.session_state["scatter"] = {"selection": {"points": [{"x": 0.1, "y": 2.0, "customdata": {"0": 42}}]}}
    at.run()
    assert at.query_params["f"] == "42"
    assert at.number_input[0].value == 42


def test_the_way_back_keeps_the_filters(written, open_page) -> None:
    at = open_page(written.root, "features", show="sparse", q="the")
    at.switch_page("views/feature.py").run()
    links = [link.proto.query_string for link in at.get("page_link") if link.proto.label == "All features"]
    assert links == [f"run={written.features.name}&show=sparse&q=the"]


def test_the_step_that_a_click_leaves_in_the_history_gives_the_filters_back(written, open_page) -> None:
    at = open_page(written.root, "features", show="dead")
    at.switch_page("views/feature.py").run()
    at.switch_page("views/features.py")
    at.query_params.clear()
    at.query_params["f"] = "3"
    at.run()
    assert latents(at) == [i for i, density in enumerate(table(written)["density"]) if density == 0][:25]
    assert "f" not in at.query_params


def test_hostile_tokens_reach_the_table_as_text(written, open_page) -> None:
    at = open_page(written.root, "features", q="alert(1)", sort="latent", order="up")
    shown = [token for tokens in at.dataframe[0].value["top tokens"] for token in tokens]
    assert any(token.startswith("<script>alert(1)") for token in shown)
    assert max(map(len, shown)) < 40


def test_a_damaged_run_is_left_out_and_the_page_says_what_to_do(own: Path, open_page, text_of) -> None:
    next(own.glob("features/*/latents.parquet")).write_bytes(b"PAR1")
    at = open_page(own, "features")
    assert not at.exception
    assert "no finished features run" in text_of(at)
    assert any(code.value.startswith("mechscope features --sae sae/") for code in at.code)


def test_a_missing_column_is_named(own: Path, open_page, text_of) -> None:
    path = next(own.glob("features/*/latents.parquet"))
    pq.write_table(pq.read_table(path).drop_columns(["density"]), path)
    reseal(path)
    at = open_page(own, "features")
    assert not at.exception
    assert "has no column &#x27;density&#x27;" in text_of(at)


def reseal(path: Path) -> None:
    """Make the manifest fit a file that was changed, as a foreign tool might."""
    import hashlib
    import json

    manifest = path.parent / "manifest.json"
    record = json.loads(manifest.read_text())
    data = path.read_bytes()
    record["files"][path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    record.pop("digest", None)
    manifest.write_text(json.dumps(record))


def test_an_empty_folder_says_which_command_to_type(tmp_path, open_page) -> None:
    at = open_page(tmp_path, "features")
    assert not at.exception
    assert at.code[0].value == "mechscope demo"
