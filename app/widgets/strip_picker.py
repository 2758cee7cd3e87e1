"""A token strip that answers clicks and keys: Tab to it, Enter or a click chooses a token.

A component of Streamlit's second kind: no frame, its style apart from the page's. Text reaches it as data and is
written as `textContent`, so nothing of a model is ever markup.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st
from streamlit.components.v2 import component

from app.widgets import theme
from app.widgets.text import visible
from interp.figures.token_strip import STYLE, shade

_CSS = (
    STYLE
    + """
.ms-strip{font-size:15px;line-height:1.95;padding-top:2px}
.ms-strip .t{display:inline-block;line-height:1.5;white-space:pre-wrap;cursor:pointer;padding:0 2px;margin:0 .5px}
.ms-strip .t:hover{outline:1px solid #123a5c}
.ms-strip .t:focus-visible{outline:2px solid #2f6f9f;outline-offset:1px}
.ms-strip .t[aria-pressed=true]{outline:2px solid #1c2733;outline-offset:1px}
.ms-strip.dark .t[style]{filter:invert(.91) hue-rotate(180deg)}
.ms-strip.dark .t[style=""]{filter:none}
"""
)
_JS = """
export default function (component) {
  const { data, parentElement, setTriggerValue } = component
  let strip = parentElement.querySelector(".ms-strip")
  const within = strip !== null && strip.contains(strip.getRootNode().activeElement)
  if (strip === null) {
    strip = document.createElement("div")
    strip.className = "ms-strip"
    strip.setAttribute("role", "group")
    parentElement.appendChild(strip)
  }
  strip.classList.toggle("dark", data.dark)
  strip.setAttribute("aria-label", data.label)
  strip.replaceChildren(...data.tokens.map((token, i) => {
    const span = document.createElement("span")
    const on = i === data.chosen
    span.className = "t"
    span.textContent = token.text
    span.style.cssText = token.style
    span.dataset.tip = token.tip
    span.setAttribute("role", "button")
    span.setAttribute("aria-label", token.tip)
    span.setAttribute("aria-pressed", String(on))
    span.tabIndex = on ? 0 : -1
    span.onclick = () => setTriggerValue("picked", i)
    span.onkeydown = (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault()
        setTriggerValue("picked", i)
      }
    }
    return span
  }))
  if (within && strip.children[data.chosen]) strip.children[data.chosen].focus()
}
"""
_mount = component("mechscope_strip", css=_CSS, js=_JS)


def strip_data(
    tokens: Sequence[str], values: Sequence[float], tips: Sequence[str], chosen: int, scale: float, label: str
) -> dict[str, Any]:
    """Return what the component draws: text with nothing hidden, shade, and a line for hovering."""
    drawn = [
        {"text": visible(token) or "∅", "tip": tip, "style": shade(value, scale) if value == value else ""}
        for token, value, tip in zip(tokens, values, tips, strict=True)
    ]
    return {"tokens": drawn, "chosen": chosen, "label": label}


def strip_picker(key: str, data: dict[str, Any], on_pick: Callable[[int], None]) -> None:
    """Draw the strip; `on_pick` hears the index of the token that was chosen, before the page runs again."""

    def heard() -> None:
        index = getattr(st.session_state.get(key), "picked", None)
        if isinstance(index, int) and 0 <= index < len(data["tokens"]):
            on_pick(index)

    _mount(key=key, data={**data, "dark": theme.is_dark()}, on_picked_change=heard)
