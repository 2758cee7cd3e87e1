"""Claims that need a known truth: axes, hierarchy, absorption, recovery of every rule; and matching pursuit's steps."""

from __future__ import annotations

import itertools

import torch

from benchmarks.claims.bench import Bench, Recipe, recipe
from benchmarks.claims.verdicts import Contrast
from sae.matching import absorption_scores, hierarchy_scores, match, mcc, recovery
from sae.model import Sae
from sae.synthetic import Tree
from sae.synthetic.absorption import Absorption

RULES: dict[str, Recipe] = {
    "topk": recipe("topk", k=2),
    "batch_topk": recipe("batch_topk", k=2),
    "mutual_choice": recipe("mutual_choice", k=2, power=0.0),
    "feature_choice": recipe("feature_choice", k=2, power=0.0),
    "matryoshka": recipe("matryoshka", k=2, sizes="32"),
    "jump_relu": recipe("jump_relu", l0=0.03),
    "gated": recipe("gated", l1=0.3),
    "abs_topk": recipe("abs_topk", k=2),
    "relu": recipe("relu", l1=0.3),
    "p_anneal": recipe("p_anneal", l1=0.2),
    "discrete": recipe("discrete", l1=0.3),
    "switch": recipe("switch", k=2, experts=4),
    "group_max": recipe("group_max", k=2),
    "variational": recipe("variational", k=2),
    "top_afa": recipe("top_afa"),
    "matching_pursuit": recipe("matching_pursuit", k=2),
}
"""Every rule as it is asked to find the even truth (`gradient` without a gradient is `topk`)."""

ASKED = ("topk", "batch_topk", "mutual_choice", "feature_choice", "matryoshka", "jump_relu", "gated")
"""Rules that have to reach an MCC of 0.9 there."""


def found_atoms(bench: Bench) -> dict[str, float]:
    """Measure MCC, FVU, L0 and dead latents of every rule on the even truth, and the MCC of random atoms."""
    truth = bench.known[0]
    found: dict[str, float] = {}
    for name, sae in bench.train(RULES).items():
        scores = recovery(sae, truth)
        found |= {f"{name} mcc": scores.mcc, f"{name} fvu": scores.fvu, f"{name} l0": scores.l0}
        found |= {f"{name} dead": scores.dead_share, f"{name} f1": scores.f1}
    g = torch.Generator().manual_seed(10_000 + bench.seed)
    return found | {"random mcc": mcc(torch.randn(truth.atoms.shape, generator=g), truth.atoms)}


FOUND = [
    *(
        Contrast(f"{name}: MCC above 0.9", f"{name} mcc", 0.9, "more" if name in ASKED else "report", 0.0)
        for name in RULES
    ),
    Contrast("random atoms: MCC", "random mcc"),
]


def axes(bench: Bench) -> dict[str, float]:
    """Measure abs_topk on two-sided atoms beside topk with as many latents and with twice as many."""
    truth, n = bench.known[0], bench.where.d_sae
    saes = bench.train(
        {
            "abs_topk": recipe("abs_topk", k=bench.k),
            "topk": recipe("topk", k=bench.k),
            "topk twice": recipe("topk", d_sae=2 * n, k=bench.k),
        }
    )
    found: dict[str, float] = {}
    for name, sae in saes.items():
        found |= bench.basics(name, sae) | {f"{name} mcc": mcc(sae.W_dec, truth.atoms)}
    # Both ends of each axis: what 2 n one-sided latents ought to be, and what n signed ones are.
    ends = torch.cat([truth.atoms, -truth.atoms])
    found["topk twice ends"] = float(match(ends, saes["topk twice"].W_dec, signed=True).cosine.mean())
    both = torch.cat([saes["abs_topk"].W_dec, -saes["abs_topk"].W_dec])
    found["abs_topk ends"] = float(match(ends, both, signed=True).cosine.mean())
    return found | bench.equal_l0(("abs_topk", saes["abs_topk"]), ("topk twice", saes["topk twice"]))


AXES = [
    Contrast("abs_topk, n latents: MCC above 0.9", "abs_topk mcc", 0.9, "more", 0.0),
    Contrast("MCC with n latents, against topk", "abs_topk mcc", "topk mcc", "more"),
    Contrast("both ends found, n latents against topk's 2 n", "abs_topk ends", "topk twice ends", "no less"),
    Contrast(
        "FVU at equal L0, n latents against topk's 2 n",
        "abs_topk fvu at topk twice",
        "topk twice fvu at abs_topk",
        "no more",
        relative=True,
    ),
    Contrast("dead share, n latents against topk's 2 n", "abs_topk dead", "topk twice dead", "report"),
]

PURSUIT = recipe("matching_pursuit", k=3, residual=0.03, until_repeat=True, normalise="none")
LINEAR = {
    "topk": recipe("topk", k=2),
    "batch_topk": recipe("batch_topk", k=2),
    "matryoshka": recipe("matryoshka", k=2, sizes="11"),
    "relu": recipe("relu", l1=0.3),
}


def hierarchy(bench: Bench) -> dict[str, float]:
    """Measure matching pursuit and linear encoders on the tree."""
    truth, values = bench.known
    assert isinstance(truth, Tree)
    found: dict[str, float] = {"true l0": float((values != 0).sum(1).double().mean())}
    for name, sae in bench.train({"pursuit": PURSUIT} | LINEAR).items():
        tree = hierarchy_scores(sae.W_dec, truth.atoms, truth.level)
        absorbed = absorption_scores(sae.W_dec, truth.atoms, truth.parent, bench.code(sae), values)
        found |= bench.basics(name, sae) | {
            f"{name} mcc": mcc(sae.W_dec, truth.atoms),
            f"{name} between": tree.hierarchical_mse,
            f"{name} absorption": absorbed.cosine,
        }
    return found


HIERARCHY = [
    Contrast("matching_pursuit: MCC above 0.9", "pursuit mcc", 0.9, "more", 0.0),
    *(
        contrast
        for name in LINEAR
        for contrast in (
            Contrast(f"MCC, against {name}", "pursuit mcc", f"{name} mcc", "more"),
            Contrast(f"error between levels, against {name}", "pursuit between", f"{name} between", "less", 0.001),
            Contrast(
                f"child's cosine with its parent, against {name}", "pursuit absorption", f"{name} absorption", "less"
            ),
        )
    ),
]

STEPS = (1, 2, 3, 6, 12, 16, 24, 32, 64)


def steps(bench: Bench) -> dict[str, float]:
    """Measure FVU over the number of latents taken in evaluation, for matching pursuit and topk trained at k."""
    saes = bench.train({"pursuit": recipe("matching_pursuit", k=bench.k), "topk": recipe("topk", k=bench.k)})
    found: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    for name, attribute in (("pursuit", "k_eval"), ("topk", "k")):
        curves[name] = _curve(bench, saes[name], attribute)
        found |= {f"{name} fvu {k}": fvu for k, fvu in zip(STEPS, curves[name], strict=True)}
        found[f"{name} largest rise"] = max(b - a for a, b in itertools.pairwise(curves[name]))
    found |= {f"{name} at 4 k": curve[STEPS.index(4 * bench.k)] for name, curve in curves.items()}
    return found | {f"{name} at k": curve[STEPS.index(bench.k)] for name, curve in curves.items()}


def _curve(bench: Bench, sae: Sae, attribute: str) -> list[float]:
    held, found = getattr(sae.rule, attribute), []
    for k in STEPS:
        setattr(sae.rule, attribute, min(k, sae.d_sae))
        found.append(bench.fvu(sae, bench.code(sae)))
    setattr(sae.rule, attribute, held)
    return found


MONOTONE = [
    Contrast("matching_pursuit: largest rise of FVU with more steps", "pursuit largest rise", 0.0, "no more", 1e-6),
    Contrast("topk: largest rise of FVU with more latents", "topk largest rise"),
    Contrast("matching_pursuit: FVU at 4 k steps against k", "pursuit at 4 k", "pursuit at k", "less", relative=True),
    Contrast("topk: FVU at 4 k latents against k", "topk at 4 k", "topk at k", "more", relative=True),
    Contrast("FVU at the training k, against topk", "pursuit at k", "topk at k", "report", relative=True),
]


def absorption(bench: Bench) -> dict[str, float]:
    """Measure absorption of topk, batch_topk and matryoshka (prefix: the number of parents; and the default ones)."""
    truth, values = bench.known
    assert isinstance(truth, Absorption)
    parents = truth.config.parents
    found: dict[str, float] = {}
    recipes = {
        "topk": recipe("topk", k=bench.k),
        "batch_topk": recipe("batch_topk", k=bench.k),
        "matryoshka": recipe("matryoshka", k=bench.k, sizes=str(parents)),
        "matryoshka, default sizes": recipe("matryoshka", k=bench.k),
    }
    for name, sae in bench.train(recipes).items():
        scores = absorption_scores(sae.W_dec, truth.atoms, truth.parent, bench.code(sae), values)
        found |= bench.basics(name, sae) | {f"{name} cosine": scores.cosine, f"{name} rate": scores.rate}
        found[f"{name} mcc"] = mcc(sae.W_dec, truth.atoms)
    return found


ABSORPTION = [
    contrast
    for name in ("matryoshka", "matryoshka, default sizes")
    for rival in ("batch_topk", "topk")
    for contrast in (
        Contrast(
            f"{name}: child's cosine with its parent, against {rival}", f"{name} cosine", f"{rival} cosine", "less"
        ),
        Contrast(
            f"{name}: rows in which the parent is silent, against {rival}", f"{name} rate", f"{rival} rate", "less"
        ),
        Contrast(f"{name}: MCC, against {rival}", f"{name} mcc", f"{rival} mcc", "report"),
    )
]
