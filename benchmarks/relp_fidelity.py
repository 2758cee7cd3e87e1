"""How near the fast estimates come to activation patching, by kind of site, task, model and depth.

    python benchmarks/relp_fidelity.py [--prompts 16] [--direction denoising] [--depths 2 4 8 12] [--groups random cost]
    python benchmarks/relp_fidelity.py --model FOLDER --task ioi          the published row, on a GPT-2 of one's own

Models: `tiny`, stories260K (if $MECHSCOPE_DATA is set), compiled ones, each on every task that it does with an accuracy
of at least 70%; `tiny` with single blocks skipped; random GPT-2s of several depths with the logit difference of two
random tokens, which no training has shaped. For every kind of site the maps (layer x position, for heads layer x
position x head) of estimate and patching are compared over cells: Pearson's r with 95% intervals from a bootstrap over
prompts, Spearman's, and the share of equal signs. `live` is Pearson's r over the cells whose measured effect is not 0.

The published claim (arXiv 2508.21258: RelP far above attribution patching on residual stream and MLP outputs, about
equal on attention outputs) is put to every row: see `verdict`. The last part times RelP against attribution patching,
in turns, in processor seconds; at most 1.15 is asked for. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from interp.attribution import Attribution
from interp.attribution.estimates import METHODS
from interp.attribution.statistics import correlation as correlation_of
from interp.attribution.statistics import sign_agreement
from interp.compression.steps import SkipLayers
from interp.models import ModelHandle, ModelSpec, load_model
from interp.models.compiled import compiled_models
from interp.tasks import Pairs
from interp.tasks.accuracy import LEAST, check_accuracy, task_table
from interp.tasks.registry import TASKS

KINDS = ("resid_pre", "attn_out", "mlp_out", "head_out")
ESTIMATES: dict[str, tuple[str, dict[str, Any]]] = {
    "atp": ("atp", {}),
    "relp": ("relp", {}),
    "relp_qk": ("relp", {"rules": "relp_qk"}),
    "ig": ("ig", {"steps": 10}),
    "ig_inputs": ("ig_inputs", {"steps": 5}),
}
"""Column -> (method, arguments)."""
QK: dict[str, tuple[str, dict[str, Any]]] = {
    "atp": ("atp", {}),
    "qk_fix": ("atp_star", {"grad_drop": False}),
    "atp_star": ("atp_star", {}),
}
"""The same for queries and keys."""
PUBLISHED = {"resid_pre": (0.753, 0.968), "attn_out": (0.979, 0.962), "mlp_out": (0.195, 0.992)}
"""Kind -> published r of (attribution patching, RelP) on GPT-2 small and IOI."""
GROUPS = ("trained", "skipped", "random", "cost")
FAR, EQUAL, COST, FEWEST = 0.1, 0.05, 1.15, 5
RESAMPLES, SEEDS = 500, 2


@dataclass(frozen=True)
class Case:
    """A model and pairs of one of its tasks."""

    model: str
    task: str
    handle: ModelHandle
    pairs: Pairs
    accuracy: float | None
    """None where there is no task to be done."""


def trained(prompts: int) -> Iterator[Case]:
    """Yield the tasks that the models at hand can do."""
    stories = Path(os.environ.get("MECHSCOPE_DATA") or "/nonexistent") / "models" / "stories260K"
    found = {"tiny": "tiny"} | ({"stories260K": str(stories)} if stories.is_dir() else {})
    for label, name in (found | {name: name for name in compiled_models()}).items():
        yield from usable(load_model(name), label, None, prompts)


def usable(handle: ModelHandle, label: str, only: str | None, prompts: int) -> Iterator[Case]:
    """Yield the tasks that the model does; say of the others why not."""
    compiled = handle.spec.name.startswith("compiled/")
    names = [only] if only else ["compiled"] if compiled else None
    for row in task_table(handle, names, n=max(prompts, 64)).to_pylist():
        if row["usable"]:
            pairs = TASKS[row["task"]].pairs(handle, min(prompts, row["pairs"]), 0)
            yield Case(label, row["task"], handle, pairs, row["accuracy"])
        else:
            print(f"not used: {label}, {row['task']}: {row['note']}")


def skipped(prompts: int) -> Iterator[Case]:
    """Yield `tiny` with one block skipped, on the tasks that it still does."""
    for layer in range(load_model("tiny").n_layers):
        handle = load_model(ModelSpec("tiny", recipe=(SkipLayers(layers=(layer,)),)))
        for name in ("pronoun_gender", "pronoun_name", "agreement"):
            pairs = TASKS[name].pairs(handle, prompts, 0)
            accuracy = check_accuracy(handle, TASKS[name].pairs(handle, 64, 0))
            if accuracy >= LEAST:
                yield Case(f"tiny without block {layer}", name, handle, pairs, accuracy)
            else:
                print(f"not used: tiny without block {layer}, {name}: {accuracy:.0%} right")


def gpt2_config(**sizes: Any) -> Any:
    """Return a configuration of GPT-2's architecture."""
    from transformers import GPT2Config

    return GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)


def random_models(depths: list[int], prompts: int) -> Iterator[Case]:
    """Yield random GPT-2s of unit gain, d_model 64, on random tokens with one token exchanged."""
    from transformers import GPT2LMHeadModel

    for depth, seed in product(depths, range(SEEDS)):
        torch.manual_seed(100 * depth + seed)
        shape = {"n_layer": depth, "n_embd": 64, "n_head": 4, "n_positions": 16, "vocab_size": 200}
        handle = load_model(GPT2LMHeadModel(gpt2_config(**shape, initializer_range=0.125)))
        clean = torch.randint(1, 200, (prompts, 9))
        corrupt = clean.clone()
        corrupt[:, 3] = clean[:, 3] % 199 + 1
        answers = torch.randint(1, 200, (prompts, 1)), torch.randint(1, 200, (prompts, 1))
        yield Case(f"random, depth {depth}", f"seed {seed}", handle, Pairs("random", clean, corrupt, *answers), None)


def maps(found: Attribution, kind: str) -> np.ndarray:
    """Return the scores of a kind's cells, [cell prompt], sorted by cell."""
    rows = found.of(kind).to_pylist()
    rows.sort(key=lambda row: tuple(-1 if row[name] is None else row[name] for name in ("layer", "pos", "head")))
    return np.array([row["per_prompt"] for row in rows], np.float64)


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Pearson's r of the columns of two arrays [cell column]: NaN where `a` does not vary, 0 where only `b`."""
    a, b = a - a.mean(0), b - b.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))
    return np.where((np.abs(b).max(0) == 0) & (np.abs(a).max(0) > 0), 0.0, found)


def interval(resampled: np.ndarray) -> tuple[float, float]:
    """Return where the middle 95% of resamples lie, NaN where a correlation is not defined."""
    if not np.isfinite(resampled).all():
        return float("nan"), float("nan")
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def compared(truth: np.ndarray, estimate: np.ndarray, weights: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Return (numbers for the table, Pearson's r of every resample of prompts)."""
    x, y = truth.mean(1), estimate.mean(1)
    resampled = correlation(truth @ weights.T, estimate @ weights.T)
    low, high = interval(resampled)
    live = x != 0
    numbers = {
        "r": correlation(x[:, None], y[:, None])[0], "low": low, "high": high,
        "spearman": correlation_of(x, y, ranks=True), "signs": sign_agreement(y, x),
        "live": correlation_of(x[live], y[live]),
    }  # fmt: skip
    return {name: float("nan") if n is None else round(float(n), 4) for name, n in numbers.items()}, resampled


def measure(
    case: Case, kinds: tuple[str, ...], estimates: dict[str, tuple[str, dict[str, Any]]], direction: str
) -> list[dict[str, Any]]:
    """Return a row for each kind."""
    shared = {"parts": ("pos", "head"), "direction": direction}
    truth = METHODS["patching"](case.handle, case.pairs, kinds, **shared)
    found = {
        name: METHODS[method](case.handle, case.pairs, kinds, check=0, **shared, **arguments)
        for name, (method, arguments) in estimates.items()
        if not (name == "atp_star" and case.handle.n_layers < 2)
    }
    prompts = len(case.pairs)
    draws = np.random.default_rng(0).multinomial(prompts, [1 / prompts] * prompts, RESAMPLES) / prompts
    rows = []
    for kind in kinds:
        measured, resampled = maps(truth, kind), {}
        row: dict[str, Any] = {
            "model": case.model, "task": case.task, "accuracy": case.accuracy, "kind": kind, "cells": len(measured),
            "live": int((measured.mean(1) != 0).sum()), "prompts": prompts, "effect": round(truth.effect, 4),
        }  # fmt: skip
        for name, estimate in found.items():
            row[name], resampled[name] = compared(measured, maps(estimate, kind), draws)
        if "relp" in resampled:
            gain = resampled["relp"] - resampled["atp"]
            row["gain"] = round(row["relp"]["r"] - row["atp"]["r"], 4)
            row["gain_interval"] = [round(bound, 4) for bound in interval(gain)]
            row["verdict"] = verdict(row)
        rows.append(row)
    return rows


def verdict(row: dict[str, Any]) -> str:
    """Return whether r(RelP) - r(AtP) and its interval are as published for this kind.

    Residual stream and MLP outputs: `holds` from a gain of 0.1 with an interval above 0, `contrary` from a loss of 0.05
    with an interval below 0, `no room` where attribution patching leaves less than 0.1 to gain. Attention outputs:
    `holds` where the interval lies within 0.05 of 0, `contrary` where it lies outside. Nothing was published for single
    heads, and fewer than five cells with an effect say nothing.
    """
    low, high = row["gain_interval"]
    if row["kind"] == "head_out" or row["live"] < FEWEST or not np.isfinite([low, high]).all():
        return ""
    if row["kind"] == "attn_out":
        return "holds" if low >= -EQUAL and high <= EQUAL else "contrary" if low > EQUAL or high < -EQUAL else "open"
    if row["gain"] <= -EQUAL and high < 0:
        return "contrary"
    if row["gain"] >= FAR and low > 0:
        return "holds"
    return "no room" if row["atp"]["r"] > 1 - FAR else "open"


def seconds(call: Callable[[], object]) -> float:
    """Return the processor seconds of a call."""
    start = process_time()
    call()
    return process_time() - start


def cost(handle: ModelHandle, pairs: Pairs, rounds: int) -> dict[str, float]:
    """Return processor seconds of attribution patching and RelP, medians over rounds in turns, and their ratio."""
    times: dict[str, list[float]] = {"atp": [], "relp": []}
    for _ in range(rounds + 2):
        for name, taken in times.items():
            taken.append(seconds(lambda name=name: METHODS[name](handle, pairs, KINDS, check=0, batch=len(pairs))))
    medians = {name: statistics.median(taken[2:]) for name, taken in times.items()}
    ratios = [b / a for a, b in zip(times["atp"][2:], times["relp"][2:], strict=True)]
    return medians | {"ratio": statistics.median(ratios)}


def costs(rounds: int) -> dict[str, dict[str, float]]:
    """Return the cost on `tiny`, and on a random GPT-2 of six layers and d_model 384, with 16 prompts."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=6, n_embd=384, n_head=6, n_positions=32, vocab_size=4096, bos_token_id=0, eos_token_id=0
    )
    tiny, wide = load_model("tiny"), load_model(GPT2LMHeadModel(config))
    tokens = torch.randint(1, 4096, (2, 16, 24))
    answers = torch.randint(1, 4096, (2, 16, 1))
    return {
        "tiny": cost(tiny, TASKS["pronoun_name"].pairs(tiny, 16, 0), rounds),
        "6 layers, d_model 384": cost(wide, Pairs("random", *tokens, *answers), rounds),
    }


def table(rows: list[dict[str, Any]], names: list[str]) -> None:
    """Print rows as Markdown."""
    extra = ["RelP - AtP", "verdict"] if "relp" in names else []
    print("\n| model | task | site | cells, live | " + " | ".join([*names, *extra]) + " |")
    print("|---" * (4 + len(names) + len(extra)) + "|")
    for row in rows:
        cells = [row["model"], row["task"], row["kind"], f"{row['cells']}, {row['live']}"]
        for name in names:
            one = row.get(name)
            cells.append(f"{one['r']:.3f} [{one['low']:.2f}, {one['high']:.2f}]" if one else "")
        if extra:
            low, high = row["gain_interval"]
            cells += [f"{row['gain']:+.3f} [{low:+.2f}, {high:+.2f}]", row["verdict"]]
        print("| " + " | ".join(cells) + " |")


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Print, and return, what the rows of each kind say together; kinds with few live cells are left out."""
    found: dict[str, Any] = {}
    names = ("r AtP", "r RelP", "gain", "Spearman AtP", "Spearman RelP", "signs AtP", "signs RelP")
    words = ("holds", "contrary", "open", "no room")
    print("\nmedians over rows, and verdicts:\n\n| site | rows | " + " | ".join([*names, *words]) + " |")
    print("|---" * 13 + "|")
    for kind in KINDS:
        own = [row for row in rows if row["kind"] == kind and row["live"] >= FEWEST]
        if not own:
            continue
        numbers = [[row["atp"]["r"] for row in own], [row["relp"]["r"] for row in own], [row["gain"] for row in own]]
        numbers += [[row[name][what] for row in own] for what in ("spearman", "signs") for name in ("atp", "relp")]
        medians = [round(float(np.nanmedian(one)), 4) for one in numbers]
        counts = [sum(row["verdict"] == word for row in own) for word in words]
        found[kind] = {"rows": len(own), **dict(zip([*names, *words], [*medians, *counts], strict=True))}
        print(f"| {kind} | {len(own)} | " + " | ".join([*(f"{one:.3f}" for one in medians), *map(str, counts)]) + " |")
        if kind in PUBLISHED:
            print(f"| published, GPT-2 small, IOI | 1 | {PUBLISHED[kind][0]} | {PUBLISHED[kind][1]} |" + " |" * 9)
    return found


def defined(value: Any) -> Any:
    """Return `value` with None for every number that is not defined, as JSON has it."""
    if isinstance(value, dict):
        return {name: defined(one) for name, one in value.items()}
    if isinstance(value, list):
        return [defined(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main() -> None:
    """Measure, and print tables and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model's name or folder, alone")
    parser.add_argument("--task", help="the task, with --model (all that it can do)")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--direction", default="denoising", choices=("denoising", "noising"))
    parser.add_argument("--depths", type=int, nargs="*", default=[2, 4, 8, 12])
    parser.add_argument("--groups", nargs="*", default=GROUPS, choices=GROUPS, help="parts to run, without --model")
    parser.add_argument("--rounds", type=int, default=15, help="of timing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sys.stdout = open(os.devnull, "w") if args.json else sys.stdout  # noqa: SIM115, PTH123
    if args.model:
        cases = {"trained": usable(load_model(args.model), args.model, args.task, args.prompts)}
    else:
        makers = {"trained": trained, "skipped": skipped, "random": partial(random_models, args.depths)}
        cases = {name: maker(args.prompts) for name, maker in makers.items() if name in args.groups}
    result: dict[str, Any] = {"prompts": args.prompts, "direction": args.direction}
    for group, found in cases.items():
        print(f"\n## {group}", flush=True)
        held = list(found)
        rows = [row for case in held for row in measure(case, KINDS, ESTIMATES, args.direction)]
        table(rows, list(ESTIMATES))
        result[group] = {"rows": rows, "summary": summary(rows)}
        if group == "trained":
            print("\n## queries and keys", flush=True)
            rows = [row for case in held for row in measure(case, ("q", "k"), QK, args.direction)]
            table([row for row in rows if row["live"] >= FEWEST], list(QK))
            result["queries and keys"] = rows
    if not args.model and "cost" in args.groups:
        result["cost"] = costs(args.rounds)
        for name, one in result["cost"].items():
            word = "within" if one["ratio"] <= COST else "ABOVE"
            print(f"\nRelP over attribution patching, {name}: {one['ratio']:.3f} ({word} {COST})")
    sys.stdout = sys.__stdout__
    print(json.dumps(defined(result)))


if __name__ == "__main__":
    main()
