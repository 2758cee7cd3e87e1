"""A small heat map as a plain HTML table: it needs no script, so it stays in a saved notebook and on a web page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from interp.figures.text import number, visible
from interp.figures.token_strip import shade

MOST_COLUMNS = 64
"""Columns that are drawn; a note counts those left out."""
PALE = 0.01
"""Share of the full colour up to which a cell stays white: 0 has no sign."""

STYLE = """
.ms-heat{border-collapse:separate;border-spacing:1px;font:12px/1.3 "Source Sans","Source Sans Pro",system-ui,sans-serif;
margin:2px 0 12px}
.ms-heat th{font-weight:400;color:#5b6875;padding:0 5px;text-align:right;background:none;border:0}
.ms-heat thead th{text-align:center;vertical-align:bottom;max-width:7em;white-space:nowrap;
overflow:hidden;text-overflow:ellipsis}
.ms-heat td{min-width:20px;height:18px;padding:0;border:0;border-radius:2px;background:#f5f7f9}
.ms-heat .none{background:#d3d9df}
"""


@dataclass(frozen=True)
class HeatTable:
    """Values as shaded cells, blue above 0 and orange below; a cell's number is in its tooltip."""

    values: Sequence[Sequence[float]]
    """[rows columns]; NaN is drawn grey."""
    rows: Sequence[str]
    """Label of each row."""
    columns: Sequence[str]
    """Label of each column."""
    corner: str = ""
    """What the rows are."""
    limit: float | None = None
    """|value| of the full colour; None takes the largest."""

    def __post_init__(self) -> None:
        """Refuse labels that do not fit."""
        if len(self.values) != len(self.rows) or any(len(line) != len(self.columns) for line in self.values):
            raise ValueError(f"values must be [rows columns] = [{len(self.rows)}, {len(self.columns)}].")

    @property
    def top(self) -> float:
        """|value| of the full colour."""
        return self.limit or max((abs(v) for line in self.values for v in line if math.isfinite(v)), default=0.0)

    def html(self) -> str:
        """Return the table, without the style sheet."""
        shown, top = self.columns[:MOST_COLUMNS], self.top
        head = "".join(f"<th>{escape(visible(c, spaces=False, limit=24))}</th>" for c in shown)
        body = "".join(
            f"<tr><th>{escape(visible(row, spaces=False))}</th>{self._cells(row, line[:MOST_COLUMNS], top)}</tr>"
            for row, line in zip(self.rows, self.values, strict=True)
        )
        left = len(self.columns) - len(shown)
        note = f"<div>{left} more columns are not drawn.</div>" if left else ""
        corner = escape(self.corner)
        return (
            f'<table class="ms-heat"><thead><tr><th>{corner}</th>{head}</tr></thead><tbody>{body}</tbody></table>{note}'
        )

    def _cells(self, row: str, line: Sequence[float], top: float) -> str:
        found = []
        for column, value in zip(self.columns, line, strict=False):
            tip = escape(f"{self.corner} {row} · {column} · {number(value)}", quote=True)
            shaded = math.isfinite(value) and abs(value) > PALE * top
            look = f'style="{shade(value, top)}"' if shaded else "" if math.isfinite(value) else 'class="none"'
            found.append(f'<td {look} title="{tip}"></td>')
        return "".join(found)

    def _repr_html_(self) -> str:
        return f"<style>{STYLE}</style>{self.html()}"
