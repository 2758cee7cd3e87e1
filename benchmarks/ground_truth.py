"""Every attribution method on models whose circuit is known.

    python benchmarks/ground_truth.py [--prompts 8] [--models compiled/additive]

Compiled models state the exact effect of every cell; `induction_head_infinite` ($MECHSCOPE_DATA, Nanda et al. 2023) has
known heads, and its effects are measured. Three questions are put:

    denoising, noising   methods that compare clean and corrupted runs, against the effect of the exchange
    zero                 gradient times input and relevance of the clean run, against the measured effect of setting the
                         cell to 0; the circuit is the same

For each kind of site: relevance mass, rank accuracy and AUROC of the circuit, sign agreement, mean error over mean
effect, and the largest error over the largest effect. Beside them the completeness gap (the worst kind of site) and
the randomisation check: mean |r| of the scores of heads before and after shuffling the weights of all tensors, over
those of three seeds that leave scores that vary; `flat` where none does. Everything in float64. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pyarrow as pa
import torch

from interp.attribution import Attribution, against_truth, completeness_gap, patch_map, randomisation_check
from interp.attribution.estimates import METHODS
from interp.attribution.relevance import relevance
from interp.attribution.result import CELL
from interp.models import ModelHandle, ModelSpec, load_model
from interp.models.compiled import compiled_models
from interp.models.compiled.truth import DIRECTIONS
from interp.tasks import Induction, Pairs
from interp.tasks.accuracy import check_accuracy

KINDS = ("resid_pre", "attn_out", "mlp_out", "head_out")
QK = ("q", "k")
PRESETS = ("cp_lrp", "relp", "attn_lrp", "gradient")
TRAINED = "models/algorithmic/induction_head_infinite.safetensors"
HEADS = ((0, 2), (1, 1), (1, 2), (1, 3))
"""Layer and head of the previous-token head and the induction heads of the trained model."""
HALF = 36
"""Tokens that its prompts repeat: with the task's usual 16 its accuracy is below the 70% that a task has to have."""
COLUMNS = ("relevance_mass", "rank_accuracy", "auroc", "sign_agreement", "error", "largest_error")
SHOWN = ("resid_pre", "head_out", "q", "k")
"""Kinds that the printed tables have; the JSON line has all."""

Method = Callable[[ModelHandle, tuple[str, ...]], Attribution]


@dataclass(frozen=True)
class Case:
    """A model, its prompts, and the truth about its cells for each question."""

    name: str
    handle: ModelHandle
    pairs: Pairs
    truths: dict[str, pa.Table]
    kinds: tuple[str, ...]
    parts: tuple[str, ...]

    def live(self, kinds: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of `kinds` of which any cell has an effect."""
        rows = self.truths["noising"].to_pylist()
        return tuple(kind for kind in kinds if any(row["effect"] for row in rows if row["kind"] == kind))


def with_circuit(measured: Attribution, circuit: set[tuple]) -> pa.Table:
    """Return measured effects as a truth; `circuit` holds the cells that are in it."""
    rows = [{name: row[name] for name in CELL} | {"effect": row["score"]} for row in measured.nodes.to_pylist()]
    members = [tuple(row[name] for name in CELL) in circuit for row in rows]
    return pa.Table.from_pylist(rows).append_column("in_circuit", pa.array(members))


def compiled(names: list[str], prompts: int) -> Iterator[Case]:
    """Yield the compiled models."""
    for name, one in compiled_models().items():
        if name not in names:
            continue
        handle, pairs = load_model(ModelSpec(name, dtype="float64"), device="cpu"), one.pairs(prompts)
        truths = {direction: one.truth(pairs, direction) for direction in DIRECTIONS}
        rows = truths["noising"].to_pylist()
        circuit = {tuple(row[column] for column in CELL) for row in rows if row["in_circuit"]}
        parts = ("pos", "head")
        zeros = patch_map(handle, pairs, KINDS, direction="noising", baseline="zero", parts=parts)
        yield Case(name, handle, pairs, {**truths, "zero": with_circuit(zeros, circuit)}, KINDS, parts)


def trained(prompts: int) -> Iterator[Case]:
    """Yield the trained induction transformer, by head, or say why not."""
    folder = os.environ.get("MECHSCOPE_DATA")
    if not folder or not (Path(folder) / TRAINED).is_file():
        print(f"not used: induction_head_infinite: there is no $MECHSCOPE_DATA/{TRAINED}")
        return
    handle = load_model(ModelSpec(str(Path(folder) / TRAINED), dtype="float64"), device="cpu")
    pairs = Induction(HALF).pairs(handle, prompts, 0)
    right = {half: check_accuracy(handle, Induction(half).pairs(handle, 256, 0)) for half in (Induction().half, HALF)}
    print("induction_head_infinite, right: " + ", ".join(f"{n} tokens {share:.0%}" for n, share in right.items()))
    kinds, parts = ("resid_pre", "head_out"), ("head",)
    circuit = {("head_out", layer, None, head, None, None) for layer, head in HEADS}
    asked = {"denoising": ("denoising", "corrupt"), "noising": ("noising", "corrupt"), "zero": ("noising", "zero")}
    truths = {
        question: with_circuit(
            patch_map(handle, pairs, kinds, direction=direction, baseline=baseline, parts=parts), circuit
        )
        for question, (direction, baseline) in asked.items()
    }
    yield Case("induction_head_infinite", handle, pairs, truths, kinds, parts)


def by_head(found: Attribution) -> Attribution:
    """Return the scores of heads, added up over positions."""
    sums = found.of("head_out").group_by(["kind", "layer", "head"]).aggregate([("score", "sum")])
    rows = [dict.fromkeys(CELL) | row | {"score": row["score_sum"]} for row in sums.to_pylist()]
    return found.with_nodes(pa.Table.from_pylist(rows))


def explained(case: Case, preset: str, handle: ModelHandle, kinds: tuple[str, ...]) -> Attribution:
    """Return the relevance of the clean run, by the case's parts."""
    found = relevance(handle, case.pairs, preset=preset, sites=kinds)
    return found if "pos" in case.parts else by_head(found)


def methods(case: Case, question: str) -> dict[str, tuple[Method, tuple[str, ...]]]:
    """Return {name: (method, kinds that it scores)}."""
    if question == "zero":
        shared = {"direction": "noising", "baseline": "zero", "parts": case.parts}
        found: dict[str, tuple[Method, tuple[str, ...]]] = {
            "gradient_x_input": (asking(case, "gradient_x_input", check=0, **shared), case.kinds),
        }
        return found | {f"relevance {name}": (partial(explained, case, name), case.kinds) for name in PRESETS}
    shared = {"direction": question, "parts": case.parts}
    every = (*case.kinds, *case.live(QK))
    found = {"patching": (asking(case, "patching", **shared), every)}
    for name in ("atp", "relp", "ig", "ig_inputs", "atp_star"):
        kinds = case.kinds if name == "relp" else every
        found[name] = (asking(case, name, check=0, **shared), kinds)
    found["atp_star, no GradDrop"] = (asking(case, "atp_star", check=0, grad_drop=False, **shared), every)
    found["relp, attn_lrp"] = (asking(case, "relp", check=0, rules="attn_lrp", **shared), every)
    return found


def asking(case: Case, name: str, **arguments: Any) -> Method:
    """Return a method of METHODS with its arguments."""
    return lambda handle, kinds: METHODS[name](handle, case.pairs, kinds, **arguments)


def largest_errors(found: Attribution, truth: pa.Table) -> dict[str, float | None]:
    """Return {kind: largest |score - effect| over the largest |effect|}; None without an effect."""
    exact = {tuple(row[name] for name in CELL): row["effect"] for row in truth.to_pylist()}
    gaps: dict[str, list[tuple[float, float]]] = {}
    for row in found.nodes.to_pylist():
        effect = exact[tuple(row[name] for name in CELL)]
        gaps.setdefault(row["kind"], []).append((abs(row["score"] - effect), abs(effect)))
    sizes = {kind: np.max(values, axis=0) for kind, values in gaps.items()}
    return {kind: float(gap / size) if size > 0 else None for kind, (gap, size) in sizes.items()}


def shuffled(case: Case, method: Method) -> float | str | None:
    """Return mean |r| of the scores of heads before and after shuffling; `flat`: nothing is left to correlate."""
    found = randomisation_check(lambda handle: method(handle, ("head_out",)), case.handle)
    values = [value for value in found["pearson"].to_pylist() if value is not None]
    return float(np.abs(values).mean()) if values else "flat"


def measure(case: Case) -> Iterator[dict[str, Any]]:
    """Yield a row for each question, method and kind of site."""
    for question, truth in case.truths.items():
        for name, (method, kinds) in methods(case, question).items():
            about = {"model": case.name, "question": question, "method": name}
            try:
                found = method(case.handle, kinds)
            except ValueError as error:
                yield about | {"refused": str(error)}
                continue
            worst = largest_errors(found, truth)
            gaps = completeness_gap(found)
            shared = {"gap": max(gaps.values()) if gaps else None, "shuffled": shuffled(case, method)}
            for row in against_truth(found, truth).to_pylist():
                if row["kind"] != "all" and row["circuit"]:
                    yield about | row | {"largest_error": worst[row["kind"]]} | shared


def text(value: float | str | None) -> str:
    """Return a figure for the table; what is below 1e-9 is rounding."""
    if value is None or isinstance(value, str):
        return value or ""
    return "0" if abs(value) < 1e-9 else f"{value:.1e}" if abs(value) < 0.001 else f"{value:.3f}"


def table(rows: list[dict[str, Any]]) -> None:
    """Print the rows of one model as Markdown; where both directions have the same figures, once."""
    names = [*COLUMNS, "gap", "shuffled"]
    questions: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row.get("kind") in SHOWN:
            figures = tuple(text(row[name]) for name in names)
            line = (row["kind"], f"{row['cells']}, {row['circuit']}", row["method"], *figures)
            questions.setdefault(line, []).append(row["question"])
    print(
        "\n| site | cells, circuit | method | question | " + " | ".join(name.replace("_", " ") for name in names) + " |"
    )
    print("|---" * (4 + len(names)) + "|")
    for line, asked in sorted(questions.items(), key=lambda item: SHOWN.index(item[0][0])):
        print("| " + " | ".join([*line[:3], "both" if len(asked) > 1 else asked[0], *line[3:]]) + " |")


def main() -> None:
    """Measure, and print tables and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*compiled_models(), "induction_head_infinite"]
    parser.add_argument("--models", nargs="*", default=known, choices=known)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = perf_counter()
    cases = list(compiled(args.models, args.prompts))
    cases += trained(args.prompts) if "induction_head_infinite" in args.models else []
    result: dict[str, Any] = {"prompts": args.prompts, "rows": []}
    for case in cases:
        print(f"\n## {case.name}", flush=True)
        rows = list(measure(case))
        table(rows)
        for row in rows:
            if "refused" in row:
                print(f"\nrefused: {row['question']}, {row['method']}: {row['refused']}")
        result["rows"] += rows
    result["seconds"] = round(perf_counter() - start, 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
