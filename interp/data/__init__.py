"""Text in, token blocks out: local files, the embedded demo text, or a hub data set by streaming.

    spec = DataSpec(text="stories.jsonl", context=128, tokens=1_000_000)
    blocks = token_blocks(handle, spec)
    train, heldout = blocks.split(0.1, seed=0)

`DataSpec` is a configuration: importing it needs no torch.
"""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Blocks": "interp.data.blocks",
        "DataSpec": "interp.data.documents",
        "Labelled": "interp.data.labelled",
        "read_documents": "interp.data.documents",
        "read_labelled": "interp.data.labelled",
        "token_blocks": "interp.data.packing",
    },
)
