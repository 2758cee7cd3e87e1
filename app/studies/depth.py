"""The study `depth` of `mechscope probe`: Concept Depth of a model, with noise, and of compressed copies.

layers.parquet   variant, site, kind, layer, position, accuracy, auc, random_weights, auc_drop (with intervals)
depths.parquet   variant, kind, position, layers, jump, converging, converging_literal, ..., best_layer_shift

and the files of a sweep (`app.studies.layer_sweep`) of the model itself. See `probes.concept_depth`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from app import console, sources
from app.probing import Progress, Question
from app.studies import layer_sweep
from interp.models import load_model
from interp.runs import Run
from probes.concept_depth import ORIGINAL, concept_depth, noisy

if TYPE_CHECKING:
    from app.commands.probe import Args

NOISE = "noise"


def depth_study(question: Question, args: Args, record: Run, progress: Progress) -> dict[str, Any]:
    """Make the study, write its files into `record`, and return its summary."""
    found, captured = layer_sweep.original(question, args, progress)
    variants = {ORIGINAL: found}
    plain = replace(args, ks=())
    if args.noise:
        prompts = [args.template.replace("{}", text) for text in noisy(question.labelled.texts, args.seed)]
        acts = layer_sweep.read(question.handle, prompts, question, args, progress, f"{NOISE} texts")
        variants[NOISE] = layer_sweep.swept(question, plain, acts, found.split, progress, f"{NOISE} places")
    for text in args.recipes:
        spec = question.handle.spec
        copy = load_model(replace(spec, recipe=(*spec.recipe, *sources.recipe(text))), device=question.handle.device)
        name = sources.recipe_slug(sources.recipe(text)) if len(text) > sources.SLUG else text
        acts = layer_sweep.read(copy, question.prompts, question, args, progress, f"{name} texts")
        variants[name] = layer_sweep.swept(question, plain, acts, found.split, progress, f"{name} places")
    study = concept_depth(variants, resamples=args.resamples, seed=args.seed)
    layer_sweep.save(record, question, captured, found)
    record.save_table("layers.parquet", study.layers)
    record.save_table("depths.parquet", study.depths)
    return layer_sweep.summary(captured, found) | _headline(study.depths.to_pylist())


def _headline(depths: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the depth of the model at its first kind of site and position, and what the variants lose there."""
    if not depths:
        return {"variants": 1}
    first = depths[0]
    same = [row for row in depths if (row["kind"], row["position"]) == (first["kind"], first["position"])]
    found: dict[str, Any] = {key: first[key] for key in ("jump", "converging", "converging_literal")}
    found["variants"] = len(same)
    for row in same[1:]:
        found |= {
            f"auc_drop.{row['variant']}": row["auc_drop_mean"],
            f"shift.{row['variant']}": row["best_layer_shift"],
        }
    return found


def show(record: Run) -> None:
    """Print the table of the sweep, and the depths."""
    layer_sweep.show(record)
    console.emit()
    rows = record.table("layers.parquet").to_pylist()
    if any(row["auc_drop"] is not None for row in rows):
        heads = ("variant", "site", "position", "accuracy", "auc", "auc drop", "95 %")
        lines = [
            (row["variant"], row["site"], row["position"], row["accuracy"], row["auc"], row["auc_drop"],
             f"{row['auc_drop_low']:.3f} to {row['auc_drop_high']:.3f}")
            for row in rows
            if row["auc_drop"] is not None
        ]  # fmt: skip
        console.table(heads, lines)
        console.emit()
    heads = (
        "variant",
        "kind",
        "position",
        "jump",
        "in draws",
        "converging",
        "in draws",
        "literal",
        "best layer",
        "shift",
    )
    lines = [
        (row["variant"], row["kind"], row["position"], row["jump"], f"{row['jump_share']:.0%}", row["converging"],
         f"{row['converging_share']:.0%}", row["converging_literal"], row["best_auc_layer"], row["best_layer_shift"])
        for row in record.table("depths.parquet").to_pylist()
    ]  # fmt: skip
    console.table(heads, lines)
