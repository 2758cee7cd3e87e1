"""`mechscope export`: a dictionary in the layout of sae-lens or sparsify, on this machine and, if asked, on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from app import console, sources
from app.command import Common


@dataclass(frozen=True)
class Args(Common):
    """Write a dictionary so that sae-lens or sparsify can load it; with --publish, upload those files to the hub."""

    folder: tyro.conf.Positional[Path]
    """Folder to write into; files that are there already are never replaced."""
    sae: str | None = None
    """Run of `mechscope train` or `mechscope import`; None takes the newest."""
    format: Literal["sae-lens", "sparsify"] = "sae-lens"
    """Layout of the files."""
    publish: str | None = None
    """Upload them to this repository of the hub, user/name or user/name/folder; needs a token (`hf auth login` or
    HF_TOKEN). Nothing is uploaded without this option."""
    public: bool = False
    """Make a new repository readable by everybody; it is private otherwise."""


def run(args: Args) -> dict[str, Any]:
    """Write the files, upload them if asked, and return where they are."""
    from sae.model import load_sae
    from sae.readers import publish, write_dictionary
    from sae.readers.export import Origin

    if args.public and args.publish is None:
        raise ValueError("--public goes with --publish USER/NAME; nothing is uploaded without it.")
    if args.publish is not None:
        from sae.readers.hub import ready

        ready(args.publish)  # before anything is written
    subject = sources.subject(args.sae, args.runs)
    origin = Origin(subject.model.name, str(subject.site), subject.run.config.get("target_site"))
    if subject.model.recipe:
        console.note("the layout has no place for the model's recipe: the dictionary belongs to the compressed model")
    folder = args.folder.expanduser()
    paths = write_dictionary(load_sae(subject.run), origin, folder, args.format)
    for path in paths:
        console.emit(str(path))
    address = publish(paths, args.publish, public=args.public) if args.publish is not None else None
    if address:
        console.emit(address)
    return {"folder": str(folder), "files": [path.name for path in paths], "sae": subject.run.ref, "published": address}
