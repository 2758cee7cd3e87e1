"""`mechscope train`: a sparse dictionary on the activations of a model, streamed or from a store on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import tyro

from app import console, sources, targets
from app.command import Common
from app.targets import TargetArgs
from interp.data import DataSpec
from sae.config import SaeConfig, Scalar, TargetConfig, TrainConfig

if TYPE_CHECKING:
    from interp.runs import Run
    from sae.model import Sae
    from sae.training import Batches, Listener, Training


@dataclass(frozen=True)
class Args(Common):
    """Train a sparse dictionary on the activations of a model.

    Activations stream from the model as it reads --text, or come from --store, a run of `mechscope capture`. The
    same command again finds the finished dictionary or goes on where it was stopped.
    """

    model: str = "tiny"
    """An embedded model, a local Hugging Face folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    model_dtype: str = "float32"
    """Number format the model computes in."""
    recipe: str | None = None
    """Compress the model first: a recipe's file, name or text, as in `mechscope compress`."""
    site: str | None = None
    """Where to read, such as resid_post.2; None takes the store's first, or resid_post at 2/3 of the depth."""
    target: tyro.conf.OmitArgPrefixes[TargetArgs] = field(default_factory=TargetArgs)
    """What is reconstructed."""
    store: str | None = None
    """Run of `mechscope capture` to train from; it says which model and text, so --model and --text are not read."""
    data: tyro.conf.OmitArgPrefixes[DataSpec] = field(default_factory=DataSpec)
    """Text to read, when there is no store."""
    d_sae: int | None = None
    """Number of latents; None takes 16 times the width of the site."""
    rule: str = "topk"
    """Sparsity rule."""
    rule_args: dict[str, Scalar] = field(default_factory=dict)
    """Arguments of the rule, such as `--rule-args k 32`; what is missing takes a default for the width."""
    normalise: Literal["scalar", "layer", "none"] = "scalar"
    """How activations are scaled before the encoder."""
    atoms: Literal["unit", "free"] = "unit"
    """Whether atoms keep length 1 in training, or may take any and start at 0.1."""
    outlier_norm: float | None = None
    """Leave out rows longer than this many times the median norm, when streaming; None keeps them."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The optimisation."""
    also: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another dictionary trained on the same batches in the same pass, said by what differs, such as
    `--also "rule=batch_topk d_sae=4096 rule_args.k=64"`; may be repeated. Each has a run of its own, as if alone."""
    wandb: Literal["off", "online", "offline", "disabled"] = "off"
    """Mirror the metrics to Weights & Biases; the numbers are the same in every mode."""
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints; a killed training goes on from the last."""
    device: str | None = None
    """Where to compute, such as cuda; None takes a GPU where there is one."""


@dataclass(frozen=True)
class Job:
    """One dictionary of the pass."""

    args: Args
    """What was asked."""
    sae: Sae
    """The dictionary."""
    record: Run
    """Its run."""


def run(args: Args) -> dict[str, Any]:
    """Train, or find what was trained; return the run and its headline numbers, and the runs of `--also`."""
    from sae.backends import Choices
    from sae.listeners import check_wandb
    from sae.rules import check_rule

    check_rule(args.rule, args.rule_args)  # before anything that takes time
    Choices()  # refuses what $MECHSCOPE_KERNELS names wrongly
    check_wandb(args.wandb)
    asked = [args, *_others(args)]
    source = _source(args, asked)
    with ExitStack() as stack:
        jobs = [_open(one, source, stack) for one in asked]
        todo = [job for job in jobs if not job.record.finished]
        if todo:
            batches = source.batches(args.train.batch, args.train.seed)
            _train(todo, batches)
    figures = ("fvu", "l0", "dead_share", "steps", "tokens", "lr", "seconds")
    for job in jobs:
        title = "training" if len(jobs) == 1 else job.record.id
        console.table((title, "value"), [(name, job.record.summary[name]) for name in figures])
    first = jobs[0].record
    found = {"run": str(first.path), "site": source.site, **first.summary}
    return found | ({"also": [str(job.record.path) for job in jobs[1:]]} if len(jobs) > 1 else {})


def _others(args: Args) -> list[Args]:
    """Return what `--also` asks for."""
    from app.variants import Variant, variants

    if args.also and args.wandb != "off":
        raise ValueError("--wandb mirrors one dictionary; leave it out with --also.")
    first = Variant(args.rule, args.rule_args, args.d_sae, args.normalise, args.atoms, args.train)
    return [
        replace(args, **{name: getattr(one, name) for name in one.__dataclass_fields__}, also=())
        for one in variants(args.also, first)
    ]


def _open(args: Args, source: sources.Source, stack: ExitStack) -> Job:
    """Begin the run of one dictionary, or find it."""
    from interp.config import to_json
    from interp.runs import start_run
    from sae.model import Sae

    sae = Sae(_config(args, source.d_in, source.target))
    config = {**source.config, "sae": to_json(sae.config), "train": to_json(args.train)}
    slug = f"{source.slug}.{args.rule}-{sae.d_sae}"
    about = sources.provenance(config, config["weights"])
    place: dict[str, Any] = {"slug": slug, "parents": source.parents, "root": args.runs, "seed": args.train.seed}
    record = stack.enter_context(start_run("sae", config, **place, **about))
    if record.finished:
        console.note(f"{record.ref} is finished already")
    else:
        console.note(f"{record.ref}: {sae.d_sae:,} latents on {source.site}, {args.train.steps:,} steps")
    return Job(args, sae, record)


def _source(args: Args, asked: list[Args]) -> sources.Source:
    """Return the activations to train on; what cannot be trained on them is refused before the text is read."""
    from interp.models import ModelSpec
    from sae.rules import RULES, build_rule
    from sae.targets import check_rule_target

    def check(d_in: int, target: TargetConfig) -> None:
        if target.kind == "end_to_end":
            from sae.end_to_end import check_batch

            check_batch(args.train.batch, args.data.context)
        for one in asked:
            config = _config(one, d_in, target)
            check_rule_target(config, build_rule(config.rule, d_in, config.d_sae, config.rule_args))

    for one in asked:
        if one.d_sae is not None:
            _config(one, 1, TargetConfig())
    gradient = [one.rule for one in asked if "gradient" in RULES[one.rule].needs]
    if args.store:
        _refuse_beside_store(args)
        if gradient:
            raise ValueError(
                f"The rule {gradient[0]!r} needs the gradient of the model's loss, which a store does not hold; leave "
                "out --store, so that the model runs."
            )
        return targets.from_store(args.store, args.site, args.target, args.runs, check)
    spec = ModelSpec(sources.local(args.model), args.revision, args.model_dtype, sources.recipe(args.recipe))
    data = replace(args.data, text=sources.local(args.data.text))
    options: dict[str, Any] = {"outlier_norm": args.outlier_norm, "device": args.device, "gradient": bool(gradient)}
    return targets.from_text(spec, data, args.site, args.target, check=check, **options)


def _config(args: Args, d_in: int, target: TargetConfig) -> SaeConfig:
    """Return what the dictionary is, on activations of this width: by default 16 latents for each number at a site."""
    d_sae = 16 * max(target.blocks or (d_in,)) if args.d_sae is None else args.d_sae
    return SaeConfig(d_in, d_sae, args.rule, args.rule_args, args.normalise, args.atoms, target)


def _refuse_beside_store(args: Args) -> None:
    """Refuse options that say which activations to read, where the store has them."""
    usual = Args()
    for option, given, default in (
        ("--model", args.model, usual.model),
        ("--recipe", args.recipe, usual.recipe),
        ("--text", args.data, usual.data),
        ("--outlier-norm", args.outlier_norm, usual.outlier_norm),
    ):
        if given != default:
            raise ValueError(f"--store brings its own model and text; leave {option} (and what goes with it) out.")


def _train(jobs: list[Job], batches: Batches) -> None:
    """Train each dictionary from the start or from its run's checkpoint, save it and finish its run."""
    from sae.listeners import Checkpoint, RunLog, Wandb
    from sae.training import Training, begin, train_together

    started = time.time()
    trainings, listeners = [], []
    checkpoints = [Checkpoint(job.record, job.args.checkpoint_seconds) for job in jobs]
    for job, checkpoint in zip(jobs, checkpoints, strict=True):
        training = Training(job.sae.to(job.args.device or _device()), job.args.train)
        if checkpoint.restore(training):
            console.note(f"going on from step {training.step:,}")
        else:
            training = begin(training.sae, batches, job.args.train)
        hears: list[Listener] = [RunLog(job.record), checkpoint]
        if job.args.wandb != "off":
            hears.append(Wandb(job.record, mode=job.args.wandb))
        trainings.append(training)
        listeners.append(hears)
    longest = max(range(len(jobs)), key=lambda i: trainings[i].config.steps - trainings[i].step)
    with _progress(trainings[longest]) as bar:
        listeners[longest].append(bar)
        train_together(trainings, batches, listeners)
    excluded = dict(getattr(batches, "report", {}))
    left_out = ", ".join(f"{count:,} {name}" for name, count in excluded.items() if name != "rows" and count)
    again = (
        "" if jobs[0].args.store or not left_out else " (counted each time that the text was read, since this start)"
    )
    console.note(f"positions left out of training: {left_out or 'none'}{again}")
    for job, training, checkpoint in zip(jobs, trainings, checkpoints, strict=True):
        last = job.record.metrics()[-20:]
        means = {name: sum(row[name] for row in last) / len(last) for name in ("fvu", "l0", "dead_share")}
        size = {"steps": training.step, "tokens": training.tokens, "lr": training.peak_lr, "excluded": excluded}
        size["kernels"] = training.kernels.names
        job.sae.save(job.record)
        checkpoint.discard()  # not before the weights are safe
        job.record.finish({**means, **size, "seconds": round(time.time() - started, 1)})


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _progress(training: Training) -> Iterator[Listener]:
    """Give a listener that draws a progress bar in rows, with the running FVU."""
    total = training.config.steps * training.config.batch
    with console.progress(total, "rows", "train", start=training.tokens) as bar:

        class Bar:
            def on_step(self, training: Training, metrics: dict[str, Any]) -> None:
                bar.to(training.tokens, note=f"fvu {float(metrics['fvu']):.3f}" if training.step % 10 == 0 else "")

            def on_stop(self, training: Training) -> None:
                """The bar is closed by its context."""

        yield Bar()
