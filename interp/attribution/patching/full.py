"""Patching by whole forwards: a batch whose rows hold one patch each. Slow, and right whatever hangs on the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from jaxtyping import Float, Int
from torch import Tensor

from interp.attribution.patching.cells import Patch, overwrite
from interp.attribution.patching.runs import last_logits
from interp.models import ModelHandle
from interp.models.taps import attach_hook
from interp.sites import Site


class FullForwards:
    """Runs patched prompts from the first token to the last."""

    def __init__(self, handle: ModelHandle, tokens: Int[Tensor, "prompt pos"], reads: int, view: str) -> None:
        self.handle, self.tokens, self.reads, self.view = handle, tokens, reads, view

    def __call__(
        self,
        patches: Sequence[Patch],
        prompts: Int[Tensor, " batch"],
        source: dict[Site, Tensor],
        rows: Int[Tensor, " batch"],
        first: int = 0,  # noqa: ARG002 - the two engines are called alike
    ) -> Float[Tensor, "batch read d_vocab"]:
        """Return the logits at the last positions of each prompt with its patch.

        Args:
            patches: what is patched in each row.
            prompts: which prompt each row is.
            source: what is put in, by site.
            rows: which row of `source` belongs to each row.
            first: the first position that the patches change; a whole forward has no use for it.
        """
        sites = sorted({cell.site for patch in patches for cell in patch})
        with self.handle.lock, ExitStack() as undo:
            undo.enter_context(last_logits(self.handle, self.reads, self.view))
            for site in sites:
                hook = writer(site, patches, source[site], rows)
                undo.callback(attach_hook(self.handle, site, self.view, hook))
            return self.handle.logits(self.tokens[prompts.to(self.tokens.device)], view=self.view)[:, -self.reads :]


def writer(
    site: Site, patches: Sequence[Patch], source: Tensor, rows: Tensor, first: int = 0
) -> Callable[[Tensor], Tensor]:
    """Return a hook that writes the patches of a batch into the activation at `site` from position `first` on."""

    def write(value: Tensor) -> Tensor:
        changed = value.clone()
        overwrite(changed, site, patches, source, rows, first)
        return changed

    return write
