from __future__ import annotations

from typing import Any

import pytest
import torch

from interp.hooks import patch
from interp.sites import Site
from sae.features import weights
from sae.features.weights import direct_logits, nearest, to_residual


def slow_weights(handle: Any, atom: list[float]) -> list[float]:
    """Work out W_U (g * (d - mean d)) minus its mean over the vocabulary, number by number."""
    norm = handle.final_norm
    mean = sum(atom) / len(atom) if handle.family != "llama" else 0.0
    scaled = [float(g) * (a - mean) for g, a in zip(norm.weight, atom, strict=True)]
    raw = [sum(float(u) * s for u, s in zip(row, scaled, strict=True)) for row in handle.unembed()]
    centre = sum(raw) / len(raw)
    return [value - centre for value in raw]


def test_direct_logits_follow_the_definition(model: Any) -> None:
    atoms = torch.randn(3, model.d_model, generator=torch.Generator().manual_seed(1))
    found = direct_logits(model, Site(1, "resid_post"), atoms, 10)
    assert found is not None
    for latent in range(3):
        expected = torch.tensor(slow_weights(model, atoms[latent].tolist()))
        torch.testing.assert_close(found.top[latent], expected.topk(10).values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.bottom[latent], expected.sort().values[:10], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(expected[found.top_ids[latent]], found.top[latent], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(expected[found.bottom_ids[latent]], found.bottom[latent], rtol=1e-4, atol=1e-5)


def test_adding_an_atom_to_the_last_residual_moves_the_logits_along_its_weights(model: Any) -> None:
    atom = torch.randn(1, model.d_model, generator=torch.Generator().manual_seed(2))
    tokens, last = torch.arange(5, 13)[None], Site(model.n_layers - 1, "resid_post")
    # Along x itself the norm's scale changes too; the definition leaves that out, so it is taken off the atom here.
    seen: list[torch.Tensor] = []

    def add(x: torch.Tensor, size: float) -> torch.Tensor:
        seen.append(x)
        centred = x - x.mean(-1, keepdim=True) if model.family != "llama" else x
        direction = atom - (atom * centred).sum(-1, keepdim=True) / (centred * centred).sum(-1, keepdim=True) * centred
        return x + size * direction

    with patch(model, last, lambda x: add(x, 1e-2)):
        moved = model.logits(tokens)
    difference = ((moved - model.logits(tokens)) / 1e-2)[0, -1]
    difference -= difference.mean()
    x = seen[0][0, -1]
    centred = x - x.mean() if model.family != "llama" else x
    direction = atom - (atom @ centred) / (centred @ centred) * centred
    found = direct_logits(model, last, direction, 300)
    assert found is not None
    expected = torch.zeros(300).scatter(0, found.top_ids[0], found.top[0])
    scale = (centred.square().mean() + 1e-5).sqrt()
    torch.testing.assert_close(difference * scale, expected, rtol=5e-2, atol=5e-2 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["mlp_act", "head_out"])
def test_atoms_inside_a_block_go_through_its_output_matrix(kind: str, model: Any) -> None:
    site = Site(1, kind)
    out = Site(1, "mlp_out" if kind == "mlp_act" else "attn_out")
    atoms = torch.randn(2, model.width(site), generator=torch.Generator().manual_seed(3))
    from interp.hooks import capture

    tokens = torch.arange(5, 9)[None]
    with capture(model, [out]) as clean:
        model.forward(tokens)
    with patch(model, site, lambda x: x + atoms[0].view(x.shape[2:])), capture(model, [out]) as moved:
        model.forward(tokens)
    written = to_residual(model, site, atoms)
    assert written is not None
    torch.testing.assert_close((moved[out] - clean[out])[0, -1], written[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["q", "k", "v"])
def test_sites_without_a_direct_path_have_no_logits(kind: str, gpt2: Any) -> None:
    assert direct_logits(gpt2, Site(1, kind), torch.randn(2, 32), 5) is None


def test_nearest_are_the_largest_cosines_without_oneself(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(13, 5, generator=torch.Generator().manual_seed(4))
    rows[7] = 3 * rows[2]
    rows[9] = 0
    monkeypatch.setattr(weights, "PRODUCT_FLOATS", 40)  # several chunks
    values, others = nearest(rows, 4)
    assert values[2, 0] == pytest.approx(1)
    assert others[2, 0] == 7
    for row in range(13):
        cosines = []
        for other in range(13):
            length = float(rows[row].norm() * rows[other].norm())
            cosine = sum(float(a) * float(b) for a, b in zip(rows[row], rows[other], strict=True)) / (length or 1.0)
            cosines.append((-cosine, other))
        expected = sorted(pair for pair in cosines if pair[1] != row)[:4]
        assert values[row].tolist() == pytest.approx([-c for c, _ in expected], abs=1e-6)
        assert row not in others[row]


def test_a_dictionary_of_one_latent_has_no_neighbours() -> None:
    values, others = nearest(torch.ones(1, 3), 4)
    assert values.shape == others.shape == (1, 0)
