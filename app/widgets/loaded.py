"""The only places of the explorer that load a model or a dictionary, when a page is asked to read a text.

Model libraries are imported inside the functions, so that a page that is merely opened stays light. All sessions share
one model and a few dictionaries; a model's own lock keeps two readers apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from app.widgets.artefacts import Unreadable
from interp.runs import Run, RunError, open_run
from interp.sites import Site

if TYPE_CHECKING:
    from interp.models import ModelHandle
    from sae.model import Sae

TEXT_LENGTH = 500  # characters
TOKENS = 128  # tokens read at most


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn whatever loading or computing can raise into `Unreadable` with its first line."""
    try:
        yield
    except (RunError, OSError, ValueError, KeyError, ImportError, RuntimeError) as problem:
        raise Unreadable(str(problem).split("\n")[0][:500] or type(problem).__name__) from problem


def model_key(config: Mapping[str, Any]) -> str:
    """Return the model that a run's configuration names, as JSON; "" where it names none.

    Two runs of one model give the same text, whichever defaults they wrote down.
    """
    model = config.get("model")
    if isinstance(model, str):
        model = {"name": model}
    if not isinstance(model, Mapping) or not model.get("name"):
        return ""
    kept = {key: value for key, value in model.items() if value not in (None, [], ()) and (key, value) != _USUAL}
    return json.dumps(kept, sort_keys=True)


_USUAL = ("dtype", "float32")


def load_model_of(run: Run, *, check: bool = True) -> ModelHandle:
    """Return the model that the dictionary of `run` was trained on.

    Raises:
        ValueError: the run names none, it cannot be loaded, or its weights have changed since.
    """
    key = model_key(run.config)
    if not key:
        raise ValueError("The dictionary's run does not say which model it was trained on, so no text can be read.")
    model = _model(key)
    if check:
        model.check_weights(run.config.get("weights"), run.ref)
    return model


@st.cache_resource(max_entries=1, show_spinner="Loading the model…")
def _model(key: str) -> ModelHandle:
    from interp.compression import read_spec
    from interp.models import load_model

    return load_model(read_spec(json.loads(key), where="the model of the dictionary"))


def load_dictionary(run: Run) -> Sae:
    """Return the dictionary of `run`, on the CPU."""
    return _dictionary(str(run.root), run.ref, changed(run))


@st.cache_resource(max_entries=4, show_spinner=False)
def _dictionary(root: str, ref: str, modified: int) -> Sae:  # noqa: ARG001  # a part of the cache's key
    from sae.model import load_sae

    return load_sae(open_run(ref, Path(root))).eval()


def places(run: Run) -> tuple[list[Site], list[Site]]:
    """Return (sites that make up a row of the dictionary of `run`, sites that its reconstruction is of).

    Raises:
        ValueError: it reads two models, and only one is loaded here.
    """
    config = run.config
    if "with_model" in config:
        raise ValueError(
            f"{run.ref} reads two models at once and the explorer loads one, so it reads no text here. In Python, "
            "sae.splicing.reconstruct reads both."
        )
    reads = [Site.parse(str(site)) for site in config.get("sites", [config.get("site")])]
    return reads, [Site.parse(config["target_site"])] if "target_site" in config else reads


def changed(run: Run) -> int:
    """Return when `run` was finished, in nanoseconds: a part of every cache's key."""
    return (run.path / "manifest.json").stat().st_mtime_ns


def cut_text(model: ModelHandle, text: str) -> tuple[Any, int, bool]:
    """Return (tokens [1 pos], index of the first one that dictionaries read, whether the text was longer).

    A BOS comes first where the model has one; dictionaries leave it out.

    Raises:
        ValueError: the text holds no token.
    """
    tokens = model.tokens(text[:TEXT_LENGTH])
    limit = min(TOKENS, model.n_ctx)
    cut, tokens = tokens.shape[1] > limit or len(text) > TEXT_LENGTH, tokens[:, :limit]
    start = int(model.bos_id is not None and tokens.shape[1] > 0 and int(tokens[0, 0]) == model.bos_id)
    if tokens.shape[1] <= start:
        raise ValueError("The text holds no token; type a few words.")
    return tokens, start, cut
