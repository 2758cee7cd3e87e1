"""`mechscope compare`: what differs inside two versions of a model that behave almost alike."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import tyro

from app import comparing, console
from app.command import Common

if TYPE_CHECKING:
    from app.comparing import Question
    from interp.compression.compare import Comparison
    from interp.runs import Run

Null = Literal["weight-noise", "activation-noise", "random-prune"]


@dataclass(frozen=True)
class Args(Common):
    """Compare two models that read the same tokens: outputs, activations, features, heads, predictions by layer.

    Give two models, or one and --recipe: then B is a compressed copy of A. Both must have one vocabulary. The same
    command again finds the finished comparison.
    """

    a: tyro.conf.Positional[str]
    """The model to compare against: embedded, a local Hugging Face folder, or a hub id."""
    b: tyro.conf.Positional[str | None] = None
    """The other model, such as a fine-tuned copy; None takes A again, which --recipe then changes."""
    recipe: str | None = None
    """Compress B: a recipe's file, name or text, as in `mechscope compress`."""
    recipe_a: str | None = None
    """Compress A, to compare two compressed copies."""
    revision: str | None = None
    """Branch, tag or commit of A on the hub."""
    revision_b: str | None = None
    """Branch, tag or commit of B on the hub; without B another revision of A."""
    model_dtype: str = "float32"
    """Number format both models compute in."""
    sae: str | None = None
    """Run of `mechscope train`: its dictionary reads both models, for the panels survival and dictionary."""
    panels: tuple[str, ...] = ()
    """What to measure: behaviour, drift, cka, survival, dictionary, heads, lens, layers, probes; none named takes all
    that can be but layers, which takes longest."""
    probe_data: str | None = None
    """Labelled texts for the panel probes, named as for `mechscope probe`: probes of A on B, and fitted on B."""
    probe_fields: tuple[str, ...] = ()
    """Fields of --probe-data that hold text, label and, if there is one, group; none named takes text and label."""
    probe_texts: int = 1000
    """Texts of --probe-data at most, drawn by the seed."""
    text: str = "demo"
    """The text that both read: a file, a folder, `demo`, or a hub data set; all of it up to --tokens."""
    tokens: int = 100_000
    """Tokens to read, at most."""
    context: int | None = None
    """Length of a block in tokens; None takes 128, or as many as both models read."""
    nulls: tuple[Null, ...] = ()
    """Also compare A with itself under this random damage, so strong that its KL is that of B."""
    least: int = 10
    """Tokens on which a latent must fire to count as active."""
    kept: float = 0.9
    """Correlation from which a latent is kept."""
    blurred: float = 0.5
    """Correlation from which a latent is blurred, and below which it is lost."""
    threshold: float = 0.4
    """Score from which a head counts as an induction, previous-token or duplicate-token head."""
    seed: int = 0
    """Of nulls, random tokens and the bootstrap."""
    device: str | None = None
    """Where to compute, such as cuda; None takes a GPU where there is one."""


def run(args: Args) -> dict[str, Any]:
    """Compare, or find the comparison, and the nulls; return the run and its headline numbers."""
    question = comparing.ask(args)
    record, found = _answer(question, args)
    results = {"b": record}
    comparing.show(found)
    if args.nulls:
        results |= _nulls(question, record, args)
        comparing.show_nulls(results)
    nulls = {name: str(null.path) for name, null in results.items() if name != "b"}
    return {"run": str(record.path), **record.summary} | ({"nulls": nulls} if nulls else {})


def _answer(question: Question, args: Args) -> tuple[Run, dict[str, Any]]:
    """Return the finished run of `question`, and what each panel found."""
    from interp.compression.compare import compare, load_results
    from interp.runs import start_run

    started = time.time()
    place: dict[str, Any] = {"slug": question.slug, "parents": question.parents, "root": args.runs, "seed": args.seed}
    with start_run("compare", question.config, **place, **question.provenance) as record:
        if record.finished:
            console.note(f"{record.ref} is finished already")
        else:
            console.note(f"{record.ref}: {comparing.estimate(question)}")
            with console.stages({"blocks": "compare", "panels": "finish"}, record) as progress:
                panels, blocks = question.panels(), question.blocks
                found: Comparison = compare(question.a, question.b, panels, blocks=blocks, on_progress=progress)
            found.save(record)
            record.finish(comparing.headline(question, found.results) | {"seconds": round(time.time() - started, 1)})
    return record, load_results(record)


def _nulls(question: Question, record: Run, args: Args) -> dict[str, Run]:
    """Return {kind: run} of A against itself under each kind of random damage at the KL of B."""
    from interp.compression.nulls import mean_kl, spread_blocks
    from interp.runs import find_runs

    some = spread_blocks(question.blocks)
    target: float | None = None
    runs = {}
    for name in args.nulls:
        wanted = {"kind": name.replace("-", "_"), "tokens": some.digest(), "seed": args.seed}
        finished = [
            one
            for one in find_runs(args.runs, "compare", finished=True)
            if one.config.get("null_of") == record.ref and one.config.get("null") == wanted
        ]
        if finished:
            console.note(f"{finished[0].ref} is finished already")
            runs[name] = finished[0]
            continue
        if target is None:
            target = mean_kl(question.a, question.b, some)
            console.note(f"KL of B on {some.n_tokens:,} tokens: {target:.4g} nats; nulls are matched to it there")
        if target <= 0:
            raise ValueError(
                "The two models are equal, so there is no damage that a null could match. Leave out --nulls."
            )
        runs[name], _ = _answer(_matched(question, record, wanted, target, some), args)
    return runs


def _matched(question: Question, record: Run, wanted: dict[str, Any], target: float, some: Any) -> Question:
    """Return the question of A against itself under random damage."""
    from interp.compression.nulls import matched_null
    from interp.models import load_model

    kind, seed = wanted["kind"], wanted["seed"]

    def tell(strength: float, kl: float) -> None:
        console.note(f"  {kind} of strength {strength:.4g}: KL {kl:.4g}")

    recipe = matched_null(kind, question.a.spec, target, some, seed=seed, a=question.a, on_progress=tell)
    spec = replace(question.a.spec, recipe=(*question.a.spec.recipe, *recipe))
    return comparing.null_question(question, load_model(spec, device=question.a.device), record.ref, wanted)
