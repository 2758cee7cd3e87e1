"""Latents against probes: the best column is chosen on the training part, and what it is held against."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from app.studies import latent_auroc as module
from app.studies.latent_auroc import best_column, latent_auroc, two_sided_null
from app.studies.pooled import Pooled, pool
from interp.data.labelled import Labelled
from interp.hooks import capture
from interp.models import ModelHandle
from probes.logistic import LogisticProbe
from sae.config import SaeConfig
from sae.initialise import initialise
from sae.model import Sae

SITE = "resid_post.1"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A logistic probe that chooses from two penalties."""
    monkeypatch.setattr(module, "LogisticProbe", lambda: LogisticProbe(grid=(0.01, 1.0)))


def dictionary(model: ModelHandle) -> Sae:
    sae = Sae(SaeConfig(model.width(SITE), 48, "topk", {"k": 5}))
    with capture(model, SITE) as taken:
        model.forward(torch.randint(1, 300, (4, 30), generator=torch.Generator().manual_seed(3)))
    initialise(sae, taken[SITE].flatten(0, 1), seed=9)
    return sae.eval()


def labelled(classes: int = 2) -> Labelled:
    """Return 96 texts of 24 groups; the label is the last word, and longer texts are not of one label."""
    ends = ("cat", "king", "sea")[:classes]
    rows = [
        ("the log " * (1 + group % 5) + f"of {group} and the {word}" + " x" * twice, word, str(group))
        for group in range(24 if classes == 2 else 16)
        for word in ends
        for twice in (0, 1)
    ]
    return Labelled(*zip(*rows, strict=True))


def test_the_best_column_is_the_one_furthest_from_a_half() -> None:
    assert best_column(np.array([0.6, 0.1, 0.85])) == (1, -1, pytest.approx(0.9))
    assert best_column(np.array([0.5, 0.5])) == (0, 1, 0.5)
    assert best_column(np.array([0.4, 0.75, 0.25]))[:2] == (1, 1)  # the first of equals


def test_the_null_knows_both_signs() -> None:
    rng = np.random.default_rng(0)
    y = rng.random(80) < 0.5
    x = np.repeat(rng.normal(size=(80, 1)), 2, 1) * [1, -1]
    both, one = two_sided_null(x, y, 20, 0), two_sided_null(x[:, :1], y, 20, 0)
    np.testing.assert_allclose(both, one)  # the same column backwards adds nothing
    assert (both >= 0.5).all()
    many = two_sided_null(rng.normal(size=(80, 300)), y, 20, 0)
    assert many.mean() > 0.62 > one.mean()


def planted(model: ModelHandle, monkeypatch: pytest.MonkeyPatch, codes: torch.Tensor) -> Sae:
    """Make `pool` return these codes for the dictionary that comes back."""
    learned = dictionary(model)

    def pooled(handle: ModelHandle, site: str, sae: Sae, *rest: object, **settings: object) -> Pooled:
        found = pool(handle, site, sae, *rest, **settings)  # type: ignore[arg-type]
        return Pooled(found.raw, codes if sae is learned else found.codes, found.atoms, 0, found.active)

    monkeypatch.setattr(module, "pool", pooled)
    return learned


def test_a_planted_latent_is_found_and_its_area_is_that_of_the_test_part(
    gpt2: ModelHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = labelled()
    y, train = texts.is_class("king"), texts.split(0.4, 0)
    g = torch.Generator().manual_seed(0)
    codes = torch.rand(96, 48, generator=g) * (torch.rand(96, 48, generator=g) < 0.2)
    codes[:, 11] = torch.from_numpy(np.where(y, 0.0, 1.0)) + 0.8 * torch.rand(96, generator=g)  # silent with the label
    sae = planted(gpt2, monkeypatch, codes)
    found = latent_auroc(gpt2, sae, SITE, texts, resamples=30, draws=5)
    row = found.tables["best"].to_pylist()[0]
    assert (row["label"], row["columns"], row["column"], row["sign"]) == ("king", "latents", 11, -1)
    x = codes[:, 11].numpy()
    assert row["test"] == pytest.approx(roc_auc_score(y[~train], -x[~train]))
    assert row["train"] == pytest.approx(roc_auc_score(y[train], -x[train]))
    assert row["null_high"] < row["train"]
    assert row["low"] <= row["test"] <= row["high"]
    top = found.tables["top"].to_pylist()
    assert top[0]["latent"] == 11
    assert top[0]["test"] == pytest.approx(1 - row["test"])


def test_a_latent_that_is_right_on_the_training_part_only_is_at_chance(
    gpt2: ModelHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = labelled()
    y, train = texts.is_class("king"), texts.split(0.4, 0)
    g = torch.Generator().manual_seed(0)
    codes = torch.zeros(96, 48)
    noise = torch.rand(96, generator=g)
    codes[:, 5] = torch.where(torch.from_numpy(train), torch.from_numpy(y).float(), noise)
    sae = planted(gpt2, monkeypatch, codes)
    row = latent_auroc(gpt2, sae, SITE, texts, resamples=30, draws=5).tables["best"].to_pylist()[0]
    assert row["column"] == 5
    assert row["train"] == 1.0
    assert abs(row["test"] - 0.5) < 0.2


@pytest.mark.parametrize("classes", [2, 3])
def test_all_columns_of_every_label(gpt2: ModelHandle, classes: int) -> None:
    heard: list[int] = []
    texts = labelled(classes)
    found = latent_auroc(gpt2, dictionary(gpt2), SITE, texts, resamples=30, draws=3, on_progress=heard.append)
    rows = found.tables["best"].to_pylist()
    kinds = ["latents", "neurons", "coordinates", "random latents", "position", "probe"]
    assert [r["columns"] for r in rows] == kinds * (1 if classes == 2 else 3)
    width = {r["columns"]: r["n_columns"] for r in rows}
    assert width == dict(zip(kinds, (48, 128, 32, 48, 1, 32), strict=True))
    assert heard[-1] == 3 * len(texts)
    assert heard == sorted(heard)
    ceiling = next(r for r in rows if r["columns"] == "probe")
    assert ceiling["column"] is None
    assert ceiling["null"] is None


def test_the_same_request_has_the_same_answer(gpt2: ModelHandle) -> None:
    found, again = (latent_auroc(gpt2, dictionary(gpt2), SITE, labelled(), resamples=10, draws=2) for _ in range(2))
    assert again.summary == found.summary


def test_the_position_is_what_tells_where_length_does(gpt2: ModelHandle) -> None:
    rows = [(f"{group} the" + " cat" * (1 + 6 * long) + " sat", str(long), str(group))
            for group in range(24) for long in (0, 1)]  # fmt: skip
    texts = Labelled(*zip(*rows, strict=True))
    found = latent_auroc(gpt2, dictionary(gpt2), SITE, texts, resamples=30, draws=3)
    assert found.summary["position"] == 1.0
