"""`mechscope import`: a dictionary of another library becomes a run, its files checked and its weights rewritten."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from app import console, sources
from app.command import Common
from interp.data import DataSpec

if TYPE_CHECKING:
    from interp.models import ModelSpec
    from interp.sites import Site
    from sae.model import Sae
    from sae.readers import Foreign


@dataclass(frozen=True)
class Args(Common):
    """Take in a dictionary or a transcoder of sae-lens, Gemma Scope, sparsify or dictionary_learning.

    The files are read without any of those libraries and never unpickled. The dictionary becomes a run like a trained
    one: evaluate it, describe its features, open it in the explorer.
    """

    path: tyro.conf.Positional[str]
    """Folder with its files, or user/repository/folder on the hub."""
    format: str = "auto"
    """Layout of the files: sae-lens, gemma-scope, sparsify or dictionary-learning; auto looks."""
    revision: str | None = None
    """Branch, tag or commit of the dictionary's repository on the hub."""
    model: str | None = None
    """Model that it belongs to; None takes what the files say."""
    model_revision: str | None = None
    """Branch, tag or commit of the model's repository."""
    model_dtype: str = "float32"
    """Number format the model computes in."""
    site: str | None = None
    """Site that it reads, such as resid_post.20; None takes what the files say."""
    target_site: str | None = None
    """Site that a transcoder writes, such as mlp_out.20; None takes what the files say."""
    data: tyro.conf.OmitArgPrefixes[DataSpec] = field(default_factory=DataSpec)
    """Text that later commands read it on unless they are given another one; it was trained on none of ours."""
    without_model: bool = False
    """Do not load the model now; then nobody compares widths, and other weights under its name go unnoticed."""
    device: str | None = None
    """Where to load the model, such as cuda; None takes a GPU where there is one."""


def run(args: Args) -> dict[str, Any]:
    """Read the dictionary, compare it with the model, write the run; return it and what it holds."""
    from interp.config import to_json
    from interp.runs import start_run
    from interp.runs.files import sha256
    from sae.readers import FORMATS, fetch, read_dictionary, to_sae

    started = time.time()
    folder, commit = fetch(args.path, args.revision)
    format, foreign = read_dictionary(folder, args.format)
    spec, site, goal = _place(args, foreign)
    sae = to_sae(foreign)
    weights = None if args.without_model else _compare(spec, site, goal, sae, args.device)
    config = {
        "model": to_json(spec),
        "data": to_json(replace(args.data, text=sources.local(args.data.text))),
        "weights": weights,
        "tokens": None,
        "site": str(site),
        "outlier_norm": None,
        "drop_bos": True,
        "sae": to_json(sae.config),
        "imported": {"format": format, "files": {name: sha256(folder / name) for name in FORMATS[format].files}},
    } | ({} if goal is None else {"target_site": str(goal)})
    place = str(site) if goal is None else f"{site}-to-{goal}"
    slug = f"{sources.slug(spec.name)}.{place}.{sae.config.rule}-{sae.d_sae}"
    about = sources.provenance(config, weights)
    with start_run("sae", config, slug=slug, root=args.runs, **about) as record:
        if record.finished:
            console.note(f"{record.ref} is finished already")
        else:
            sae.save(record)
            record.finish(_summary(args, sae, commit) | {"seconds": round(time.time() - started, 1)})
    console.table(("imported", "value"), list(record.summary.items()))
    written = {} if goal is None else {"target_site": str(goal)}
    return {"run": str(record.path), "site": str(site), **written, "format": format, **record.summary}


def _summary(args: Args, sae: Sae, commit: str | None) -> dict[str, Any]:
    """Return what the run says of itself."""
    length = sae.W_dec.detach().norm(dim=1)
    source = args.path if commit else Path(args.path).expanduser().resolve().name
    return {
        "source": source,
        "commit": commit,
        "rule": sae.config.rule,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "shortest_atom": round(float(length.min()), 6),
        "longest_atom": round(float(length.max()), 6),
    }


def _place(args: Args, foreign: Foreign) -> tuple[ModelSpec, Site, Site | None]:
    """Return the model, the site that the dictionary reads, and the one that a transcoder writes.

    Raises:
        ValueError: neither the request nor the files say one of them, or they do not go together.
    """
    from interp.models import ModelSpec

    transcodes = foreign.target.kind == "transcoder"
    if args.model is None and foreign.model is None:
        raise ValueError("The files do not say which model the dictionary belongs to; name it with --model.")
    if args.target_site is not None and not transcodes:
        raise ValueError("--target-site is for transcoders, and this dictionary reconstructs what it reads.")
    site = _site(args.site, foreign.site, "--site")
    if site is None:
        hint = " Many transcoders read an MLP's input after its norm, which is no site here." if transcodes else ""
        raise ValueError(
            f"The files name no site that this version knows; give it with --site, such as resid_post.2.{hint}"
        )
    goal = _site(args.target_site, foreign.site_out, "--target-site") if transcodes else None
    if transcodes and goal is None:
        raise ValueError(
            "It is a transcoder, and the files do not say which site it writes; give it with --target-site, such as "
            "mlp_out.2."
        )
    if goal is not None and goal <= site:
        raise ValueError(f"A transcoder writes at a site that is computed after {site}, which {goal} is not.")
    # A model's name from a stranger's file is never a path.
    name = sources.local(args.model) if args.model is not None else str(foreign.model)
    return ModelSpec(name, args.model_revision, args.model_dtype), site, goal


def _site(asked: str | None, said: str | None, option: str) -> Site | None:
    """Return the site that is asked for, else the one that the files say; a note where they differ."""
    from interp.sites import Site

    if asked is not None and said is not None and str(Site.parse(asked)) != said:
        console.note(f"the files say {said}; taken as {Site.parse(asked)}, as asked by {option}")
    chosen = asked or said
    return None if chosen is None else Site.parse(chosen)


def _compare(spec: ModelSpec, site: Site, goal: Site | None, sae: Sae, device: str | None) -> str:
    """Return the hash of the model's weights, or refuse a dictionary of another width than the sites'."""
    handle = sources.open_model(spec, device)
    for where, does, wanted in ((site, "reads", sae.d_in), (goal, "writes", sae.d_out)):
        if where is None:
            continue
        place = sources.handle_site(handle, str(where))
        width = handle.width(place)
        if width != wanted:
            fitting = [str(s) for s in handle.sites() if s.kind != "pattern" and handle.width(s) == wanted]
            listed = ", ".join(fitting[:6]) + (" ..." if len(fitting) > 6 else "")
            raise ValueError(
                f"The dictionary {does} activations of width {wanted}, {place} of {spec.name} has {width}. "
                + (
                    f"Sites of that width: {listed}."
                    if fitting
                    else "No site of that model has it; give another --model."
                )
            )
    return handle.digest()
