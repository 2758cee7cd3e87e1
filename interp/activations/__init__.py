"""Activations of a model at some sites, as shuffled batches: streamed from text, or read from a store on disk.

    store = ActivationStore(handle, blocks, ["resid_post.2"], batch=2048, seed=0)
    store.batch(17)          # [2048 d_in], the same whenever and wherever step 17 is asked for

Both kinds of store offer `.batch(step)`, a pure function of (seed, step), so that a training resumes exactly, and
`.d_in`, `.rows`, `.report`, `.sample(n, seed)`.
"""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ActivationStore": "interp.activations.stream",
        "CaptureConfig": "interp.activations.config",
        "DiskStore": "interp.activations.disk",
        "Estimate": "interp.activations.estimates",
        "check_disk": "interp.activations.estimates",
        "estimate": "interp.activations.estimates",
        "read_info": "interp.activations.shards",
        "write_store": "interp.activations.writer",
    },
)
