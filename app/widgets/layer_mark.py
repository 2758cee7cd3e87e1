"""A vertical line at one layer in every small figure of several charts, drawn over the figures and not in them.

A line that was part of the figures would change all of them at every click, and the browser would draw each again. It
is placed by the plotting areas that Plotly draws and lets every click through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from streamlit.components.v2 import component

_JS = """
const marks = new WeakMap()

export default function ({ data, parentElement }) {
  marks.get(parentElement)?.()
  const undo = []
  let timer = 0, tries = 0
  const follow = (chart, share) => {
    chart.querySelectorAll(":scope > .ms-layer-marks").forEach((old) => old.remove())
    const box = document.createElement("div")
    box.className = "ms-layer-marks"
    box.setAttribute("aria-hidden", "true")
    box.style.cssText = "position:absolute;inset:0;pointer-events:none"
    if (getComputedStyle(chart).position === "static") chart.style.position = "relative"
    chart.appendChild(box)
    let frame = 0
    const place = () => {
      frame = 0
      const outer = chart.getBoundingClientRect()
      const lines = [...chart.querySelectorAll(".nsewdrag.drag")].map((area) => {
        const inner = area.getBoundingClientRect(), line = document.createElement("div")
        line.className = "ms-layer-mark"
        line.style.cssText = `position:absolute;width:0;border-left:1.5px dashed ${data.color};` +
          `left:${inner.left - outer.left + share * inner.width}px;top:${inner.top - outer.top}px;` +
          `height:${inner.height}px`
        return line
      })
      box.replaceChildren(...lines)
    }
    const later = () => { if (!frame) frame = requestAnimationFrame(place) }
    const sizes = new ResizeObserver(later)
    const changes = new MutationObserver((found) => {
      if (found.some((one) => !box.contains(one.target))) later()
    })
    sizes.observe(chart)
    changes.observe(chart, { subtree: true, childList: true, attributeFilter: ["x", "y", "width", "height"] })
    undo.push(() => { cancelAnimationFrame(frame); sizes.disconnect(); changes.disconnect(); box.remove() })
    place()
  }
  const left = new Map(Object.entries(data.shares))
  const find = () => {
    for (const [key, share] of left) {
      const chart = document.querySelector(`.st-key-${key}`)
      if (chart) { left.delete(key); follow(chart, share) }
    }
    if (left.size && tries++ < 300) timer = setTimeout(find, 100)
  }
  const end = () => {
    clearTimeout(timer)
    undo.forEach((one) => one())
    marks.delete(parentElement)
  }
  marks.set(parentElement, end)
  find()
  return end
}
"""
_mount = component("mechscope_layer_mark", js=_JS)


def share_of(figure: go.Figure, place: float) -> float | None:
    """Return how far along the first axis of `figure` the value `place` lies, 0 to 1; None outside of it."""
    layout: Any = figure.layout
    low, high = layout.xaxis.range
    share = (place - low) / (high - low)
    return share if 0 <= share <= 1 else None


def layer_mark(shares: Mapping[str, float], color: str) -> None:
    """Draw a line at `shares` = {widget key of a chart: how far along its axes}."""
    _mount(key="layer-mark", data={"shares": dict(shares), "color": color})
