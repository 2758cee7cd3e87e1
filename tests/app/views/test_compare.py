"""Compare: what it says of two models, what its address holds, and what it survives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from app.widgets.comparisons import model_label, recipe_label
from app.widgets.headline import signed
from app.widgets.text import number
from interp.runs import start_run
from tests.comparison_runs import Compared, fill, write_comparison
from tests.explorer_runs import write_runs


@pytest.fixture
def page(compared, open_page):
    """Open the page of the 4-bit copy, with more of the address."""
    return lambda **query: open_page(compared.root, "compare", **{"vs": compared.four.name, **query})


@pytest.fixture
def features_page(page):
    """Open the part Features."""
    return lambda **query: page(part="Features", **query)


def summary(run) -> dict:
    return run.json("summary.json")


def unlisted(run_folder: Path, name: str) -> None:
    """Remove a file and its line of the manifest: what is missed only when it is read."""
    (run_folder / name).unlink()
    manifest = run_folder / "manifest.json"
    record = json.loads(manifest.read_text())
    del record["files"][name]
    record.pop("digest", None)
    manifest.write_text(json.dumps(record))


def test_one_sentence_says_what_changed(compared: Compared, page, text_of) -> None:
    at = page()
    text = text_of(at)
    found = summary(compared.four)
    assert not at.exception
    assert "ms-problem" not in text
    assert "From <b>tiny</b> to <b>tiny rtn 4-bit group 64</b>: the loss rises by 0.120 nats a token" in text
    assert "88.0% of 100.0k tokens keep their likeliest successor" in text
    kept = found["survival"]["kept_share"]
    assert f"Of {found['survival']['active']} active features at resid_post.2 {100 * kept:.1f}% are kept" in text
    assert "at the same KL" in text


def test_the_numbers_stand_with_their_meaning_and_the_nulls_below(compared: Compared, page, text_of) -> None:
    table = next(part for part in text_of(page()).split("\n") if "ms-wide" in part)
    assert table.count('<tr class="null">') == len(compared.nulls)
    assert '<tr class="on"><td>rtn 4-bit group 64</td><td class="n">4.25</td>' in table
    assert "+0.120<small>+0.114 to +0.126</small>" in table
    for meaning in (
        "Storage of all of b",
        "95% interval",
        "likeliest",
        "correlate",
        "FVU",
        "induction score",
        "logit lens",
    ):
        assert meaning in table
    for null in ("weight noise 0.012", "random prune 1.2%"):
        assert f"<td>{null}<small" in table


def test_without_nulls_the_numbers_stand_in_a_row(compared: Compared, page, text_of) -> None:
    text = text_of(page(vs=compared.others[1].name))
    assert 'class="ms-facts big"' in text
    assert "<dt>bits a parameter</dt><dd>3.25</dd>" in text


def test_a_model_against_itself_says_that_nothing_changed(compared: Compared, page, text_of) -> None:
    at = page(vs=compared.bare.name, part="Features")
    text = text_of(at)
    assert not at.exception
    assert "no prediction changed on 100.0k tokens." in text
    assert "No dictionary was given" in text
    assert any("--sae" in block.value for block in at.code)
    assert "The dictionary of a on each model" not in text


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ("Layers", ["scatter"] * 8 + ["heatmap"]),
        ("Features", ["bar", "scatter"]),
        ("Heads", ["heatmap"] * 3),
        ("Depth", ["scatter"] * 3),
        ("Predictions", []),
    ],
)
def test_each_part_draws_its_figures_and_no_other(page, part, wanted) -> None:
    at = page(part=part)
    assert not at.exception
    assert [json.loads(chart.proto.spec)["data"][0]["type"] for chart in at.get("plotly_chart")] == wanted


def test_comparisons_beside_it_are_in_the_figures_and_in_the_table(compared: Compared, page, text_of) -> None:
    at = page(beside=",".join(run.id for run in compared.others))
    table = next(part for part in text_of(at).split("\n") if "ms-wide" in part)
    names = ["rtn 8-bit group 64", "rtn 4-bit group 64", "rtn 3-bit group 64"]
    assert [table.index(name) for name in names] == sorted(table.index(name) for name in names)  # by KL
    curves = json.loads(at.get("plotly_chart")[0].proto.spec)["data"]
    assert [line["name"] for line in curves] == [
        "rtn 4-bit group 64", "rtn 8-bit group 64", "rtn 3-bit group 64", "random prune 1.2%",
        "weight noise 0.012",
    ]  # fmt: skip


def test_the_box_adds_a_comparison_and_the_address_follows(compared: Compared, page) -> None:
    at = page()
    at.multiselect(key="beside-widget").set_value([compared.others[0].id]).run()
    assert at.query_params["beside"] == compared.others[0].id
    at.multiselect(key="beside-widget").set_value([]).run()
    assert "beside" not in at.query_params


def test_another_comparison_is_chosen_and_the_address_follows(compared: Compared, page) -> None:
    at = page()
    at.selectbox(key="vs-widget").set_value(compared.others[1].name).run()
    assert at.query_params["vs"] == compared.others[1].name
    assert not at.exception


def test_the_feature_that_changed_most_is_shown_first(compared: Compared, features_page, text_of) -> None:
    at = features_page()
    table = compared.four.table("survival.latents.parquet").to_pandas()
    worst = int(table.loc[table["r"].idxmin(), "latent"])
    assert at.query_params["latent"] == str(worst)
    shown = at.dataframe[0].value
    assert shown["latent"].iloc[0] == worst
    assert shown["r"].is_monotonic_increasing
    text = text_of(at)
    assert text.count('<div class="e">') == 2 * 6
    assert text.count("ms-state") >= 1


def test_the_pictures_of_both_models_have_one_scale(compared: Compared, features_page, text_of) -> None:
    text = text_of(features_page(latent=12))
    row = compared.four.table("survival.latents.parquet", filters=[("latent", "==", 12)]).to_pylist()[0]
    part = text[text.index("ms-pairs") :]
    assert "background:rgb(31,111,178)" in part  # the largest value of both has the full colour
    assert part.count("background:rgb(31,111,178)") == (2 if row["peak_a"] == row["peak_b"] else 1)


@pytest.mark.parametrize(("by", "column"), [("density", "density"), ("peak", "peak")])
def test_the_table_is_sorted_by_what_is_asked(features_page, by, column) -> None:
    shown = features_page(change=by).dataframe[0].value
    with np.errstate(divide="ignore"):
        change = np.abs(np.log(shown[f"{column}_b"] / shown[f"{column}_a"]))
    finite = change[np.isfinite(change)]
    assert (np.diff(finite) <= 1e-9).all()


def test_the_table_is_filtered_by_state(features_page) -> None:
    at = features_page()
    at.pills(key="states").set_value(["new"]).run() if hasattr(at, "pills") else at.button_group(
        key="states"
    ).set_value(["new"]).run()
    assert set(at.dataframe[0].value["state"]) == {"new"}


def test_a_click_on_a_point_chooses_the_feature(monkeypatch) -> None:
    from app.widgets import survival

    session = {"survivors": {"selection": {"points": [{"customdata": [77]}]}}}
    put = {}
    monkeypatch.setattr(survival.st, "session_state", session)
    monkeypatch.setattr(survival.state, "put", lambda key, value: put.update({key: value}))
    survival._clicked()
    assert put == {"latent": 77}


def test_a_feature_can_be_typed_and_one_that_is_not_there_is_named(features_page, text_of) -> None:
    at = features_page(latent=12)
    at.number_input(key="latent-widget").set_value(40).run()
    assert at.query_params["latent"] == "40"
    assert "which is not a feature of this comparison" in text_of(features_page(latent="99999"))
    assert "which is not a feature of this comparison" in text_of(features_page(latent="<script>"))


def test_heads_show_the_one_that_changed_most_and_the_address_chooses(compared: Compared, page, text_of) -> None:
    table = compared.four.table("heads.heads.parquet").to_pandas()
    worst = table.loc[(table["induction_b"] - table["induction_a"]).abs().idxmax()]
    assert f"Layer {int(worst['layer'])}, head {int(worst['head'])}: induction" in text_of(page(part="Heads"))
    assert "Layer 5, head 0: induction" in text_of(page(part="Heads", layer=5, head=0))


def test_predictions_show_the_quantiles_of_the_kl_and_the_blocks_that_changed_most(
    compared: Compared, page, text_of
) -> None:
    text = text_of(page(part="Predictions"))
    quantiles = compared.four.table("behaviour.quantiles.parquet").to_pydict()
    assert "<td>rtn 4-bit group 64</td>" in text
    for q in (0.5, 0.95, 0.99):
        assert f"<td class=n>{number(quantiles['kl'][quantiles['quantile'].index(q)])}</td>" in text
    blocks = compared.four.table("behaviour.blocks.parquet").to_pylist()
    worst = max(blocks, key=lambda row: row["kl"])
    listed = text[text.index("Blocks that changed most") :]
    assert listed.index(f"<td>{worst['block']}</td>") < listed.index("</tr>", listed.index("</tr>") + 1)
    assert f"b predicts 0 of {len(blocks)} blocks better than a" in text


def test_layers_show_position_0_and_the_cka_of_every_layer_with_every_layer(page, text_of) -> None:
    at = page(part="Layers")
    assert "drift at position 0" in text_of(at)
    cross = json.loads(at.get("plotly_chart")[-1].proto.spec)["data"][0]
    assert cross["type"] == "heatmap"
    assert "CKA across layers" in text_of(at)


def test_comparisons_of_other_weights_of_one_name_are_not_offered_beside_it(compared: Compared, tmp_path, open_page):
    root = Path(shutil.copytree(compared.root, tmp_path / "runs"))
    config = compared.four.config | {"weights": {"a": "another", "b": "copy"}}
    run = start_run("compare", config, slug="retrained", root=root)
    fill(run, np.random.default_rng(1), 0.1, dictionary=False)
    run.finish({})
    at = open_page(root, "compare", vs=compared.four.name)
    assert run.id not in at.multiselect(key="beside-widget").options
    assert not any(run.id in option for option in at.multiselect(key="beside-widget").options)
    at = open_page(root, "compare", vs=run.name)
    assert not [box for box in at.multiselect if box.key == "beside-widget"]


def test_depth_says_by_how_much_it_shifts(page, text_of) -> None:
    assert "after 3.20 blocks in a and 3.38 in b (+0.180)" in text_of(page(part="Depth"))


@pytest.mark.parametrize("vs", ["zz", "<script>alert(1)</script>", "", "../../etc", "0" * 3000])
def test_an_address_that_means_nothing_falls_back_with_a_note(page, text_of, vs) -> None:
    at = page(vs=vs, beside="zz,<b>", sites="nowhere", change="age")
    assert not at.exception
    assert "which is not a finished comparison in this folder" in text_of(at)
    assert "<script" not in text_of(at)


def test_without_a_comparison_it_says_which_command_makes_one(written, open_page, text_of) -> None:
    at = open_page(written.root, "compare")
    assert not at.exception
    assert "No comparison here yet" in text_of(at)
    assert any("mechscope compare tiny --recipe" in block.value for block in at.code)


def test_without_any_run_it_says_so_too(tmp_path: Path, open_page, text_of) -> None:
    at = open_page(tmp_path / "none", "compare")
    assert not at.exception
    assert "No comparison here yet" in text_of(at)


@pytest.mark.parametrize(
    ("part", "name", "kept"),
    [
        ("Features", "survival.latents.parquet", "CE recovered"),
        ("Features", "survival.examples.parquet", "kept no examples"),
        ("Features", "vocab.parquet", "has no file &#x27;vocab.parquet&#x27;"),
        ("Layers", "drift.layers.parquet", "lens KL"),
        ("Layers", "cka.cross.parquet", "lens KL"),
        ("Predictions", "behaviour.quantiles.parquet", "KL(a, b) over the tokens"),  # of the nulls
        ("Predictions", "behaviour.blocks.parquet", "99%"),
        ("Heads", "heads.heads.parquet", "The panel heads did not run"),
        ("Depth", "lens.layers.parquet", "The panel lens did not run"),
        ("Layers", "summary.json", "has no file &#x27;summary.json&#x27;"),
    ],
)
def test_a_lost_file_costs_its_part_only(
    compared: Compared, tmp_path: Path, open_page, text_of, part, name, kept
) -> None:
    root = Path(shutil.copytree(compared.root, tmp_path / "runs"))
    unlisted(root / "compare" / compared.four.name, name)
    at = open_page(root, "compare", vs=compared.four.name, part=part)
    assert not at.exception
    assert kept in text_of(at)


@pytest.mark.parametrize("name", ["summary.json", "survival.latents.parquet"])
def test_a_damaged_comparison_is_named_and_the_others_shown(
    compared: Compared, tmp_path: Path, open_page, text_of, name
) -> None:
    root = Path(shutil.copytree(compared.root, tmp_path / "runs"))
    path = root / "compare" / compared.four.name / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    at = open_page(root, "compare", vs=compared.four.name)
    assert not at.exception
    assert "which is not a finished comparison" in text_of(at)
    assert f"{compared.four.name}/{name} has" in text_of(at)
    assert "ms-foot" in text_of(at)


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"behaviour": 1}', '{"behaviour": {"loss_delta": "x"}}'])
def test_an_empty_or_strange_summary_is_no_traceback(tmp_path: Path, open_page, text_of, content) -> None:
    written = write_runs(tmp_path / "runs", d_sae=24)
    run = start_run("compare", {"a": "tiny", "b": None, "panels": {}}, slug="odd", root=written.root)
    run.save_json("summary.json", json.loads(content))
    run.finish({})
    at = open_page(written.root, "compare")
    assert not at.exception
    assert "could not be drawn" not in text_of(at)


def test_a_run_without_rows_is_no_traceback(compared: Compared, tmp_path: Path, open_page, text_of) -> None:
    import pyarrow.parquet as pq

    root = Path(shutil.copytree(compared.root, tmp_path / "runs"))
    run = start_run("compare", compared.four.config | {"empty": True}, slug="empty", root=root)
    for path in (root / "compare" / compared.four.name).glob("*.parquet"):
        run.save_table(path.name, pq.read_table(path).slice(0, 0))
    run.save_json("summary.json", {name: {} for name in summary(compared.four)})
    run.finish({})
    for part in ("Layers", "Features", "Heads", "Depth", "Predictions"):
        at = open_page(root, "compare", vs=run.name, part=part)
        assert not at.exception
        assert "could not be drawn" not in text_of(at)
        assert "ms-foot" in text_of(at)


def test_hostile_names_are_shown_literally(tmp_path: Path, open_page, text_of) -> None:
    written = write_runs(tmp_path / "runs")
    bad = '<img src=http://evil.example/x.png onerror="alert(1)">'
    run = write_comparison(written, hostile=bad)
    at = open_page(written.root, "compare", vs=run.name, latent=written.hostile, part="Features")
    assert not at.exception
    assert "<img" not in text_of(at)
    assert "&lt;img" in text_of(at)
    specs = " ".join(chart.proto.spec for chart in at.get("plotly_chart"))
    assert "<img" not in specs
    assert "<script" not in specs


def test_the_python_of_the_page_runs(page) -> None:
    code = next(block.value for block in page().code if "open_run" in block.value)
    scope: dict = {}
    exec(code, scope)
    assert scope["summary"]["behaviour"]["tokens"] == 100_000
    assert {"relative_error", "layer"} <= set(scope["layers"])
    assert {"r", "state"} <= set(scope["latents"])


def test_two_comparisons_of_one_label_are_told_apart(tmp_path: Path, open_page) -> None:
    written = write_runs(tmp_path / "runs", d_sae=320)
    first = write_comparison(written)
    config = first.config | {"tokens": 5}
    second = start_run("compare", config, slug="twin", root=written.root)
    fill(second, np.random.default_rng(0), 0.3, dictionary=True)
    second.finish({})
    at = open_page(written.root, "compare")
    options = at.selectbox(key="vs-widget").options
    assert len(set(options)) == 2
    assert all(run.id in " ".join(options) for run in (first, second))


def test_recipes_are_written_in_a_few_words() -> None:
    rtn = {"step": "rtn", "bits": 4, "mode": "symmetric", "group": None, "include": [], "exclude": []}
    assert recipe_label([rtn]) == "rtn 4-bit"
    assert recipe_label([rtn | {"mode": "asymmetric", "group": 64}]) == "rtn 4-bit mode asymmetric group 64"
    assert recipe_label([{"step": "magnitude", "sparsity": 0.3}, rtn]) == "magnitude 30%, rtn 4-bit"
    assert recipe_label([{"step": "skip_layers", "layers": [1, 2]}]) == "skip layers layers 1+2"
    assert recipe_label(None) == ""
    assert model_label({"name": "/somewhere/llama", "revision": "v2", "recipe": [rtn]}) == "llama@v2 rtn 4-bit"
    assert model_label(None) == "unknown"


def test_a_difference_has_its_sign() -> None:
    assert [signed(v) for v in (0.12, -0.034, 0.0, None)] == ["+0.120", "−0.034", "0", "–"]
