"""Where activations for a training come from, and the model and text that a dictionary was trained on.

A source is resolved before a run is begun, because what it holds (weights, tokens) is part of the run's identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import console
from sae.config import TargetConfig

if TYPE_CHECKING:
    from interp.data import Blocks, DataSpec
    from interp.models import ModelHandle, ModelSpec
    from interp.runs import Run
    from interp.sites import Site
    from interp.types import Recipe
    from sae.training import Batches

DEPTH = 2 / 3
"""Where, as a share of the depth, a dictionary is trained unless a site is given."""

SLUG = 28
"""Characters of a recipe in a run's name, at most."""


@dataclass(frozen=True)
class Source:
    """Activations to train on."""

    config: dict[str, Any]
    """What identifies them: model, data, weights, tokens, site, store."""
    site: str
    """Where they are read."""
    d_in: int
    """Their width."""
    batches: Callable[[int, int], Batches]
    """Opens them for (rows per batch, seed)."""
    parents: tuple[str, ...] = ()
    """Runs they come from."""
    target: TargetConfig = field(default_factory=TargetConfig)
    """What is reconstructed from them."""

    @property
    def slug(self) -> str:
        """Model, recipe and site, for the run's name."""
        from interp.compression import read_spec

        return f"{spec_slug(read_spec(self.config['model']))}.{self.site}"


def from_store(ref: str, site: str | None, runs: Any) -> Source:
    """Return the activations that the run `ref` of `mechscope capture` holds at `site` (None: its first)."""
    from interp.activations import DiskStore, read_info
    from interp.names import unknown
    from interp.runs import open_run
    from interp.sites import Site

    run = open_run(ref, runs)
    if run.kind != "activations" or not run.finished:
        raise ValueError(f"{run.ref} is no finished store of activations; make one with `mechscope capture`.")
    info = read_info(run)
    if site is None and len(info.widths) > 1:
        raise ValueError(f"{run.ref} has several sites; say which: --site {', '.join(info.widths)}.")
    chosen = next(iter(info.widths)) if site is None else str(Site.parse(site))
    if chosen not in info.widths:
        raise ValueError(unknown(f"site of {run.ref}:", chosen, info.widths))
    config = {key: run.config[key] for key in ("model", "data")} | {
        "weights": info.weights,
        "tokens": info.tokens,
        "site": chosen,
        "outlier_norm": run.config["capture"]["outlier_norm"],
        "drop_bos": run.config["capture"]["drop_bos"],
        "store": run.ref,
    }
    width = info.widths[chosen]
    return Source(config, chosen, width, lambda batch, seed: DiskStore(run, chosen, batch=batch, seed=seed), (run.ref,))


def from_text(
    spec: ModelSpec,
    data: DataSpec,
    site: str | None,
    *,
    outlier_norm: float | None,
    device: str | None,
    gradient: bool = False,
    check: Callable[[int], object] = lambda _: None,
) -> Source:
    """Return the activations of a model as it reads the training part of a text.

    `check` hears their width before the text is read, and may refuse it. With `gradient` they come with that of the
    model's loss.
    """
    from interp.activations import ActivationStore

    handle = open_model(spec, device)
    chosen = handle_site(handle, site)
    check(handle.width(chosen))
    blocks, _ = split_blocks(handle, data)
    config = streamed(handle, data, blocks, chosen, outlier_norm)

    def open_batches(batch: int, seed: int) -> Batches:
        options: dict[str, Any] = {"outlier_norm": outlier_norm, "gradient": gradient}
        return ActivationStore(handle, blocks, chosen, batch=batch, seed=seed, **options)

    return Source(config, str(chosen), handle.width(chosen), open_batches)


def streamed(
    handle: ModelHandle, data: DataSpec, blocks: Blocks, site: Site, outlier_norm: float | None
) -> dict[str, Any]:
    """Return what identifies activations that a model computes while a training reads them."""
    from interp.config import to_json

    return {
        "model": to_json(handle.spec),
        "data": to_json(data),
        "weights": handle.digest(),
        "tokens": blocks.digest(),
        "site": str(site),
        "outlier_norm": outlier_norm,
        "drop_bos": True,
    }


def open_model(spec: ModelSpec, device: str | None) -> ModelHandle:
    """Return the model, saying so: loading takes a few seconds."""
    from interp.models import load_model

    console.note(f"loading {spec.name}")
    return load_model(spec, device=device)


def handle_site(handle: ModelHandle, site: str | None) -> Site:
    """Return `site` of the model, or resid_post at two thirds of its depth.

    Raises:
        ValueError: the model has no such site.
    """
    from interp.names import unknown
    from interp.sites import Site

    chosen = Site(round(handle.n_layers * DEPTH) - 1, "resid_post") if site is None else Site.parse(site)
    known = handle.sites()
    if chosen not in known:
        raise ValueError(unknown(f"site of {handle.spec.name}", str(chosen), [str(s) for s in known]))
    return chosen


def split_blocks(handle: ModelHandle, data: DataSpec) -> tuple[Blocks, Blocks]:
    """Return the token blocks of a text as (training, held-out); with heldout 0 both are the whole text."""
    from interp.data import token_blocks

    with console.progress(data.tokens, "tokens", "tokenise") as bar:
        blocks = token_blocks(handle, data, on_progress=bar.to)
    console.note(blocks.describe())
    return blocks.split(data.heldout) if data.heldout else (blocks, blocks)


@dataclass(frozen=True)
class Subject:
    """A trained dictionary and what it was trained on."""

    run: Run
    """Its run."""
    model: ModelSpec
    """The model."""
    site: Site
    """The site."""
    data: DataSpec
    """The text."""
    weights: str | None
    """Hash of the model's weights then."""
    tokens: str | None
    """Hash of the token blocks that it was trained on."""
    drop_bos: bool
    """Whether BOS was left out of training."""
    outlier_norm: float | None
    """Rows longer than this many times the median norm were left out of training (None: none were)."""


def open_subject_model(subject: Subject, device: str | None, recipe: Recipe = ()) -> ModelHandle:
    """Return the model that the dictionary was trained on, with the steps of `recipe` added to those it has.

    Raises:
        ValueError: its weights have changed since, or the recipe does not fit it.
    """
    own = subject.model.recipe
    if own and recipe:  # of several steps only the first digest is kept, so what they made is looked at by itself
        open_model(subject.model, device).check_weights(subject.weights, subject.run.ref)
    handle = open_model(replace(subject.model, recipe=(*own, *recipe)), device)
    if not (own and recipe):
        handle.check_weights(subject.weights, subject.run.ref, base=bool(recipe))
    return handle


def subject(ref: str | None, runs: Any) -> Subject:
    """Return the dictionary `ref` (None: the newest finished one) with its model, site and text."""
    from interp.compression import read_spec
    from interp.config import from_json
    from interp.data import DataSpec
    from interp.runs import RunNotFound, find_runs, open_run
    from interp.sites import Site

    if ref is None:
        found = find_runs(runs, "sae", finished=True)
        if not found:
            raise RunNotFound("There is no finished dictionary; make one with `mechscope train`.")
        run = found[0]
    else:
        run = open_run(ref, runs)
    if run.kind != "sae" or not run.finished:
        raise ValueError(
            f"{run.ref} is no finished dictionary; `mechscope runs list --kind sae` lists those there are."
        )
    config = run.config
    return Subject(
        run,
        read_spec(config["model"], f"the model of {run.ref}"),
        Site.parse(config["site"]),
        from_json(DataSpec, config["data"]),
        config.get("weights"),
        config.get("tokens"),
        config.get("drop_bos", True),
        config.get("outlier_norm"),
    )


def subject_blocks(subject: Subject, handle: ModelHandle) -> tuple[Blocks, Blocks]:
    """Return the text of the dictionary's training as (training, held-out) blocks.

    Raises:
        ValueError: the text has changed since, so that what is held out now may have been trained on.
    """
    blocks, heldout = split_blocks(handle, subject.data)
    if subject.tokens is not None and blocks.digest() != subject.tokens:
        raise ValueError(
            f"{subject.data.text} is not the text any more that {subject.run.ref} was trained on. Bring it back, or "
            "give another text with --text."
        )
    return blocks, heldout


def other_text(usual: DataSpec, text: str | None, split: str | None, field: str | None, tokens: int) -> DataSpec:
    """Return the text that --text, --split and --field name, all of it; without them the usual one.

    Raises:
        ValueError: --split or --field without --text.
    """
    if text is None:
        for option, value in (("--split", split), ("--field", field)):
            if value is not None:
                raise ValueError(f"{option} says how to read another text; name one with --text, or leave it out.")
        return usual
    split, field = split or usual.split, field or usual.field
    return replace(usual, text=local(text), split=split, field=field, tokens=tokens, heldout=0.0)


def provenance(config: dict[str, Any], weights: str | None) -> dict[str, Any]:
    """Return what a run's record says of its model and text: their specifications, and hashes of what they held."""
    return {
        "model": {**config["model"], "digest": weights},
        "data": {**config["data"], "digest": config["tokens"]},
    }


def local(name: str) -> str:
    """Return the absolute path of a file or folder, so that a run is found again from any folder; other names as is."""
    from interp.models.embedded import embedded_models

    path = Path(name).expanduser()
    return str(path.resolve()) if name not in ("demo", *embedded_models()) and path.exists() else name


def slug(name: str) -> str:
    """Return the last part of a model's name or path, for a run's name."""
    return name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]


def spec_slug(spec: ModelSpec) -> str:
    """Return the model's name and, in short, its recipe, for a run's name."""
    return f"{slug(spec.name)}.{recipe_slug(spec.recipe)}" if spec.recipe else slug(spec.name)


def recipe_slug(recipe: Recipe) -> str:
    """Return a recipe in so few characters that a run's name has room for the rest."""
    from interp.compression import describe_recipe

    return describe_recipe(recipe)[:SLUG]


def recipe(source: str | None) -> Recipe:
    """Return the recipe that an option gives as a file, a name or text; none without it."""
    from interp.compression import read_recipe

    return () if source is None else read_recipe(source)
