"""What one latent is, in a line or in a small card: the same piece in lists, neighbours and notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.widgets.text import number, safe, share, tokens_html
from interp.figures.token_strip import STYLE as STRIP_STYLE
from interp.figures.token_strip import TokenStrip

DENSE_FROM = 0.1
"""Density from which a latent is called dense, unless a page says otherwise."""
TOKEN_PURE_BELOW = 0.35
"""Entropy (nats) of the tokens at the largest activations below which one token explains them: about 9 in 10."""

BADGES = {
    "dead": "Never fired on the tokens read.",
    "dense": "Fires on a large share of all tokens.",
    "signed": "Its values have two signs; it is shown at both ends.",
    "token-pure": f"The entropy of its top tokens is below {TOKEN_PURE_BELOW} nats: about nine in ten are one token.",
}

STYLE = """
.ms-token{display:inline-block;max-width:100%;padding:0 5px;margin:1px 0;border-radius:4px;background:#eef1f4;
color:#1c2733;font:12.5px/1.6 "Source Code Pro",ui-monospace,monospace;white-space:pre;overflow:hidden;
text-overflow:ellipsis;vertical-align:bottom;unicode-bidi:isolate}
.ms-badge{display:inline-block;padding:0 7px;border-radius:9px;font:600 11.5px/1.65 "Source Sans",system-ui,sans-serif;
vertical-align:middle;border:1px solid}
.ms-badge.dead{color:#5b6875;border-color:#c9d1d9;background:#f4f6f8}
.ms-badge.dense{color:#9a4300;border-color:#edc7a6;background:#fdf3ea}
.ms-badge.signed{color:#6a3d7c;border-color:#d3bfdc;background:#f7f2f9}
.ms-badge.token-pure{color:#0b5c46;border-color:#a9d8c8;background:#edf8f4}
.ms-card{font:14px/1.5 "Source Sans","Source Sans Pro",system-ui,sans-serif;max-width:46em}
.ms-card b{font-weight:600}.ms-card .dim,.ms-line .dim{color:#5b6875}
.ms-line{display:flex;gap:10px;align-items:center;font:13.5px/1.5 "Source Sans",system-ui,sans-serif;min-width:0}
.ms-line .v{flex:0 0 92px;display:flex;align-items:center;gap:8px;font-variant-numeric:tabular-nums}
.ms-line .v i{display:block;flex:0 0 40px;height:6px;border-radius:3px;background:#e6eaee;overflow:hidden}
.ms-line .v i u{display:block;height:6px;background:#0072B2}
.ms-line .v i u.neg{background:#D55E00}
.ms-line .w{flex:1 1 auto;min-width:0;overflow:hidden;white-space:nowrap;text-overflow:ellipsis}
"""


def badges(row: Mapping[str, Any], dense_from: float = DENSE_FROM) -> list[str]:
    """Return which of `BADGES` apply to a row of latents.parquet."""
    density, entropy = row.get("density") or 0.0, row.get("token_entropy")
    if density <= 0:
        return ["dead"]
    found = ["dense"] if density >= dense_from else []
    found += ["signed"] if row.get("count_negative") else []
    pure = entropy is not None and entropy == entropy and entropy < TOKEN_PURE_BELOW
    return [*found, "token-pure"] if pure else found


def badges_html(names: Sequence[str]) -> str:
    """Return badges with their definitions on hover."""
    return " ".join(f'<span class="ms-badge {n}" title="{safe(BADGES[n])}">{n}</span>' for n in names)


@dataclass(frozen=True)
class FeatureCard:
    """One latent: number, label, badges, density, tokens, and an example where there is one."""

    row: Mapping[str, Any]
    """Its row of latents.parquet."""
    label: str = ""
    """What somebody called it."""
    value: float | None = None
    """A number that this list is about, such as a cosine."""
    scale: float = 1.0
    """The |value| of a full bar."""
    strip: TokenStrip | None = None
    """An example."""

    def line(self) -> str:
        """Return one line of HTML: bar and value, then label or top tokens (without the latent's number)."""
        bar = ""
        if self.value is not None:
            width = min(100.0, 100 * abs(self.value) / self.scale) if self.scale > 0 else 0.0
            sign = ' class="neg"' if self.value < 0 else ""
            bar = f'<span class="v"><i><u{sign} style="width:{width:.0f}%"></u></i>{number(self.value)}</span>'
        label = f"<b>{safe(self.label)}</b> " if self.label else ""
        return f'<div class="ms-line">{bar}<span class="w">{label}{self._tokens()}</span></div>'

    def html(self) -> str:
        """Return the card, without the style sheets."""
        label = f" <b>{safe(self.label)}</b>" if self.label else ""
        strip = self.strip.html() if self.strip else ""
        facts = f"density {share(self.row.get('density'))} · max {number(self.row.get('max'))}"
        if self.row.get("count_negative"):
            facts += f" · min {number(self.row.get('min'))} · below 0 {share(self.row.get('density_negative'))}"
        head = f"<b>{int(self.row['latent'])}</b>{label} {badges_html(badges(self.row))}"
        return f'<div class="ms-card">{head} <span class="dim">{facts}</span><div>{self._tokens()}</div>{strip}</div>'

    def _tokens(self) -> str:
        top, bottom = (list(dict.fromkeys(self.row.get(f"{end}_tokens") or [])) for end in ("top", "bottom"))
        if bottom:
            ends = [("+", top)] if top else []
            return " ".join(f'<b class="ms-end">{mark}</b>{tokens_html(end)}' for mark, end in [*ends, ("−", bottom)])
        if top:
            return tokens_html(top)
        return '<span class="dim">never fired</span>' if not self.row.get("density") else '<span class="dim">–</span>'

    def _repr_html_(self) -> str:
        return f"<style>{STYLE}{STRIP_STYLE}</style>{self.html()}"
