"""Othello boards that answer clicks and keys: Tab to one, arrows go from square to square, Enter or a click chooses.

A component of Streamlit's second kind, as the token strip. What is drawn reaches it as numbers and colours of a fixed
set, text as data that is written as `textContent`.

A disc's size is how likely the square is occupied, its grey how likely it is white rather than black; so an uncertain
probe draws small grey discs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray
from streamlit.components.v2 import component

from app.widgets import theme

_CSS = """
.ms-boards{display:flex;flex-wrap:wrap;gap:14px 22px;font-family:"Source Sans","Source Sans Pro",system-ui,sans-serif;
--ink:#1c2733;--faint:#5b6875;--square:#dfe9e1;--line:#b9cabf;--white:#ffffff;--black:#20272e;--rim:#4a5866;
--orange:#D55E00;--blue:#0072B2;--chosen:#2f6f9f}
.ms-boards.dark{--ink:#e3e8ee;--faint:#9dabb9;--square:#2c3a33;--line:#46574d;--white:#f2f5f7;--black:#0b0e11;
--rim:#8794a1;--orange:#ef8540;--blue:#4aa3e0;--chosen:#8cc4ec}
.ms-boards figure{margin:0;min-width:0}
.ms-boards figcaption{font-size:13.5px;line-height:1.4;color:var(--faint);margin-bottom:3px}
.ms-boards figcaption b{display:block;font-weight:600;color:var(--ink)}
.ms-boards svg{display:block;width:100%;height:auto}
.ms-boards .sq{cursor:pointer;outline:none}
.ms-boards .sq rect.s{fill:var(--square);stroke:var(--line);stroke-width:.25}
.ms-boards .sq:hover rect.s{stroke:var(--ink);stroke-width:.5}
.ms-boards .sq:focus-visible rect.s{stroke:var(--chosen);stroke-width:1}
.ms-boards text{font-size:2.9px;fill:var(--faint)}
"""
_JS = """
const NS = "http://www.w3.org/2000/svg"
function add(parent, name, attributes) {
  const made = document.createElementNS(NS, name)
  for (const key in attributes) made.setAttribute(key, attributes[key])
  parent.appendChild(made)
  return made
}
function mix(share, dark) {
  const [low, high] = dark ? [[11, 14, 17], [242, 245, 247]] : [[32, 39, 46], [255, 255, 255]]
  return "rgb(" + low.map((one, i) => Math.round(one + (high[i] - one) * share)).join(",") + ")"
}
function draw(svg, board, data, pick) {
  const n = data.side, edge = board.names ? 4 : 0.5
  svg.setAttribute("viewBox", `${-edge} ${-edge} ${10 * n + edge + 0.5} ${10 * n + edge + 0.5}`)
  svg.setAttribute("role", "group")
  svg.setAttribute("aria-label", board.title)
  if (board.names) {
    for (let i = 0; i < n; i++) {
      add(svg, "text", {x: 10 * i + 5, y: -1.2, "text-anchor": "middle"}).textContent = String.fromCharCode(97 + i)
      add(svg, "text", {x: -1.5, y: 10 * i + 6, "text-anchor": "end"}).textContent = String(i + 1)
    }
  }
  board.squares.forEach((square, i) => {
    const x = 10 * (i % n), y = 10 * Math.floor(i / n), on = i === data.chosen
    const group = add(svg, "g", {class: "sq", role: "button", "aria-pressed": String(on), "data-square": i})
    group.setAttribute("aria-label", square.tip)
    group.setAttribute("tabindex", board.main && (on || (data.chosen < 0 && i === 0)) ? "0" : "-1")
    add(group, "title", {}).textContent = square.tip
    add(group, "rect", {class: "s", x, y, width: 10, height: 10})
    if (square.shade > 0)
      add(group, "rect", {x, y, width: 10, height: 10, fill: "var(--blue)", opacity: 0.85 * square.shade})
    if (square.size > 0.02)
      add(group, "circle", {cx: x + 5, cy: y + 5, r: 4.1 * Math.sqrt(square.size), fill: mix(square.white, data.dark),
        stroke: "var(--rim)", "stroke-width": 0.3})
    if (square.mark === "last")
      add(group, "circle", {cx: x + 5, cy: y + 5, r: 0.9, fill: "var(--orange)"})
    if (square.mark === "legal")
      add(group, "circle", {cx: x + 5, cy: y + 5, r: 1.5, fill: "none", stroke: "var(--ink)", "stroke-width": 0.5})
    if (square.mark === "missing")
      add(group, "circle", {cx: x + 5, cy: y + 5, r: 2.6, fill: "none", stroke: "var(--orange)", "stroke-width": 0.9})
    if (square.mark === "false")
      add(group, "path", {d: `M${x + 3} ${y + 3}l4 4m0 -4l-4 4`, stroke: "var(--orange)", "stroke-width": 1})
    if (square.wrong)
      add(group, "rect", {x: x + 0.7, y: y + 0.7, width: 8.6, height: 8.6, fill: "none", stroke: "var(--orange)",
        "stroke-width": 0.9})
    if (on)
      add(group, "rect", {x: x + 0.2, y: y + 0.2, width: 9.6, height: 9.6, fill: "none", stroke: "var(--chosen)",
        "stroke-width": 0.9, "stroke-dasharray": board.main ? "none" : "1.6 1"})
    group.onclick = () => pick(i)
    group.onkeydown = (event) => {
      const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -n, ArrowDown: n}[event.key]
      const beside = step && svg.querySelector(`[data-square="${i + step}"]`)
      if (beside) { event.preventDefault(); beside.focus() }
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(i) }
    }
  })
}
export default function (component) {
  const { data, parentElement, setTriggerValue } = component
  let all = parentElement.querySelector(".ms-boards")
  if (all === null) {
    all = document.createElement("div")
    parentElement.appendChild(all)
  }
  const focused = all.getRootNode().activeElement
  const held = focused && all.contains(focused) ? focused.getAttribute("data-square") : null
  all.className = "ms-boards" + (data.dark ? " dark" : "")
  all.replaceChildren(...data.boards.map((board) => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption")
    const title = document.createElement("b"), aside = document.createElement("span")
    figure.style.width = `min(${data.width}px, 100%)`
    title.textContent = board.title
    aside.textContent = board.aside
    caption.append(title, aside)
    const svg = document.createElementNS(NS, "svg")
    draw(svg, board, data, (i) => setTriggerValue("picked", i))
    figure.append(caption, svg)
    return figure
  }))
  if (held !== null) all.querySelector(`[data-square="${held}"]`)?.focus()
}
"""
_mount = component("mechscope_boards", css=_CSS, js=_JS)

MARKS = ("", "last", "legal", "missing", "false")
"""What may stand on a square: the move just played, a legal move, one that is missing, one that is not legal."""


@dataclass(frozen=True)
class Board:
    """A board as it is drawn; arrays go over the squares."""

    title: str
    """What it is, in a few words."""
    tips: Sequence[str]
    """A line for each square, for hovering and for those who listen."""
    occupied: NDArray[np.float64] | None = None
    """How likely each square is occupied; None draws no discs."""
    white: NDArray[np.float64] | None = None
    """How likely a disc on it is white."""
    shade: NDArray[np.float64] | None = None
    """0..1, the blue of each square."""
    marks: Sequence[str] = ()
    """One of `MARKS` for each square."""
    wrong: NDArray[np.bool_] | None = None
    """Squares to frame as wrong."""
    aside: str = ""
    """More of the title, in faint type."""

    def data(self, *, main: bool, names: bool) -> dict[str, Any]:
        """Return what the component draws."""
        zeros = np.zeros(len(self.tips))
        size, white, shade = (
            np.clip(np.nan_to_num(zeros if one is None else one), 0, 1)
            for one in (self.occupied, self.white, self.shade)
        )
        wrong = zeros if self.wrong is None else self.wrong
        marks = self.marks or [""] * len(self.tips)
        squares = [
            {
                "size": round(float(size[i]), 3),
                "white": round(float(white[i]), 3),
                "shade": round(float(shade[i]), 3),
                "mark": marks[i],
                "wrong": bool(wrong[i]),
                "tip": str(tip),
            }
            for i, tip in enumerate(self.tips)
        ]
        return {"title": self.title, "aside": self.aside, "squares": squares, "main": main, "names": names}


def draw_boards(
    key: str, boards: Sequence[Board], chosen: int, on_pick: Callable[[int], None], *, width: int, names: bool = True
) -> None:
    """Draw boards side by side; `on_pick` hears the square that was chosen on any of them, before the page runs again.

    Args:
        key: of the widget, unique on the page.
        boards: what is drawn, all of one side; the first one is reached by the keyboard.
        chosen: the square that is framed; -1 for none.
        on_pick: hears the square.
        width: of a board, in pixels.
        names: whether letters and numbers stand at the edges.
    """
    squares = len(boards[0].tips)

    def heard() -> None:
        index = getattr(st.session_state.get(key), "picked", None)
        if isinstance(index, int) and 0 <= index < squares:
            on_pick(index)

    drawn = [board.data(main=i == 0, names=names) for i, board in enumerate(boards)]
    data = {"boards": drawn, "side": round(squares**0.5), "chosen": chosen, "width": width, "dark": theme.is_dark()}
    _mount(key=key, data=data, on_picked_change=heard)
