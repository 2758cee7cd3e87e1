"""Claims about reconstruction, dead latents and the model's loss, each against `topk` on the same rows and seed."""

from __future__ import annotations

import torch

from benchmarks.claims.bench import Bench, Recipe, recipe
from benchmarks.claims.verdicts import Contrast
from sae.dark_matter import dark_matter
from sae.model import Sae


def against_topk(bench: Bench, rivals: dict[str, Recipe]) -> tuple[dict[str, Sae], dict[str, float]]:
    """Return the dictionaries, and of each rival what it is and its FVU at topk's L0 or its own, the lower."""
    saes = bench.train({"topk": recipe("topk", k=bench.k)} | rivals)
    found: dict[str, float] = {}
    for name, sae in saes.items():
        found |= bench.basics(name, sae)
        if name != "topk":
            found |= bench.equal_l0((name, sae), ("topk", saes["topk"]))
    return saes, found


def better(name: str, *, dead: bool = True) -> list[Contrast]:
    """Return the contrasts of a rule that is claimed to reconstruct better than topk, with fewer dead latents."""
    fvu = Contrast(f"{name}: FVU at equal L0", f"{name} fvu at topk", f"topk fvu at {name}", "less", relative=True)
    return [fvu, Contrast(f"{name}: dead share", f"{name} dead", "topk dead", "less")] if dead else [fvu]


def choice(bench: Bench) -> dict[str, float]:
    """Measure mutual and feature choice."""
    rivals = {
        "mutual_choice": recipe("mutual_choice", k=bench.k),
        "feature_choice": recipe("feature_choice", k=bench.k),
    }
    return against_topk(bench, rivals)[1]


CHOICE = [*better("mutual_choice"), *better("feature_choice")]


def batch_topk(bench: Bench) -> dict[str, float]:
    """Measure BatchTopK."""
    return against_topk(bench, {"batch_topk": recipe("batch_topk", k=bench.k)})[1]


BATCH_TOPK = better("batch_topk", dead=False)

VARIATIONAL_RULES = {
    "published (no noise, KL on all, 1)": {"variance": "none", "kl_on": "all", "kl": 1.0},
    "no noise, KL on all, 0.1": {"variance": "none", "kl_on": "all", "kl": 0.1},
    "no noise, KL on selected, 0.1": {"variance": "none", "kl_on": "selected", "kl": 0.1},
    "noise 1, KL on selected, 0.01": {"variance": "fixed", "kl_on": "selected", "kl": 0.01},
}
"""Variational dictionaries by name."""
MASKED = ("no noise, KL on selected, 0.1", "no noise, KL on all, 0.1")


def variational(bench: Bench) -> dict[str, float]:
    """Measure the variational kinds."""
    rivals = {name: recipe("variational", k=bench.k, **args) for name, args in VARIATIONAL_RULES.items()}  # type: ignore[arg-type]
    saes, found = against_topk(bench, rivals)
    selected, whole = ((name, saes[name]) for name in MASKED)
    return found | bench.equal_l0(selected, whole)


def _variational() -> list[Contrast]:
    found = []
    for name in VARIATIONAL_RULES:
        fvu = f"{name} fvu at topk", f"topk fvu at {name}"
        found.append(Contrast(f"{name}: FVU at equal L0", *fvu, "more", relative=True))
        found.append(Contrast(f"{name}: dead share", f"{name} dead", "topk dead", "more"))
    a, b = MASKED
    fvu = f"{a} fvu at {b}", f"{b} fvu at {a}"
    found.append(Contrast("masking the KL: FVU at equal L0", *fvu, "less", relative=True))
    found.append(Contrast("masking the KL: dead share", f"{a} dead", f"{b} dead", "less"))
    return found


VARIATIONAL = _variational()


def gradient(bench: Bench) -> dict[str, float]:
    """Measure g-SAE in both modes, at topk's k."""
    rivals = {name: recipe("gradient", k=bench.k, mode=name) for name in ("add", "product")}
    saes, found = against_topk(bench, rivals)
    clean = bench.spliced_loss(None)
    return found | {f"{name} loss": bench.spliced_loss(sae) - clean for name, sae in saes.items()}


GRADIENT = [
    contrast
    for name in ("add", "product")
    for contrast in (
        Contrast(f"{name}: loss added by the splice, nats", f"{name} loss", "topk loss", "less", relative=True),
        Contrast(f"{name}: dead share", f"{name} dead", "topk dead", "less"),
        Contrast(f"{name}: FVU", f"{name} fvu", "topk fvu"),
    )
]

AFAS = (12.0, 48.0)


def top_afa(bench: Bench) -> dict[str, float]:
    """Measure where top-AFA's L0 lands, and topk at that L0."""
    found: dict[str, float] = {"d_in": bench.source.d_in}
    saes = bench.train({f"afa {afa:g}": recipe("top_afa", afa=afa) for afa in AFAS})
    for name, sae in saes.items():
        found |= bench.basics(name, sae)
        found[f"{name} l0 / d_in"] = found[f"{name} l0"] / bench.source.d_in
    name = f"afa {AFAS[0]:g}"
    k = max(1, min(bench.where.d_sae, round(found[f"{name} l0"])))
    topk = bench.train({"topk": recipe("topk", k=k)})["topk"]
    return found | bench.basics("topk", topk) | bench.equal_l0((name, saes[name]), ("topk", topk))


TOP_AFA = [
    *(Contrast(f"afa {afa:g}: L0", f"afa {afa:g} l0") for afa in AFAS),
    Contrast("afa 12: L0 / d_in, sparse is below 1/4", "afa 12 l0 / d_in", 0.25, "less"),
    Contrast(
        "afa 12: FVU at equal L0, against topk", "afa 12 fvu at topk", "topk fvu at afa 12", "less", relative=True
    ),
]


def dark(bench: Bench) -> dict[str, float]:
    """Measure the parts of topk's and batch_topk's error."""
    found: dict[str, float] = {}
    for name, sae in bench.train({rule: recipe(rule, k=bench.k) for rule in ("topk", "batch_topk")}).items():
        with torch.no_grad():
            x_hat = sae(bench.many)[0]
        parts = dark_matter(bench.many, x_hat, seed=bench.seed)
        found |= {
            f"{name} linear": parts.raw_linear_share,
            f"{name} norm": parts.norm_r2,
            f"{name} shrinkage of error": parts.shrinkage / parts.fvu,
            f"{name} linear of error": parts.linear / parts.fvu,
            f"{name} nonlinear of error": parts.nonlinear / parts.fvu,
            f"{name} norm controlled": parts.norm_r2_controlled,
        }
    return found


DARK = [
    contrast
    for name in ("topk", "batch_topk")
    for contrast in (
        Contrast(f"{name}: share of the error that is linear, as published", f"{name} linear", 0.5, "no less", 0.1),
        Contrast(f"{name}: R² of its squared norm, as published", f"{name} norm", 0.9, "no less"),
        Contrast(f"{name}: of the error, shrinkage", f"{name} shrinkage of error"),
        Contrast(f"{name}: of the error, linear after the control", f"{name} linear of error"),
        Contrast(f"{name}: of the error, nonlinear", f"{name} nonlinear of error"),
        Contrast(f"{name}: R² of the squared norm after the control", f"{name} norm controlled"),
    )
]
