"""`mechscope probe othello6 --study board`: the study of an Othello model as a run of kind "board"."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from app import console, sources
from app.studies.board import board_config, board_study
from interp.models import ModelSpec
from interp.runs import Run, start_run

if TYPE_CHECKING:
    from app.commands.probe import Args

MODEL = "othello6"
"""The model that is taken unless another is named."""


def answer(args: Args) -> dict[str, Any]:
    """Make the study, or find its run; return the run and its numbers."""
    spec = ModelSpec(sources.local(args.model or MODEL), recipe=sources.recipe(args.recipe))
    options = replace(args.board, seed=args.seed) if args.seed else args.board
    handle = sources.open_model(spec, args.device)
    config, started = board_config(handle, options), time.time()
    place: dict[str, Any] = {"slug": sources.spec_slug(spec), "root": args.runs, "parents": options.dictionaries}
    with start_run("board", config, **place, model={**config["model"], "digest": config["weights"]}) as record:
        if record.finished:
            console.note(f"{record.ref} is finished already")
        else:
            console.note(f"{record.ref}: {options.games:,} games, {options.edits:,} interventions of each kind")
            with console.stages({}, record) as progress:
                summary = board_study(handle, options, record, progress)
            record.finish(summary | {"seconds": round(time.time() - started, 1)})
    show(record)
    return {"run": str(record.path), **record.summary}


def show(record: Run) -> None:
    """Print the numbers of a finished study."""
    console.table(("number", "value"), list(record.summary.items()))
