"""mechscope in one import: `import mechscope; sae = mechscope.load("sae/demo-1a2b3c4d")`.

Everything lives in the packages `interp`, `sae`, `probes` and `app`; this file only knows where, and imports a thing
when it is first used (PEP 562). `import mechscope` by itself loads no torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.lazy import lazy

if TYPE_CHECKING:  # for editors and type checkers, which cannot follow the table below
    from interp.attribution.estimates import relp
    from interp.attribution.patching import patch_map
    from interp.attribution.relevance import relevance
    from interp.compression.compare import compare
    from interp.compression.recipes import read_recipe
    from interp.hooks import ablate, capture, patch, splice
    from interp.models import ModelSpec, load_model
    from interp.runs import Run, find_runs, open_run
    from interp.sites import Site
    from sae.evaluation import evaluate
    from sae.model import Sae
    from sae.training import train

__version__ = "0.1.0"

__all__ = [
    "ModelSpec", "Sae", "Site", "ablate", "capture", "compare", "evaluate", "find_runs", "load", "load_model",
    "open_run", "patch", "patch_map", "read_recipe", "relevance", "relp", "splice", "train",
]  # fmt: skip

_EXPORTS = {
    "ModelSpec": "interp.models",
    "Sae": "sae.model",
    "Site": "interp.sites",
    "ablate": "interp.hooks",
    "capture": "interp.hooks",
    "compare": "interp.compression.compare",
    "evaluate": "sae.evaluation",
    "find_runs": "interp.runs",
    "load_model": "interp.models",
    "open_run": "interp.runs",
    "patch": "interp.hooks",
    "patch_map": "interp.attribution.patching",
    "read_recipe": "interp.compression.recipes",
    "relevance": "interp.attribution.relevance",
    "relp": "interp.attribution.estimates",
    "splice": "interp.hooks",
    "train": "sae.training",
}

_HOLDS = {
    "activations": ("interp.activations", "DiskStore"),
    "attribution": ("interp.attribution.saving", "load_attribution"),
    "compare": ("interp.compression.compare", "load_results"),
    "sae": ("sae.model", "load_sae"),
    "features": ("sae.features", "load_features"),
}
"""What makes the thing that a run of a kind holds, called with the run."""

_get, __dir__, _ = lazy(__name__, _EXPORTS)


def __getattr__(name: str) -> Any:
    """Import what is first asked for; a name that is not offered is answered with the nearest that is."""
    if name in _EXPORTS or name.startswith("_"):
        return _get(name)
    from interp.names import unknown

    raise AttributeError(unknown(f"name in module {__name__!r}:", name, __all__))


def load(run: str | Path | Run, root: str | Path | None = None) -> Any:
    """Return what a run holds: the `Sae` of a training, the store of a capture, the tables of a feature run,
    what each panel of a comparison found, the scores of an attribution.

    Args:
        run: a run, or its reference: `sae/demo-1a2b3c4d`, the eight characters at its end, or its folder.
        root: the folder of the runs; `$MECHSCOPE_RUNS`, else `./runs`, unless given.

    A run of a kind that holds only records (an evaluation) is returned as it is, with `.summary` and `.json(name)`.

    Raises:
        interp.runs.RunError: where the run is unknown, unfinished, damaged, or of a newer schema.
    """
    from interp.runs import Run, RunError, open_run

    found = run if isinstance(run, Run) else open_run(run, root)
    if not found.finished:
        raise RunError(f"{found.ref} is {found.status}, not finished; the command that began it resumes it.")
    if found.kind not in _HOLDS:
        return found
    module, name = _HOLDS[found.kind]
    return getattr(importlib.import_module(module), name)(found)
