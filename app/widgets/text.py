"""How text and numbers are written on a page: every character visible, every figure short, nothing left as markup."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from interp.figures.text import number, visible

__all__ = ["count", "number", "place_of", "safe", "share", "token_html", "tokens_html", "visible"]


def safe(text: object) -> str:
    """Return `text` escaped for HTML, quotes included."""
    return escape(str(text), quote=True)


def token_html(text: str) -> str:
    """Return a token as a small grey box, in which nothing is markup."""
    return f'<span class="ms-token">{safe(visible(text, limit=24)) or "∅"}</span>'


def tokens_html(tokens: Sequence[str]) -> str:
    """Return several tokens as boxes side by side."""
    return " ".join(token_html(token) for token in tokens)


def place_of(config: Mapping[str, Any]) -> str:
    """Return where the dictionary of a configuration reads and writes, such as "resid_mid.2 → mlp_out.2"."""
    reads = " + ".join(map(str, config.get("sites") or [config.get("site", "unknown site")]))
    written = f" → {config['target_site']}" if config.get("target_site") else ""
    return visible(reads + written + (" of two models" if config.get("with_model") else ""), spaces=False, limit=120)


def share(value: float | None) -> str:
    """Return a share as a percentage of about two or three digits: `3.42%`, `0.012%`."""
    if value is None or not math.isfinite(value):
        return "–"
    percent = 100 * value
    if percent == 0 or abs(percent) >= 1:
        return f"{percent:.{1 if abs(percent) >= 10 else 2}f}%" if percent else "0%"
    return f"{percent:#.2g}%" if abs(percent) >= 1e-4 else f"{percent:.1e}%"


def count(value: float | None) -> str:
    """Return a count: `1,234`, `12.3k`, `4.0M`."""
    if value is None or not math.isfinite(value):
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.1f}{letter}"
    return f"{value:,.0f}"
