"""Does a latent fire on the reader's own text: the code of a text, computed once for all latents of a dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from app.widgets.loaded import (
    TEXT_LENGTH,
    TOKENS,
    changed,
    cut_text,
    load_dictionary,
    load_model_of,
    one_sentence,
    places,
)
from interp.runs import Run, open_run

__all__ = ["TEXT_LENGTH", "TOKENS", "Fired", "read_text"]


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
    with one_sentence():
        return _read_text(str(sae.root), sae.ref, changed(sae), text[: TEXT_LENGTH + 1])


@st.cache_data(max_entries=32, show_spinner="Reading the text…")
def _read_text(root: str, ref: str, modified: int, text: str) -> Fired:  # noqa: ARG001  # a part of the cache's key
    import torch

    from interp.hooks import capture

    run = open_run(ref, Path(root))
    sites, _ = places(run)
    model, sae = load_model_of(run), load_dictionary(run)
    tokens, start, cut = cut_text(model, text)
    with torch.inference_mode():
        with capture(model, sites, stop=True) as cache:
            model.forward(tokens)
        # At head_out, q and the like heads lie on an axis of their own.
        x = torch.cat([cache[site][0, start:].flatten(1).float().cpu() for site in sites], dim=1)
        dense = sae.encode(x).dense()
    ids = [int(i) for i in tokens[0, start:]]
    return Fired(model.token_strings(ids), ids, start, [_active(row) for row in dense], cut)


def _active(row: Any) -> dict[int, float]:
    on = row.nonzero().flatten()
    values = row[on]
    order = values.abs().argsort(descending=True)
    return dict(zip(on[order].tolist(), values[order].tolist(), strict=True))
