"""`mechscope layers`: the layer-wise profile of a model: what each layer does, which matter, where two models part."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

from app import console, layering
from app.command import Common

if TYPE_CHECKING:
    from app.layering import Question
    from interp.layers.result import Profile
    from interp.runs import Run


@dataclass(frozen=True)
class Args(Common):
    """Measure what each layer of a model does, by every family of measures, from one pass over some text.

    With --vs or --vs-recipe a second model is measured on the same text and shown beside the first. The same command
    again finds what is finished, and goes on where it was stopped.
    """

    model: tyro.conf.Positional[str] = "tiny"
    """The model: embedded, a local Hugging Face folder, or a hub id."""
    vs: str | None = None
    """A second model."""
    vs_recipe: str | None = None
    """Compress the second model (without --vs a copy of the first): a recipe, as in `mechscope compress`."""
    recipe: str | None = None
    """Compress the model first."""
    revision: str | None = None
    """Branch, tag or commit of the model on the hub."""
    vs_revision: str | None = None
    """Branch, tag or commit of the second model on the hub; without --vs another revision of the first."""
    model_dtype: str = "float32"
    """Number format the models compute in."""
    families: tuple[str, ...] = ()
    """What to measure; none named takes all that the model allows (--list names them)."""
    list: bool = False
    """Only list the families and their measures."""
    prompts: int = 64
    """Pieces of text."""
    context: int | None = None
    """Tokens of each; None takes 256, or as many as both models read."""
    text: str = "demo"
    """The text: a file, a folder, `demo`, or a hub data set."""
    tuned_lens: str | None = None
    """A lens beside the logit lens: a run of kind lens, or `train` to train one on what follows in the text."""
    device: str | None = None
    """Where to compute, such as cuda; None takes a GPU where there is one."""


def run(args: Args) -> dict[str, Any]:
    """Measure one model or two, or find the profiles; return the runs and the headline numbers."""
    if args.list:
        return {"families": layering.show_families()}
    questions = layering.ask(args)
    answers = [_answer(question, args) for question in questions]
    profiles = [found for _, found in answers]
    rows = layering.show(profiles)
    paths = [str(record.path) for record, _ in answers]
    summaries = [{name: result.summary for name, result in found.results.items()} for found in profiles]
    found: dict[str, Any] = {"run": paths[0], "families": summaries[0], "refused": profiles[0].refused, "layers": rows}
    if len(paths) > 1:
        found |= {"vs_run": paths[1], "vs_families": summaries[1], "vs_refused": profiles[1].refused}
    return found


def _answer(question: Question, args: Args) -> tuple[Run, Profile]:
    """Return the finished run of one model, and what it holds."""
    from interp.layers.profile import profile
    from interp.layers.result import KIND, Profile, load_profile, save_part, save_summary
    from interp.runs import start_run

    started = time.time()
    place: dict[str, Any] = {"slug": question.slug, "parents": question.parents, "root": args.runs}
    with start_run(KIND, question.config, **place, **question.provenance) as record:
        if record.finished:
            console.note(f"{record.ref} is finished already")
        else:
            kept = layering.kept(record)
            left = [name for name in question.names if name not in kept]
            console.note(f"{record.ref}: {layering.estimate(question, left)}")
            if kept:
                console.note(f"going on with {', '.join(kept)}, which are there")

            def keep(name: str, part: Any) -> None:
                kept[name] = part
                save_part(record, name, part)
                save_summary(record, Profile(question.handle.spec.label, question.handle.n_layers, kept))

            with console.stages({"blocks": "read", "families": "finish"}, record) as progress:
                found = profile(
                    question.handle, question.families(), blocks=question.blocks, lenient=question.lenient,
                    skip=list(kept), on_progress=progress, on_part=keep,
                )  # fmt: skip
            ordered = {name: kept[name] for name in question.names if name in kept}
            whole = Profile(found.model, found.n_layers, ordered, found.refused, found.about)
            save_summary(record, whole)
            record.finish(layering.headline(whole) | {"seconds": round(time.time() - started, 1)})
    return record, load_profile(record)
