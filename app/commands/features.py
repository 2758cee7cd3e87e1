"""`mechscope features`: what each latent of a dictionary responds to, argues for, and stands beside."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import tyro

from app import console, sources, targets
from app.command import Common
from sae.features.config import FeaturesConfig

if TYPE_CHECKING:
    from interp.data import DataSpec


@dataclass(frozen=True)
class Args(Common):
    """Describe every latent of a dictionary: density, moments, examples, logits, neighbours.

    Reads the text it was trained on (not the held-out part), once. A stopped run starts its pass again.
    """

    sae: str | None = None
    """Run of `mechscope train`; None takes the newest."""
    text: str | None = None
    """Other text to describe it on (all of it); None takes the training part of the text it was trained on."""
    split: str | None = None
    """Split of --text, where it is a hub data set; None takes that of the training."""
    field: str | None = None
    """Key or column of --text that holds the text; None takes that of the training."""
    tokens: int = 1_000_000
    """Tokens to read, at most."""
    recipe: str | None = None
    """Describe it in a compressed copy of the model it was trained on: a recipe's file, name or text, as in
    `mechscope compress`."""
    context: int | None = None
    """Length of a block in tokens; None takes the one it was trained with."""
    features: tyro.conf.OmitArgPrefixes[FeaturesConfig] = dataclasses.field(default_factory=FeaturesConfig)
    """What to collect for each latent."""
    device: str | None = None
    """Where to compute, such as cuda; None takes a GPU where there is one."""


def run(args: Args) -> dict[str, Any]:
    """Describe the features, or find their description; return the run and its numbers."""
    from interp.config import to_json
    from interp.runs import start_run
    from sae.features import describe_features
    from sae.model import load_sae

    if args.tokens < 1:
        raise ValueError(f"tokens must be 1 or more, got {args.tokens}.")
    recipe = sources.recipe(args.recipe)
    subject = sources.subject(args.sae, args.runs)
    targets.check_recipe(subject, recipe)
    data = _data(args, subject.data)
    wanted = args.features
    if wanted.outlier_norm is None:
        wanted = replace(wanted, outlier_norm=subject.outlier_norm)
    handle = sources.open_subject_model(subject, args.device, recipe)
    spot = targets.placement(subject, handle, args.device)
    same = data == subject.data
    blocks, _ = sources.subject_blocks(subject, handle) if same else sources.split_blocks(handle, data)
    blocks = blocks.first(args.tokens)
    config = {
        "model": to_json(handle.spec) if recipe else subject.run.config["model"],
        "site": subject.run.config["site"],
        "data": to_json(data),
        "sae_run": subject.run.ref,
        "tokens": blocks.digest(),
        "features": to_json(wanted),
    } | targets.where(subject)
    options: dict[str, Any] = {
        "slug": f"{subject.run.slug}.{sources.recipe_slug(recipe)}" if recipe else subject.run.slug,
        "parents": [subject.run.ref],
        "root": args.runs,
        "seed": wanted.seed,
    }
    started = time.time()
    with start_run("features", config, **options, **sources.provenance(config, handle.digest())) as record:
        if record.finished:
            console.note(f"{record.ref} is finished already")
        else:
            sae = load_sae(subject.run, handle.device)
            with console.stages({"tokens": "read", "latents": "describe"}, record) as progress:
                found = describe_features(handle, spot, sae, blocks, record, config=wanted, on_progress=progress)
            record.finish(found | {"seconds": round(time.time() - started, 1)})
            console.table(("figure", "value"), list(record.summary.items()))
    return {"run": str(record.path), "site": str(subject.site), **record.summary}


def _data(args: Args, trained_on: DataSpec) -> DataSpec:
    """Return the text to read: that of the training, or another one, in blocks of the length asked for."""
    data = sources.other_text(trained_on, args.text, args.split, args.field, args.tokens)
    return data if args.context is None else replace(data, context=args.context)
