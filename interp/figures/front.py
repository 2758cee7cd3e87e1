"""Dictionaries by sparsity and quality: a colour and shape for each rule, repeats as one point with a range."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
import pyarrow as pa

from interp.figures.style import BLUE, FAINT, GREEN, GREY, INK, ORANGE, PURPLE, SKY, figure, ticks

TITLES = {
    "fvu": "FVU (less is better)",
    "ce_delta": "loss added, nats (less is better)",
    "ce_recovered_mean": "CE recovered, of mean ablation (more is better)",
    "ce_recovered_zero": "CE recovered, of zero ablation (more is better)",
    "kl": "KL, nats (less is better)",
    "dead_share": "share of dead latents (less is better)",
}
"""Metric -> axis title."""
MORE = frozenset({"ce_recovered_mean", "ce_recovered_zero", "mcc", "f1"})
"""Metrics of which more is better."""
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, "#8a6d00", INK, GREY, "#6a3d9a", "#9b2335", "#01665e", "#b07d00")
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x", "triangle-down", "pentagon")
DASHES = ("solid", "dash", "dot", "dashdot")

Row = dict[str, Any]


def pareto(
    points: pa.Table,
    metric: str = "fvu",
    *,
    at: float | None = None,
    rules: Sequence[str] | None = None,
    height: int = 430,
) -> go.Figure:
    """Return `metric` against L0 (log scale), one point for each dictionary, repeats under other seeds as one.

    Such a point is the mean over its seeds and its bars are their range. A line joins what differs in numbers only
    (k, a coefficient); another number of latents or of training tokens, or another kind of the rule, has a line of its
    own, dashed otherwise. Hollow points are of dictionaries that were not evaluated. The pale line behind is the front:
    the points that no sparser one beats. A point's `customdata` is `[sae_run]` of its first seed.

    Args:
        points: as `sae.pareto.pareto` returns; only rule, l0 and the metric must be there.
        metric: a column of it.
        at: an L0 to mark by a line.
        rules: the order in which rules take colours and shapes; None takes those of `points`, sorted.
        height: pixels.

    Raises:
        ValueError: the table lacks rule, l0 or the metric.
    """
    for name in ("rule", "l0", metric):
        if name not in points.column_names:
            raise ValueError(f"The table must have a column {name!r}; it has: {', '.join(points.column_names)}.")
    rows = [row for row in points.to_pylist() if _drawn(row["l0"]) and row["l0"] > 0 and _drawn(row[metric])]
    fig = figure(height, dragmode=False, clickmode="event+select", hovermode="closest")
    curves = _curves(rows)
    _front(fig, [point for curve in curves.values() for point in curve], metric)
    order = list(dict.fromkeys([*(rules or ()), *sorted({row["rule"] for row in rows})]))
    several = len({(row.get("d_sae"), row.get("trained")) for row in rows}) > 1
    of_rule: dict[str, int] = defaultdict(int)
    for key, curve in sorted(curves.items(), key=lambda item: [str(part) for part in item[0]]):
        rule = key[0]
        place, number = order.index(rule), of_rule[rule]
        of_rule[rule] += 1
        look = (COLOURS[place % len(COLOURS)], SHAPES[place % len(SHAPES)], DASHES[number % len(DASHES)])
        fig.add_trace(_trace(curve, metric, curve_name(curve[0][0], sizes=several), look))
    _axes(fig, rows, metric)
    if at is not None and at > 0:
        fig.add_vline(x=at, line={"color": FAINT, "width": 1, "dash": "dot"})
    return fig


def curve_name(row: Row, *, sizes: bool = True) -> str:
    """Return the name of the curve that a row lies on: rule, kind of it, and latents and training tokens if `sizes`."""
    parts = [f"{row['rule']} ({row['variant']})" if row.get("variant") else str(row["rule"])]
    if sizes and row.get("d_sae"):
        parts.append(f"{row['d_sae']:,} latents")
    if sizes and row.get("trained"):
        parts.append(f"{_short(row['trained'])} tokens")
    return ", ".join(parts)


def _curves(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[list[Row]]]:
    """Return {curve: its points from sparse to dense, each a list of repeats}."""
    points: dict[tuple[Any, ...], dict[Any, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for i, row in enumerate(rows):
        key = (row["rule"], row.get("variant") or "", row.get("d_sae"), row.get("trained"))
        points[key][row.get("repeat") or i].append(row)
    return {key: sorted(found.values(), key=lambda point: _mean(point, "l0")) for key, found in points.items()}


def _trace(curve: list[list[Row]], metric: str, name: str, look: tuple[str, str, str]) -> go.Scatter:
    colour, shape, dash = look
    means = [(_mean(point, "l0"), _mean(point, metric)) for point in curve]
    evaluated = [all(not str(row.get("run", "")).startswith("sae/") for row in point) for point in curve]
    symbols = [shape if full else f"{shape}-open" for full in evaluated]
    return go.Scatter(
        x=[x for x, _ in means],
        y=[y for _, y in means],
        name=escape(name, quote=False),
        mode="lines+markers",
        line={"color": colour, "width": 1.4, "dash": dash},
        marker={"color": colour, "symbol": symbols, "size": 9, "line": {"width": 1, "color": colour}},
        error_x=_bars(curve, "l0", colour),
        error_y=_bars(curve, metric, colour),
        customdata=[[point[0].get("sae_run", "")] for point in curve],
        text=[_hover(point, metric, name) for point in curve],
        hovertemplate="%{text}<extra></extra>",
    )


def _bars(curve: list[list[Row]], name: str, colour: str) -> Row:
    """Return the range over the seeds as Plotly's error bars, invisible where there is one seed."""
    means = [_mean(point, name) for point in curve]
    values = [[row[name] for row in point] for point in curve]
    up = [max(v) - mean for v, mean in zip(values, means, strict=True)]
    down = [mean - min(v) for v, mean in zip(values, means, strict=True)]
    several = any(len(point) > 1 for point in curve)
    return {
        "type": "data", "array": up, "arrayminus": down, "visible": several, "color": colour, "thickness": 1.2,
        "width": 3,
    }  # fmt: skip


def _hover(point: list[Row], metric: str, name: str) -> str:
    first = point[0]
    lines = [f"<b>{escape(name, quote=False)}</b>", escape(str(first.get("args") or ""), quote=False)]
    lines += [_line("L0", point, "l0"), _line(metric, point, metric)]
    if metric != "dead_share" and _drawn(first.get("dead_share")):
        lines.append(f"dead {100 * _mean(point, 'dead_share'):.3g}%")
    if str(first.get("run", "")).startswith("sae/"):
        lines.append("not evaluated: numbers of the end of training")
    return "<br>".join(line for line in lines if line)


def _line(title: str, point: list[Row], name: str) -> str:
    values = [row[name] for row in point]
    text = f"{title} {_mean(point, name):.4g}"
    if len(values) == 1:
        return text
    return f"{text} ({min(values):.4g} to {max(values):.4g}, {len(values)} seeds)"


def _front(fig: go.Figure, points: Sequence[list[Row]], metric: str) -> None:
    """Draw the points that no sparser one beats, behind everything else."""
    sign = 1 if metric in MORE else -1
    line: list[tuple[float, float]] = []
    for x, y in sorted((_mean(point, "l0"), -sign * _mean(point, metric)) for point in points):
        if not line or -y > sign * line[-1][1]:
            line.append((x, -sign * y))
    if len(line) > 1:
        fig.add_trace(
            go.Scatter(
                x=[x for x, _ in line], y=[y for _, y in line], mode="lines", name="front", hoverinfo="skip",
                line={"color": "#dde3e9", "width": 8},
            )
        )  # fmt: skip


def _axes(fig: go.Figure, rows: Sequence[Row], metric: str) -> None:
    fig.update_xaxes(type="log", title_text="L0, active latents per token (log scale)", showgrid=True)
    if rows:
        low, high = min(row["l0"] for row in rows), max(row["l0"] for row in rows)
        margin = max(0.05, 0.06 * math.log10(high / low))
        at = ticks(low * 10**-margin, high * 10**margin)
        fig.update_xaxes(tickvals=at, ticktext=[f"{value:g}" for value in at])
        fig.update_xaxes(range=[math.log10(low) - margin, math.log10(high) + margin])
        worst, best = (f(row[metric] for row in rows) for f in (min, max))
        room = 0.06 * (best - worst) or 0.05 * abs(best) or 0.01
        fig.update_yaxes(range=[worst - room, best + room])
    fig.update_yaxes(title_text=TITLES.get(metric, metric.replace("_", " ")))
    if metric == "dead_share":
        fig.update_yaxes(tickformat=".0~%")


def _mean(point: Sequence[Row], name: str) -> float:
    values = [row[name] for row in point if _drawn(row.get(name))]
    return sum(values) / len(values) if values else math.nan


def _drawn(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _short(tokens: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g}{letter}"
    return str(tokens)
