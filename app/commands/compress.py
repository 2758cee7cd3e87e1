"""`mechscope compress`: a copy of a model after a recipe; what it takes to store, what changed, and the copy itself."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from app import console, sources
from app.command import Common

if TYPE_CHECKING:
    import pyarrow as pa

    from interp.models import ModelHandle

SHOWN = 60
"""Modules that the table lists at most; the run has all of them."""
SHARD = "2GB"
"""Size of a file of weights that `--save` writes, at most."""
PART = ".mechscope-part"
"""End of the name of the hidden folder that becomes the saved one; one that is left over is removed."""


@dataclass(frozen=True)
class Args(Common):
    """Compress a model by a recipe: bits per parameter, coverage, and the error of each matrix.

    A recipe is a list of steps, in a YAML or JSON file or as text, or one of the names int8, int6, int4, int4-g64,
    int3, prune10, prune30, prune50. Weights stay dense: the copy computes what a packed one would, as fast as before.
    """

    model: tyro.conf.Positional[str]
    """An embedded model, a local Hugging Face folder, or a hub id."""
    recipe: str
    """The recipe: a file, a name, or text such as '[{step: rtn, bits: 4, group: 64}]'."""
    save: Path | None = None
    """Write the compressed model into this new folder, as a plain Hugging Face model with dense weights."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    model_dtype: str = "float32"
    """Number format of the weights; bits are counted from it."""
    device: str | None = None
    """Where to compute, such as cuda; None takes a GPU where there is one."""


def run(args: Args) -> dict[str, Any]:
    """Compress, or find what was measured; return the run and its totals."""
    from interp.config import to_json
    from interp.models import ModelSpec, load_model
    from interp.runs import start_run

    spec = ModelSpec(sources.local(args.model), args.revision, args.model_dtype, sources.recipe(args.recipe))
    if args.save is not None:
        check_folder(args.save, spec)
    handle = sources.open_model(spec, args.device)
    config = {"model": to_json(spec), "weights": handle.base_digest()}
    model = {**config["model"], "digest": handle.digest()}
    started = time.time()
    with start_run("compress", config, slug=sources.spec_slug(spec), root=args.runs, model=model) as record:
        if record.finished:
            console.note(f"{record.ref} is finished already")
        else:
            base = load_model(replace(spec, recipe=()), device=args.device)
            found = table(handle, base)
            record.save_table("modules.parquet", found)
            record.save_json("steps.json", [_step(report) for report in handle.reports])
            record.finish(totals(handle, found) | {"seconds": round(time.time() - started, 1)})
    _show(record.table("modules.parquet"), record.summary, record.json("steps.json"))
    saved = None
    if args.save is not None:
        saved = str(save(handle, args.save.expanduser()))
        console.note(f"{saved} holds the model with dense weights; `mechscope models verify {saved}` reads it")
    return {"run": str(record.path), **record.summary, "saved": saved}


def table(handle: ModelHandle, base: ModelHandle) -> pa.Table:
    """Return a row for each module with a matrix: parameters, stored numbers, bits, and the error of its weight.

    `error` is |after - before| / |before| (Frobenius) over all steps together; null where nothing is left to compare.
    """
    import pyarrow as pa

    before = dict(base.module.named_modules())
    rows = []
    for one in handle.storage.modules:
        if one.eligible:
            weight = None if one.bits == 0 else getattr(handle.module.get_submodule(one.module), "weight", None)
            old = getattr(before[one.module], "weight", None)
            error = None if weight is None or old is None else _distance(weight, old)
            rows.append(
                {
                    "module": one.module,
                    "parameters": one.parameters,
                    "stored": one.stored,
                    "bits": one.bits,
                    "bits_per_parameter": one.bits_per_parameter,
                    "coverage": one.changed / one.parameters,
                    "error": error,
                }
            )
    return pa.Table.from_pylist(rows)


def _distance(after: Any, before: Any) -> float:
    size = float(before.double().norm())
    return float((after.double() - before.double()).norm()) / size if size else 0.0


def totals(handle: ModelHandle, found: pa.Table) -> dict[str, Any]:
    """Return the headline numbers: bits of the matrices and of the whole model, coverage, mean error by size."""
    from interp.compression import describe_recipe

    storage = handle.storage
    pairs = [(row["parameters"], row["error"]) for row in found.to_pylist() if row["error"] is not None]
    weight = sum(parameters for parameters, _ in pairs)
    return {
        "recipe": describe_recipe(handle.spec.recipe),
        "matrix_bits": storage.matrix_bits,
        "bits_per_parameter": storage.bits_per_parameter,
        "coverage": storage.coverage,
        "parameters": storage.parameters,
        "stored": storage.stored,
        "bytes": -(-storage.bits // 8),
        "error": sum(parameters * error for parameters, error in pairs) / weight if weight else None,
    }


def _step(report: Any) -> dict[str, Any]:
    """Return a step's report as JSON."""
    return {
        "step": report.step,
        "parameters": report.parameters,
        "eligible": report.eligible,
        "coverage": report.coverage,
        "notes": list(report.notes),
    }


def _show(found: pa.Table, summary: dict[str, Any], steps: list[dict[str, Any]]) -> None:
    """Print the modules, the steps and the totals."""
    rows = found.to_pylist()
    columns = ("module", "parameters", "stored", "bits_per_parameter", "coverage", "error")
    console.table(columns, [[row[name] for name in columns] for row in rows[:SHOWN]])
    if len(rows) > SHOWN:
        console.note(f"{len(rows) - SHOWN} modules more are in modules.parquet of the run")
    for step in steps:
        for text in step["notes"]:
            console.note(f"{step['step']}: {text}")
    console.emit()
    console.table(("total", "value"), list(summary.items()))


def check_folder(folder: Path, spec: Any) -> None:
    """Refuse to save into a folder that holds something, or a copy whose recipe acts while the model runs.

    Raises:
        ValueError: with what to do.
    """
    from interp.types import WeightStep

    running = [step for step in spec.recipe if not isinstance(step, WeightStep)]
    if running:
        raise ValueError(
            f"{running[0].describe()} acts while the model runs, and a folder of weights cannot hold it. Save without "
            "this step, or leave --save out and pass --recipe to the commands that read the model."
        )
    folder = folder.expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already; --save writes a new folder. Name another, or remove it.")


def save(handle: ModelHandle, folder: Path, origin: dict[str, Any] | None = None) -> Path:
    """Write the model and its tokenizer into the new `folder`, whole or not at all, and return its path.

    With `origin`, which says what else the copy is made from, that stands in edit.json in the place of recipe.json.
    """
    from interp.compression import recipe_json
    from interp.models.loading import no_progress_bars

    part = folder.with_name(f".{folder.name}{PART}")
    if part.exists():  # of a process that was killed while it wrote
        shutil.rmtree(part)
    part.mkdir(parents=True)
    try:
        with no_progress_bars():
            handle.module.save_pretrained(part, max_shard_size=SHARD)
        if handle.tokenizer is not None:
            handle.tokenizer.save_pretrained(part)
        name = "recipe.json" if origin is None else "edit.json"
        about = origin or {
            "base": handle.spec.name,
            "revision": handle.spec.revision,
            "base_digest": handle.base_digest(),
            "recipe": recipe_json(handle.spec.recipe),
        }
        (part / name).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()  # empty: looked at before
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder
