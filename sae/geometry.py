"""Geometry of a trained dictionary: how crowded its atoms are, how many directions its codes use, what survives a seed.

    Babel            mu_1(r) = max_j of the sum of the r largest |<d_i, d_j>|, i != j (Tropp 2004), over all atoms or
                     over those that are on together in a row
    effective rank   exp(entropy of the eigenvalues of Z^T Z over their sum) (Roy and Vetterli 2007)
    ZF plot          ||z|| against ||f||: were atoms orthogonal, a row would be as long as its code (Lee et al. 2025,
                     arXiv 2503.24277);  eps_LBO = | ||z||^2 - ||f||^2 | / ((d_sae - 1) ||f||^2)  bounds their |cosine|
    stability        how well the atoms of two trainings match, beside random atoms of the same number and width

"On" is `!= 0` throughout, and cosines count without their sign.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from sae.code import Code
from sae.matching import cosines, match
from sae.model import Sae
from sae.synthetic.truth import stream

if TYPE_CHECKING:
    import pyarrow as pa

PIECE = 1 << 24
"""Largest piece of a Gram matrix that is held at once, in numbers (128 MiB in float64)."""


def babel(atoms: Float[Tensor, "d_sae d_in"], sizes: Sequence[int]) -> Float[Tensor, " sizes"]:
    """Return mu_1(r) of the dictionary for each r of `sizes`; atoms are taken at length 1.

    Raises:
        ValueError: an r lies outside 1..d_sae-1.
    """
    n = len(atoms)
    if not sizes or min(sizes) < 1 or max(sizes) > n - 1:
        raise ValueError(f"sizes must lie in 1..d_sae-1={n - 1}, got {list(sizes)}.")
    picked = torch.tensor(sizes) - 1
    best = torch.zeros(len(sizes), dtype=torch.float64)
    step = max(1, PIECE // n)
    for begin in range(0, n, step):
        gram = cosines(atoms[begin : begin + step], atoms).abs().cpu()
        gram[torch.arange(len(gram)), torch.arange(begin, begin + len(gram))] = 0
        sums = gram.topk(max(sizes), dim=1).values.cumsum(1)[:, picked]
        best = torch.maximum(best, sums.amax(0))
    return best


def babel_of_rows(atoms: Float[Tensor, "d_sae d_in"], code: Code) -> Float[Tensor, " rows"]:
    """Return for each row max_j sum_{i != j} |<d_i, d_j>| over the latents that are on in it: mu_1 of that set.

    NaN where fewer than two are on; average the rest.
    """
    sparse = code.sparse()
    pointers = sparse.pointers
    assert pointers is not None
    unit = (atoms.detach() / vector_norm(atoms.detach(), dim=1, keepdim=True).clamp_min(1e-30)).double()
    out = torch.full((len(code),), torch.nan, dtype=torch.float64)
    for row, (begin, end) in enumerate(itertools.pairwise(pointers.tolist())):
        if end - begin >= 2:
            held = unit[sparse.indices[begin:end]]
            gram = (held @ held.t()).abs()
            out[row] = (gram.sum(1) - gram.diagonal()).max()
    return out


def effective_rank(code: Code) -> float:
    """Return the effective rank of the codes: 1 where all rows are one direction, n where n directions weigh alike.

    NaN where nothing is on.
    """
    on = code.fired()
    dense = code.dense()[:, on].double()
    gram = dense @ dense.t() if dense.shape[0] < dense.shape[1] else dense.t() @ dense
    if gram.numel() == 0:
        return float("nan")
    share = torch.linalg.eigvalsh(gram).clamp_min(0)
    share = share / share.sum()
    return float(torch.exp(torch.special.entr(share).sum()))


@dataclass(frozen=True)
class Zf:
    """What a ZF plot shows, one number for each row, in normalised units."""

    z: Float[Tensor, " rows"]
    """Length of the row (or of its reconstruction)."""
    f: Float[Tensor, " rows"]
    """Length of the code, each value times its atom's length, with ||b_dec|| as one more entry."""
    epsilon: Float[Tensor, " rows"]
    """eps_LBO: the least mean |cosine| between atoms that explains the difference; NaN where f is 0."""


@torch.no_grad()
def zf(sae: Sae, x: Float[Tensor, "rows d_in"], of: Literal["input", "reconstruction"] = "input") -> Zf:
    """Return the ZF plot of a dictionary on raw activations.

    Args:
        sae: the dictionary.
        x: activations.
        of: whose length is compared. With the input, what the dictionary leaves unexplained counts as crowding, too.
    """
    rows, _ = sae.normaliser.into(x.to(sae.W_dec))
    code = sae.encode_normalised(rows)
    shown = rows if of == "input" else sae.decode_normalised(code)
    weighted = (code.values * vector_norm(sae.unit()[2], dim=1)[code.indices]).square()
    square = torch.zeros(len(code), dtype=weighted.dtype, device=weighted.device)
    square = square.index_add(0, code.rows, weighted.flatten()).double() + sae.b_dec.double().square().sum()
    z = vector_norm(shown.double(), dim=1)
    gap = (z.square() - square).abs() / (max(1, sae.d_sae - 1) * square)
    return Zf(z, square.sqrt(), torch.where(square > 0, gap, torch.nan))


def stability(dictionaries: Mapping[str, Float[Tensor, "_ d_in"]], *, stable: float = 0.7, seed: int = 0) -> pa.Table:
    """Return how well the atoms of each pair of dictionaries match, one row for each pair.

    Args:
        dictionaries: {name: atoms}, of one width; the numbers of atoms may differ.
        stable: |cosine| from which a matched atom counts as found again.
        seed: of the random atoms.

    Returns:
        A table with a, b; mcc (mean |cosine| of the one-to-one match), max_cosine (mean over a's atoms of the best
        |cosine| with any of b's), stable_share (matched pairs at `stable` or more); and the same three with null_ in
        front, of random atoms matched with b's.

    Raises:
        ValueError: fewer than two dictionaries.
    """
    import pyarrow as pa

    if len(dictionaries) < 2:
        raise ValueError(f"Stability compares at least two dictionaries, got {len(dictionaries)}.")
    rows = []
    for (a, atoms), (b, others) in itertools.combinations(dictionaries.items(), 2):
        random = torch.randn(atoms.shape, generator=stream(seed, "null"), dtype=torch.float64)
        null = {f"null_{name}": value for name, value in _agreement(random, others, stable).items()}
        rows.append({"a": a, "b": b, **_agreement(atoms, others, stable), **null})
    return pa.Table.from_pylist(rows)


def _agreement(a: Float[Tensor, "n_a d_in"], b: Float[Tensor, "n_b d_in"], stable: float) -> dict[str, float]:
    pairs = match(a, b).cosine.abs()
    return {
        "mcc": float(pairs.mean()),
        "max_cosine": float(cosines(a, b).abs().amax(1).mean()),
        "stable_share": float((pairs >= stable).double().mean()),
    }
