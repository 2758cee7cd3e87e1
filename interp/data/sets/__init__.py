"""Small labelled sets from templates: what pages, notebooks and tests probe for where there is no file at hand.

labelled = labelled_set("sentiment", n=400)
labelled.texts[0], labelled.labels[0], labelled.groups[0]
"""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "LabelledSet": "interp.data.sets.registry",
        "SETS": "interp.data.sets.registry",
        "labelled_set": "interp.data.sets.registry",
    },
)
