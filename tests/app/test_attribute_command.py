"""`mechscope attribute`: a run for each method that says what the library says; found again; wrong requests refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.command import main
from interp.attribution import METHODS, latent_attribution, patch_map
from interp.attribution.relevance import relevance
from interp.attribution.saving import load_attribution
from interp.config import to_json
from interp.data import DataSpec
from interp.models import ModelHandle, ModelSpec, compiled_model, load_model
from interp.runs import Run, find_runs, open_run, start_run, verify_run
from interp.tasks import Pairs, task
from sae.config import SaeConfig
from sae.model import Sae, load_sae

COMPILED = "compiled/induction"
OWN = {"--clean": "the cat sat on a", "--corrupt": "the dog sat on a", "--correct": "m", "--wrong": "l"}
KINDS = ["--kinds", "resid_pre", "head_out"]


def flags(options: dict[str, str]) -> list[str]:
    return [part for pair in options.items() for part in pair]


def attribute(*options: str, root: Path, model: str = COMPILED) -> int:
    return main(["attribute", model, "--runs", str(root), "--n", "4", *options])


def answer(capsys: Any) -> dict[str, Any]:
    """Return the one JSON line that a command wrote to stdout."""
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def same_scores(run: Run, *parts: Any) -> None:
    """The nodes of a run are those of these results, one after the other."""
    nodes = load_attribution(run).nodes.to_pylist()
    wanted = [row for part in parts for row in part.nodes.to_pylist()]
    assert len(nodes) == len(wanted)
    for row, other in zip(nodes, wanted, strict=True):
        assert {k: row[k] for k in ("kind", "layer", "pos", "head")} == {
            k: other[k] for k in ("kind", "layer", "pos", "head")
        }
        assert row["score"] == pytest.approx(other["score"], rel=1e-6, abs=1e-7)
        assert (row["measured"] is None) == (other["measured"] is None)


@pytest.fixture(scope="module")
def compiled() -> tuple[ModelHandle, Pairs]:
    handle = load_model(COMPILED, device="cpu")
    return handle, task("induction").pairs(handle, 4, 0)


@pytest.fixture(scope="module")
def sae_run(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A random dictionary of resid_post.1, as a finished training leaves it."""
    place = {"model": to_json(ModelSpec(str(model_folder))), "data": to_json(DataSpec("demo")), "site": "resid_post.1"}
    torch.manual_seed(5)
    sae = Sae(SaeConfig(32, 40, "topk", {"k": 4}))
    sae.W_enc.data = torch.randn_like(sae.W_enc)
    sae.W_dec.data = torch.nn.functional.normalize(torch.randn_like(sae.W_dec), dim=1)
    root = tmp_path_factory.mktemp("attribute") / "runs"
    with start_run("sae", {**place, "sae": to_json(sae.config)}, slug="random", root=root) as record:
        sae.save(record)
        record.finish({})
    return open_run(record.id, root)


def test_a_run_for_each_method(
    compiled: tuple[ModelHandle, Pairs], tmp_path: Path, capsys: Any, no_network: None
) -> None:
    handle, pairs = compiled
    request = [*KINDS, "--methods", "patching", "atp", "cp_lrp", "--check", "3"]
    assert attribute(*request, "--json", root=tmp_path) == 0
    found = answer(capsys)
    runs = {method: open_run(Path(path).name, tmp_path) for method, path in found["runs"].items()}
    assert list(runs) == ["patching", "atp", "cp_lrp"]
    assert found["run"] == str(runs["cp_lrp"].path)
    assert found["accuracy"] == 1.0
    for method, run in runs.items():
        assert (run.kind, run.finished, verify_run(run)) == ("attribution", True, [])
        assert (run.config["method"], run.summary["accuracy"]) == (method, 1.0)
        assert run.table("prompts.parquet").num_rows == 4
    by_head = {"parts": ("head",)}
    same_scores(
        runs["patching"], patch_map(handle, pairs, "resid_pre"), patch_map(handle, pairs, "head_out", **by_head)
    )
    atp = METHODS["atp"]
    same_scores(
        runs["atp"], atp(handle, pairs, "resid_pre", check=3), atp(handle, pairs, "head_out", check=3, **by_head)
    )
    same_scores(runs["cp_lrp"], relevance(handle, pairs, sites=("resid_pre", "head_out")))

    assert attribute(*request, root=tmp_path) == 0
    out, err = capsys.readouterr()
    assert err.count("is finished already") == 3
    assert "gets 100% of 4 prompts right" in err
    assert "loading compiled/induction" in err
    assert "correlation with real patching of 12 cells" in err  # three strongest and three random, by position and head
    assert "Pearson correlation over shared cells" in out
    assert out.splitlines()[-1] == str(runs["cp_lrp"].path)
    assert len(find_runs(tmp_path, "attribution")) == 3


def test_progress_counts_each_part_to_its_end(tmp_path: Path, capsys: Any) -> None:
    assert attribute(*KINDS, "--methods", "atp", "--check", "2", root=tmp_path) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("atp: ")]
    begun = [line.partition(" of ")[2] for line in lines if " of " in line and line.startswith("atp: 0")]
    ended = [line for line in lines if " in 0:" in line]
    assert [line.split()[1] for line in begun] == ["steps"] * 4  # by position and by head, and the check of either
    assert [line.split()[1] for line in ended] == [line.split()[0] for line in begun]


def test_the_circuit_of_a_compiled_model_comes_first(tmp_path: Path, capsys: Any) -> None:
    assert attribute("--methods", "patching", "--kinds", "head_out", "--top", "3", "--json", root=tmp_path) == 0
    top = answer(capsys)["top"]["patching"]
    assert {cell["cell"] for cell in top[:2]} == {"head_out.0 head 2", "head_out.1 head 1"}
    one = compiled_model(COMPILED)
    pairs = task("induction").pairs(load_model(COMPILED, device="cpu"), 4, 0)
    effects = {
        (row["layer"], row["head"]): row["effect"]
        for row in one.truth(pairs).to_pylist()
        if row["kind"] == "head_out" and row["pos"] is None
    }
    assert [cell["score"] for cell in top] == pytest.approx([effects[0, 2], effects[1, 1], 0.0], abs=1e-3)


def test_options_that_a_method_does_not_read_make_no_run_of_their_own(tmp_path: Path, capsys: Any) -> None:
    request = [*KINDS, "--methods", "patching", "relp_qk"]
    assert attribute(*request, root=tmp_path) == 0
    assert attribute(*request, "--check", "0", "--top", "2", "--batch", "3", root=tmp_path) == 0
    assert len(find_runs(tmp_path, "attribution")) == 2
    assert attribute(*request, "--direction", "noising", root=tmp_path) == 0
    assert sorted(run.config["method"] for run in find_runs(tmp_path, "attribution")) == ["patching"] * 2 + ["relp_qk"]
    capsys.readouterr()
    assert attribute(*request, "--head-positions", "--json", root=tmp_path) == 0
    nodes = load_attribution(open_run(Path(answer(capsys)["runs"]["patching"]).name, tmp_path))
    assert (nodes.parts("resid_pre"), nodes.parts("head_out")) == (("pos",), ("pos", "head"))


def test_ablations_and_a_compressed_copy(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    common = [*flags(OWN), *KINDS, "--methods", "patching", "gradient_x_input", "--json", "--check", "2"]
    ablated = [*common, "--direction", "noising", "--baseline", "zero"]
    assert attribute(*ablated, root=tmp_path, model=str(model_folder)) == 0
    plain = answer(capsys)
    assert attribute(*ablated, "--recipe", "[{step: rtn, bits: 3}]", root=tmp_path, model=str(model_folder)) == 0
    rounded = answer(capsys)
    runs = [open_run(Path(found["runs"]["patching"]).name, tmp_path) for found in (plain, rounded)]
    assert [len(run.config["model"]["recipe"]) for run in runs] == [0, 1]
    values = [load_attribution(run).values["clean"] for run in runs]
    assert values[0] != pytest.approx(values[1], abs=1e-3)
    assert load_attribution(runs[0]).baseline == "zero"


def test_a_pair_of_prompts_of_ones_own(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    request = [*flags(OWN), *KINDS, "--methods", "patching", "--json"]
    assert attribute(*request, root=tmp_path, model=str(model_folder)) == 0
    found = answer(capsys)
    run = open_run(Path(found["run"]).name, tmp_path)
    handle = load_model(str(model_folder), device="cpu")
    right, wrong = (int(handle.tokens(OWN[name], bos=False)[0, 0]) for name in ("--correct", "--wrong"))
    (row,) = run.table("prompts.parquet").to_pylist()
    assert "".join(row["clean_tokens"][1:]) == OWN["--clean"]
    assert (row["correct"], row["wrong"]) == ([right], [wrong])
    for name in ("clean", "corrupt"):
        last = handle.logits(handle.tokens(OWN[f"--{name}"]))[0, -1]
        assert row[f"{name}_value"] == pytest.approx(float(last[right] - last[wrong]), abs=1e-5)
    assert run.config["task"] == "own"
    assert found["accuracy"] == float(row["clean_value"] > 0)  # a pair of one's own is never refused for it
    whole = load_attribution(run).map("resid_pre")[0].sum()
    assert whole == pytest.approx(row["clean_value"] - row["corrupt_value"], abs=1e-4)  # the only word that differs


def test_prompts_of_a_file(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    rows = [
        {"clean": f"the {a} sat", "corrupt": f"the {b} sat", "answers": ["m"], "wrong_answers": ["l"]}
        for a, b in (("cat", "dog"), ("dog", "cat"))
    ]
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"prompts": rows}))
    request = ["--prompts", str(path), "--anyway", "--methods", "atp", "--kinds", "mlp_out", "--json"]
    assert attribute(*request, root=tmp_path / "runs", model=str(model_folder)) == 0
    run = open_run(Path(answer(capsys)["run"]).name, tmp_path / "runs")
    assert (run.config["task"], run.table("prompts.parquet").num_rows) == ("own", 2)


def test_latents_of_a_dictionary(sae_run: Run, model_folder: Path, capsys: Any) -> None:
    root = sae_run.root
    request = [*flags(OWN), "--methods", "latents", "--sae", sae_run.id, "--check", "2", "--json"]
    assert attribute(*request, root=root, model=str(model_folder)) == 0
    found = answer(capsys)
    run = open_run(Path(found["run"]).name, root)
    assert (run.parents, run.config["sae_run"], run.config["check"]) == ([sae_run.ref], sae_run.ref, 2)
    handle = load_model(str(model_folder), device="cpu")
    sides = [handle.tokens(OWN[name]) for name in ("--clean", "--corrupt")]
    answers = [handle.tokens(OWN[name], bos=False) for name in ("--correct", "--wrong")]
    wanted = latent_attribution(
        handle, Pairs("own", sides[0], sides[1], *answers), {"resid_post.1": load_sae(sae_run)}, check=2
    )
    assert load_attribution(run).kinds == wanted.kinds == ["error.resid_post", "resid_post"]
    assert load_attribution(run).nodes["score"].to_pylist() == pytest.approx(wanted.nodes["score"].to_pylist())
    assert any("latent" in cell["cell"] for cell in found["top"]["latents"])
    assert attribute(*request, "--kinds", "mlp_out", root=root, model=str(model_folder)) == 0  # which it does not read
    assert answer(capsys)["run"] == found["run"]


def test_the_list_of_tasks(tmp_path: Path, capsys: Any) -> None:
    assert attribute("--list", root=tmp_path) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "accuracy" in rows["task"]
    assert {"induction", "compiled", "ioi", "docstring"} <= rows.keys()
    assert attribute("--list", "--json", root=tmp_path) == 0
    tasks = {row["task"]: row for row in answer(capsys)["tasks"]}
    assert (tasks["induction"]["accuracy"], tasks["induction"]["usable"]) == (1.0, True)
    assert (tasks["ioi"]["accuracy"], tasks["ioi"]["usable"]) == (None, False)
    assert tasks["ioi"]["note"]
    assert not find_runs(tmp_path)


def test_a_task_that_the_model_cannot_do(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    request = ["--task", "induction", "--methods", "atp", "--kinds", "attn_out", "--check", "0"]
    assert attribute(*request, root=tmp_path, model=str(model_folder)) == 2
    err = capsys.readouterr().err
    assert "gpt2 cannot do induction: it gets " in err
    assert "% of 4 prompts right, and below 70%" in err
    assert "--anyway" in err
    assert not find_runs(tmp_path)
    assert attribute(*request, "--anyway", "--json", root=tmp_path, model=str(model_folder)) == 0
    assert answer(capsys)["accuracy"] < 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "inductoin"], "did you mean 'induction'"),
        (["--methods", "pathcing"], "did you mean 'patching'"),
        (["--metric", "logitdiff"], "logit_diff"),
        (["--kinds", "resid"], "resid_pre"),
        (["--kinds", "mlp_out.7"], "mlp_out.7"),
        (["--kinds", "embed"], "Unknown kind of site 'embed'"),
        (["--baseline", "zero"], "direction must be 'noising'"),
        (["--baseline", "mean"], "direction must be 'noising'"),
        (["--methods", "patching", "gradient_x_input"], "--baseline zero --direction noising"),
        (
            ["--methods", "patching", "ig", "--baseline", "zero", "--direction", "noising"],
            "ig compares with the baseline",
        ),
        (["--methods", "patching", "relp", "--kinds", "q.1", "v", "k"], "relp has no scores for q.1, k: leave out"),
        (["--methods", "attn_lrp", "--kinds", "pattern"], "attn_lrp has no scores for pattern"),
        (["--methods", "latents"], "needs a dictionary: --sae RUN"),
        (["--n", "0"], "n must be 1 or more, got 0"),
        (["--check", "-1"], "check must be 0 or more, got -1"),
        (["--clean", "a b"], "missing: --corrupt, --correct, --wrong"),
        (["--prompts", "nowhere.json"], "There is no file of prompts nowhere.json"),
    ],
)
def test_refusals_begin_no_run(options: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    assert attribute(*options, root=tmp_path) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "messages"),
    [
        ({"--corrupt": "the dog sat on a cat"}, ["the same number of tokens, got 7 (", "and 8 (", "' cat')"]),
        ({"--correct": "zyx"}, ["--correct must be one token of this model, got 3 ('z' 'y' 'x')"]),
        ({"--wrong": ""}, ["--wrong must be one token of this model, got 0 (nothing)"]),
        ({"--corrupt": OWN["--clean"]}, ["--clean and --corrupt are the same"]),
        ({"--wrong": OWN["--correct"]}, ["--correct and --wrong are the same"]),
        ({"--clean": "z" * 80, "--corrupt": "y" * 80}, ["reads at most n_ctx=64 tokens, got 81"]),
    ],
)
def test_prompts_that_are_refused(
    changed: dict[str, str], messages: list[str], model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    assert attribute(*flags(OWN | changed), root=tmp_path, model=str(model_folder)) == 2
    err = capsys.readouterr().err
    assert all(message in err for message in messages), err
    assert not list(tmp_path.iterdir())


def test_a_dictionary_of_another_model(sae_run: Run, tmp_path: Path, capsys: Any) -> None:
    assert attribute("--methods", "latents", "--sae", sae_run.id, root=sae_run.root) == 2
    assert f"not {COMPILED}; name that model instead" in capsys.readouterr().err


def test_the_bare_command_asks_what_tiny_can_do(tmp_path: Path, capsys: Any) -> None:
    """Without any option but a cheap method: the task that is taken by itself must be one that `tiny` can do."""
    assert attribute("--methods", "atp", "--kinds", "attn_out", "--check", "0", root=tmp_path, model="tiny") == 0
    assert find_runs(tmp_path, "attribution")[0].config["task"] == "agreement"


def test_both_parts_of_a_result_count_in_its_check(tmp_path: Path, capsys: Any) -> None:
    options = ["--methods", "atp", "--kinds", "attn_out", "head_out", "--check", "2"]
    assert attribute(*options, root=tmp_path) == 0
    found = load_attribution(find_runs(tmp_path, "attribution")[0])
    measured = found.nodes.filter(found.nodes["measured"].is_valid())
    assert set(measured["kind"].to_pylist()) == {"attn_out", "head_out"}
    assert found.values["check_cells"] == measured.num_rows
    expected = np.corrcoef(measured["score"].to_numpy(), measured["measured"].to_numpy())[0, 1]
    assert found.values["check_pearson"] == pytest.approx(expected)
    assert found.about["parts"] == ["pos", "head"]


def test_paths_of_the_compiled_circuit(tmp_path: Path, capsys: Any) -> None:
    """The previous-token head writes what the induction head's keys read; the induction head writes the answer."""
    assert attribute("--methods", "paths", "--receivers", "k.1:1", "logits", root=tmp_path) == 0
    out = capsys.readouterr().out
    edges = load_attribution(find_runs(tmp_path, "attribution")[0]).edges
    assert edges is not None
    rows = edges.to_pylist()
    strong = {(row["source_layer"], row["source_head"], row["target_kind"]) for row in rows if abs(row["score"]) > 1}
    assert strong == {(0, 2, "k"), (1, 1, "logits")}
    assert "head_out.0 head 2" in out
    assert "along paths" in out


def test_relevance_through_one_head(tmp_path: Path, capsys: Any) -> None:
    request = ["--methods", "cp_lrp", "--kinds", "resid_pre"]
    assert attribute(*request, "--through", "head_out.1:1", root=tmp_path) == 0
    assert attribute(*request, "--through", "head_out.1:0", root=tmp_path) == 0
    runs = {run.config["through"][0]: load_attribution(run) for run in find_runs(tmp_path, "attribution")}
    through = runs["head_out.1:1"].map("resid_pre")[0]
    assert through.sum() == pytest.approx(runs["head_out.1:1"].values["output"], rel=1e-3)
    assert np.abs(through).max() > 1
    assert np.abs(runs["head_out.1:0"].map("resid_pre")).max() < 1e-3  # an idle head


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "cp_lrp", "--through", "head_out"], "A site is written KIND.LAYER"),
        (["--methods", "cp_lrp", "--through", "head_out.1:x"], "A place is written KIND.LAYER"),
        (["--methods", "cp_lrp", "--through", "head_out.7:0"], "its layers are 0..1"),
        (["--methods", "atp", "--through", "head_out.1:0"], "--through is a condition of relevance"),
        (["--methods", "paths", "--baseline", "zero", "--direction", "noising"], "paths compares with the baseline"),
        (["--methods", "paths", "--receivers", "q.9"], "its layers are 0..1"),
    ],
)
def test_places_that_are_not_there_begin_no_run(options: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    assert attribute(*options, root=tmp_path) == 2
    assert message in capsys.readouterr().err
    assert not find_runs(tmp_path)
