"""`mechscope train`: a sparse dictionary on the activations of a model, streamed or from a store on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import tyro

from app import console, sources
from app.command import Common
from interp.data import DataSpec
from sae.config import Scalar, TrainConfig

if TYPE_CHECKING:
    from interp.runs import Run
    from sae.config import SaeConfig
    from sae.listeners import Checkpoint
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
    wandb: Literal["off", "online", "offline", "disabled"] = "off"
    """Mirror the metrics to Weights & Biases; the numbers are the same in every mode."""
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints; a killed training goes on from the last."""
    device: str | None = None
    """Where to compute, such as cuda; None takes a GPU where there is one."""


def run(args: Args) -> dict[str, Any]:
    """Train, or find what was trained; return the run and its headline numbers."""
    from interp.config import to_json
    from interp.runs import start_run
    from sae.backends import Choices, using
    from sae.listeners import Checkpoint, check_wandb
    from sae.model import Sae
    from sae.rules import check_rule

    check_rule(args.rule, args.rule_args)  # before anything that takes time
    choices = Choices()
    check_wandb(args.wandb)
    source = _source(args)
    sae = Sae(_config(args, source.d_in))
    d_sae = sae.d_sae
    config = {**source.config, "sae": to_json(sae.config), "train": to_json(args.train)}
    slug = f"{source.slug}.{args.rule}-{d_sae}"
    started = time.time()
    about = sources.provenance(config, config["weights"])
    place: dict[str, Any] = {"slug": slug, "parents": source.parents, "root": args.runs, "seed": args.train.seed}
    with start_run("sae", config, **place, **about) as record:
        if record.finished:
            console.note(f"{record.ref} is finished already")
        else:
            console.note(f"{record.ref}: {d_sae:,} latents on {source.site}, {args.train.steps:,} steps")
            batches = source.batches(args.train.batch, args.train.seed)
            checkpoint = Checkpoint(record, args.checkpoint_seconds)
            with using(choices):
                summary = _train(args, sae, batches, record, checkpoint) | {"kernels": choices.names}
            sae.save(record)
            checkpoint.discard()  # not before the weights are safe
            record.finish(summary | {"seconds": round(time.time() - started, 1)})
    figures = ("fvu", "l0", "dead_share", "steps", "tokens", "lr", "seconds")
    console.table(("training", "value"), [(name, record.summary[name]) for name in figures])
    return {"run": str(record.path), "site": source.site, **record.summary}


def _source(args: Args) -> sources.Source:
    """Return the activations to train on; what cannot be trained on them is refused before the text is read."""
    from interp.models import ModelSpec
    from sae.rules import build_rule

    def check(d_in: int) -> None:
        config = _config(args, d_in)
        build_rule(config.rule, d_in, config.d_sae, config.rule_args)

    if args.d_sae is not None:
        _config(args, 1)
    if args.store:
        _refuse_beside_store(args)
        source = sources.from_store(args.store, args.site, args.runs)
        check(source.d_in)
        return source
    spec = ModelSpec(sources.local(args.model), args.revision, args.model_dtype, sources.recipe(args.recipe))
    data = replace(args.data, text=sources.local(args.data.text))
    return sources.from_text(spec, data, args.site, outlier_norm=args.outlier_norm, device=args.device, check=check)


def _config(args: Args, d_in: int) -> SaeConfig:
    """Return what the dictionary is, on activations of this width."""
    from sae.config import SaeConfig

    d_sae = 16 * d_in if args.d_sae is None else args.d_sae
    return SaeConfig(d_in, d_sae, args.rule, args.rule_args, args.normalise, args.atoms)


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


def _train(args: Args, sae: Any, batches: Batches, record: Run, checkpoint: Checkpoint) -> dict[str, Any]:
    """Train `sae` from the start or from the run's checkpoint and return what the last steps measured."""
    from sae.listeners import RunLog, Wandb
    from sae.training import Training, begin, train

    log = RunLog(record)
    training = Training(sae.to(args.device or _device()), args.train)
    if checkpoint.restore(training):
        console.note(f"going on from step {training.step:,}")
    else:
        training = begin(training.sae, batches, args.train)
    listeners: list[Listener] = [log, checkpoint]
    if args.wandb != "off":
        listeners.append(Wandb(record, mode=args.wandb))
    with _progress(training) as bar:
        train(training, batches, [*listeners, bar])
    last = record.metrics()[-20:]
    means = {name: sum(row[name] for row in last) / len(last) for name in ("fvu", "l0", "dead_share")}
    excluded = dict(getattr(batches, "report", {}))
    left_out = ", ".join(f"{count:,} {name}" for name, count in excluded.items() if name != "rows" and count)
    again = "" if args.store or not left_out else " (counted each time that the text was read, since this start)"
    console.note(f"positions left out of training: {left_out or 'none'}{again}")
    return {**means, "steps": training.step, "tokens": training.tokens, "lr": training.peak_lr, "excluded": excluded}


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
