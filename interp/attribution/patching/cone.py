"""Causal-cone patching: what lies before a patch, in layers or in positions, is taken from the base run.

A causal decoder changed at layer l and position s computes the same as before in all layers below l and at all
positions before s. So a patched run needs blocks l, l+1, ... on positions s, s+1, ... alone, with keys and values of
earlier positions from the base run: (L - l)(S - s) block-positions in place of L S, about a quarter on average over a
map. Patches with one s go up through the layers together, each joining the batch where it begins. A patch within a
block, at one position, and not in k or v, changes that block's output there only: the block is run on that position.

The blocks are those of the Hugging Face module, so all weights, rotary positions and grouped queries are the model's
own. A small object in the place of its key-value cache hands out the base run's keys and values. The last block is run
at the positions that the metric reads; of the others it gives its keys and values only.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.attribution.patching.cells import Patch, overwrite
from interp.attribution.patching.full import writer
from interp.attribution.patching.runs import run
from interp.models import ModelHandle
from interp.models.handle import ForwardStopped
from interp.models.taps import BLOCKS, attach_hook, mark
from interp.sites import Cell, Site

CACHE = {"gpt2": "past_key_values", "llama": "past_key_values", "gpt_neox": "layer_past"}
"""What the blocks of a family call the key-value cache."""
BETWEEN = ("resid_pre", "resid_post")
"""Kinds that lie between blocks."""
LATER = ("k", "v")
"""Kinds within a block that later positions of the same block read."""
ATTENTION = ("sdpa", "eager")
"""Implementations of attention that take a mask of [query key]."""


class Recorder:
    """In the place of a key-value cache: keeps the keys and values that a block computed, as `found`."""

    found: tuple[Tensor, Tensor]

    def update(self, keys: Tensor, values: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Keep keys and values [batch head pos d_head] and return them."""
        self.found = keys, values
        return self.found


class KeysOnly(Recorder):
    """A recorder that ends the block as soon as it has what it wants, before attention and MLP."""

    def update(self, keys: Tensor, values: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Keep keys and values, and stop."""
        self.found = keys, values
        raise ForwardStopped


class Prefix:
    """In the place of a key-value cache: puts the base run's keys and values of earlier positions in front."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Return the earlier and these keys and values."""
        return torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)


def why_not(handle: ModelHandle, view: str) -> str:
    """Return why the cone cannot be trusted with this model as it is now; empty if it can."""
    if view != "hf":
        return "the bridge is run (only it forms attention patterns)"
    kind = getattr(handle.module.config, "_attn_implementation", None)
    if kind not in ATTENTION:
        return f"attention {kind!r} is not one of {', '.join(ATTENTION)}"
    with handle.lock:  # other threads hold it while they have hooks
        hooks = [
            hook
            for part in handle.module.modules()
            for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
            if not getattr(hook, "__module__", "").startswith("transformers")  # its own output recorders
        ]
    per_token = sum(getattr(edit, "per_token", False) for site, edit in handle._attached if site.kind != "pattern")
    if len(hooks) > per_token:
        return "something else changes or reads activations of the model, and may depend on whole sequences"
    return ""


class Cone:
    """Runs patched prompts from where the patch is, on top of one base run."""

    def __init__(self, handle: ModelHandle, tokens: Int[Tensor, "prompt pos"], reads: int) -> None:
        self.handle, self.reads, self.n_pos = handle, reads, tokens.shape[1]
        self.blocks: Any = handle.module.get_submodule(BLOCKS[handle.family])
        self.options: list[dict[str, Any]] = [{} for _ in range(handle.n_layers)]
        with handle.lock:
            self.stream, logits = self._record(tokens)
            self.past = [self._read(layer) for layer in range(handle.n_layers)]
            again = self._unembed(self._last)
        scale = logits.abs().max() * torch.finfo(logits.dtype).eps
        self.error = float((again - logits).abs().max() / scale)

    @property
    def faithful(self) -> bool:
        """Whether the base run, made anew block by block, has the plain logits (`error` in roundings)."""
        half = self.stream[0].dtype in (torch.float16, torch.bfloat16)
        return self.error < (8 if half else 256)

    def _record(self, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
        """Run the prompts once; return the stream before each block and at the end, and the last logits."""
        last = self.handle.n_layers - 1
        sites = [Site(layer, "resid_pre") for layer in range(last + 1)] + [Site(last, "resid_post")]
        with ExitStack() as undo:
            for layer, block in enumerate(self.blocks):
                undo.callback(block.register_forward_pre_hook(self._keeper(layer), with_kwargs=True).remove)
            found, logits = run(self.handle, tokens, sites, self.reads)
        return [found[site] for site in sites], logits

    def _keeper(self, layer: int) -> Any:
        signature = inspect.signature(self.blocks[layer].forward)

        def keep(_module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            given = dict(signature.bind(*args, **kwargs).arguments)
            given.pop("hidden_states")
            self.options[layer] = given.pop("kwargs", {}) | given

        return mark(keep)

    @torch.no_grad()
    def _read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Run a block of the base run again; return its keys and values."""
        recorder = Recorder()
        self._last = self.block(layer, self.stream[layer], 0, recorder)
        return recorder.found

    def block(self, layer: int, x: Tensor, first: int, cache: Any) -> Tensor:
        """Return what a block makes of positions `first`, `first` + 1, ... of the stream."""
        options = dict(self.options[layer])
        end = first + x.shape[1]
        if options.get("position_embeddings") is not None:
            options["position_embeddings"] = tuple(part[:, first:end] for part in options["position_embeddings"])
        if options.get("position_ids") is not None:
            options["position_ids"] = options["position_ids"][:, first:end]
        options["attention_mask"] = self._mask(options.get("attention_mask"), first, end, x.device)
        found = self.blocks[layer](x.contiguous(), **(options | {CACHE[self.handle.family]: cache}))
        return found[0] if isinstance(found, tuple) else found

    def _mask(self, mask: Tensor | None, first: int, end: int, device: torch.device) -> Tensor | None:
        """Return the rows of the causal mask for these queries; None where sdpa needs none."""
        if mask is not None:
            return mask[:1, :, first:end, :end]
        if first == 0 or end - first == 1:
            return None
        queries = torch.arange(first, end, device=device)
        return (torch.arange(end, device=device) <= queries[:, None])[None, None]

    @torch.no_grad()
    def _unembed(self, x: Tensor) -> Tensor:
        return self.handle.module.get_output_embeddings()(self.handle.final_norm(x[:, -self.reads :]))

    @torch.no_grad()
    def __call__(
        self,
        patches: Sequence[Patch],
        prompts: Int[Tensor, " batch"],
        source: dict[Site, Tensor],
        rows: Int[Tensor, " batch"],
        first: int = 0,
    ) -> Float[Tensor, "batch read d_vocab"]:
        """Return the logits at the last positions of each prompt with its patch.

        Args:
            patches: what is patched in each row.
            prompts: which prompt each row is.
            source: what is put in, by site.
            rows: which row of `source` belongs to each row.
            first: the first position that the patches change; their cells before it are left out.
        """
        wave = Wave(self, patches, prompts, source, rows, first)
        with self.handle.lock:
            x = wave.rise()
            if x.shape[1] < self.reads:
                x = torch.cat([self.stream[-1][prompts, self.n_pos - self.reads : first], x], 1)
            return self._unembed(x)


class Wave:
    """One batch of patches that begin at one position, on its way up."""

    def __init__(
        self,
        cone: Cone,
        patches: Sequence[Patch],
        prompts: Tensor,
        source: dict[Site, Tensor],
        rows: Tensor,
        first: int,
    ) -> None:
        self.cone, self.prompts, self.source, self.rows, self.first = cone, prompts, source, rows, first
        self.patches = [tuple(c for c in patch if c.pos is None or c.pos >= first) for patch in patches]
        self.top = cone.handle.n_layers - 1
        self.tail = max(first, cone.n_pos - cone.reads)
        self.entries = [min(map(boundary, patch)) for patch in self.patches]
        self.alone = [first < cone.n_pos - 1 and self._stays(row) for row in range(len(patches))]

    def _stays(self, row: int) -> bool:
        """Return whether a row's first block changes its output at the first position alone."""
        own = [cell for cell in self.patches[row] if boundary(cell) == self.entries[row]]
        return all(cell.kind not in BETWEEN + LATER and cell.pos == self.first for cell in own)

    def rise(self) -> Tensor:
        """Return the stream after the last block, of all rows in their order, at the read positions from `first` on."""
        x, order = None, []
        for layer in range(self.top + 2):
            first = self.first if layer <= self.top else self.tail
            begin = [row for row, entry in enumerate(self.entries) if entry == layer]
            whole = [row for row in begin if not self.alone[row]]
            x, order = _joined(x, self._base(layer, whole, first)), order + whole
            if x is not None:
                if layer > 0:
                    self._write(x, Site(layer - 1, "resid_post"), order, first)
                if layer <= self.top:
                    self._write(x, Site(layer, "resid_pre"), order, first)
                    x = self._block(layer, x, order)
            alone = [row for row in begin if self.alone[row]]
            x, order = _joined(x, self._alone(layer, alone)), order + alone
        if x is None:
            raise ValueError("A batch of patches needs at least one row.")
        return x[torch.tensor(order, device=x.device).argsort()]

    def _base(self, layer: int, rows: list[int], first: int) -> Tensor | None:
        """Return the base run's stream before `layer` for these rows, from position `first` on."""
        return self.cone.stream[layer][self.prompts[rows], first:] if rows else None

    def _alone(self, layer: int, rows: list[int]) -> Tensor | None:
        """Return the stream after `layer` for rows that it changes at the first position alone."""
        if not rows:
            return None
        if layer == self.top and self.tail > self.first:
            return self._base(layer + 1, rows, self.tail)  # what it changes is not read
        before = self.cone.stream[layer][self.prompts[rows], self.first : self.first + 1]
        changed = self._run(layer, before, rows, self.first, self._prefix(layer, rows))
        return _joined(changed, self._base(layer + 1, rows, self.first + 1), dim=1)

    def _prefix(self, layer: int, rows: list[int]) -> Prefix:
        prompts = self.prompts[rows]
        return Prefix(*(part[prompts, :, : self.first] for part in self.cone.past[layer]))

    def _block(self, layer: int, x: Tensor, rows: list[int]) -> Tensor:
        """Return what a block makes of these rows; of the last block at the read positions only."""
        cache, unread = self._prefix(layer, rows), self.tail - self.first
        if layer < self.top or not unread:
            return self._run(layer, x, rows, self.first, cache)
        recorder = KeysOnly()
        with suppress(ForwardStopped):
            self._run(layer, x[:, :unread], rows, self.first, recorder)
        return self._run(layer, x[:, unread:], rows, self.tail, Prefix(*cache.update(*recorder.found)))

    def _run(self, layer: int, x: Tensor, rows: list[int], first: int, cache: Any) -> Tensor:
        """Run a block on positions from `first` on, with the patches inside of it."""
        kinds = {c.kind for row in rows for c in self.patches[row] if c.layer == layer and c.kind not in BETWEEN}
        patches, sources = [self.patches[row] for row in rows], self.rows[rows]
        with ExitStack() as undo:
            for site in sorted(Site(layer, kind) for kind in kinds):
                hook = writer(site, patches, self.source[site], sources, first)
                undo.callback(attach_hook(self.cone.handle, site, "hf", hook))
            return self.cone.block(layer, x, first, cache)

    def _write(self, x: Tensor, site: Site, order: list[int], first: int) -> None:
        if site in self.source:
            overwrite(x, site, [self.patches[row] for row in order], self.source[site], self.rows[order], first)


def boundary(cell: Cell) -> int:
    """Return the number of blocks below the cell."""
    return cell.layer + (cell.kind == "resid_post")


def _joined(x: Tensor | None, more: Tensor | None, dim: int = 0) -> Tensor | None:
    if x is None or more is None:
        return more if x is None else x
    return torch.cat([x, more], dim)
