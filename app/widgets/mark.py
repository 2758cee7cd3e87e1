"""A mark over a chart, drawn beside the figure and not in it.

A frame that was part of the figure would change the figure at every choice, and the browser would draw all of it again:
seconds for a few thousand points. This is one element above the chart, placed by shares of the plotting area, that
follows the chart's size and lets every click through.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import plotly.graph_objects as go
from streamlit.components.v2 import component

_JS = """
const marks = new WeakMap()

export default function ({ data, parentElement }) {
  marks.get(parentElement)?.()
  let box = null, chart = null, timer = 0, frame = 0, tries = 0
  const place = () => {
    frame = 0
    const area = chart.querySelector(".nsewdrag.drag")
    box.style.visibility = area ? "visible" : "hidden"
    if (!area) return
    const outer = chart.getBoundingClientRect(), inner = area.getBoundingClientRect()
    const pixels = (x, y) => [inner.left - outer.left + x * inner.width, inner.top - outer.top + y * inner.height]
    const [left, top] = pixels(data.x0, data.y0), [right, bottom] = pixels(data.x1, data.y1)
    const grow = data.round ? 7 : 0
    box.style.left = `${left - grow}px`
    box.style.top = `${top - grow}px`
    box.style.width = `${right - left + 2 * grow}px`
    box.style.height = `${bottom - top + 2 * grow}px`
  }
  const later = () => { if (!frame) frame = requestAnimationFrame(place) }
  const sizes = new ResizeObserver(later), changes = new MutationObserver(later)
  const find = () => {
    chart = document.querySelector(`.st-key-${data.chart}`)
    if (!chart) {
      if (tries++ < 300) timer = setTimeout(find, 100)
      return
    }
    chart.querySelectorAll(":scope > .ms-mark").forEach((old) => old.remove())
    box = document.createElement("div")
    box.className = "ms-mark"
    box.setAttribute("aria-hidden", "true")
    box.style.cssText = "position:absolute;box-sizing:border-box;pointer-events:none;visibility:hidden;" +
      "border:2.5px solid #1c2733;box-shadow:0 0 0 1.5px #fff,inset 0 0 0 1.5px #fff"
    box.style.borderRadius = data.round ? "50%" : "0"
    if (getComputedStyle(chart).position === "static") chart.style.position = "relative"
    chart.appendChild(box)
    sizes.observe(chart)
    changes.observe(chart, { subtree: true, childList: true, attributeFilter: ["x", "y", "width", "height"] })
    place()
  }
  const end = () => {
    clearTimeout(timer)
    cancelAnimationFrame(frame)
    sizes.disconnect()
    changes.disconnect()
    box?.remove()
    marks.delete(parentElement)
  }
  marks.set(parentElement, end)
  find()
  return end
}
"""
_mount = component("mechscope_mark", js=_JS)


@dataclass(frozen=True)
class Spot:
    """A rectangle or a point of a plotting area: shares of its width and height, from the upper left corner."""

    x0: float
    """Left edge, 0 to 1."""
    x1: float
    """Right edge."""
    y0: float
    """Upper edge, 0 to 1."""
    y1: float
    """Lower edge."""
    round: bool = False
    """Draw a ring around a point instead of a frame."""


def cell_spot(cell: tuple[int, int], shape: tuple[int, int]) -> Spot:
    """Return where the cell (row, column) of a heat map of `shape` (rows, columns) lies; the first row is on top."""
    (row, column), (rows, columns) = cell, shape
    return Spot(column / columns, (column + 1) / columns, row / rows, (row + 1) / rows)


def point_spot(figure: go.Figure, x: float, y: float) -> Spot | None:
    """Return where (x, y) lies in a figure whose axes state their ranges; None outside of them."""
    layout: Any = figure.layout
    across, down = _share(layout.xaxis, x), _share(layout.yaxis, y)
    if across is None or down is None:
        return None
    return Spot(across, across, 1 - down, 1 - down, round=True)


def _share(axis: Any, value: float) -> float | None:
    low, high = axis.range
    at = math.log10(value) if axis.type == "log" and value > 0 else value
    share = (at - low) / (high - low)
    return share if 0 <= share <= 1 else None


def mark(chart: str, spot: Spot) -> None:
    """Draw `spot` over the chart whose widget key is `chart`."""
    _mount(key=f"mark-{chart}", data={"chart": chart, **asdict(spot)})
