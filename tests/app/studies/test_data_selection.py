"""Data selection: the similarity from its definition, planted codes, ties, and what has to be beaten."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from app.studies import data_selection as module
from app.studies.data_selection import cosine, data_selection, halves, jaccard, precision_at
from app.studies.pooled import Pooled, pool
from app.studies.random_dictionary import random_dictionary
from interp.data.labelled import Labelled
from interp.models import ModelHandle
from sae.config import SaeConfig
from sae.initialise import initialise
from sae.model import Sae

WORDS = ("cat", "dog", "king", "queen", "sea", "land")


def codes(n: int = 40, d: int = 9, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((n, d)) * (rng.random((n, d)) < 0.4)


def dictionary(model: ModelHandle, rule: str = "topk", site: str = "resid_post.1") -> Sae:
    from interp.hooks import capture

    sae = Sae(SaeConfig(model.width(site), 48, rule, {"k": 5}))
    with capture(model, site) as taken:
        model.forward(torch.randint(1, 300, (4, 30), generator=torch.Generator().manual_seed(3)))
    initialise(sae, taken[site].flatten(2).flatten(0, 1), seed=9)
    return sae.eval()


def labelled() -> Labelled:
    """Return 60 texts of 15 groups; the label is told by the first word."""
    rows = [
        (f"the {word} and the {other} of group {group}", label, str(group))
        for group in range(15)
        for label, word in (("animal", WORDS[group % 2]), ("person", WORDS[2 + group % 2]))
        for other in ("sea", "land")
    ]
    return Labelled(*zip(*rows, strict=True))


def test_the_similarity_is_its_definition() -> None:
    z, p = codes(), codes(1, seed=1)[0]
    wanted = [sum(map(min, row, p)) / sum(map(max, row, p)) for row in z.tolist()]
    np.testing.assert_allclose(jaccard(z, p), wanted, atol=1e-12)
    assert jaccard(p[None], p)[0] == pytest.approx(1)
    assert jaccard(np.zeros((1, 9)), np.zeros(9))[0] == 0
    # Of sets, 0 and 1, it is what they share over what they have.
    a, b = np.array([[1.0, 1, 0, 0]]), np.array([0.0, 1, 1, 0])
    assert jaccard(a, b)[0] == pytest.approx(1 / 3)


def test_it_does_not_depend_on_the_unit_or_the_order_of_latents() -> None:
    z, p = codes(), codes(1, seed=1)[0]
    order = np.random.default_rng(0).permutation(9)
    np.testing.assert_allclose(jaccard(7 * z[:, order], 7 * p[order]), jaccard(z, p), atol=1e-12)
    assert ((jaccard(z, p) >= 0) & (jaccard(z, p) <= 1)).all()


def test_signed_codes_are_split_and_opposite_signs_share_nothing() -> None:
    z = np.array([[2.0, -1.0], [-2.0, 1.0]])
    np.testing.assert_array_equal(halves(z), [[2, 0, 0, 1], [0, 1, 2, 0]])
    assert jaccard(halves(z)[:1], halves(z)[1])[0] == 0
    assert halves(np.abs(z)).shape == (2, 2)
    with pytest.raises(ValueError, match=r"split signed codes by halves\(\)"):
        jaccard(z, np.abs(z[0]))


def test_cosine_of_nothing_is_nothing() -> None:
    np.testing.assert_allclose(cosine(np.array([[3.0, 4.0], [0, 0]]), np.array([4.0, 3.0])), [24 / 25, 0])


def test_precision_is_fair_to_equal_scores() -> None:
    wanted = np.array([True, False, True, False])
    assert precision_at(np.array([4.0, 3, 2, 1]), wanted, 1) == 1
    assert precision_at(np.array([4.0, 3, 2, 1]), wanted, 3) == pytest.approx(2 / 3)
    assert all(precision_at(np.zeros(4), wanted, k) == 0.5 for k in (1, 2, 3, 4))  # however the rows are ordered
    # The first is sure, the second is one of three, one of which is wanted.
    assert precision_at(np.array([9.0, 1, 1, 1]), wanted, 2) == pytest.approx((1 + 1 / 3) / 2)
    with pytest.raises(ValueError, match=r"k must lie in 1..4, the number of texts, got 5"):
        precision_at(np.zeros(4), wanted, 5)


def test_expected_precision_is_the_mean_over_orders() -> None:
    rng = np.random.default_rng(0)
    scores, wanted = np.round(rng.random(30) * 4), rng.random(30) < 0.4
    drawn = []
    for _ in range(3000):
        order = rng.permutation(30)
        drawn.append(wanted[order][np.argsort(-scores[order], kind="stable")[:7]].mean())
    assert precision_at(scores, wanted, 7) == pytest.approx(np.mean(drawn), abs=0.01)


@pytest.mark.parametrize("signed", [False, True])
def test_planted_latents_select_their_class(gpt2: ModelHandle, monkeypatch: pytest.MonkeyPatch, signed: bool) -> None:
    texts = labelled()
    first = torch.from_numpy(texts.is_class("animal"))
    g = torch.Generator().manual_seed(0)
    planted = torch.rand(60, 48, generator=g) * (torch.rand(60, 48, generator=g) < 0.1)
    # One latent tells; signed, only its sign does.
    planted[:, 3] = torch.where(first, 2.0, -2.0 if signed else 0.0)

    def pooled(handle: ModelHandle, site: str, sae: Sae, *rest: object, **settings: object) -> Pooled:
        found = pool(handle, site, sae, *rest, **settings)  # type: ignore[arg-type]
        return Pooled(found.raw, planted if sae is learned else found.codes, found.atoms, 0, found.active)

    learned = dictionary(gpt2)
    monkeypatch.setattr(module, "pool", pooled)
    found = data_selection(gpt2, learned, "resid_post.1", texts, resamples=30)
    rows = {(r["method"], r["label"]): r for r in found.tables["selection"].to_pylist()}
    assert rows["dictionary", "animal"]["auroc"] == 1.0
    if signed:  # both signs tell, each its class
        assert rows["dictionary", "person"]["auroc"] == 1.0
    top = found.tables["prototypes"].to_pylist()[0]
    assert (top["label"], top["latent"], top["sign"], top["weight"]) == ("animal", 3, 1, pytest.approx(2.0))
    assert {r["own"] for r in found.tables["ranked"].to_pylist() if r["label"] == "animal" and r["rank"] <= 10} == {
        "animal"
    }


def test_all_methods_and_tables(gpt2: ModelHandle) -> None:
    heard: list[int] = []
    texts = labelled()
    sae = dictionary(gpt2)
    found = data_selection(gpt2, sae, "resid_post.1", texts, resamples=30, top=(5, 500), on_progress=heard.append)
    rows = found.tables["selection"].to_pylist()
    assert len(rows) == 12
    assert len({r["method"] for r in rows}) == 6
    assert all(0 <= r["low"] <= r["auroc"] <= r["high"] <= 1 and r["chance"] == 0.5 for r in rows)
    assert {r["k"] for r in found.tables["precision"].to_pylist()} == {5}
    assert heard[-1] == 120
    assert heard == sorted(heard)
    assert found.summary["active"] == 5
    # The label is a word: the bag of tokens finds it where groups share words.
    assert found.summary["bag_of_tokens_auroc"] > 0.9  # type: ignore[operator]
    again = data_selection(gpt2, sae, "resid_post.1", texts, resamples=30, top=(5, 500))
    assert again.summary == found.summary


@pytest.mark.parametrize("rule", ["topk", "abs_topk"])
def test_a_random_dictionary_keeps_size_scale_and_sparsity(gpt2: ModelHandle, rule: str) -> None:
    sae = dictionary(gpt2, rule)
    other = random_dictionary(sae, 5.4, signed=rule == "abs_topk", seed=1)
    x = torch.randn(20, sae.d_in, generator=torch.Generator().manual_seed(0))
    code = other.encode(x).dense()
    assert code.shape == (20, 48)
    assert ((code != 0).sum(1) == 5).all()
    assert bool((code < 0).any()) == (rule == "abs_topk")
    assert torch.allclose(other.normaliser.into(x)[0], sae.normaliser.into(x)[0])
    assert not torch.allclose(other.W_dec, random_dictionary(sae, 5.4, seed=2).W_dec)
