"""k-sparse probing of planted codes, and of true and false statements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from app.studies.pooled import Pooled, pool
from app.studies.sparse_probing import logistic_accuracy, sparse_probing, strongest
from interp.data.labelled import Labelled, read_labelled
from interp.models import ModelHandle
from sae.config import SaeConfig
from sae.model import Sae


def planted(n: int = 300, classes: int = 2, signed: bool = False) -> tuple[Pooled, Labelled]:
    """Return codes whose latent 7 + c is on exactly in class c, over neurons that mix all latents."""
    g = torch.Generator().manual_seed(1)
    label = torch.randint(classes, (n,), generator=g)
    codes = 4 * torch.rand(n, 20, generator=g) * (torch.rand(n, 20, generator=g) < 0.3)
    codes[:, 7 : 7 + classes] = torch.nn.functional.one_hot(label, classes) * (-2.0 if signed else 2.0)
    atoms = torch.linalg.qr(torch.randn(20, 20, generator=g))[0]
    names = tuple(f"class {int(one)}" for one in label)
    texts = tuple(map(str, range(n)))
    return Pooled(codes @ atoms, codes, atoms), Labelled(texts, names, texts)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_one_latent_that_equals_the_label(classes: int, signed: bool) -> None:
    pooled, labelled = planted(classes=classes, signed=signed)
    found = sparse_probing(pooled, labelled, (1, 2))
    assert found.mean("latents", 1) == found.mean("latents", 2) == 1
    assert found.mean("neurons", 1) < 1
    assert found.mean("neurons", None) == 1
    for score in found.scores:
        if (score.columns, score.k) == ("latents", 1):
            both = (7, 8) if classes == 2 else (7 + int(score.label[-1]),)
            assert score.chosen[0] in both
    assert (found.train, found.test) == (240, 60)
    assert len(found.majority) == (1 if classes == 2 else 3)


def test_labels_that_mean_nothing_are_not_told() -> None:
    pooled, labelled = planted(n=600)
    order = np.random.default_rng(3).permutation(600)
    shuffled = Labelled(labelled.texts, tuple(labelled.labels[i] for i in order), labelled.groups)
    found = sparse_probing(pooled, shuffled, (1, 5))
    for columns, k in (("latents", 1), ("latents", 5), ("neurons", 5), ("neurons", None)):
        assert abs(found.mean(columns, k) - 0.5) < 4 * 0.5 / 120**0.5


def test_choice_sees_the_training_part_only() -> None:
    pooled, labelled = planted()
    train = torch.from_numpy(labelled.split(0.2, 0))
    first = sparse_probing(pooled, labelled, (5,))
    spoilt = pooled.codes.clone()
    spoilt[~train] = torch.rand(int((~train).sum()), 20)
    second = sparse_probing(Pooled(pooled.raw, spoilt, pooled.atoms), labelled, (5,))
    assert first.scores[0].chosen == second.scores[0].chosen
    assert first.scores[0].accuracy == 1
    assert second.scores[0].accuracy < 1


def test_the_unit_of_a_column_does_not_matter() -> None:
    pooled, labelled = planted()
    train = labelled.split(0.2, 0)
    y, x = labelled.is_class("class 1"), pooled.raw.double().numpy()[:, :3]
    assert logistic_accuracy(x, y, train) == logistic_accuracy(x * [1e-4, 1, 1e4], y, train)


def test_strongest_against_a_loop() -> None:
    g = np.random.default_rng(0)
    x, y = g.normal(size=(30, 9)), np.arange(30) % 3 == 0
    gaps = [abs(sum(x[y, j]) / sum(y) - sum(x[~y, j]) / sum(~y)) for j in range(9)]
    assert strongest(x, y, 4).tolist() == sorted(range(9), key=lambda j: -gaps[j])[:4]


def test_refusals() -> None:
    pooled, labelled = planted(50)
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.20 .*got 21"):
        sparse_probing(pooled, labelled, (21,))
    with pytest.raises(ValueError, match="There are 50 rows for 40 texts"):
        sparse_probing(pooled, labelled.sample(40))
    with pytest.raises(ValueError, match="no probe on latents with k=3"):
        sparse_probing(pooled, labelled).mean("latents", 3)


@pytest.mark.data
def test_statements_through_a_model(gpt2: ModelHandle, data_dir: Path) -> None:
    path = data_dir / "probes" / "geometry-of-truth" / "cities.csv"
    labelled = read_labelled(path, text="statement", group="city").sample(60)
    torch.manual_seed(0)
    sae = Sae(SaeConfig(32, 40, "topk", {"k": 8}, "none")).eval()
    sae.W_enc.data = torch.randn_like(sae.W_enc)
    pooled = pool(gpt2, "resid_post.1", sae, labelled.texts, context=48)
    found = sparse_probing(pooled, labelled)
    assert len(found.scores) == 7
    assert all(0 <= score.accuracy <= 1 for score in found.scores)
