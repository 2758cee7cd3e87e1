"""Which latents of a dictionary fire at one token: filtered by density, sorted, each a link to its page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from app.widgets import frame, state
from app.widgets.dictionaries import Known
from app.widgets.feature_card import DENSE_FROM
from app.widgets.notes import notes_of
from app.widgets.reading import Coded
from app.widgets.text import number, safe, share, tokens_html

STEPS = 28
DENSITIES = [f"{100 * (i / STEPS) ** 3:.2g}%" for i in range(1, STEPS)] + ["all"]
"""Upper limits of density on a cubic scale, as they are written; the 13th is 10%."""
DEFAULT_DENSITY = DENSITIES[round(STEPS * DENSE_FROM ** (1 / 3)) - 1]
ORDERS = ["activation", "activation / max"]


@dataclass(frozen=True)
class Filter:
    """How the reader wants the latents."""

    density: str = DEFAULT_DENSITY
    """One of `DENSITIES`; denser latents are hidden. A latent of unknown density is shown."""
    order: str = ORDERS[0]
    """One of `ORDERS`."""

    @property
    def limit(self) -> float:
        """The largest density that is shown."""
        if self.density not in DENSITIES[:-1]:
            return float("inf")
        return ((DENSITIES.index(self.density) + 1) / STEPS) ** 3

    def visible(self, known: Known, latents: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of `latents` are shown."""
        return ~(known.densities(latents) > self.limit)

    def sort(self, known: Known, latents: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the order in which they are shown; where no maximum is known, by activation."""
        sizes = np.abs(values.astype(np.float64))
        relative = sizes / known.peaks(latents)
        if self.order == ORDERS[1] and np.isfinite(relative).any():
            return np.lexsort((-sizes, -np.nan_to_num(relative, nan=-1.0)))
        return np.argsort(-sizes, kind="stable")


def counts(known: Known, coded: Coded, chosen: Filter) -> NDArray[np.int64]:
    """Return how many latents that pass the filter fire at each token."""
    shown = chosen.visible(known, coded.latents)
    return np.diff(np.concatenate([[0], np.cumsum(shown)])[coded.pointers])


def firing(known: Known, coded: Coded, token: int, chosen: Filter, lines: int, key: str) -> None:
    """Write the dictionary's name and its first `lines` latents at the token `token`."""
    latents, values = coded.active(token)
    shown = chosen.visible(known, latents)
    hidden = int((~shown).sum())
    order = np.flatnonzero(shown)[chosen.sort(known, latents[shown], values[shown])]
    about = [f"{len(order)} fire" if len(order) != 1 else "1 fires"]
    if hidden:
        about.append(f"{hidden} denser than {chosen.density} hidden")
    about.append(f"unexplained {number(float(coded.error[token]))}")
    with st.container(key=f"fire-{key}", gap=None), frame.section():
        st.html(
            f'<div class="ms-layer"><b>{safe(known.site)}</b>{safe(" · ".join(about))} · {safe(known.run.name)}</div>'
        )
        if known.problem:
            frame.problem(known.problem)
        rows(known, latents[order[:lines]], values[order[:lines]], key)
        if known.features is None:
            st.html(
                f'<p class="ms-text">Tokens and maxima come with <code>mechscope features --sae {safe(known.run.ref)}'
                "</code></p>"
            )


def rows(known: Known, latents: NDArray[np.int64], values: NDArray[np.float32], key: str) -> None:
    """Write one line for each latent: link, activation, share of its maximum, density, label or tokens."""
    features = known.features
    notes = notes_of(features, say=False) if features is not None else {}
    scale = float(np.abs(values).max()) if len(values) else 1.0
    data = zip(latents.tolist(), values.tolist(), known.densities(latents), known.peaks(latents), strict=True)
    with st.container(key=f"links-{key}", gap=None):
        for latent, value, density, peak in data:
            with st.container(horizontal=True, wrap=False, vertical_alignment="center", gap="small"):
                about = ""
                if features is None or not features.index[0] <= latent <= features.index[-1]:
                    st.html(f'<span class="ms-number">{latent}</span>', width=52)
                else:
                    st.page_link(
                        state.FEATURE_PAGE, label=str(latent), width=52,
                        query_params=state.feature_address(features.run.name, latent),
                    )  # fmt: skip
                    label = notes[latent].label if latent in notes else ""
                    about = f"<b>{safe(label)}</b> " if label else ""
                    about += tokens_html(list(dict.fromkeys(features.top_tokens(latent, value))))
                st.html(line(value, scale, density, peak, about))


def line(value: float, scale: float, density: float, peak: float, about: str) -> str:
    """Return the line of one latent; `about` is HTML."""
    width = min(100.0, 100 * abs(value) / scale) if scale > 0 else 0.0
    sign = ' class="neg"' if value < 0 else ""
    relative = f"{100 * abs(value) / peak:.0f}%" if peak == peak and peak > 0 else "–"
    return (
        f'<div class="ms-fire"><span class="v"><i><u{sign} style="width:{width:.0f}%"></u></i>{number(value)}</span>'
        f'<span class="r">{relative}</span><span class="r">{share(density)}</span><span class="w">{about}</span></div>'
    )


HEAD = (
    '<div class="ms-fire head"><span>activation</span><span class="r" title="of the largest activation seen">of max'
    '</span><span class="r" title="share of tokens on which it fires">density</span><span>top tokens</span></div>'
)
