"""How tokens and numbers are written: every character visible, every figure short."""

from __future__ import annotations

import math

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
