"""The panels by name. A new one is one file beside these and one line here, or any object passed to `compare`."""

from __future__ import annotations

from interp.compression.panels.behaviour import Behaviour
from interp.compression.panels.cka import Cka
from interp.compression.panels.dictionary import DictionaryFit
from interp.compression.panels.drift import Drift
from interp.compression.panels.heads import Heads
from interp.compression.panels.layers import Layers
from interp.compression.panels.lens import Lens
from interp.compression.panels.survival import Survival

PANELS = {
    "behaviour": Behaviour,
    "drift": Drift,
    "cka": Cka,
    "survival": Survival,
    "dictionary": DictionaryFit,
    "heads": Heads,
    "lens": Lens,
    "layers": Layers,
}
"""Name -> class. `survival` and `dictionary` need a dictionary, so they are passed as objects."""

NEED_DICTIONARY = ("survival", "dictionary")
"""Panels that are about a dictionary."""

ON_REQUEST = ("layers",)
"""Panels that take longer than the others together, and run only where they are named."""

__all__ = [
    "NEED_DICTIONARY",
    "ON_REQUEST",
    "PANELS",
    "Behaviour",
    "Cka",
    "DictionaryFit",
    "Drift",
    "Heads",
    "Layers",
    "Lens",
    "Survival",
]
