"""TPP on planted codes: latents of one class each, latents that all classes share, and signed ones."""

from __future__ import annotations

import pytest
import torch

from app.studies.pooled import Pooled
from app.studies.targeted_perturbation import class_effects, targeted_perturbation
from interp.data.labelled import Labelled

CLASSES = 4


def labels(n: int) -> tuple[torch.Tensor, Labelled]:
    of = torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(6))
    texts = tuple(map(str, range(n)))
    return of, Labelled(texts, tuple(f"class {int(one)}" for one in of), texts)


def planted(kind: str, n: int = 800) -> tuple[Pooled, Labelled]:
    """Return texts whose class is written by latents of its own, or by two bits that are shared."""
    of, labelled = labels(n)
    noise = 0.02 * torch.randn(n, CLASSES, generator=torch.Generator().manual_seed(7))
    if kind == "shared":
        codes = torch.stack([(of % 2) * 2.0 - 1, (of // 2) * 2.0 - 1], 1)
        atoms = torch.eye(CLASSES)[:2]
    else:
        sign = -1.0 if kind == "signed" else 1.0
        codes = sign * torch.nn.functional.one_hot(of, CLASSES).float()
        atoms = sign * torch.eye(CLASSES)
    return Pooled(codes @ atoms + noise, codes, atoms), labelled


@pytest.mark.parametrize("kind", [pytest.param("own", marks=pytest.mark.slow), "signed"])
def test_latents_of_one_class_each(kind: str) -> None:
    pooled, labelled = planted(kind)
    found = targeted_perturbation(pooled, labelled, (1, 10))
    assert min(found.clean) > 0.99
    assert found.latents == {f"class {c}": (c,) for c in range(CLASSES)}
    for n in (1, 10):
        assert 0.4 < found.own[n] <= 0.51  # down to chance
        assert abs(found.others[n]) < 0.05
        assert found.scores[n] > 0.4
        assert found.scores[n] == found.own[n] - found.others[n]


def test_shared_latents() -> None:
    pooled, labelled = planted("shared")
    found = targeted_perturbation(pooled, labelled, (2,))
    assert min(found.clean) > 0.85
    assert found.own[2] > 0.3
    assert abs(found.scores[2]) < 0.05


def test_effects_against_a_loop() -> None:
    g = torch.Generator().manual_seed(8)
    codes = torch.randn(30, 6, generator=g) * (torch.rand(30, 6, generator=g) < 0.5)
    y, along = torch.arange(30) % 3 == 0, torch.randn(6, generator=g)
    for signed in (True, False):
        z = codes if signed else codes.abs()
        found = class_effects(z, y, along)
        for i in range(6):
            effects = []
            for sign in (1, -1):
                half = [max(0.0, sign * float(one)) for one in z[:, i]]
                gap = sum(v for v, on in zip(half, y, strict=True) if on) / int(y.sum())
                gap -= sum(v for v, on in zip(half, y, strict=True) if not on) / int((~y).sum())
                effects.append(max(0.0, gap) * sign * float(along[i]))
            wanted = max(effects) if signed else max(effects[0], 0.0)
            assert max(float(found[i]), 0.0) == pytest.approx(max(wanted, 0.0), abs=1e-5)


def test_refusals() -> None:
    pooled, labelled = planted("own", 60)
    with pytest.raises(ValueError, match="n must be at least 1"):
        targeted_perturbation(pooled, labelled, (0,))
    with pytest.raises(ValueError, match="There are 60 rows for 50 texts"):
        targeted_perturbation(pooled, labelled.sample(50))
    two = Labelled(labelled.texts, ("a", "b") * 30, labelled.groups)
    with pytest.raises(ValueError, match="three labels or more"):
        targeted_perturbation(pooled, two)
