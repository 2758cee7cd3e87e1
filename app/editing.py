"""What `mechscope edit` asks, how the edit is made, and what is measured of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from app import console, sources

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray
    from torch import Tensor

    from app.commands.edit import Args
    from interp.data import Blocks
    from interp.models import ModelHandle
    from interp.runs import Run
    from interp.sites import Site
    from probes.base import BaseProbe
    from probes.capturing import Captured
    from probes.effects import TextsEffect

KIND = "edit"
HOWS = ("hyperplane", "mean_difference", "leace", "casal")
READS: dict[str, tuple[str, ...]] = {
    "hyperplane": ("p",),
    "mean_difference": ("strength",),
    "leace": ("strength",),
    "casal": ("strength", "plan", "module", "steps", "keep"),
}
"""The options that each way reads."""
HELD_OUT = 64
"""Held-out texts that are edited, at most."""
LONG = 0.5
"""Share of an activation's length above which a move is called long."""


@dataclass(frozen=True, eq=False)
class Question:
    """A model, labelled texts, probes, and what is asked for."""

    handle: ModelHandle
    """The model."""
    texts: tuple[str, ...]
    """What the model reads."""
    labels: NDArray[np.str_]
    """The label of each text."""
    train: NDArray[np.bool_]
    """Which texts are fitted on."""
    probes: dict[Site, BaseProbe]
    """The probe of each site, the first layer first."""
    reader: BaseProbe
    """A probe of the last block's output, which reads what has become of an edit; it was fitted on the same texts."""
    captured: Captured
    """Activations of the texts that are fitted on, at the sites and at the last block's output."""
    position: str
    """Where in a text."""
    config: dict[str, Any]
    """What identifies the run."""
    slug: str
    """Name of the run."""
    parents: tuple[str, ...] = ()
    """The run that the probes are from."""

    @property
    def last(self) -> str:
        """The last block's output."""
        return f"resid_post.{self.handle.n_layers - 1}"


@dataclass(frozen=True, eq=False)
class Way:
    """An edit that can be opened, or a model that needs none."""

    open: Callable[[Any], AbstractContextManager[Any]]
    """Opens the edit at positions (numbers, a mask, or a name)."""
    model: ModelHandle
    """What runs under it: the model, or a copy with one trained module."""
    about: dict[str, Any]
    """Numbers about how it was made."""
    changed: dict[str, Tensor] | None = None
    """Parameters that differ from the model's."""


def ask(args: Args) -> Question:
    """Return the question that the command line puts, with the model loaded, the texts read and the probes fitted.

    Raises:
        ValueError: texts, sites, a probe's run, a label or a position that do not fit.
    """
    from interp.config import to_json
    from interp.models import ModelSpec
    from interp.names import unknown
    from probes.logistic import LogisticProbe

    spec = ModelSpec(sources.local(args.model), recipe=sources.recipe(args.recipe))
    handle = sources.open_model(spec, args.device)
    given = _from_run(args, handle) if args.probe else _from_data(args, handle)
    texts, labels, groups, train, probes, sites, position, about, parents = given
    if args.target not in set(labels.tolist()):
        raise ValueError(unknown("label", args.target, sorted(set(labels.tolist()))))
    if args.how == "casal" and (len(sites) > 1 or not sites[0].startswith("resid_post.")):
        raise ValueError(f"casal trains one block: give one --site, resid_post of a layer, got {', '.join(sites)}.")
    last = f"resid_post.{handle.n_layers - 1}"
    fit_on = tuple(text for text, chosen in zip(texts, train, strict=True) if chosen)
    captured = _captured(handle, fit_on, tuple(dict.fromkeys((*sites, last))), position)
    for site in captured.sites:
        if site not in probes:
            probe = LogisticProbe(args.C, source=captured.source(site, position))
            probes[site] = probe.fit(captured.rows(site, position), labels[train], groups[train])
    asked = ("target", "how", "text", "top", "new_tokens", "temperature", "neutral", "neutral_tokens", *READS[args.how])
    config = {
        "model": to_json(handle.spec),
        "weights": handle.digest(),
        **about,
        "sites": list(sites),
        "position": position,
    } | {name: getattr(args, name) for name in asked}
    chosen = {handle.check_site(site): probes[site] for site in sites}
    slug = f"{sources.spec_slug(handle.spec)}.{args.how}.{args.target}"
    return Question(
        handle,
        texts,
        labels,
        train,
        dict(sorted(chosen.items())),
        probes[last],
        captured,
        position,
        config,
        slug,
        parents,
    )


def _captured(handle: ModelHandle, texts: tuple[str, ...], sites: tuple[str, ...], position: str) -> Captured:
    from probes.capturing import capture_texts

    with console.progress(len(texts), "texts", "read") as bar:
        return capture_texts(handle, texts, sites, [position], on_progress=bar.to)


def _from_data(args: Args, handle: ModelHandle) -> tuple[Any, ...]:
    """Return (texts, labels, groups, which to fit on, no probes, sites, position, identity, no parents)."""
    from app.labelled_texts import Fields, about, read_texts
    from probes.capturing import expand_sites, parse_position

    fields = Fields(args.data_text, args.data_label, args.data_group, args.data_names)
    labelled = read_texts(args.data, fields).sample(args.texts, args.seed)
    position = parse_position(args.position or "last")
    sites = expand_sites(handle, args.site or (str(sources.handle_site(handle, None)),))
    identity = {"data": about(args.data, fields, labelled), "test": args.test, "C": args.C}
    labels, groups = np.array(labelled.labels), np.array(labelled.groups)
    train = labelled.split(args.test, args.seed)
    return labelled.texts, labels, groups, train, {}, sites, position, identity, ()


def _from_run(args: Args, handle: ModelHandle) -> tuple[Any, ...]:
    """Return the same from a finished study of `mechscope probe`, with its probes."""
    from interp.runs import open_run
    from probes.capturing import parse_position
    from probes.saving import STUDY_KIND, load_probe, probe_names

    run = open_run(str(args.probe), args.runs)
    if run.kind != STUDY_KIND or not run.finished or not probe_names(run):
        raise ValueError(f"{run.ref} holds no probes; make some with `mechscope probe`, or leave --probe out.")
    position = parse_position(args.position or run.summary.get("best_position") or "last")
    names = probe_names(run)
    best = run.summary.get("best_site") or names[0].removeprefix("probes/").rpartition("@")[0]
    sites = tuple(args.site) or (best,)
    probes = {}
    for site in sites:
        probes[site] = load_probe(run, f"probes/{site}@{position}")
        if probes[site].source is None:
            raise ValueError(
                f"{site} can be read, but nothing can be put there; take another --site, such as resid_post."
            )
        probes[site].check_source(_source(handle, site, position))
    rows = run.table("texts.parquet").to_pylist()
    template = run.config.get("settings", {}).get("template", "{}")
    texts = tuple(template.replace("{}", row["content"]) for row in rows)
    labels, groups = (np.array([str(row[name]) for row in rows]) for name in ("label", "group"))
    train = np.array([row["part"] == "train" for row in rows])
    return texts, labels, groups, train, probes, sites, position, {"probe_run": run.ref, "C": args.C}, (run.ref,)


def _source(handle: ModelHandle, site: str, position: str) -> Any:
    from probes.source import Source

    return Source.of(handle, site, position)


def neutral(args: Args, handle: ModelHandle) -> tuple[Blocks, Blocks]:
    """Return neutral text as (blocks that casal keeps, blocks that the cost is measured on)."""
    from interp.data import DataSpec

    context = min(128, handle.n_ctx)
    spec = DataSpec(sources.local(args.neutral), context=context, tokens=args.neutral_tokens, heldout=0.5)
    return sources.split_blocks(handle, spec)


def way(question: Question, args: Args, kept: Blocks, progress: Callable[[int, int], object]) -> Way:
    """Return the edit that is asked for."""
    from probes.casal import CasalConfig, casal
    from probes.editing import change_rows, edit
    from probes.steering_vectors import leace_swap, mean_difference, steer_along

    handle, place = question.handle, question.position
    rows = {site: question.captured.rows(str(site), place) for site in question.probes}
    labels = question.labels[question.train]
    if args.how == "hyperplane":
        given = list(question.probes.values())
        return Way(lambda where: edit(handle, given, args.target, args.p, positions=where), handle, {})
    if args.how == "mean_difference":
        vectors = {
            site: mean_difference(x, labels, args.target, question.captured.source(str(site), place))
            for site, x in rows.items()
        }
        about = {f"norm_{site}": one.norm for site, one in vectors.items()}
        return Way(lambda where: steer_along(handle, vectors, args.strength, positions=where), handle, about)
    if args.how == "leace":
        swaps = {site: leace_swap(x, labels, args.target, strength=args.strength) for site, x in rows.items()}

        def opened(where: Any) -> ExitStack:
            with ExitStack() as stack:
                for site, swap in swaps.items():
                    stack.enter_context(change_rows(handle, site, swap, where))
                return stack.pop_all()

        return Way(opened, handle, {})
    config = CasalConfig(args.plan, args.strength, args.module, args.steps, keep=args.keep, seed=args.seed)
    texts = [text for text, chosen in zip(question.texts, question.train, strict=True) if chosen]
    (site,) = question.probes
    made = casal(
        handle, texts, labels, args.target, site.layer, config, position=place, keep=kept, on_progress=progress
    )
    about = {"module": made.module, "loss_first": float(made.losses[0]), "loss_last": float(made.losses[-1])}
    about |= {f"missed_{name}": value for name, value in made.missed.items()}
    return Way(lambda _: nullcontext(), made.handle, about, made.trained)


def measure(question: Question, args: Args, way_: Way, blocks: Blocks, record: Run) -> None:
    """Write what the edit does to the text, to held-out texts and to neutral text; finish the run."""
    import pyarrow as pa

    from probes.effects import cost
    from sae.steering_effect import generate, next_tokens

    handle, tokens = question.handle, question.handle.tokens(args.text)
    before, after = _effects(question, way_, [tokens[0]], list(question.probes))
    rows = [
        _probability(site, probe, args.target, before.rows[site], after.rows[site])
        for site, probe in question.probes.items()
    ]
    record.save_table("probabilities.parquet", pa.Table.from_pylist(rows))
    plain = handle.logits(tokens).float().cpu()
    with way_.open(question.position):
        moved = way_.model.logits(tokens).float().cpu()
    top = min(args.top, handle.d_vocab)
    record.save_table("next_tokens.parquet", next_tokens(handle, plain, moved, [tokens.shape[1] - 1], top))
    texts = None
    if args.new_tokens:
        sampling: dict[str, Any] = {"temperature": args.temperature, "seed": args.seed}
        sides = {"before": generate(handle, tokens, args.new_tokens, **sampling)}
        with way_.open(question.position):
            sides["after"] = generate(way_.model, tokens, args.new_tokens, **sampling)
        new = {side: ids[0, tokens.shape[1] :].tolist() for side, ids in sides.items()}
        texts = {side: {"ids": ids, "text": handle.decode(ids)} for side, ids in new.items()}
    record.save_json("continuations.json", texts)
    found = cost(handle, blocks, way_.open, other=way_.model)
    record.save_json("cost.json", found)
    if way_.changed is not None:
        record.save_tensors("module.safetensors", way_.changed)
    kept = ("loss_a", "loss_delta", "loss_delta_low", "loss_delta_high", "kl_mean")
    record.finish(
        {"how": args.how, "target": args.target, "site": rows[-1]["site"]}
        | {name: rows[-1][name] for name in ("before", "after", "size")}
        | {"kl": float(after.kl[0]), "top1_changed": bool(after.top1[0])}
        | _held_out(question, args, way_)
        | {f"neutral_{name}": found[name] for name in kept}
        | way_.about
    )


def _effects(question: Question, way_: Way, texts: list[Any], sites: list[Site]) -> tuple[TextsEffect, TextsEffect]:
    """Return texts without and with the edit."""
    from probes.effects import texts_effect

    options: dict[str, Any] = {"position": question.position, "sites": sites}
    plain = texts_effect(question.handle, texts, lambda _: nullcontext(), **options)
    return plain, texts_effect(question.handle, texts, way_.open, other=way_.model, **options)


def _probability(site: Site, probe: Any, target: str, before: NDArray, after: NDArray) -> dict[str, Any]:
    """Return a row of probabilities.parquet."""
    from probes.hyperplane import class_number

    sides: list[float | None] = [None, None]
    if probe.link_ != "identity":
        number = class_number(probe, target)
        sides = [float(probe.predict_proba(x)[0, number]) for x in (before, after)]
    size = float(np.linalg.norm(after - before) / np.linalg.norm(before))
    return {"site": str(site), "before": sides[0], "after": sides[1], "size": size}


def _held_out(question: Question, args: Args, way_: Way) -> dict[str, Any]:
    """Return what the reader makes of held-out texts of other labels, and how far their next tokens change."""
    chosen = np.flatnonzero(~question.train & (question.labels != args.target))[:HELD_OUT]
    texts = [question.texts[i] for i in chosen]
    last = question.handle.check_site(question.last)
    plain, edited = _effects(question, way_, texts, [last])
    own = last in question.probes and args.how != "casal"  # then the reader would read its own edit
    reads = [
        None if own else float((question.reader.predict(one.rows[last]).astype(str) == args.target).mean())
        for one in (plain, edited)
    ]
    return {
        "probe_accuracy": _accuracy(question),
        "held_out": len(texts),
        "held_out_reads_before": reads[0],
        "held_out_reads_after": reads[1],
        "held_out_kl": float(edited.kl.mean()),
        "held_out_top1_changed": float(edited.top1.mean()),
    }


def _accuracy(question: Question) -> float:
    """Return the accuracy of the last site's probe on the held-out texts."""
    from probes.capturing import capture_texts

    site, probe = list(question.probes.items())[-1]
    chosen = np.flatnonzero(~question.train)
    found = capture_texts(question.handle, [question.texts[i] for i in chosen], [str(site)], [question.position])
    given = probe.predict(found.rows(str(site), question.position)).astype(str)
    return float((given == question.labels[chosen]).mean())


def show(record: Run) -> dict[str, Any]:
    """Print probabilities, next tokens, continuations and totals; return the result."""
    lists = record.table("next_tokens.parquet").to_pylist()
    texts = record.json("continuations.json")
    _table(record.table("probabilities.parquet"))
    sides = {side: [row for row in lists if row["side"] == side] for side in ("gained", "lost")}
    for side, rows in sides.items():
        console.emit()
        console.table((side, "before", "after"), [[repr(row["text"]), row["before"], row["after"]] for row in rows])
    for side, made in (texts or {}).items():
        console.emit(f"\n{side}: {made['text']}")
    console.emit()
    console.table(("total", "value"), list(record.summary.items()))
    if record.summary["size"] > LONG:
        console.note(
            f"the move is {record.summary['size']:.1f} times as long as the activation: a probe that hardly tells the "
            "labels apart takes that to reach a probability, and the model is thrown off"
        )
    keep = ("token_id", "text", "before", "after")
    short: Mapping[str, Any] = {
        side: [{name: row[name] for name in keep} for row in rows] for side, rows in sides.items()
    }
    return {"run": str(record.path), **record.summary, **short, "continuations": texts}


def _table(found: pa.Table) -> None:
    rows = found.to_pylist()
    console.table(found.column_names, [[row[name] for name in found.column_names] for row in rows])
