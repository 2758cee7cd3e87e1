"""How text and numbers are written on a page: every character visible, every figure short, nothing left as markup."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

SPACE = "·"
NEWLINE = "↵"
TAB = "⇥"
LONGEST = 60  # characters of a token that are shown; real tokens are shorter, hostile ones are not


def visible(text: str, *, spaces: bool = True, limit: int = LONGEST) -> str:
    r"""Return `text` with nothing hidden: `·` for spaces, `↵` for newlines, escapes for what has no glyph of its own.

    Zero-width and direction-changing characters come out as `\u200b`. `spaces=False` leaves single spaces as they
    are. Longer than `limit` characters is cut, and the cut is counted.
    """
    cut = len(text) - limit if len(text) > limit else 0
    shown = "".join(_glyph(c, spaces) for c in (text[:limit] if cut else text))
    return f"{shown}…(+{cut:,})" if cut else shown


def _glyph(character: str, spaces: bool) -> str:
    if character == " ":
        return SPACE if spaces else " "
    if character == "\n":
        return NEWLINE
    if character == "\t":
        return TAB
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


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


def number(value: float | None) -> str:
    """Return about three significant digits: `12.3`, `1,234`, `4.1e-05`; `–` for what is missing."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e6 or size < 1e-3:
        return f"{value:.1e}"
    return f"{value:,.0f}" if size >= 100 else f"{value:.{1 if size >= 10 else 2 if size >= 1 else 3}f}"


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
