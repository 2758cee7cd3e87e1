"""What a dictionary reconstructs besides its input, where the rows for that come from, and where it stands then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app import sources
from sae.config import TargetConfig

if TYPE_CHECKING:
    from app.sources import Subject
    from interp.data import DataSpec
    from interp.models import ModelHandle, ModelSpec
    from interp.sites import Site
    from interp.types import Recipe
    from sae.placement import Placement
    from sae.training import Batches

Check = Callable[[int, TargetConfig], object]

PLACES = ("target_site", "sites", "with_model")
"""Entries of a dictionary's configuration that say what it reads and writes beside `site`."""


@dataclass(frozen=True)
class TargetArgs:
    """What is reconstructed; nothing given: what is read."""

    target_site: str | None = None
    """Reconstruct this site from --site: a transcoder, such as mlp_out.2 from resid_mid.2."""
    skip: bool = False
    """Add a linear map of what is read to a transcoder."""
    sites: tuple[str, ...] = ()
    """Read and reconstruct several sites at once, in place of --site: a crosscoder."""
    with_model: str | None = None
    """Read and reconstruct the same sites of this model too: a crosscoder of two models of one vocabulary."""
    e2e: bool = False
    """Train on the KL between the model's logits and those with the reconstruction in place."""
    downstream: float = 0.0
    """With --e2e: weight of the relative error at resid_post of the later layers."""

    def check(self, site: str | None) -> None:
        """Refuse options that exclude each other."""
        given = [
            name
            for name, on in (
                ("--target-site", self.target_site is not None),
                ("--sites or --with-model", bool(self.sites) or self.with_model is not None),
                ("--e2e", self.e2e),
            )
            if on
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} ask for different targets; give one of them.")
        if self.skip and self.target_site is None:
            raise ValueError("--skip belongs to a transcoder; give --target-site too.")
        if self.downstream and not self.e2e:
            raise ValueError("--downstream belongs to --e2e; give that too.")
        if self.sites and site is not None:
            raise ValueError("--sites takes the place of --site; give one of them.")
        if len(set(self.sites)) < len(self.sites) or (len(self.sites) == 1 and self.with_model is None):
            raise ValueError(f"--sites takes two or more different sites, got {', '.join(self.sites)}.")


def from_text(
    spec: ModelSpec,
    data: DataSpec,
    site: str | None,
    asked: TargetArgs,
    *,
    outlier_norm: float | None,
    device: str | None,
    gradient: bool = False,
    check: Check = lambda *_: None,
) -> sources.Source:
    """Return rows for what is asked for, from a model as it reads the training part of a text.

    `check` hears their width and the target before the text is read, and may refuse them.

    Raises:
        ValueError: sites or models that do not go together.
    """
    if asked == TargetArgs():
        return sources.from_text(
            spec,
            data,
            site,
            outlier_norm=outlier_norm,
            device=device,
            gradient=gradient,
            check=lambda d_in: check(d_in, TargetConfig()),
        )
    asked.check(site)
    handle = sources.open_model(spec, device)
    places = [handle.check_site(one) for one in asked.sites] or [sources.handle_site(handle, site)]
    other = _other(handle, asked, device, outlier_norm)
    if asked.target_site is not None:
        places.append(_later(handle, places[0], asked.target_site))
    target = _config(handle, other, places, asked)
    d_in = sum(target.blocks) or handle.width(places[0])
    check(d_in, target)
    blocks, _ = sources.split_blocks(handle, data)
    config = sources.streamed(handle, data, blocks, places[0], outlier_norm) | _identity(asked, places, other)
    options: dict[str, Any] = {"outlier_norm": outlier_norm}

    def open_batches(batch: int, seed: int) -> Batches:
        from interp.activations import ActivationStore
        from sae.batches import AtSite, Pairs, SideBySide
        from sae.end_to_end import TextBatches

        if asked.e2e:
            later = [f"resid_post.{n}" for n in range(places[0].layer + 1, handle.n_layers)] if asked.downstream else []
            return TextBatches(handle, blocks, places[0], batch=batch, seed=seed, downstream=later, **options)
        stores = [
            ActivationStore(one, blocks, places, batch=batch, seed=seed, gradient=gradient, **options)
            for one in (handle, other)
            if one is not None
        ]
        if asked.target_site is not None:
            return Pairs(AtSite(stores[0], places[0]), AtSite(stores[0], places[1]))
        return SideBySide([AtSite(store, place) for store in stores for place in places])

    return sources.Source(config, _name(places, asked), d_in, open_batches, target=target)


def from_store(
    ref: str, site: str | None, asked: TargetArgs, runs: Any, check: Check = lambda *_: None
) -> sources.Source:
    """Return rows for what is asked for from a store on disk, whose sites are of the same tokens row by row.

    Raises:
        ValueError: what needs a running model, or a site that the store lacks.
    """
    asked.check(site)
    if asked.e2e or asked.with_model is not None:
        raise ValueError("--store holds activations of one model; leave it out for --e2e and --with-model.")
    first = sources.from_store(ref, asked.sites[0] if asked.sites else site, runs)
    names = [*asked.sites[1:], *([asked.target_site] if asked.target_site is not None else [])]
    others = [sources.from_store(ref, name, runs) for name in names]
    if not others:
        check(first.d_in, TargetConfig())
        return first
    from interp.sites import Site

    places = [Site.parse(one.site) for one in (first, *others)]
    if asked.target_site is not None:
        if places[1] <= places[0]:
            raise ValueError(f"A transcoder writes at a site that is computed after {places[0]}, not {places[1]}.")
        target, d_in = TargetConfig("transcoder", d_out=others[0].d_in, skip=asked.skip), first.d_in
    else:
        target = TargetConfig("crosscoder", blocks=tuple(one.d_in for one in (first, *others)))
        d_in = sum(target.blocks)
    check(d_in, target)

    def open_batches(batch: int, seed: int) -> Batches:
        from sae.batches import Pairs, SideBySide

        parts = [one.batches(batch, seed) for one in (first, *others)]
        return Pairs(*parts) if asked.target_site is not None else SideBySide(parts)

    config = first.config | _identity(asked, places, None)
    return sources.Source(config, _name(places, asked), d_in, open_batches, first.parents, target)


def _later(handle: ModelHandle, site: Site, name: str) -> Site:
    """Return the site that a transcoder writes.

    Raises:
        ValueError: it is not computed after the one that is read.
    """
    place = handle.check_site(name)
    if place <= site:
        raise ValueError(f"A transcoder writes at a site that is computed after {site}, not {place}.")
    return place


def _other(
    handle: ModelHandle, asked: TargetArgs, device: str | None, outlier_norm: float | None
) -> ModelHandle | None:
    """Return the second model of a crosscoder.

    Raises:
        ValueError: it reads other tokens, or rows are to be left out, which could be others in each model.
    """
    if asked.with_model is None:
        return None
    if outlier_norm is not None:
        raise ValueError("--outlier-norm would leave out other rows in each model; leave it out with --with-model.")
    from interp.models import ModelSpec

    other = sources.open_model(ModelSpec(sources.local(asked.with_model)), device)
    if other.vocabulary() != handle.vocabulary():
        raise ValueError(
            f"{other.spec.name} has another vocabulary than {handle.spec.name}; a crosscoder reads the same tokens in "
            "both."
        )
    return other


def _config(handle: ModelHandle, other: ModelHandle | None, places: list[Site], asked: TargetArgs) -> TargetConfig:
    """Return the target."""
    if asked.target_site is not None:
        return TargetConfig("transcoder", d_out=handle.width(places[1]), skip=asked.skip)
    if asked.e2e:
        return TargetConfig("end_to_end", downstream=asked.downstream)
    both = [handle] if other is None else [handle, other]
    return TargetConfig("crosscoder", blocks=tuple(one.width(p) for one in both for p in places), models=len(both))


def _identity(asked: TargetArgs, places: list[Site], other: ModelHandle | None) -> dict[str, Any]:
    """Return what more identifies the rows than model, text and the first site."""
    if asked.target_site is not None:
        return {"target_site": str(places[1])}
    if asked.e2e:
        return {}
    found: dict[str, Any] = {"sites": [str(place) for place in places]}
    if other is not None:
        from interp.config import to_json

        found["with_model"] = {"model": to_json(other.spec), "weights": other.digest()}
    return found


def _name(places: list[Site], asked: TargetArgs) -> str:
    """Return what the rows are called."""
    if asked.target_site is not None:
        return f"{places[0]}-to-{places[1]}"
    both = "" if asked.with_model is None else f"-with-{sources.slug(asked.with_model)}"
    return "-".join(map(str, places)) + both + ("-e2e" if asked.e2e else "")


def kind(subject: Subject) -> str:
    """Return what a trained dictionary reconstructs: "input", "transcoder", "crosscoder" or "end_to_end"."""
    return str((subject.run.config["sae"].get("target") or {}).get("kind", "input"))


def where(subject: Subject) -> dict[str, Any]:
    """Return what a run made from a dictionary says of its place beside `site`; {} if the dictionary is plain."""
    return {name: subject.run.config[name] for name in PLACES if name in subject.run.config}


def check_own_input(subject: Subject, what: str) -> None:
    """Refuse a dictionary that does not write at the one site of one model that it reads.

    Raises:
        ValueError: with what it is, `what` cannot be done, and the remedy.
    """
    name = kind(subject)
    if name not in ("transcoder", "crosscoder"):
        return
    config = subject.run.config
    does = (
        f"reads {config['site']} and writes {config.get('target_site')}"
        if name == "transcoder"
        else f"reads {', '.join(config.get('sites', ()))} at once{' of two models' if 'with_model' in config else ''}"
    )
    raise ValueError(
        f"{subject.run.ref} is a {name}: it {does}. {what} a dictionary that reconstructs the one site that it reads; "
        "`mechscope train` without --target-site, --sites and --with-model makes one."
    )


def check_recipe(subject: Subject, recipe: Recipe) -> None:
    """Refuse to compress one of the two models that a crosscoder reads.

    Raises:
        ValueError: with the remedy.
    """
    if recipe and "with_model" in subject.run.config:
        raise ValueError(
            f"{subject.run.ref} reads two models, and --recipe would compress one of them; leave it out, or train a "
            "crosscoder on the compressed one: `mechscope compress --save FOLDER`, then `mechscope train --with-model "
            "FOLDER`."
        )


def placement(subject: Subject, handle: ModelHandle, device: str | None) -> Placement:
    """Return where a dictionary stands in its model `handle`; a second model is loaded here.

    Raises:
        ValueError: the second model's weights have changed since, or a site is not there.
    """
    from interp.compression import read_spec
    from interp.sites import Site
    from sae.placement import Placement

    config = subject.run.config
    if "sites" not in config:
        return Placement.of(handle, subject.site, config.get("target_site"))
    models = [handle]
    if "with_model" in config:
        other = config["with_model"]
        models.append(sources.open_model(read_spec(other["model"], f"the second model of {subject.run.ref}"), device))
        models[1].check_weights(other["weights"], subject.run.ref)
    sites = tuple(Site.parse(name) for name in config["sites"])
    for model in models:
        for site in sites:
            model.check_site(site)
    return Placement(tuple(models), sites, sites)
