"""Running a model from a block on: what lies below a change is as it was, so only the blocks above are computed.

A stream that is changed before block l takes blocks l .. L-1 and the unembedding, not the whole model. Blocks are run
by the causal cone of patching (`interp.attribution.patching.cone`), which keeps the model's own weights, rotary
positions and masks. Where the cone cannot be trusted (something else hangs on the model, or it is more than its blocks)
whole forwards with the changed stream put in are run instead; both agree to rounding. Padding must be at the end of a
sequence, where a causal model's earlier positions never see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.attribution.patching.cone import Cone, Recorder, why_not
from interp.hooks import capture
from interp.layers.lens import lens_logits
from interp.layers.stream import KINDS, Contributions, is_parallel
from interp.models.handle import ModelHandle
from interp.models.taps import attach_hook
from interp.sites import Site

ROW_FLOATS = 1 << 22
"""Logits of one forward, in floats (16 MiB)."""
BUDGET = 1e12
"""Multiplications of a family on text of its own, about a minute of one core: large models get less text."""
FEW_TEXTS, FEW_TOKENS = 4, 32
"""The least that any model gets."""
CHECKED = 32
"""Tokens on which it is checked that blocks add to the stream."""


@dataclass(frozen=True, eq=False)
class Base:
    """A batch as the model reads it, unchanged."""

    tokens: Int[Tensor, "batch pos"]
    """Token ids."""
    stream: list[Float[Tensor, "batch pos d"]]
    """The residual stream before each block, and after the last one: L + 1 of them."""
    attn: list[Float[Tensor, "batch pos d"]]
    """What attention adds, by block."""
    mlp: list[Float[Tensor, "batch pos d"]]
    """What the MLP adds, by block."""
    logits: Float[Tensor, "batch pos d_vocab"]
    """The output."""

    def contribution(self, layer: int) -> Float[Tensor, "batch pos d"]:
        """Return what block `layer` adds to the stream, in float32 at least."""
        return wide(self.stream[layer + 1]) - wide(self.stream[layer])


@dataclass(frozen=True, eq=False)
class Rise:
    """What a run from a block on gave."""

    stream: list[Float[Tensor, "batch pos d"]]
    """The stream after each block that was run; empty where the graph was kept and whole forwards were run."""
    logits: Float[Tensor, "batch read d_vocab"] | None
    """Logits at the last positions; None where none were asked for."""


class Suffix:
    """Runs a model from any block on."""

    def __init__(self, handle: ModelHandle, tokens: Int[Tensor, "batch pos"], *, cone: bool = True) -> None:
        """Look at how the blocks are called; texts that are run later must be as long as `tokens`.

        Args:
            handle: the model.
            tokens: token ids, of which the first row is run twice.
            cone: False runs whole forwards.
        """
        self.handle, self._cone = handle, None
        self.reason = why_not(handle, "hf") if cone else "asked for"
        """Why whole forwards are run; empty where they are not."""
        if not self.reason:
            found = Cone(handle, tokens[:1].to(handle.device, torch.long), tokens.shape[1])
            self._cone = found if found.faithful else None
            self.reason = "" if found.faithful else "the model is more than its blocks"

    def base(self, tokens: Int[Tensor, "batch pos"]) -> Base:
        """Return what the model makes of `tokens`, unchanged."""
        layers = self.handle.n_layers
        kinds = {kind: [Site(layer, kind) for layer in range(layers)] for kind in ("resid_pre", "attn_out", "mlp_out")}
        last = Site(layers - 1, "resid_post")
        with capture(self.handle, [*(site for sites in kinds.values() for site in sites), last]) as acts:
            logits = self.handle.logits(tokens)
        found = {kind: [acts[site] for site in sites] for kind, sites in kinds.items()}
        return Base(tokens, [*found["resid_pre"], acts[last]], found["attn_out"], found["mlp_out"], logits)

    def run(
        self,
        x: Float[Tensor, "batch pos d"],
        layer: int,
        tokens: Int[Tensor, "batch pos"],
        *,
        last: int | None = None,
        edits: Mapping[Site, Tensor] | None = None,
        reads: int | None = None,
        grad: bool = False,
    ) -> Rise:
        """Return what blocks `layer`, `layer` + 1, ... make of `x`.

        Args:
            x: the stream before block `layer`; the number of layers stands for after the last one.
            layer: the first block that is run.
            tokens: token ids of these rows, which whole forwards read.
            last: the last block that is run; None: all, and then the unembedding.
            edits: what is put in the place of activations in these blocks.
            reads: last positions that are unembedded; None: all, 0: none.
            grad: keep the graph.
        """
        with self.handle.lock, torch.set_grad_enabled(grad), ExitStack() as undo:
            for site, value in (edits or {}).items():
                undo.callback(attach_hook(self.handle, site, "hf", lambda _, new=value: new))
            if self._cone is None:
                return self._whole(x, layer, tokens, last, reads, grad)
            stream = []
            for number in range(layer, self.handle.n_layers if last is None else last + 1):
                x = self._cone.block(number, x, 0, Recorder())
                stream.append(x)
            unread = last is not None or reads == 0
            return Rise(stream, None if unread else lens_logits(self.handle, x if reads is None else x[:, -reads:]))

    def _whole(self, x: Tensor, layer: int, tokens: Tensor, last: int | None, reads: int | None, grad: bool) -> Rise:
        """Run the whole model with `x` put in."""
        layers = self.handle.n_layers
        at = Site(layer, "resid_pre") if layer < layers else Site(layers - 1, "resid_post")
        wanted = [] if grad else [Site(i, "resid_post") for i in range(layer, layers if last is None else last + 1)]
        with ExitStack() as undo:
            undo.callback(attach_hook(self.handle, at, "hf", lambda _: x))
            found = undo.enter_context(capture(self.handle, wanted)) if wanted else {}
            logits = self.handle.forward(tokens, grad=grad)
        if last is not None or reads == 0:
            logits = None
        return Rise([found[site] for site in wanted], logits if logits is None or reads is None else logits[:, -reads:])


def wide(x: Tensor) -> Tensor:
    """Return `x` in float32 at least: differences of half-precision numbers overflow and cancel."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_additive(handle: ModelHandle, tokens: Int[Tensor, "batch pos"]) -> None:
    """Refuse a model whose blocks do more than add attention and MLP to the stream (a norm after the sum).

    Raises:
        ValueError: they do, on the first tokens of the first row.
    """
    found = Contributions(handle.n_layers, parallel=is_parallel(handle))
    few = tokens[:1, :CHECKED]
    with capture(handle, [Site(layer, kind) for layer in range(handle.n_layers) for kind in KINDS], stop=True) as acts:
        handle.forward(few)
    found.update(acts)
    found.finish()


def batches(tokens: Int[Tensor, "seq pos"], d_vocab: int) -> int:
    """Return how many sequences are best run at once: as many as keep their logits small."""
    return max(1, ROW_FLOATS // (tokens.shape[1] * d_vocab))


def affordable(
    handle: ModelHandle, context: int, forwards: float, wanted: int, budget: float = BUDGET
) -> tuple[int, int]:
    """Return (texts, tokens of each) that can be run `forwards` times each within `budget`.

    At most `wanted` texts of `context` tokens: fewer texts for a large model, then shorter ones, but `FEW_TEXTS` texts
    of `FEW_TOKENS` tokens where there are so many.
    """
    tokens = budget / (forwards * handle.n_parameters)
    texts = min(wanted, max(FEW_TEXTS, int(tokens / context)))
    return texts, min(context, max(FEW_TOKENS, int(tokens / texts)))
