"""All similarities of pairs of sites in one pass: equal to each alone, on the three families."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from interp.hooks import capture
from interp.layers.alignment import Alignment
from interp.layers.moments import moments_of
from interp.layers.ridge_map import fit_map
from interp.layers.similarity import PairGeometry, linear_cka, mutual_knn, procrustes_of
from interp.models import ModelHandle
from interp.sites import Site

SITES = [Site(layer, "resid_post") for layer in range(3)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_each_measure_alone_on_a_model(model: ModelHandle) -> None:
    tokens = torch.randint(1, 300, (6, 14), generator=torch.Generator().manual_seed(0))
    pairs = [(SITES[0], SITES[0]), (SITES[0], SITES[2]), (SITES[2], SITES[0])]
    found = Alignment(pairs, k=4)
    for part in tokens.split([1, 3, 2]):
        with capture(model, SITES) as acts:
            model.forward(part)
        found.update(acts, acts)
    with capture(model, SITES) as acts:
        model.forward(tokens)
    first, cross, back = found.finish()
    x, y = (acts[site][:, 1:].double() for site in (SITES[0], SITES[2]))
    flat_x, flat_y = x.flatten(0, 1), y.flatten(0, 1)
    geometry = PairGeometry()
    geometry.update(flat_x, flat_y)
    assert cross["cka"] == pytest.approx(linear_cka(flat_x, flat_y), rel=1e-4)
    assert cross["procrustes"] == pytest.approx(procrustes_of(*moments_of(flat_x, flat_y)), rel=1e-4)
    assert cross["geometry"] == pytest.approx(geometry.finish(), rel=1e-4)
    assert cross["knn"] == pytest.approx(mutual_knn(flat_x, flat_y, 4), abs=0.01)
    assert cross["knn_chance"] == pytest.approx(4 / 77)
    even, odd = (
        moments_of(x[::2].flatten(0, 1), y[::2].flatten(0, 1)),
        moments_of(*(z[1::2].flatten(0, 1) for z in (x, y))),
    )
    assert cross["map_error"] == pytest.approx(fit_map(*even[:2]).error(*odd), rel=1e-3)
    assert (cross["site_a"], cross["site_b"], cross["rows"]) == ("resid_post.0", "resid_post.2", 78)
    assert first["cka"] == first["knn"] == 1
    assert first["procrustes"] == pytest.approx(0, abs=1e-9)
    for name in ("cka", "procrustes", "geometry", "knn"):
        assert cross[name] == pytest.approx(back[name], rel=1e-6)  # the map alone has a direction


def test_the_first_position_padding_and_infinities_do_not_count() -> None:
    a, b = noise(4, 9, 5), noise(4, 9, 3, seed=1)
    usual = Alignment([(SITES[0], SITES[1])], k=3, sample=20)
    keep = torch.ones(4, 9, dtype=torch.bool)
    keep[1, 6:] = False
    keep[3, 4] = False
    usual.update({SITES[0]: a}, {SITES[1]: b}, keep)
    a, b = a.clone(), b.clone()
    a[:, 0], b[1, 6:] = 1e8, -1e8
    a[3, 4, 1] = torch.inf
    keep[3, 4] = True
    odd = Alignment([(SITES[0], SITES[1])], k=3, sample=20)
    odd.update({SITES[0]: a}, {SITES[1]: b}, keep)
    assert odd.finish() == usual.finish()
    assert odd.finish()[0]["rows"] == 4 * 8 - 3 - 1
    assert odd.finish()[0]["knn_chance"] == pytest.approx(3 / 19)


def test_one_sequence_has_no_held_out_error_and_nothing_has_nothing() -> None:
    found = Alignment([(SITES[0], SITES[0])], k=3)
    assert all(
        math.isnan(float(found.finish()[0][name])) for name in ("cka", "procrustes", "geometry", "knn", "map_error")
    )
    x = {SITES[0]: noise(1, 9, 4)}
    found.update(x, x)
    row = found.finish()[0]
    assert math.isnan(float(row["map_error"]))
    assert row["cka"] == 1
    flat = Alignment([(SITES[0], SITES[1])], k=3)
    flat.update({SITES[0]: torch.ones(4, 6, 2)}, {SITES[1]: noise(4, 6, 2)})
    assert all(math.isnan(float(flat.finish()[0][name])) for name in ("cka", "procrustes", "geometry", "map_error"))
    with pytest.raises(ValueError, match=r"k in 1\.\.sample-1=1023, got 0, 10"):
        Alignment([])
