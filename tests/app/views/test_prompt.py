"""Prompt: what it says of a text equals a computation by hand, and what it survives."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from app.widgets.dictionaries import in_order, known, model_name, models_of
from app.widgets.firing import DENSITIES, Filter, counts
from app.widgets.loaded import TEXT_LENGTH, model_key
from app.widgets.reading import Coded, Reading, read_prompt
from interp.hooks import capture
from interp.models import load_model
from interp.runs import Run, find_runs
from sae.model import load_sae
from tests.explorer_runs import Written, random_dictionary, write_runs

TEXT = "the cat <b>sat</b> on <img src=http://evil.example/x.png> ![x](y) $z$"
SITES = ("mlp_out.1", "resid_post.0")


@pytest.fixture(scope="module")
def real(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Dictionaries that can be loaded: with features at mlp_out.1, without at resid_post.0."""
    root = tmp_path_factory.mktemp("prompt") / "runs"
    for site in reversed(SITES):
        written = write_runs(root, model=str(model_folder), site=site, d_sae=64, d_in=32, save=random_dictionary)
        if site == SITES[1]:
            shutil.rmtree(written.features.path)
            shutil.rmtree(written.evaluation.path)
    return written


@pytest.fixture(scope="module")
def dictionaries(real: Written) -> list[Run]:
    runs = find_runs(real.root, kind="sae", finished=True)
    return in_order(runs, model_key(runs[0].config))


@pytest.fixture(scope="module")
def reading(dictionaries: list[Run]) -> Reading:
    return read_prompt(dictionaries, TEXT)


def run_text(at, text: str | None = None):
    if text is not None:
        at.text_area[0].set_value(text)
    next(button for button in at.button if button.label == "Run").click().run()
    return at


def test_losses_and_predictions_are_those_of_the_model(reading: Reading, model_folder: Path) -> None:
    model = load_model(str(model_folder))
    tokens = model.tokens(TEXT)
    log_p = model.logits(tokens)[0].log_softmax(-1)
    wanted = [-float(log_p[i, tokens[0, i + 1]]) for i in range(tokens.shape[1] - 1)]
    assert reading.start == 1
    assert reading.ids == tokens[0, 1:].tolist()
    assert reading.loss == pytest.approx(wanted, abs=1e-5)
    for at in (0, 5, len(reading.ids) - 1):
        p = log_p[at + 1].exp()
        best = p.argsort(descending=True)[:10]
        assert [text for text, _ in reading.likely[at]] == model.token_strings(best)
        assert [q for _, q in reading.likely[at]] == pytest.approx(p[best].tolist(), abs=1e-6)
    text, p, rank = reading.follows[0] or ("", 0.0, 0)
    assert text == model.token_strings(tokens[0, 2:3])[0]
    assert p == pytest.approx(math.exp(-reading.loss[1]), rel=1e-4)
    assert rank == int((log_p[1] > log_p[1, tokens[0, 2]]).sum()) + 1
    assert reading.follows[-1] is None


def test_codes_are_those_of_each_dictionary(reading: Reading, dictionaries: list[Run], model_folder: Path) -> None:
    model = load_model(str(model_folder))
    tokens = model.tokens(TEXT)
    for run in dictionaries:
        with torch.no_grad(), capture(model, run.config["site"], stop=True) as seen:
            model.forward(tokens)
        x = seen[run.config["site"]][0, 1:]
        with torch.no_grad():
            estimate, code = load_sae(run)(x)
        coded = reading.coded[run.ref]
        found = torch.zeros(len(x), 64)
        for token in range(len(x)):
            latents, values = coded.active(token)
            found[token, latents] = torch.tensor(values)
            assert (np.diff(np.abs(values)) <= 0).all()
        torch.testing.assert_close(found, code.dense())
        fvu = (x - estimate).square().sum() / (x - x.mean(0)).square().sum()
        assert coded.error.mean() == pytest.approx(float(fvu), rel=1e-4)


def test_dictionaries_come_in_the_order_of_the_model(dictionaries: list[Run]) -> None:
    assert [run.config["site"] for run in dictionaries] == ["resid_post.0", "mlp_out.1"]


def test_what_is_known_of_a_latent_is_read_from_its_features(real: Written, dictionaries: list[Run]) -> None:
    nothing, described = known(dictionaries, real.root)
    latents = np.array([5, 3, 10_000])
    assert nothing.features is None
    assert np.isnan(nothing.densities(latents)).all()
    density = real.features.table("latents.parquet")["density"].to_pylist()
    np.testing.assert_array_equal(described.densities(latents), [density[5], density[3], np.nan])
    peak = real.features.table("latents.parquet")["max"].to_pylist()
    np.testing.assert_allclose(described.peaks(latents[:2]), [peak[5], peak[3]])


def test_the_filter_hides_the_dense_and_counts_the_rest() -> None:
    coded = Coded(np.array([0, 3, 4]), np.array([2, 0, 1, 0]), np.array([3.0, -2, 1, 5], np.float32), np.zeros(2))

    class Fake(SimpleNamespace):
        def densities(self, latents):
            return np.array([0.5, 0.01, np.nan])[latents]

        def peaks(self, latents):
            return np.array([2.0, 1.0, np.nan])[latents]

    fake: object = Fake()
    assert counts(fake, coded, Filter()).tolist() == [2, 0]  # type: ignore[arg-type]
    assert counts(fake, coded, Filter("all")).tolist() == [3, 1]  # type: ignore[arg-type]
    latents, values = coded.active(0)
    assert latents[Filter().sort(fake, latents, values)].tolist() == [2, 0, 1]  # type: ignore[arg-type]
    by_max = Filter(order="activation / max").sort(fake, latents, values)  # type: ignore[arg-type]
    assert latents[by_max].tolist() == [0, 1, 2]


def test_densities_are_cubic_and_can_be_told_apart() -> None:
    assert Filter().density == "10%"
    assert Filter().limit == pytest.approx(0.1, rel=0.01)
    assert len(set(DENSITIES)) == len(DENSITIES)
    limits = [Filter(density).limit for density in DENSITIES]
    assert limits == sorted(limits)
    assert limits[-1] == math.inf


def test_equal_models_have_one_key() -> None:
    full = {"model": {"name": "tiny", "revision": None, "dtype": "float32", "recipe": []}}
    assert model_key(full) == model_key({"model": "tiny"}) == model_key({"model": {"name": "tiny"}})
    assert model_key({}) == model_key({"model": 3}) == ""
    assert model_name(model_key({"model": {"name": "a/b<c>", "dtype": "float16"}})) == 'b<c>·{"dtype":·"float16"}'


def test_nothing_is_loaded_until_run_is_pressed(real: Written, open_page, text_of) -> None:
    at = open_page(real.root, "prompt")
    assert not at.exception
    assert "through 2 dictionaries (resid_post.0, mlp_out.1)" in text_of(at)
    assert not at.get("plotly_chart")
    assert not open_page(real.root, "prompt", text=TEXT).get("plotly_chart")


def test_a_link_with_a_text_shows_everything_about_it(real: Written, reading: Reading, open_page, text_of) -> None:
    at = run_text(open_page(real.root, "prompt", text=TEXT, by="activation / max", dens="all"))
    page = text_of(at)
    assert not at.exception
    assert "ms-problem" not in page
    last = len(reading.tokens)
    assert at.query_params["text"] == TEXT
    assert at.query_params["pos"] == str(last)
    assert page.count('class="ms-layer"') == 2
    assert f"{last} tokens, mean" in page
    at.query_params["pos"] = "3"
    bare = next(ref for ref in reading.coded if ref != real.sae.ref)
    at.query_params["sae"] = bare.removeprefix("sae/")
    at.run()
    assert at.number_input[0].value == 3
    latents, _ = reading.coded[bare].active(2)
    assert f'<span class="ms-number">{latents[0]}</span>' in text_of(at)
    assert f"{len(latents)} fire" in text_of(at)
    links = [link.proto for link in at.get("page_link") if link.proto.label.isdigit()]
    described, _ = reading.coded[f"sae/{real.sae.name}"].active(2)
    assert {int(link.label) for link in links} <= set(described.tolist())
    assert all(f"run={real.features.name}&f={link.label}&text=" in link.query_string for link in links)
    assert len(links) == 5


def test_hidden_features_are_counted(real: Written, reading: Reading, open_page, text_of) -> None:
    density = np.array(real.features.table("latents.parquet")["density"].to_pylist())
    coded = reading.coded[real.sae.ref]
    token = int(np.argmax([(density[coded.active(t)[0]] > 0.1).sum() for t in range(len(reading.tokens))]))
    hidden = int((density[coded.active(token)[0]] > 0.1).sum())
    assert hidden
    page = text_of(run_text_at(open_page(real.root, "prompt", text=TEXT), token + 1))
    assert f"{hidden} denser than 10% hidden" in page


def run_text_at(at, position: int):
    run_text(at)
    at.query_params["pos"] = str(position)
    return at.run()


def test_the_keys_walk_and_choose_a_dictionary(real: Written, open_page) -> None:
    at = run_text_at(open_page(real.root, "prompt", text=TEXT), 4)
    at.button(key="go-Right").click().run()
    assert at.query_params["pos"] == "5"
    at.button(key="go-Left").click().run()
    at.number_input[0].set_value(7).run()
    assert at.query_params["pos"] == "7"
    box = next(box for box in at.selectbox if box.label == "Dictionary")
    assert box.value == real.sae.name
    other = next(run.name for run in find_runs(real.root, kind="sae") if run.name != box.value)
    box.set_value(other).run()
    assert at.query_params["sae"] == other


def test_another_text_begins_at_its_end(real: Written, open_page) -> None:
    at = run_text_at(open_page(real.root, "prompt", text=TEXT), 4)
    run_text(at, "the cat")
    assert at.query_params["text"] == "the cat"
    assert int(at.query_params["pos"]) == at.number_input[0].max > 1


def test_hostile_text_is_shown_literally(real: Written, open_page, text_of) -> None:
    at = run_text(open_page(real.root, "prompt", text=TEXT + "\u202e\u200b\x00</style><script>alert(1)</script>"))
    page = text_of(at)
    assert not at.exception
    for markup in ("<script", "<img", "</style", "<b>sat", "\u202e", "\u200b", "\x00"):
        assert markup not in page
    marked = " ".join(element.value for element in [*at.markdown, *at.caption, *at.title, *at.text])
    assert "evil" not in marked
    assert "![x]" not in marked


def test_junk_in_the_address_falls_back_with_notes(real: Written, open_page, text_of) -> None:
    at = run_text(open_page(real.root, "prompt", text=TEXT, sae="<script>", dens="12", by="x", cell="y"))
    page = text_of(at)
    assert not at.exception
    for text in ("sae=&lt;script&gt;", "dens=12", "by=x", "cell=y"):
        assert f"The address asked for {text}, which is not" in page
    at.query_params["pos"] = "99999"
    assert "asked for pos=99999" in text_of(at.run())


def test_a_long_text_is_cut_and_stays_out_of_the_address(real: Written, open_page, text_of) -> None:
    at = open_page(real.root, "prompt", text="the cat " * 1000)
    assert len(at.text_area[0].value) == TEXT_LENGTH
    run_text(at)
    assert "Only the first 63 tokens were read." in text_of(at)  # the model's context, less the BOS
    run_text(at, "é😀" * 200)
    assert "text" not in at.query_params
    assert at.get("plotly_chart")


@pytest.mark.parametrize("text", ["", "   "])
def test_a_text_of_nothing_is_no_error(real: Written, open_page, text_of, text) -> None:
    at = run_text(open_page(real.root, "prompt"), text)
    assert not at.exception
    assert "ms-foot" in text_of(at)


def test_a_dictionary_that_does_not_fit_costs_only_itself(real: Written, tmp_path, open_page, text_of) -> None:
    root = Path(shutil.copytree(real.root, tmp_path / "runs"))
    write_runs(
        root, model=real.sae.config["model"]["name"], site="resid_post.9", d_sae=24, d_in=32, save=random_dictionary
    )
    page = text_of(run_text(open_page(root, "prompt", text=TEXT)))
    assert "is left out: resid_post.9 lies beyond this model" in page
    assert page.count('class="ms-layer"') == 2


def test_a_model_that_is_missing_is_named(tmp_path: Path, open_page, text_of) -> None:
    written = write_runs(tmp_path / "runs", model=str(tmp_path / "no-such-model"), d_sae=24)
    at = open_page(written.root, "prompt", text="hello there")
    assert "ms-problem" not in text_of(at)
    run_text(at)
    assert not at.exception
    assert "no-such-model" in "".join(part for part in text_of(at).split("\n") if "ms-problem" in part)


def test_without_a_dictionary_it_says_what_makes_one(tmp_path: Path, open_page, text_of) -> None:
    at = open_page(tmp_path / "none", "prompt")
    assert not at.exception
    assert "No dictionary here yet" in text_of(at)
    assert any(block.value == "mechscope demo" for block in at.code)


def test_models_are_chosen_apart(real: Written, tmp_path: Path, open_page, text_of) -> None:
    root = Path(shutil.copytree(real.root, tmp_path / "runs"))
    write_runs(root, d_sae=24)
    assert len(models_of(find_runs(root, kind="sae"))) == 2
    at = open_page(root, "prompt")
    assert "through 1 dictionary (resid_post.2)" in text_of(at)
    box = next(box for box in at.selectbox if box.label == "Model")
    before = at.query_params["m"]
    assert box.index is not None
    box.select_index(1 - box.index).run()
    assert at.query_params["m"] != before
    assert "through 2 dictionaries" in text_of(at)
