"""A run of tokens, each shaded by a value: the one picture of text that pages and notebooks draw.

Blue is positive, orange negative, the shade is |value| / scale, and the peak is underlined too, so that colour is never
the only sign. Runs of zeros are one span (a page of examples stays under a few thousand nodes). Hovering shows the
token, its id, its position and its value. Everything is escaped; nothing is loaded from anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

from interp.figures.text import number, visible

POSITIVE = (31, 111, 178)
NEGATIVE = (201, 98, 10)
INK, WHITE = "#0b1218", "#ffffff"
LONGEST_TEXT = 400  # characters of a silent run that are shown

STYLE = """
.ms-strip{position:relative;font:14px/1.75 "Source Sans","Source Sans Pro",system-ui,sans-serif;white-space:pre-wrap;
overflow-wrap:anywhere;unicode-bidi:isolate}
.ms-strip span{unicode-bidi:isolate}
.ms-strip .t{border-radius:3px;padding:1px 1px}
.ms-strip .p{box-shadow:inset 0 -2px 0 #123a5c;font-weight:600}
.ms-strip .z{color:#4a5866}
.ms-strip [data-tip]:hover{outline:1px solid #123a5c}
.ms-strip [data-tip]:hover::after{content:attr(data-tip);position:absolute;right:0;bottom:100%;z-index:9;max-width:100%;
padding:1px 8px;border-radius:4px;background:#1c2733;color:#fff;font:12px/1.7 "Source Code Pro",ui-monospace,monospace;
white-space:pre-wrap;pointer-events:none}
"""


@dataclass(frozen=True)
class TokenStrip:
    """Tokens with one value each; `_repr_html_` draws it in a notebook, `html()` in a page that has `STYLE` already."""

    tokens: Sequence[str]
    """Text of each token, raw."""
    values: Sequence[float]
    """One value for each token; 0 is silent and unshaded."""
    ids: Sequence[int] | None = None
    """Token ids, for the hover line."""
    start: int = 0
    """Position of the first token in its block."""
    peak: int | None = None
    """Index of the token to underline; None takes the largest |value|, -1 underlines nothing."""
    scale: float | None = None
    """The |value| of the full colour, shared by several strips; None takes this strip's own largest."""
    spaces: bool = False
    """Show every space as a dot, also in silent text."""
    _top: float = field(init=False, repr=False, default=0.0)

    def __post_init__(self) -> None:
        """Refuse lists of unequal length."""
        lengths = {len(self.tokens), len(self.values)} | ({len(self.ids)} if self.ids is not None else set())
        if len(lengths) > 1:
            raise ValueError(
                f"A strip needs one value and one id for each of its {len(self.tokens)} tokens, got "
                f"{len(self.values)} values and {'no' if self.ids is None else len(self.ids)} ids."
            )
        object.__setattr__(self, "_top", max((abs(v) for v in self.values), default=0.0))

    @property
    def peak_index(self) -> int:
        """Index of the underlined token; -1 where there is none."""
        if self.peak is not None:
            return self.peak if 0 <= self.peak < len(self.tokens) else -1
        return max(range(len(self.values)), key=lambda i: abs(self.values[i])) if self._top else -1

    def html(self) -> str:
        """Return the strip as one `<div>`, without the style sheet."""
        return f'<div class="ms-strip">{"".join(self._spans())}</div>'

    def _repr_html_(self) -> str:
        return f"<style>{STYLE}</style>{self.html()}"

    def __str__(self) -> str:
        """Return the text with active tokens in brackets, for a terminal."""
        return "".join(f"[{visible(t)}]" if v else visible(t) for t, v in zip(self.tokens, self.values, strict=True))

    def _spans(self) -> Iterator[str]:
        silent: list[int] = []
        peak = self.peak_index
        for i, value in enumerate(self.values):
            if value == 0 and i != peak:
                silent.append(i)
                continue
            yield self._silent(silent)
            silent = []
            yield self._token(i, i == peak)
        yield self._silent(silent)

    def _silent(self, run: Sequence[int]) -> str:
        if not run:
            return ""
        first, last = self.start + run[0], self.start + run[-1]
        where = f"position {first}" if len(run) == 1 else f"positions {first} to {last}"
        identity = f" · id {self.ids[run[0]]}" if self.ids is not None and len(run) == 1 else ""
        text = "".join(visible(self.tokens[i], spaces=self.spaces) for i in run)
        if len(text) > LONGEST_TEXT:
            text = f"{text[:LONGEST_TEXT]}…"
        return f'<span class="z" data-tip="{where}{identity} · silent">{escape(text)}</span>'

    def _token(self, i: int, is_peak: bool) -> str:
        value, text = self.values[i], visible(self.tokens[i])
        identity = f" · id {self.ids[i]}" if self.ids is not None else ""
        tip = escape(f"{text}{identity} · position {self.start + i} · {number(value)}", quote=True)
        style = f' style="{shade(value, self.scale or self._top)}"' if value else ""
        return f'<span class="t{" p" if is_peak else ""}" data-tip="{tip}"{style}>{escape(text)}</span>'


def shade(value: float, scale: float) -> str:
    """Return the CSS colours of `value`: from white to blue (positive) or orange (negative) at |value| = scale."""
    strength = min(1.0, abs(value) / scale) if scale > 0 else 0.0
    strength = 0.10 + 0.90 * strength if strength == strength else 0.0  # NaN stays white
    full = POSITIVE if value > 0 else NEGATIVE
    r, g, b = (round(255 + strength * (c - 255)) for c in full)
    return f"background:rgb({r},{g},{b});color:{WHITE if _luminance(r, g, b) < _EVEN else INK}"


def _luminance(*color: int) -> float:
    """Return the relative luminance of WCAG 2, 0 (black) to 1 (white)."""
    r, g, b = (c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


# The background on which white and ink have the same contrast: above 4.2 on every shade.
_EVEN = math.sqrt(1.05 * (_luminance(*bytes.fromhex(INK[1:])) + 0.05)) - 0.05
