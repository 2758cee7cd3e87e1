"""What `mechscope probe` asks: a model, labelled texts, a study; what that costs, and which module answers it."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app import console, sources
from app.labelled_texts import Fields, about, read_texts

if TYPE_CHECKING:
    from app.commands.probe import Args
    from app.sources import Subject
    from interp.data import Labelled
    from interp.models import ModelHandle
    from probes.base import BaseProbe

KIND = "probes"
"""Kind of the run of a study of labelled texts."""
BARS = {"texts": "read", "random texts": "read with random weights", "places": "fit"}
"""What the bars are called."""
Progress = Callable[[int, int, str], None]
"""Hears (done, total, unit)."""

STUDIES: dict[str, tuple[str, str]] = {
    "sweep": ("app.studies.layer_sweep", "sweep_study"),
    "depth": ("app.studies.depth", "depth_study"),
    "transfer": ("app.studies.probe_runs", "transfer_study"),
    "quality": ("app.studies.probe_runs", "quality_study"),
    "selection": ("app.studies.probe_runs", "selection_study"),
    "latents": ("app.studies.probe_runs", "latents_study"),
}
"""Study -> the module and function that make it. `board`, which has no texts, is `app.studies.board_run`."""
FIELDS = ("data", "text", "label", "group", "names", "split", "texts")
_TEXTS = (*FIELDS, "template", "context", "positions", "test")
_FITS = (*_TEXTS, "sites", "probe", "C", "ks", "batch", "resamples")
READS: dict[str, tuple[str, ...]] = {
    "sweep": _FITS,
    "depth": (*_FITS, "recipes", "noise"),
    "transfer": (*_TEXTS, "to", "centring", "ccs", "sites", "resamples"),
    "quality": (*_TEXTS, "sites"),
    "selection": (*_TEXTS, "sae", "resamples"),
    "latents": (*_TEXTS, "sae", "resamples"),
    "board": ("board",),
}
"""The options that each study reads, beside the model, its recipe and the seed."""
PASSES = {"transfer": 1, "quality": 1, "selection": 2, "latents": 3}
"""How often the texts are read by studies that read them themselves."""
TEST = {"sweep": 0.3, "depth": 0.4, "transfer": 0.4, "quality": 0.5, "selection": 0.5, "latents": 0.4}
"""Share of the texts that is measured on, unless another is given."""


@dataclass(frozen=True)
class Question:
    """A loaded model and labelled texts."""

    handle: ModelHandle
    """The model."""
    labelled: Labelled
    """The texts, as they are named."""
    prompts: tuple[str, ...]
    """What the model reads: each text in the template."""
    sites: tuple[str, ...]
    """Where."""
    positions: tuple[str, ...]
    """Which tokens."""
    test: float
    """Share of the texts that is measured on."""
    config: dict[str, Any]
    """What identifies the run."""
    slug: str
    """Name of the run."""
    left_out: int = 0
    """Texts that were too short for the positions."""
    subject: Subject | None = None
    """The dictionary, for the studies that read one."""
    others: dict[str, Labelled] = field(default_factory=dict)
    """More sets by name, for transfer."""

    @property
    def parents(self) -> tuple[str, ...]:
        """Runs that the study is made from."""
        return () if self.subject is None else (self.subject.run.ref,)


def ask(args: Args) -> Question:
    """Return the question that the command line puts, with the model loaded and the texts read.

    Raises:
        ValueError: texts, sites, positions or a dictionary that do not fit.
    """
    from interp.config import to_json
    from probes.capturing import parse_position

    usual = "mean" if args.study == "selection" else "last"
    positions = tuple(dict.fromkeys(parse_position(one) for one in args.positions or (usual,)))
    if len(positions) > 1 and args.study in PASSES:
        raise ValueError(f"--study {args.study} reads one position of a text, got {', '.join(positions)}.")
    sets = read_sets(args)
    fields, labelled = sets.pop(sources.slug(args.data))
    handle, subject = _model(args)
    sites = _sites(args, handle, subject)
    kept, left_out = long_enough(handle, labelled, args.template, positions, args.context)
    test = TEST[args.study] if args.test is None else args.test
    config = {
        "study": args.study,
        "model": to_json(handle.spec),
        "weights": handle.digest(),
        "data": about(args.data, fields, labelled),
        "settings": _settings(args, {"sites": sites, "positions": positions, "test": test}),
    }
    if sets:
        config["to"] = {name: about(name, *one) for name, one in sets.items()}
    if subject is not None:
        config["sae_run"] = subject.run.ref
    prompts = tuple(args.template.replace("{}", text) for text in kept.texts)
    others = {name: one for name, (_, one) in sets.items()}
    slug = f"{sources.spec_slug(handle.spec)}.{sources.slug(args.data).split('.')[0]}.{args.study}"
    return Question(handle, kept, prompts, sites, positions, test, config, slug, left_out, subject, others)


def _settings(args: Args, decided: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the study reads, as JSON; `decided` are those that are worked out."""
    from interp.config import to_json

    asked = [name for name in READS[args.study] if name not in (*FIELDS, "batch", "to", "sae")]
    settings = {name: getattr(args, name) for name in asked} | decided
    if args.recipes:
        settings["recipes"] = [to_json(sources.recipe(one)) for one in args.recipes]
    return to_json(settings)


def read_sets(args: Args) -> dict[str, tuple[Fields, Labelled]]:
    """Return the texts of --data, and after it those of --to, by name, with the fields that they were read by.

    Sets that ship have fields of their own; they may stand beside files that do not.

    Raises:
        ValueError: what `read_texts` refuses, or two sets of one name.
    """
    from interp.data.sets import SETS

    given, names = Fields(args.text, args.label, args.group, args.names, args.split), (args.data, *args.to)
    found: dict[str, tuple[Fields, Labelled]] = {}
    for name in names:
        fields = Fields() if name in SETS and not all(one in SETS for one in names) else given
        if sources.slug(name) in found:
            raise ValueError(f"Two sets are called {sources.slug(name)}; name each once, and rename one of two files.")
        found[sources.slug(name)] = fields, read_texts(name, fields).sample(args.texts, args.seed)
    return found


def _model(args: Args) -> tuple[ModelHandle, Subject | None]:
    """Return the model, and the dictionary where the study reads one."""
    from app import targets
    from interp.models import ModelSpec

    recipe = sources.recipe(args.recipe)
    if "sae" not in READS[args.study]:
        return sources.open_model(ModelSpec(sources.local(args.model or "tiny"), recipe=recipe), args.device), None
    subject = sources.subject(args.sae, args.runs)
    targets.check_own_input(subject, f"--study {args.study} reads texts through")
    if args.model is not None and subject.model.name != sources.local(args.model):
        raise ValueError(f"{subject.run.ref} reads {subject.model.name}, not {args.model}; leave the model out.")
    return sources.open_subject_model(subject, args.device, recipe), subject


def _sites(args: Args, handle: ModelHandle, subject: Subject | None) -> tuple[str, ...]:
    """Return the sites that the study reads."""
    from probes.capturing import expand_sites

    if subject is not None:
        return (str(subject.site),)
    if args.study != "transfer":
        return expand_sites(handle, args.sites or ("resid_post",))
    if len(args.sites) > 1 or any("." not in one for one in args.sites):
        raise ValueError(f"--study transfer reads one site, such as resid_post.2, got {', '.join(args.sites)}.")
    return (str(sources.handle_site(handle, args.sites[0] if args.sites else None)),)


def long_enough(
    handle: ModelHandle, labelled: Labelled, template: str, positions: tuple[str, ...], context: int = 128
) -> tuple[Labelled, int]:
    """Return the texts that have all positions within the context, and how many have not.

    Raises:
        ValueError: none has.
    """
    from interp.data import Labelled
    from probes.capturing import least_length

    least, bos = least_length(positions), int(handle.bos_id is not None)
    if least == 1:
        return labelled, 0
    limit = min(context, handle.n_ctx)
    lengths = [min(limit, handle.tokens(template.replace("{}", text)).shape[1]) - bos for text in labelled.texts]
    long = [i for i, length in enumerate(lengths) if length >= least]
    short = len(labelled) - len(long)
    if not short:
        return labelled, 0
    if not long:
        raise ValueError(
            f"Positions {', '.join(positions)} need texts of {least} tokens or more, and none of the {len(labelled)} "
            f"texts has as many in a context of {limit}. Ask for positions nearer to the end or the beginning."
        )
    console.note(f"{short:,} of {len(labelled):,} texts have fewer than {least} tokens and are left out")
    parts = (labelled.texts, labelled.labels, labelled.groups)
    return Labelled(*(tuple(part[i] for i in long) for part in parts)), short


def make_probe(kind: str, C: float | None = None, seed: int = 0) -> BaseProbe:
    """Return an unfitted probe of the kind that --probe names."""
    from probes import L1, LDA, LogisticProbe, MassMean, MLPProbe, RidgeProbe

    made: Mapping[str, Callable[[], BaseProbe]] = {
        "logistic": lambda: LogisticProbe(C, seed=seed),
        "ridge": lambda: RidgeProbe(seed=seed),
        "mass-mean": MassMean,
        "mass-mean-whitened": lambda: MassMean(whiten=True),
        "lda": LDA,
        "l1": lambda: L1(C, seed=seed),
        "mlp": lambda: MLPProbe(seed=seed),
    }
    return made[kind]()


def answer(args: Args) -> dict[str, Any]:
    """Make the study, or find its run; return the run and its numbers."""
    from interp.runs import start_run

    module, function = STUDIES[args.study]
    question = ask(args)
    started = time.time()
    model = {**question.config["model"], "digest": question.config["weights"]}
    place: dict[str, Any] = {"root": args.runs, "seed": args.seed, "model": model, "parents": question.parents}
    with start_run(KIND, question.config, slug=question.slug, **place) as record:
        if record.finished:
            console.note(f"{record.ref} is finished already")
        else:
            console.note(f"{record.ref}: {estimate(question, args)}")
            study = getattr(importlib.import_module(module), function)
            with console.stages(BARS, record) as progress, leaks_told():
                summary = study(question, args, record, progress)
            kept = {"study": args.study, "texts": len(question.labelled), "left_out": question.left_out}
            record.finish({**kept, **summary, "seconds": round(time.time() - started, 1)})
    importlib.import_module(module).show(record)
    return {"run": str(record.path), **record.summary}


@contextmanager
def leaks_told() -> Iterator[None]:
    """Write warnings of leaks as notes, each once, instead of as Python warnings."""
    import warnings

    from probes.splits import LeakWarning

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", LeakWarning)
        yield
    for text in dict.fromkeys(str(one.message) for one in heard if issubclass(one.category, LeakWarning)):
        console.note(f"warning: {text}")


def estimate(question: Question, args: Args) -> str:
    """Return in words what a study will take: passes, probes, time, memory. A batch and a probe are tried."""
    import numpy as np

    from probes.capturing import capture_texts, held_bytes

    n, spots = len(question.prompts), len(question.sites) * len(question.positions)
    variants = len(args.recipes) + args.noise
    passes = PASSES.get(args.study, 2 + variants)  # sweeps: the model, random weights, and the variants
    some = [question.prompts[i] for i in np.random.default_rng(0).permutation(n)[: args.batch]]
    begun = time.monotonic()
    capture_texts(question.handle, some, question.sites[-1:], context=args.context, batch=args.batch)
    seconds = (time.monotonic() - begun) / len(some) * passes * (n + sum(map(len, question.others.values())))
    held = held_bytes(
        question.handle, question.sites, len(question.positions), n, context=args.context, batch=args.batch
    )
    fits = ""
    if args.study not in PASSES:
        count = spots * (3 + variants)  # the probe, shuffled labels, random weights; of a variant the first
        fits = f", {count} fits at {spots} places"
        seconds += count * _fit_seconds(question, args)
        held *= 2
    return f"{n:,} texts, {passes} passes{fits}, about {math.ceil(seconds)} s, {held / 2**20:.0f} MiB of activations"


def _fit_seconds(question: Question, args: Args) -> float:
    """Return how long a probe takes to fit as many rows of noise with a faint label."""
    import numpy as np

    rng, rows = np.random.default_rng(0), max(round(len(question.prompts) * (1 - question.test)), 20)
    probe, y = make_probe(args.probe, args.C), np.arange(rows) % 2
    x = rng.normal(size=(rows, question.handle.width(question.sites[0].replace("mlp_in", "resid_pre"))))
    begun = time.monotonic()
    probe.fit(x + 0.2 * y[:, None], y)
    return time.monotonic() - begun
