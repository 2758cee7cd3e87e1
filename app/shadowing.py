"""Who else claims the names `interp`, `sae`, `probes`, `app` and `mechscope`.

These are common names. A second distribution that ships a `sae` overwrites ours without a word from pip, and takes it
away when it is uninstalled; a `sae.py` in the folder where Python starts is imported instead of ours.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from pathlib import Path

DISTRIBUTION = "mechscope"
NAMES = ("interp", "sae", "probes", "app", "mechscope")
ROOT = Path(__file__).resolve().parent.parent


def problems(folder: Path, path: Sequence[str] | None = None, root: Path = ROOT) -> list[str]:
    """Return a sentence with what to do for everything that stands, or would stand, in the way of our packages.

    `folder` is where Python would be started, `path` the module search path (`sys.path` unless given), `root` the
    folder that holds our packages.
    """
    path = list(sys.path if path is None else path)
    importlib.invalidate_caches()
    return [*foreign_distributions(), *foreign_modules(folder, path, root), *badly_named_clone(root)]


def foreign_distributions() -> list[str]:
    """Return a sentence for each other installed distribution that ships one of our names."""
    owners = packages_distributions()
    strangers: dict[str, list[str]] = {}
    for name in NAMES:
        for owner in set(owners.get(name, ())):
            if owner.lower().replace("_", "-") != DISTRIBUTION:
                strangers.setdefault(owner, []).append(name)
    return [
        f"The installed distribution '{owner}' also provides {_quoted(names)}, and one overwrites the other. "
        f"Do: pip uninstall {owner}, then install mechscope again (or give each its own environment)."
        for owner, names in sorted(strangers.items())
    ]


def foreign_modules(folder: Path, path: Sequence[str], root: Path) -> list[str]:
    """Return a sentence for each of our names that Python takes from elsewhere, here or when started in `folder`."""
    found = []
    for name in NAMES:
        now = _origin(name, path)
        there = _origin(name, [str(folder), *path])
        if now is not None and not _ours(name, now, root):
            found.append(
                f"'import {name}' takes {now}, not mechscope's. {_cause(now)}Do: move or rename it, take its folder "
                f"off the module path, or start Python elsewhere."
            )
        elif there is not None and not _ours(name, there, root):
            found.append(
                f"{there} hides mechscope's '{name}' from Python and Jupyter started in {folder}. "
                f"Do: rename it, or start elsewhere."
            )
    return found


def badly_named_clone(root: Path) -> list[str]:
    """Return a sentence if the folder of the repository has the name of one of the packages in it."""
    if root.name not in NAMES or root.name == DISTRIBUTION:
        return []
    return [
        f"The repository lies in a folder called '{root.name}', which is also a package in it: Python started "
        f"beside it may import the folder. Do: mv {root} {root.with_name(DISTRIBUTION)}, and run the set-up there."
    ]


def _origin(name: str, path: Sequence[str]) -> Path | None:
    """Return the file or folder that `import name` takes from `path`, None where the path does not offer it."""
    spec = PathFinder.find_spec(name, [entry or os.getcwd() for entry in path])  # noqa: PTH109 (a string is wanted)
    if spec is None:
        return None
    if spec.origin is not None:
        return Path(spec.origin).resolve()
    return next((Path(place).resolve() for place in spec.submodule_search_locations or ()), None)


def _ours(name: str, origin: Path, root: Path) -> bool:
    return origin in (root / f"{name}.py", root / name / "__init__.py")


def _cause(origin: Path) -> str:
    for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if entry and origin.is_relative_to(Path(entry).resolve()):
            return f"PYTHONPATH names {entry}. "
    return ""


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
