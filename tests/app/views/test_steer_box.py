"""The box "Steer by it": its answer is the run of `mechscope steer`; an address shows it; refusals are one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.command import main
from app.widgets.text import number, share
from interp.runs import Run, find_runs
from tests.explorer_runs import Written, write_runs
from tests.signed_runs import dictionary_with_atoms

TEXT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def live(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A dictionary of a random model that can be loaded."""
    root = tmp_path_factory.mktemp("steer-box") / "runs"
    return write_runs(root, model=str(model_folder), site="resid_post.1", d_sae=64, d_in=32, save=dictionary_with_atoms)


def press(at: Any, text: str = TEXT, **settings: Any) -> Any:
    """Set the box and press Run."""
    at.text_input(key="steer-text").set_value(text)
    for key in ("how", "places"):
        if key in settings:
            at.session_state[f"steer-{key}"] = settings.pop(key)
    at.run()
    for key, value in settings.items():
        at.number_input(key=f"steer-{key}").set_value(value)
    return at.button(key="steer-run").click().run()


def steering(root: Path) -> list[Run]:
    return find_runs(root, "steering")


def answer(at: Any, text_of: Any) -> str:
    return text_of(at)[text_of(at).index("KL(before ‖ after)") :]


def test_the_answer_is_the_run_that_the_command_finds(live: Written, open_page, text_of, capsys) -> None:
    at = press(open_page(live.root, "feature", f=7), strength=2.0, new=3)
    assert not at.exception
    assert "ms-problem" not in text_of(at)
    (run,) = steering(live.root)
    peak = live.features.table("latents.parquet")["max"][7].as_py()
    assert run.config["value"] == float(f"{2 * peak:.4g}")
    assert run.parents == [live.sae.ref]
    assert at.query_params["steer"] == run.id
    page = answer(at, text_of)
    for row in run.table("next_tokens.parquet").to_pylist():
        assert f"{share(row['before'])} → {share(row['after'])}" in page
    assert number(run.summary["kl_last"]) in page
    assert page.count("<dt>") >= 2
    line = next(code.value for code in at.code if code.value.startswith("mechscope steer"))
    import shlex

    assert main([*shlex.split(line)[1:], "--runs", str(live.root)]) == 0
    assert "is finished already" in capsys.readouterr().err
    assert [one.ref for one in steering(live.root)] == [run.ref]


def test_a_link_shows_a_kept_answer_without_a_model(live: Written, open_page, text_of, monkeypatch) -> None:
    press(open_page(live.root, "feature", f=9), how="ablate", new=0)
    run = next(run for run in steering(live.root) if run.config["latent"] == 9)

    def refuse(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("app.widgets.steer_box.load_model_of", refuse)
    at = open_page(live.root, "feature", f=9, steer=run.id)
    assert not at.exception
    assert "Held at 0" in text_of(at)
    assert len(at.get("plotly_chart")) == 2
    at.button(key="go-Right").click().run()
    assert "KL(before" not in text_of(at)
    assert "steer" not in at.query_params
    assert "which is no steering run" not in text_of(at)


@pytest.mark.parametrize(("places", "expected"), [("all", None), ("last", [-1]), ("from", [2, 3, 4, 5, 6])])
def test_where_it_is_changed(live: Written, open_page, text_of, places: str, expected: Any) -> None:
    settings: dict[str, Any] = {"start": 2} if places == "from" else {}
    at = press(open_page(live.root, "feature", f=11), how="add", places=places, new=0, **settings)
    assert not at.exception
    run = next(run for run in steering(live.root) if run.id == at.query_params["steer"])
    assert run.config["positions"] == expected
    kl = run.table("positions.parquet")["kl"].to_pylist()
    first = 1 if places == "all" else 6 if places == "last" else 2
    assert [value > 0 for value in kl] == [i >= first for i in range(len(kl))]


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("  ", {}, "There is no text yet"),
        (TEXT, {"places": "from", "start": 40}, "The first position must lie in 0..6 for this text, got 40."),
        ("word " * 90, {}, "n_ctx=64"),
        (TEXT, {"new": 90}, "fewer new tokens"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_no_run(
    live: Written, open_page, text_of, text: str, settings: dict[str, Any], message: str
) -> None:
    before = [run.ref for run in steering(live.root)]
    at = press(open_page(live.root, "feature", f=13), text, **settings)
    assert not at.exception
    assert message in next(part for part in text_of(at).split("\n") if "ms-problem" in part)
    assert [run.ref for run in steering(live.root)] == before


def test_a_dead_latent_is_steered_in_its_own_units(live: Written, open_page, text_of) -> None:
    at = press(open_page(live.root, "feature", f=live.dead), strength=4.0, new=0)
    assert not at.exception
    run = next(run for run in steering(live.root) if run.config["latent"] == live.dead)
    assert run.config["value"] == 4.0


def test_an_address_that_means_nothing_is_said_so(live: Written, open_page, text_of) -> None:
    at = open_page(live.root, "feature", f=12, steer="<script>")
    assert not at.exception
    assert "steer=&lt;script&gt;, which is no steering run" in text_of(at)


def test_without_the_dictionary_there_is_a_reason(own: Path, open_page, text_of) -> None:
    import shutil

    shutil.rmtree(own / "sae")
    at = open_page(own, "feature", f=12)
    assert not at.exception
    assert "so nothing can be steered by it" in text_of(at)


def test_a_damaged_answer_costs_only_itself(live: Written, tmp_path: Path, open_page, text_of) -> None:
    import shutil

    press(open_page(live.root, "feature", f=15), how="ablate", new=0)
    run = next(run for run in steering(live.root) if run.config["latent"] == 15)
    root = Path(shutil.copytree(live.root, tmp_path / "runs"))
    (root / run.ref / "positions.parquet").write_bytes(b"no table")
    at = open_page(root, "feature", f=15, steer=run.id)
    assert not at.exception
    assert "Examples" in text_of(at)
