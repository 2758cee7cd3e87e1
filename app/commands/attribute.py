"""`mechscope attribute`: which activations make the model do this, by patching, estimates and relevance."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from app import attributing, console
from app.command import Common

if TYPE_CHECKING:
    from app.attributing import Question
    from interp.attribution import Attribution
    from interp.runs import Run


UNITS = ("steps", "steps (2)", "steps (3)", "steps (4)")
"""What progress counts: cells by position, their check, cells by head, and theirs."""


@dataclass(frozen=True)
class Args(Common):
    """Score the sites, heads and positions of a model by what they do for a task; one run for each method.

    Estimates are checked by really patching their strongest cells. The same command again finds what is finished, and
    other methods on the same prompts stand beside it.
    """

    model: tyro.conf.Positional[str] = "tiny"
    """The model: embedded, a local Hugging Face folder, or a hub id."""
    task: str | None = None
    """What the model is asked; --list shows the tasks and what this model can do. None takes agreement, and induction
    for a model without a tokenizer."""
    methods: tuple[str, ...] = ("patching", "atp", "relp")
    """How: patching (measured), atp, relp, ig, ig_inputs, atp_star, gradient_x_input (estimates of it), cp_lrp,
    attn_lrp and other presets (relevance of the metric itself), latents (with --sae), paths (from --senders to
    --receivers)."""
    kinds: tuple[str, ...] = ("resid_pre", "attn_out", "mlp_out", "head_out")
    """Sites, or kinds for all layers. Those with heads (head_out, q, k, v, pattern) are scored by head."""
    head_positions: bool = False
    """Score heads at each position too; patching then takes as many times longer as there are positions."""
    n: int = 16
    """Prompts."""
    metric: str | None = None
    """logit_diff, probability, probability_diff or minus_kl; None takes the task's own."""
    direction: Literal["denoising", "noising"] = "denoising"
    """Put clean activations into the corrupted run, or corrupted ones into the clean run."""
    baseline: Literal["corrupt", "zero", "mean", "resample"] = "corrupt"
    """What clean activations are compared with; all but corrupt need --direction noising."""
    check: int = 10
    """Cells of each estimate that are really patched, the strongest and as many random ones; 0 for none."""
    clean: str | None = None
    """A prompt of your own, with --corrupt, --correct and --wrong instead of --task."""
    corrupt: str | None = None
    """The same prompt with what matters replaced; as many tokens."""
    correct: str | None = None
    """The right next token after --clean; most words begin with a space."""
    wrong: str | None = None
    """A wrong one."""
    prompts: Path | None = None
    """A file of prompt pairs instead of --task (JSON or csv; see the documentation of tasks)."""
    sae: str | None = None
    """Run of `mechscope train`, for the method latents."""
    recipe: str | None = None
    """Ask a compressed copy of the model: a recipe's file, name or text, as in `mechscope compress`."""
    list: bool = False
    """Only list the tasks with the accuracy of the model on each."""
    anyway: bool = False
    """Go on although the model gets fewer than 70% of the prompts right."""
    through: tuple[str, ...] = ()
    """Relevance only through these: KIND.LAYER[:PART,...][@POSITION,...], such as head_out.2:1,3 (heads), mlp_act.1:40
    (neurons), resid_post.2:17 (latents of --sae). For cp_lrp, attn_lrp and other presets."""
    senders: tuple[str, ...] = ()
    """For the method paths: what is sent, written likewise; none named takes every head."""
    receivers: tuple[str, ...] = ("logits",)
    """For the method paths: what reads it: q, k, v or mlp_act of a layer, such as k.2:0, or logits."""
    top: int = 8
    """Cells that are printed for each method."""
    batch: int = 16
    """Prompts, or patched prompts, in a forward pass."""
    seed: int = 0
    """Of the prompts."""
    device: str | None = None
    """Where to compute, such as cuda; None takes a GPU where there is one."""


def run(args: Args) -> dict[str, Any]:
    """Score by every method, or find its run; return the runs, the strongest cells and how the methods agree."""
    from interp.models import ModelSpec
    from interp.names import unknown

    for name, least in (("n", 1), ("batch", 1), ("top", 1), ("check", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"{name} must be {least} or more, got {getattr(args, name)}.")
    if args.list:
        from app import sources

        spec = ModelSpec(sources.local(args.model), recipe=sources.recipe(args.recipe))
        return {"tasks": attributing.show_tasks(sources.open_model(spec, args.device), args.n, args.seed)}
    known = attributing.method_names()
    for method in args.methods:
        if method not in known:
            raise ValueError(unknown("method", method, known))
    if not args.methods:
        raise ValueError(f"At least one method is needed: {', '.join(known)}.")
    question = attributing.ask(args)
    console.note(f"{question.handle.spec.name} gets {question.accuracy:.0%} of {len(question.pairs)} prompts right")
    runs: dict[str, Run] = {}
    found: dict[str, Attribution] = {}
    for method in dict.fromkeys(args.methods):
        runs[method], found[method] = _answer(question, method, args)
    shown = attributing.show(found, args.top)
    last = next(reversed(runs.values()))
    paths = {method: str(one.path) for method, one in runs.items()}
    return {"run": str(last.path), "runs": paths, "accuracy": question.accuracy, **shown}


def _answer(question: Question, method: str, args: Args) -> tuple[Run, Attribution]:
    """Return the finished run of one method, and what it holds."""
    from interp.attribution.saving import KIND, load_attribution, prompts_table, summary, write_attribution
    from interp.runs import start_run

    started = time.time()
    config = {**question.config, **_asked(method, args), "sae_run": None}
    parents = []
    conditional = bool(args.through) and attributing.shares_metric(method)
    if (method == attributing.LATENTS or conditional) and question.subject is not None:
        config["sae_run"], parents = question.subject.run.ref, [question.subject.run.ref]
    place: dict[str, Any] = {
        "slug": f"{question.slug}.{method}",
        "parents": parents,
        "root": args.runs,
        "seed": args.seed,
    }
    model = {**question.config["model"], "digest": question.config["weights"]}
    with start_run(KIND, config, **place, model=model) as record:
        if record.finished:
            console.note(f"{record.ref} is finished already")
        else:
            with console.stages(dict.fromkeys(UNITS, method), record) as progress:
                result = attributing.answer(question, method, args, _in_parts(progress))
            write_attribution(record, result, prompts_table(question.handle, question.pairs, *question.values))
            more = {"accuracy": question.accuracy, "seconds": round(time.time() - started, 1)}
            record.finish(summary(result) | more)
    return record, load_attribution(record)


def _in_parts(progress: Callable[[int, int, str], None]) -> Callable[[int, int], None]:
    """Return what hears (done, total) of one part of the work after another; a new total or start begins the next."""
    part, before = 0, (0, 0)

    def hear(done: int, total: int) -> None:
        nonlocal part, before
        if before[1] and (total != before[1] or done < before[0]):
            part = min(part + 1, len(UNITS) - 1)
        before = (done, total)
        progress(done, total, UNITS[part])

    return hear


def _asked(method: str, args: Args) -> dict[str, Any]:
    """Return the options that are part of a run's identity; those that a method does not read are not."""
    if method == attributing.LATENTS:
        return {"method": method, "direction": args.direction, "check": args.check}
    if method == attributing.PATHS:
        ends = {"senders": list(args.senders), "receivers": list(args.receivers)}
        return {"method": method, "direction": args.direction} | ends
    asked: dict[str, Any] = {"method": method, "kinds": list(args.kinds)}
    if attributing.shares_metric(method):
        return asked | ({"through": list(args.through)} if args.through else {})
    asked |= {"direction": args.direction, "baseline": args.baseline, "head_positions": args.head_positions}
    return asked if method == "patching" else asked | {"check": args.check}
