"""What `mechscope edit` asks, and how the edit is made; `app.edit_measured` measures it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from app import console, sources

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from app.commands.edit import Args
    from interp.data import Blocks
    from interp.models import ModelHandle
    from interp.sites import Site
    from probes.base import BaseProbe
    from probes.capturing import Captured

KIND = "edit"
HOWS = ("hyperplane", "mean_difference", "leace", "casal")
READS: dict[str, tuple[str, ...]] = {
    "hyperplane": ("p",),
    "mean_difference": ("strength",),
    "leace": ("strength",),
    "casal": ("strength", "plan", "module", "steps", "keep"),
}
"""The options that each way reads."""
CONTEXT = 128
"""Longest text in tokens."""


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
    context: int = CONTEXT
    """Longest text in tokens; the rest is cut off, so that the last token is where the probes were fitted."""
    parents: tuple[str, ...] = ()
    """The run that the probes are from."""

    def ids(self, numbers: Sequence[int] | NDArray[np.int_]) -> list[Tensor]:
        """Return the token ids of some of the texts, as far as they are read."""
        limit = min(self.context, self.handle.n_ctx)
        return [self.handle.tokens(self.texts[i])[0, :limit] for i in numbers]


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


@dataclass(frozen=True, eq=False)
class _Given:
    """Texts with a division and, from a run, their probes."""

    texts: tuple[str, ...]
    """What the model reads."""
    labels: NDArray[np.str_]
    """The label of each."""
    groups: NDArray[np.str_]
    """The group of each."""
    train: NDArray[np.bool_]
    """Which are fitted on."""
    sites: tuple[str, ...]
    """Where to edit."""
    position: str
    """Where in a text."""
    identity: dict[str, Any]
    """What identifies them."""
    probes: dict[str, BaseProbe] = field(default_factory=dict)
    """Fitted probes by site."""
    context: int = CONTEXT
    """Longest text in tokens."""
    parents: tuple[str, ...] = ()
    """The run that they are from."""


def ask(args: Args) -> Question:
    """Return the question that the command line puts, with the model loaded, the texts read and the probes fitted.

    Raises:
        ValueError: texts, sites, a probe's run, a label or a position that do not fit.
    """
    from interp.config import to_json
    from interp.models import ModelSpec

    spec = ModelSpec(sources.local(args.model), recipe=sources.recipe(args.recipe))
    handle = sources.open_model(spec, args.device)
    given = _from_run(args, handle) if args.probe else _from_data(args, handle)
    _check_given(args, given)
    captured, probes = _fitted(args, handle, given)
    asked = ("target", "how", "text", "top", "new_tokens", "temperature", "neutral", "neutral_tokens", *READS[args.how])
    config = {"model": to_json(handle.spec), "weights": handle.digest(), **given.identity}
    config |= {"sites": list(given.sites), "position": given.position} | {name: getattr(args, name) for name in asked}
    return Question(
        handle,
        given.texts,
        given.labels,
        given.train,
        {handle.check_site(site): probes[site] for site in sorted(given.sites, key=handle.check_site)},
        probes[last_site(handle)],
        captured,
        given.position,
        config,
        f"{sources.spec_slug(handle.spec)}.{args.how}.{args.target}",
        given.context,
        given.parents,
    )


def _check_given(args: Args, given: _Given) -> None:
    from interp.names import unknown

    labels = sorted(set(given.labels.tolist()))
    if args.target not in labels:
        raise ValueError(unknown("label", args.target, labels))
    if args.how == "casal" and [site.partition(".")[0] for site in given.sites] != ["resid_post"]:
        raise ValueError(
            f"casal trains one block: give one --site, resid_post of a layer, got {', '.join(given.sites)}."
        )


def last_site(handle: ModelHandle) -> str:
    """Return the last block's output."""
    return f"resid_post.{handle.n_layers - 1}"


def _fitted(args: Args, handle: ModelHandle, given: _Given) -> tuple[Captured, dict[str, BaseProbe]]:
    """Return activations of the texts that are fitted on, and a probe of each site and of the last block's output."""
    from probes.capturing import capture_texts
    from probes.logistic import LogisticProbe

    fit_on = tuple(text for text, chosen in zip(given.texts, given.train, strict=True) if chosen)
    sites, place = tuple(dict.fromkeys((*given.sites, last_site(handle)))), given.position
    with console.progress(len(fit_on), "texts", "read") as bar:
        captured = capture_texts(handle, fit_on, sites, [place], context=given.context, on_progress=bar.to)
    probes = dict(given.probes)
    for site in captured.sites:
        if site not in probes:
            probe = LogisticProbe(args.C, source=captured.source(site, place))
            probes[site] = probe.fit(captured.rows(site, place), given.labels[given.train], given.groups[given.train])
    return captured, probes


def _from_data(args: Args, handle: ModelHandle) -> _Given:
    """Return labelled texts, divided."""
    from app.labelled_texts import Fields, about, read_texts
    from probes.capturing import expand_sites, parse_position

    fields = Fields(args.data_text, args.data_label, args.data_group, args.data_names)
    labelled = read_texts(args.data, fields).sample(args.texts, args.seed)
    position = parse_position(args.position or "last")
    sites = expand_sites(handle, args.site or (str(sources.handle_site(handle, None)),))
    identity = {"data": about(args.data, fields, labelled), "test": args.test, "C": args.C}
    labels, groups = np.array(labelled.labels), np.array(labelled.groups)
    return _Given(labelled.texts, labels, groups, labelled.split(args.test, args.seed), sites, position, identity)


def _from_run(args: Args, handle: ModelHandle) -> _Given:
    """Return the texts and the probes of a finished study of `mechscope probe`."""
    from app.labelled_texts import prompts_of
    from interp.runs import open_run
    from probes.capturing import parse_position
    from probes.saving import STUDY_KIND, load_probe, probe_names
    from probes.source import Source

    run = open_run(str(args.probe), args.runs)
    if run.kind != STUDY_KIND or not run.finished or not probe_names(run):
        raise ValueError(f"{run.ref} holds no probes; make some with `mechscope probe`, or leave --probe out.")
    position = parse_position(args.position or run.summary.get("best_position") or "last")
    best = run.summary.get("best_site") or probe_names(run)[0].removeprefix("probes/").rpartition("@")[0]
    probes: dict[str, BaseProbe] = {}
    for site in args.site or (best,):
        probes[site] = load_probe(run, f"probes/{site}@{position}")
        if probes[site].source is None:
            raise ValueError(
                f"{site} can be read, but nothing can be put there; take another --site, such as resid_post."
            )
        probes[site].check_source(Source.of(handle, site, position))
    rows = prompts_of(run)
    labels, groups = (np.array([str(row[name]) for row in rows]) for name in ("label", "group"))
    return _Given(
        tuple(row["prompt"] for row in rows),
        labels,
        groups,
        np.array([row["part"] == "train" for row in rows]),
        tuple(probes),
        position,
        {"probe_run": run.ref, "C": args.C},
        probes,
        int((run.config.get("settings") or {}).get("context") or CONTEXT),
        (run.ref,),
    )


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
    texts = question.ids(np.flatnonzero(question.train))
    (site,) = question.probes
    made = casal(
        handle, texts, labels, args.target, site.layer, config, position=place, keep=kept, on_progress=progress
    )
    about = {"module": made.module, "loss_first": float(made.losses[0]), "loss_last": float(made.losses[-1])}
    about |= {f"missed_{name}": value for name, value in made.missed.items()}
    return Way(lambda _: nullcontext(), made.handle, about, made.trained)
