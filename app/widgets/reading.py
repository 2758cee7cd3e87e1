"""A text as one model and several dictionaries read it: loss, predictions, and which latents fire where.

Surprise is the loss of a token given what precedes it, -log p(token), in nats. The error of a dictionary at token t is

    ||x_t - x_hat_t||^2 / mean_s ||x_s - mean(x)||^2,

so that its mean over the text is the FVU of that text; x is what the dictionary reconstructs (for a transcoder the
activation at the site that it writes, for a crosscoder those at all its sites). One forward pass serves all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from app.widgets.artefacts import Unreadable
from app.widgets.loaded import TEXT_LENGTH, changed, cut_text, load_dictionary, load_model_of, one_sentence, places
from interp.runs import Run, open_run

if TYPE_CHECKING:
    from torch import Tensor

PREDICTIONS = 10  # next tokens kept for each position


@dataclass(frozen=True)
class Coded:
    """The code of the text under one dictionary, and how well it explains each token."""

    pointers: NDArray[np.int64]
    """[tokens+1]: where the latents of each token begin."""
    latents: NDArray[np.int64]
    values: NDArray[np.float32]
    """Largest |value| first within a token."""
    error: NDArray[np.float64]
    """[tokens]; its mean is the FVU of the text. NaN where the text does not vary."""

    def active(self, token: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return (latents, values) at a token, the strongest first."""
        part = slice(int(self.pointers[token]), int(self.pointers[token + 1]))
        return self.latents[part], self.values[part]


@dataclass(frozen=True)
class Reading:
    """What model and dictionaries make of a text; every list has one entry for each token, the BOS left out."""

    tokens: list[str]
    ids: list[int]
    start: int
    """Position of the first token; 1 where a BOS comes before it."""
    cut: bool
    """Whether the text was longer than what was read."""
    loss: list[float]
    """Surprise in nats; NaN at a token that nothing precedes."""
    likely: list[list[tuple[str, float]]]
    """The most probable tokens after each token, with their probabilities."""
    follows: list[tuple[str, float, int] | None]
    """(text, probability, rank from 1) of the token that comes after it; None after the last."""
    coded: dict[str, Coded] = field(default_factory=dict)
    """By the dictionary's ref."""
    failed: dict[str, str] = field(default_factory=dict)
    """Dictionaries that could not read the text, with the reason."""


def read_prompt(dictionaries: Sequence[Run], text: str) -> Reading:
    """Return `text` as the model of `dictionaries` (one and the same) and each of them read it.

    A dictionary that cannot be loaded or does not fit the model costs only itself.

    Raises:
        Unreadable: the model cannot be loaded, or the text holds no token; says what to do.
    """
    with one_sentence():
        key = tuple((run.ref, changed(run)) for run in dictionaries)
        return _read(str(dictionaries[0].root), key, text[: TEXT_LENGTH + 1])


@st.cache_data(max_entries=16, show_spinner="Reading the text…")
def _read(root: str, dictionaries: tuple[tuple[str, int], ...], text: str) -> Reading:
    import torch

    from interp.hooks import capture

    runs = [open_run(ref, Path(root)) for ref, _ in dictionaries]
    model = load_model_of(runs[0], check=False)  # each dictionary is checked below
    tokens, start, cut = cut_text(model, text)
    failed: dict[str, str] = {}
    sites: dict[str, tuple[list[Any], list[Any]]] = {}
    for run in runs:
        try:
            model.check_weights(run.config.get("weights"), run.ref)
            reads, writes = places(run)
            sites[run.ref] = ([model.check_site(s) for s in reads], [model.check_site(s) for s in writes])
        except ValueError as problem:
            failed[run.ref] = str(problem)
    with torch.inference_mode():
        with capture(model, sorted({site for both in sites.values() for part in both for site in part})) as cache:
            logits = model.logits(tokens)[0].float().cpu()
        coded: dict[str, Coded] = {}
        for run in runs:
            if run.ref in sites:
                x, y = (
                    torch.cat([cache[site][0, start:].flatten(1).float().cpu() for site in part], dim=1)
                    for part in sites[run.ref]
                )
                try:
                    coded[run.ref] = _code(run, x, y)
                except Unreadable as problem:
                    failed[run.ref] = str(problem)
        ids = [int(i) for i in tokens[0, start:]]
        loss, likely, follows = _predictions(logits, tokens[0].cpu(), start)
    words = model.vocabulary()
    return Reading(
        model.token_strings(ids), ids, start, cut, loss,
        [[(words[i], p) for i, p in row] for row in likely],
        [None if row is None else (words[row[0]], row[1], row[2]) for row in follows], coded, failed,
    )  # fmt: skip


def _code(run: Run, x: Tensor, y: Tensor) -> Coded:
    """Return the code of the rows of `x` under the dictionary of `run`, which reconstructs `y` from it."""
    with one_sentence():
        estimate, code = load_dictionary(run)(x)
        dense = code.dense()
        token, latent = dense.nonzero(as_tuple=True)
        values = dense[token, latent]
        order = np.lexsort((-values.abs().numpy(), token.numpy()))
        spread = float((y.double() - y.double().mean(0)).square().sum(-1).mean())
        if estimate.shape == y.shape and spread > 0:
            error = (y.double() - estimate.double()).square().sum(-1).numpy() / spread
        else:
            error = np.full(len(x), np.nan)
        counts = np.bincount(token.numpy(), minlength=len(x))
        return Coded(
            np.concatenate([[0], np.cumsum(counts)]), latent.numpy()[order], values.float().numpy()[order], error
        )


def _predictions(logits: Tensor, ids: Tensor, start: int) -> tuple[list[float], list[Any], list[Any]]:
    """Return loss, most probable next ids, and the fate of the next token, for each token from `start` on."""
    log_p = logits.log_softmax(-1)
    best = log_p.topk(min(PREDICTIONS, log_p.shape[-1]), dim=-1)
    likely = [
        list(zip(row.tolist(), p.exp().tolist(), strict=True))
        for row, p in zip(best.indices[start:], best.values[start:], strict=True)
    ]
    actual = log_p[:-1].gather(-1, ids[1:, None])
    ranks = (log_p[:-1] > actual).sum(-1) + 1
    loss = [float("nan")] * (start == 0) + (-actual[:, 0]).tolist()[max(0, start - 1) :]
    follows: list[Any] = [
        (int(ids[i + 1]), float(actual[i, 0].exp()), int(ranks[i])) for i in range(start, len(ids) - 1)
    ]
    return loss, likely, [*follows, None]
