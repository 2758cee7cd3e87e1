"""What `mechscope attribute` asks: a model, pairs of prompts, a metric; and which methods answer it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from app import console, sources
from app.places import Place, all_heads

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from app.commands.attribute import Args
    from app.sources import Subject
    from interp.attribution import Attribution
    from interp.models import ModelHandle
    from interp.sites import Site
    from interp.tasks import Pairs
    from sae.model import Sae

COUNTS = ("cells", "rows_run")
"""Numbers of a result that add up over its parts."""
OWN = "own"
"""What the task of prompts from the command line is called."""
PATHS, LOGITS = "paths", "logits"
"""The method that patches along paths, and the receiver at their end."""
LATENTS = "latents"
"""The method that scores the latents of a dictionary."""
AGAINST = dict.fromkeys(("ig", "ig_inputs", "atp_star", LATENTS, PATHS), "corrupt") | {"gradient_x_input": "zero"}
"""Methods that know one baseline only."""
BLIND = {"relp": ("q", "k", "pattern"), "atp_star": ("pattern",)}
"""Kinds that a method has no scores for; presets of relevance have none for patterns."""


@dataclass(frozen=True)
class Question:
    """A model, pairs of prompts and what is measured of them."""

    handle: ModelHandle
    """The model."""
    pairs: Pairs
    """Clean and corrupted prompts."""
    accuracy: float
    """Share of the clean prompts that the model answers rightly."""
    values: tuple[Tensor, Tensor]
    """The metric of each clean and each corrupted prompt."""
    config: dict[str, Any]
    """What identifies the question, whichever method answers it."""
    subject: Subject | None = None
    """The dictionary, for attribution to latents."""

    @property
    def slug(self) -> str:
        """Model and task, for the names of runs."""
        return f"{sources.spec_slug(self.handle.spec)}.{self.pairs.task}"


def ask(args: Args) -> Question:
    """Return the question that the command line puts, with the model loaded and the prompts made.

    Raises:
        ValueError: an unknown task or metric, prompts that do not fit, a task that the model cannot do.
    """
    from interp.attribution.patching.runs import metric_of, resolve_metric
    from interp.config import to_json
    from interp.models import ModelSpec
    from interp.tasks import check_accuracy
    from interp.tasks.accuracy import LEAST

    spec = ModelSpec(sources.local(args.model), recipe=sources.recipe(args.recipe))
    subject = None if args.sae is None else sources.subject(args.sae, args.runs)
    if subject is not None:
        if subject.model.name != spec.name:
            raise ValueError(
                f"{subject.run.ref} reads {subject.model.name}, not {args.model}; name that model instead."
            )
        handle = sources.open_subject_model(subject, args.device, spec.recipe)
    else:
        handle = sources.open_model(spec, args.device)
    pairs = _pairs(args, handle)
    if pairs.n_pos > handle.n_ctx:
        raise ValueError(f"{handle.spec.name} reads at most n_ctx={handle.n_ctx} tokens, got {pairs.n_pos}.")
    accuracy = check_accuracy(handle, pairs)
    if accuracy < LEAST and not args.anyway and pairs.task != OWN:
        raise ValueError(
            f"{handle.spec.name} cannot do {pairs.task}: it gets {accuracy:.0%} of {len(pairs)} prompts right, and "
            f"below {LEAST:.0%} there is no mechanism to find. --list shows what it can do; --anyway goes on."
        )
    metric = resolve_metric(handle, pairs, args.metric, args.batch)
    _check_methods(args, handle, pairs)
    config = {
        "model": to_json(handle.spec),
        "weights": handle.digest(),
        "task": pairs.task,
        "pairs": pairs.digest(),
        "metric": args.metric or pairs.metric,
    }
    clean, corrupt = (metric_of(handle, side, metric, args.batch) for side in (pairs.clean, pairs.corrupt))
    return Question(handle, pairs, accuracy, (clean, corrupt), config, subject)


def _check_methods(args: Args, handle: ModelHandle, pairs: Pairs) -> None:
    """Refuse kinds, sites, direction and baseline that one of the methods does not take, before any has begun.

    Raises:
        ValueError: with what the method takes.
    """
    from interp.attribution.patching.cells import chosen_sites
    from interp.attribution.patching.sources import make_plan

    for text in (*args.through, *args.senders, *(one for one in args.receivers if one != LOGITS)):
        handle.check_site(Place.parse(text).site)
    if args.through and not any(map(shares_metric, args.methods)):
        raise ValueError("--through is a condition of relevance: ask for cp_lrp or another preset with --methods.")
    for method in args.methods:
        blind = BLIND.get(method, ("pattern",) if shares_metric(method) else ())
        lacking = [kind for kind in args.kinds if kind.split(".")[0] in blind]
        if lacking:
            raise ValueError(f"{method} has no scores for {', '.join(lacking)}: leave out one or the other.")
    compared = [method for method in args.methods if not shares_metric(method)]
    if LATENTS in compared and args.sae is None:
        raise ValueError("Attribution to latents needs a dictionary: --sae RUN.")
    for method in compared:
        only = AGAINST.get(method, args.baseline)
        if only != args.baseline:
            more = " --direction noising" if only == "zero" else ""
            raise ValueError(
                f"{method} compares with the baseline {only} only, got {args.baseline}. Ask for it by itself, with "
                f"--baseline {only}{more}."
            )
    if compared:
        make_plan(handle, pairs, (), direction=args.direction, baseline=args.baseline, batch=args.batch)
    embeddings = set() if set(compared) - {LATENTS} else {"embed"}  # they have relevance, and are no site
    if not args.kinds or set(args.kinds) - embeddings:
        chosen_sites(handle, [kind for kind in args.kinds if kind not in embeddings])


def _pairs(args: Args, handle: ModelHandle) -> Pairs:
    """Return the task's pairs, those of a file, or the one pair of the command line."""
    from interp.names import unknown
    from interp.tasks import TASKS

    texts = {"--clean": args.clean, "--corrupt": args.corrupt, "--correct": args.correct, "--wrong": args.wrong}
    given = [name for name, text in texts.items() if text is not None]
    if given:
        if len(given) < 4:
            missing = ", ".join(name for name in texts if name not in given)
            raise ValueError(f"A pair of prompts of one's own needs all of {', '.join(texts)}; missing: {missing}.")
        return own_pair(handle, *(text or "" for text in texts.values()))
    if args.prompts is not None:
        from interp.tasks import pairs_from_file

        return pairs_from_file(handle, args.prompts, n=args.n)
    name = args.task or ("induction" if handle.tokenizer is None else "agreement")
    if name not in TASKS:
        raise ValueError(unknown("task", name, TASKS))
    return TASKS[name].pairs(handle, args.n, args.seed)


def own_pair(handle: ModelHandle, clean: str, corrupt: str, correct: str, wrong: str) -> Pairs:
    """Return one pair of prompts and answers given as text.

    Raises:
        ValueError: the prompts differ in length, or an answer is not a single token.
    """
    import torch

    from interp.tasks import Pairs

    sides = [handle.tokens(text) for text in (clean, corrupt)]
    if sides[0].shape != sides[1].shape:
        shown = [" ".join(map(repr, handle.token_strings(side[0]))) for side in sides]
        raise ValueError(
            f"Clean and corrupted prompts must have the same number of tokens, got {sides[0].shape[1]} ({shown[0]}) "
            f"and {sides[1].shape[1]} ({shown[1]})."
        )
    answers = []
    for name, text in (("correct", correct), ("wrong", wrong)):
        ids = handle.tokens(text, bos=False)[0].tolist() if text else []
        if len(ids) != 1:
            parts = " ".join(map(repr, handle.token_strings(ids))) if ids else "nothing"
            raise ValueError(
                f"--{name} must be one token of this model, got {len(ids)} ({parts}). Most words begin with a space."
            )
        answers.append(torch.tensor([ids]))
    for names, both in (("--clean and --corrupt", sides), ("--correct and --wrong", answers)):
        if torch.equal(*both):
            raise ValueError(f"{names} are the same, so that there is no difference to explain.")
    return Pairs(OWN, sides[0].cpu(), sides[1].cpu(), *answers)


def method_names() -> tuple[str, ...]:
    """Return what --methods may name."""
    from interp.attribution.estimates import METHODS
    from interp.attribution.relevance import PRESETS

    presets = [name for name in PRESETS if name not in METHODS and name != "gradient"]
    return (*METHODS, *presets, LATENTS, PATHS)


def shares_metric(method: str) -> bool:
    """Return whether `method` is a preset of relevance, which shares out the metric itself, not a difference."""
    from interp.attribution.estimates import METHODS

    return method not in METHODS and method not in (LATENTS, PATHS)


def answer(question: Question, method: str, args: Args, progress: Callable[[int, int], object]) -> Attribution:
    """Return what `method` finds; kinds with heads are taken by head, the others by position.

    Raises:
        ValueError: what the method refuses.
    """
    from interp.attribution.estimates import METHODS, latent_attribution
    from interp.attribution.relevance import relevance
    from interp.sites import WITH_HEADS

    handle, pairs = question.handle, question.pairs
    shared: dict[str, Any] = {"metric": args.metric, "batch": args.batch, "on_progress": progress}
    if method == PATHS:
        return _paths(question, args, shared)
    saes = _dictionaries(question, method, args)
    if method == LATENTS:
        return latent_attribution(handle, pairs, saes, direction=args.direction, check=args.check, **shared)
    kinds = tuple(args.kinds)
    if shares_metric(method):
        conditions = [Place.parse(text).through(handle, saes) for text in args.through]
        return relevance(handle, pairs, preset=method, sites=kinds, through=conditions, **shared)
    options = shared | {"direction": args.direction, "baseline": args.baseline}
    if method != "patching":
        options["check"] = args.check
    by_head = tuple(kind for kind in kinds if kind.split(".")[0] in WITH_HEADS)
    groups = [
        (tuple(kind for kind in kinds if kind not in by_head), ("pos",)),
        (by_head, ("pos", "head") if args.head_positions else ("head",)),
    ]
    found = [METHODS[method](handle, pairs, some, parts=parts, **options) for some, parts in groups if some]
    return found[0] if len(found) == 1 else merged(found[0], found[1])


def _dictionaries(question: Question, method: str, args: Args) -> dict[Site, Sae]:
    """Return the dictionary by its site, if this method reads one."""
    if question.subject is None or not (method == LATENTS or args.through):
        return {}
    from sae.model import load_sae

    return {question.subject.site: load_sae(question.subject.run, question.handle.device)}


def _paths(question: Question, args: Args, shared: dict[str, Any]) -> Attribution:
    """Return path patching from --senders (all heads unless given) to --receivers."""
    from interp.attribution import path_patch

    senders = [Place.parse(text) for text in args.senders] or all_heads(question.handle)
    receivers = [one for text in args.receivers for one in ([text] if text == LOGITS else Place.parse(text).cells())]
    sending = [cells for place in senders for cells in place.cells()]
    return path_patch(question.handle, question.pairs, sending, receivers, direction=args.direction, **shared)


def merged(first: Attribution, second: Attribution) -> Attribution:
    """Return the cells of both results, which one method found on the same pairs."""
    import pyarrow as pa

    from interp.attribution.estimates.check import check_values

    both = replace(
        first,
        nodes=pa.concat_tables([first.nodes, second.nodes], promote_options="permissive"),
        completeness=pa.concat_tables([first.completeness, second.completeness], promote_options="permissive"),
        tokens=first.tokens or second.tokens,
        about=first.about | {name: first.about[name] + second.about[name] for name in ("sites", "parts")},
    )
    counts = {name: first.values[name] + second.values[name] for name in COUNTS if name in first.values}
    checks = check_values(both) if "check_cells" in first.values else {}
    return replace(both, values=second.values | first.values | counts | checks)


def show_tasks(handle: ModelHandle, n: int, seed: int) -> list[dict[str, Any]]:
    """Print every task with the accuracy of the model; return the rows."""
    from interp.tasks import task_table

    rows = task_table(handle, n=n, seed=seed).to_pylist()
    console.table(list(rows[0]), [[row[name] for name in row] for row in rows])
    return rows


def show(found: Mapping[str, Attribution], top: int) -> dict[str, Any]:
    """Print the strongest cells of every method and how the methods agree; return both."""
    from interp.attribution import correlations
    from interp.attribution.saving import cell_name

    best = {}
    for method, result in found.items():
        rows = result.top(top).to_pylist()
        best[method] = [
            {"cell": cell_name(row), "score": row["score"], "measured": row.get("measured")} for row in rows
        ]
        console.emit(f"\n{method}")
        console.table(
            ("cell", "score", "stderr", "measured"),
            [[cell_name(row), row["score"], row["stderr"], row.get("measured")] for row in rows],
        )
        if result.edges is not None:
            _show_edges(result.edges, top)
        if "check_pearson" in result.values:
            console.note(
                f"{method}: correlation with real patching of {result.values['check_cells']:.0f} cells "
                f"{result.values['check_pearson']:.3f}"
            )
    if len(found) < 2:
        return {"top": best}
    matrix = correlations(found)
    console.emit("\nPearson correlation over shared cells")
    rows = [[kind, a, b, value, cells] for kind, a, b, value, cells in matrix]
    console.table(("kind", "method", "method", "pearson", "cells"), rows)
    return {
        "top": best,
        "agreement": [dict(zip(("kind", "a", "b", "pearson", "cells"), row, strict=True)) for row in rows],
    }


def _show_edges(edges: pa.Table, top: int) -> None:
    """Print the strongest edges."""
    from interp.attribution.saving import cell_name

    ends = ("source", "target")
    rows = sorted(edges.to_pylist(), key=lambda row: -abs(row["score"]))[:top]
    named = [
        [{k.removeprefix(f"{end}_"): v for k, v in row.items() if k.startswith(end)} for end in ends] for row in rows
    ]
    console.emit("\nalong paths")
    console.table(
        ("from", "to", "score", "stderr"),
        [[cell_name(a), cell_name(b), row["score"], row["stderr"]] for (a, b), row in zip(named, rows, strict=True)],
    )
