"""Dictionaries that do not write what they read: evaluated, described, opened in the explorer, refused elsewhere."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from app.command import main
from app.widgets.reading import read_prompt
from app.widgets.text import place_of
from interp.hooks import capture
from interp.models import load_model
from interp.runs import Run, open_run, verify_run
from interp.sites import Site
from sae.features import load_features
from sae.model import load_sae

KINDS = {
    "transcoder": ["--site", "resid_mid.1", "--target-site", "mlp_out.1", "--skip"],
    "crosscoder": ["--sites", "resid_post.0", "resid_post.1"],
    "two_models": ["--site", "resid_post.1", "--with-model", "OTHER"],
    "end_to_end": ["--site", "resid_post.1", "--e2e"],
}
PLACES = {
    "transcoder": "resid_mid.1 → mlp_out.1",
    "crosscoder": "resid_post.0 + resid_post.1",
    "two_models": "resid_post.1 of two models",
    "end_to_end": "resid_post.1",
}


@dataclass(frozen=True)
class Made:
    """One folder of runs, with a dictionary of each kind."""

    root: Path
    sae: dict[str, Run]
    evaluation: dict[str, Run]
    features: dict[str, Run]


def call(root: Path, *words: str) -> dict[str, Any]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert main([*words, "--runs", str(root), "--json"]) == 0
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def made(model_folder: Path, neox_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Runs of every kind; not to be changed."""
    folder = tmp_path_factory.mktemp("targets")
    text, root = folder / "text.txt", folder / "runs"
    text.write_text("".join(f"the cat {i} sat on the mat and the dog sat on log {i}.\n" for i in range(150)))
    size = ["--d-sae", "40", "--rule-args", "k", "4", "--train.batch", "64", "--train.tokens", "640"]
    found: dict[str, dict[str, Run]] = {"sae": {}, "evaluation": {}, "features": {}}
    for kind, options in KINDS.items():
        options = [str(neox_folder) if word == "OTHER" else word for word in options]
        source = ["--model", str(model_folder), "--text", str(text), "--context", "32"]
        trained = open_run(Path(call(root, "train", *source, *size, *options)["run"]).name, root)
        found["sae"][kind] = trained
        measured = call(root, "evaluate", "--sae", trained.ref, "--tokens", "500")
        found["evaluation"][kind] = open_run(Path(measured["run"]).name, root)
        described = call(root, "features", "--sae", trained.ref, "--tokens", "1000")
        found["features"][kind] = open_run(Path(described["run"]).name, root)
    return Made(root, **found)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_evaluated(made: Made, kind: str) -> None:
    run, summary = made.evaluation[kind], made.evaluation[kind].summary
    assert summary["fvu"] < 1.5
    assert summary["ce_zero"] != summary["ce_spliced"] != summary["ce_clean"]
    assert verify_run(run) == []
    told = {"transcoder": {"target_site"}, "crosscoder": {"sites"}, "two_models": {"sites", "with_model"}}
    assert {"target_site", "sites", "with_model"} & run.config.keys() == told.get(kind, set())
    with_parts = (run.path / "sites.parquet").exists()
    assert with_parts == (kind in ("crosscoder", "two_models"))
    if with_parts:
        rows = run.table("sites.parquet").to_pylist()
        assert [row["site"] for row in rows] == (
            ["resid_post.0", "resid_post.1", "all"] if kind == "crosscoder" else ["resid_post.1"] * 2
        )
        assert summary["ce_spliced"] == rows[2 if kind == "crosscoder" else 0]["ce_spliced"]
        blocks = rows[:2]
        assert summary["fvu"] == pytest.approx(sum(row["fvu"] for row in blocks) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_described_and_opens_in_the_explorer(made: Made, kind: str, open_page, text_of) -> None:
    run = made.features[kind]
    features = load_features(run)
    alive = next(row["latent"] for row in features.latents.to_pylist() if row["count"])
    for page, more in (("features", {}), ("feature", {"f": alive})):
        at = open_page(made.root, page, run=run.name, **more)
        assert not at.exception
        assert "ms-problem" not in text_of(at)
        assert PLACES[kind] in text_of(at)
    shown = text_of(at)
    assert ("share in a" in shown) == (kind == "two_models")
    assert ("length of its decoder row there" in shown) == (kind in ("crosscoder", "two_models"))
    assert features.logits(alive).num_rows == 20


@pytest.mark.parametrize("metric", ["enc_dec_cosine", "relative_norm"])
def test_a_picture_of_any_column_opens(made: Made, metric: str, open_page) -> None:
    at = open_page(made.root, "features", run=made.features["two_models"].name, y=metric, sort=metric)
    assert not at.exception
    assert at.selectbox(key="y").value == metric


@pytest.mark.parametrize("kind", KINDS)
def test_the_readers_own_text(made: Made, kind: str, open_page, text_of) -> None:
    at = open_page(made.root, "feature", run=made.features[kind].name, f=3, text="the cat sat on the mat")
    next(button for button in at.button if button.label == "Run").click().run()
    assert not at.exception
    if kind == "two_models":
        assert "reads two models at once and the explorer loads one" in text_of(at)
    else:
        assert "ms-problem" not in text_of(at)
        assert "ms-answer" in text_of(at)


def test_the_error_of_a_text_is_that_of_what_is_written(made: Made, model_folder: Path) -> None:
    runs = [made.sae[kind] for kind in KINDS]
    reading = read_prompt(runs, "the cat sat on the mat")
    assert set(reading.failed) == {made.sae["two_models"].ref}
    model = load_model(str(model_folder))
    sites = ["resid_mid.1", "mlp_out.1", "resid_post.0", "resid_post.1"]
    with torch.no_grad(), capture(model, sites) as found:
        model.forward(model.tokens("the cat sat on the mat"))
    x = {site: found[Site.parse(site)][0, 1:].double() for site in sites}
    both = torch.cat([x["resid_post.0"], x["resid_post.1"]], 1)
    for kind, read, written in (("transcoder", x["resid_mid.1"], x["mlp_out.1"]), ("crosscoder", both, both)):
        with torch.no_grad():
            y_hat = load_sae(made.sae[kind])(read.float())[0].double()
        spread = (written - written.mean(0)).square().sum(1).mean()
        wanted = (written - y_hat).square().sum(1) / spread
        assert reading.coded[made.sae[kind].ref].error.tolist() == pytest.approx(wanted.tolist(), rel=1e-4)


@pytest.mark.parametrize("page", ["home", "prompt"])
def test_the_other_pages_open(made: Made, page: str, open_page, text_of) -> None:
    at = open_page(made.root, page)
    assert not at.exception
    if page == "home":
        assert all(place in text_of(at) for place in PLACES.values())


def test_where_a_dictionary_stands_in_words() -> None:
    assert place_of({}) == "unknown site"
    assert place_of({"site": "resid_post.1"}) == "resid_post.1"


def refused(capsys: Any, *words: str) -> str:
    assert main(list(words)) != 0
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("transcoder", ["evaluate", "--encoder", "omp"], "is a transcoder: it reads resid_mid.1 and writes mlp_out.1"),
        ("crosscoder", ["evaluate", "--encoder", "omp"], "reads resid_post.0, resid_post.1 at once. --encoder looks"),
        ("two_models", ["evaluate", "--recipe", "int4"], "--recipe would compress one of them; leave it out"),
        ("two_models", ["features", "--recipe", "int4"], "--recipe would compress one of them; leave it out"),
        ("transcoder", ["compare", "MODEL", "--recipe", "int4"], "survival and dictionary read both models through a"),
        ("two_models", ["compare", "MODEL", "--recipe", "int4"], "reads resid_post.1 at once of two models."),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(
    made: Made, model_folder: Path, capsys: Any, monkeypatch: Any, kind: str, words: list[str], message: str
) -> None:
    monkeypatch.setattr("app.sources.open_model", lambda *_: pytest.fail("a model was loaded"))
    words = [str(model_folder) if word == "MODEL" else word for word in words]
    before = sorted(path.name for path in made.root.glob("*/*"))
    said = refused(capsys, *words, "--sae", made.sae[kind].ref, "--runs", str(made.root))
    assert message in said
    assert sorted(path.name for path in made.root.glob("*/*")) == before


def test_a_second_model_that_has_changed_is_refused(made: Made, capsys: Any, monkeypatch: Any) -> None:
    other = made.sae["two_models"].config["with_model"] | {"weights": "0" * 64}
    config = made.sae["two_models"].config | {"with_model": other}
    monkeypatch.setattr(Run, "config", property(lambda _: config), raising=False)
    said = refused(capsys, "evaluate", "--sae", made.sae["two_models"].ref, "--tokens", "300", "--runs", str(made.root))
    assert "weights" in said
