"""Does a latent fire on the reader's own text: the one place of the explorer that loads a model, and only when asked.

The model library is imported inside the functions, so that a page that is merely opened stays light. One model and
dictionary are kept; the code of a text is computed once for all latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from app.widgets.artefacts import Unreadable
from interp.runs import Run, RunError, open_run

if TYPE_CHECKING:
    from interp.models import ModelHandle
    from sae.model import Sae

TEXT_LENGTH = 500  # characters
TOKENS = 128  # tokens read at most


@dataclass(frozen=True)
class Fired:
    """The code of a text: for each token, which latents are on and how strongly."""

    tokens: list[str]
    ids: list[int]
    start: int
    """Position of the first token; 1 where a BOS, which dictionaries leave out, comes before it."""
    active: list[dict[int, float]]
    """{latent: value} of each token, largest |value| first."""
    cut: bool
    """Whether the text was longer than what was read."""

    def values(self, latent: int) -> list[float]:
        """Return the code of `latent` at each token; 0 is silent."""
        return [on.get(latent, 0.0) for on in self.active]

    def strongest(self, latent: int) -> int | None:
        """Return the index of the token on which `latent` is strongest, or None where it is silent."""
        values = [abs(value) for value in self.values(latent)]
        return values.index(max(values)) if any(values) else None


def read_text(sae: Run, text: str) -> Fired:
    """Return the code of `text` under the dictionary of the run `sae`.

    Raises:
        Unreadable: the model or the dictionary cannot be loaded, or the text has no token; says what to do.
    """
    try:
        modified = (sae.path / "manifest.json").stat().st_mtime_ns
        return _read_text(str(sae.root), sae.ref, modified, text[:TEXT_LENGTH])
    except (RunError, OSError, ValueError, ImportError, RuntimeError) as problem:
        raise Unreadable(str(problem).split("\n")[0][:500] or type(problem).__name__) from problem


@st.cache_resource(max_entries=1, show_spinner="Loading the model and the dictionary…")
def _loaded(root: str, ref: str, modified: int) -> tuple[ModelHandle, Sae]:  # noqa: ARG001  # a part of the cache's key
    from interp.config import from_json
    from interp.models import ModelSpec, load_model
    from sae.model import load_sae

    run = open_run(ref, Path(root))
    return load_model(_spec(run.config, ModelSpec, from_json)), load_sae(run).eval()


def _spec(config: Mapping[str, Any], spec: Any, from_json: Any) -> Any:
    model = config.get("model")
    if isinstance(model, str):
        return spec(model)
    if isinstance(model, Mapping):
        return from_json(spec, dict(model), where="the model of the dictionary")
    raise ValueError("The dictionary's run does not say which model it was trained on, so no text can be read.")


@st.cache_data(max_entries=32, show_spinner="Reading the text…")
def _read_text(root: str, ref: str, modified: int, text: str) -> Fired:
    import torch

    from interp.hooks import capture
    from interp.sites import Site

    model, sae = _loaded(root, ref, modified)
    site = Site.parse(open_run(ref, Path(root)).config["site"])
    tokens = model.tokens(text)
    limit = min(TOKENS, model.n_ctx)
    cut, tokens = tokens.shape[1] > limit, tokens[:, :limit]
    start = int(model.bos_id is not None and tokens.shape[1] > 0 and int(tokens[0, 0]) == model.bos_id)
    if tokens.shape[1] <= start:
        raise ValueError("The text holds no token; type a few words.")
    with torch.inference_mode():
        with capture(model, [site], stop=True) as cache:
            model.forward(tokens)
        x = cache[site][0, start:].reshape(tokens.shape[1] - start, -1).float()
        dense = sae.encode(x).dense()
    ids = [int(i) for i in tokens[0, start:]]
    return Fired(model.token_strings(ids), ids, start, [_active(row) for row in dense], cut)


def _active(row: Any) -> dict[int, float]:
    on = row.nonzero().flatten()
    values = row[on]
    order = values.abs().argsort(descending=True)
    return dict(zip(on[order].tolist(), values[order].tolist(), strict=True))
