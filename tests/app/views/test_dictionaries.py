"""Dictionaries: groups, the figure's points, rules at one L0, and what stands there when there is little or nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from app.widgets.groups import groups
from app.widgets.text import number
from interp.runs import find_runs, open_run, start_run
from tests.dictionary_runs import BEST, LATENTS, dictionary, evaluation, fvu, write_dictionaries


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of dictionaries; not to be changed."""
    return write_dictionaries(tmp_path_factory.mktemp("shelf") / "runs")


def figure(at) -> dict:
    return json.loads(at.get("plotly_chart")[0].proto.spec)


def line_of(text: str, rule: str, order: list[str]) -> str:
    """Return the line of a rule in the table of rules side by side."""
    lines = [part for part in text.split("\n") if part.startswith('<div class="ms-side"><')]
    return lines[order.index(rule)]


def test_a_group_is_one_model_site_and_text(shelf: Path) -> None:
    first, second = groups(shelf)
    assert (first.site, len(first.dictionaries), len(first.evaluations)) == ("resid_post.2", 19, 18)
    assert (second.site, len(second.dictionaries), len(second.evaluations)) == ("mlp_out.1", 1, 1)
    assert first.model == "tiny"
    assert first.key != second.key


def test_it_opens_on_the_largest_group(shelf: Path, open_page, text_of) -> None:
    at = open_page(shelf, "dictionaries")
    assert not at.exception
    assert "ms-problem" not in text_of(at)
    assert at.query_params["g"] == groups(shelf)[0].key
    assert at.selectbox(key="g-widget").options[0] == "tiny · resid_post.2 · demo, 300.0k tokens (19)"
    names = [trace["name"] for trace in figure(at)["data"]]
    assert names == ["front", "abs_topk", "batch_topk", "topk"]


def test_repeats_are_one_point_with_their_range(shelf: Path, open_page) -> None:
    trace = figure(open_page(shelf, "dictionaries"))["data"][1]
    assert trace["x"] == [16, 32, 64]
    assert trace["y"] == pytest.approx([fvu("abs_topk", l0) + 0.0005 for l0 in (16, 32, 64)])
    assert trace["error_y"]["array"] == pytest.approx([0.0005] * 3)
    assert "2 seeds" in trace["text"][0]


def test_what_is_not_evaluated_is_hollow_and_has_its_command(shelf: Path, open_page, text_of) -> None:
    at = open_page(shelf, "dictionaries")
    trace = figure(at)["data"][3]
    assert trace["x"] == [8, 16, 32, 64]
    assert [symbol.endswith("-open") for symbol in trace["marker"]["symbol"]] == [True, False, False, False]
    assert "1 of 19 are not evaluated" in text_of(at)
    bare = next(run for run in find_runs(shelf, "sae") if run.config["sae"]["rule_args"]["k"] == 8)
    assert f"mechscope evaluate --sae {bare.ref}" in [code.value for code in at.code]


@pytest.mark.parametrize("l0", ["16", "23", "32", "64"])
def test_rules_are_read_off_their_curves(shelf: Path, open_page, text_of, l0: str) -> None:
    root = shelf
    at = open_page(root, "dictionaries", l0=l0)
    if l0 == "23":  # no run is there, so it is no choice
        assert "The address asked for l0=23, which is not a choice here" in text_of(at)
        return
    for rule in BEST:
        line = line_of(text_of(at), rule, sorted(BEST, key=BEST.__getitem__))
        low, high = fvu(rule, float(l0)), fvu(rule, float(l0), 1)
        assert f">{number((low + high) / 2)}<small>{number(low)} to {number(high)}</small>" in line
        assert f"k {l0}<small>L0 {number(float(l0))}</small>" in line
    assert "Small: the range over seeds." in text_of(at)


def test_between_two_runs_it_is_linear_in_log_l0(tmp_path: Path, open_page, text_of) -> None:
    for rule, ks in (("topk", (16, 64)), ("batch_topk", (32,))):
        for k in ks:
            evaluation(dictionary(tmp_path, rule, k), rule, float(k))
    at = open_page(tmp_path, "dictionaries", l0="32")
    assert number(fvu("topk", 32)) in line_of(text_of(at), "topk", ["batch_topk", "topk"])
    assert not at.exception


def test_a_lone_run_near_by_stands_for_its_rule_and_a_far_one_does_not(tmp_path: Path, open_page, text_of) -> None:
    for k in (16, 64):
        evaluation(dictionary(tmp_path, "topk", k), "topk", float(k))
    evaluation(dictionary(tmp_path, "batch_topk", 16, l0=18.0), "batch_topk", 18.0)
    text = text_of(open_page(tmp_path, "dictionaries", l0="16"))
    assert number(fvu("batch_topk", 18.0)) in line_of(text, "batch_topk", ["batch_topk", "topk"])
    assert "of the nearest run, within 25%: batch_topk." in text
    text = text_of(open_page(tmp_path, "dictionaries", l0="64"))
    assert '<span class="r">–</span>' in line_of(text, "batch_topk", ["topk", "batch_topk"])
    assert "No run near that L0: batch_topk." in text


def test_densities_are_those_of_the_latents_that_fire(shelf: Path, open_page, text_of) -> None:
    line = line_of(text_of(open_page(shelf, "dictionaries")), "topk", sorted(BEST, key=BEST.__getitem__))
    alive = [0.2 * i / (LATENTS - 1) for i in range(1, LATENTS)]
    assert f"{100 * alive[63]:.1f}%" in line


def test_the_address_chooses_group_metric_and_dictionary(shelf: Path, open_page, text_of) -> None:
    run = next(run for run in find_runs(shelf, "sae") if run.config["sae"]["rule"] == "abs_topk")
    at = open_page(shelf, "dictionaries", metric="CE recovered", dict=run.name[-8:])
    assert figure(at)["layout"]["yaxis"]["title"]["text"].startswith("CE recovered")
    assert f'<div class="name">{run.name}</div>' in text_of(at)
    assert at.query_params["dict"] == run.name
    other = groups(shelf)[1]
    at = open_page(shelf, "dictionaries", g=other.key)
    assert "mlp_out.1" in text_of(at)
    assert len(figure(at)["data"]) == 1


def test_a_repeat_is_a_link(shelf: Path, open_page) -> None:
    run = next(run for run in find_runs(shelf, "sae") if run.config["sae"]["rule"] == "topk" and run.info["seed"] == 1)
    at = open_page(shelf, "dictionaries", dict=run.name)
    link = next(link.proto for link in at.get("page_link") if link.proto.label == "seed 0")
    name = link.query_string.split("dict=")[1]
    other = open_run(f"sae/{name}", shelf)
    assert (other.info["seed"], other.config["sae"]) == (0, run.config["sae"])


@pytest.mark.parametrize("key", ["g", "metric", "l0", "dict"])
def test_an_address_that_means_nothing_falls_back_with_a_note(shelf: Path, open_page, text_of, key: str) -> None:
    at = open_page(shelf, "dictionaries", **{key: "<script>x"})
    assert not at.exception
    assert "The address asked for" in text_of(at)
    assert "<script" not in text_of(at)
    assert at.get("plotly_chart")


def test_the_list_holds_every_dictionary_with_its_numbers(shelf: Path, open_page) -> None:
    at = open_page(shelf, "dictionaries")
    wanted = figure(at)["data"][2]["customdata"][0][0]
    found = at.dataframe[0].value
    assert len(found) == 19
    assert wanted.removeprefix("sae/") in found["run"].tolist()
    assert found["FVU"].tolist()[found["run"].tolist().index(wanted.removeprefix("sae/"))] == pytest.approx(
        fvu("batch_topk", 16.0), abs=0.0011
    )


def test_the_features_of_the_chosen_one_open(written, open_page) -> None:
    at = open_page(written.root, "dictionaries")
    link = next(link.proto for link in at.get("page_link") if link.proto.label == "Open features")
    assert link.query_string == f"run={written.features.name}"


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_folder_says_which_commands_to_type(tmp_path: Path, open_page, text_of, exists: bool) -> None:
    root = tmp_path / "runs & <b>"
    if exists:
        root.mkdir()
    at = open_page(root, "dictionaries")
    assert not at.exception
    assert "No dictionary here yet" in text_of(at)
    assert "runs &amp; &lt;b&gt;" in text_of(at)
    assert at.code[0].value.startswith("mechscope train --rule topk")


def test_dictionaries_without_l0_say_what_to_do(tmp_path: Path, open_page, text_of) -> None:
    config = {"site": "mlp_out.0", "sae": {"d_in": 8, "d_sae": 16, "rule": "topk", "rule_args": {}}}
    run = start_run("sae", config, slug="imported", root=tmp_path)
    run.finish({})
    at = open_page(tmp_path, "dictionaries")
    assert not at.exception
    assert "None of these dictionaries says its L0" in text_of(at)
    assert at.code[0].value == f"mechscope evaluate --sae {run.ref}"
    assert at.dataframe[0].value["run"].tolist() == [run.name]


def test_only_evaluations_in_the_own_model_by_the_own_encoder_count(tmp_path: Path) -> None:
    sae = dictionary(tmp_path, "topk", 16)
    evaluation(sae, "topk", 16.0, off=0.3, encoder="omp")
    evaluation(sae, "topk", 16.0, off=0.4, model={"name": "tiny", "recipe": ["int4"]})
    (group,) = groups(tmp_path)
    assert group.unmeasured == [group.by_ref[sae.ref]]
    plain = evaluation(sae, "topk", 16.0)
    (group,) = groups(tmp_path)
    assert group.evaluations[sae.ref].ref == plain.ref
    assert math.isclose(group.points["fvu"][0].as_py(), fvu("topk", 16.0))


def test_evaluations_on_different_texts_are_said_so(tmp_path: Path, open_page, text_of) -> None:
    for k in (16, 32):
        evaluation(dictionary(tmp_path, "topk", k), "topk", float(k), tokens=f"digest {k}")
    assert "of 2 different texts" in text_of(open_page(tmp_path, "dictionaries"))


def test_the_python_of_the_page_runs(shelf: Path, open_page) -> None:
    at = open_page(shelf, "dictionaries")
    code = next(block.value for block in at.code if "at_l0" in block.value)
    scope: dict = {}
    exec(code, scope)
    assert scope["points"].num_rows == 18
