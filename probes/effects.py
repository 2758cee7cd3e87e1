"""What an edit does to a model: the next tokens after texts, words for and against, and the cost on other text.

    preference    log sum_{w in for} p(w) - log sum_{w in against} p(w) of the next token, in nats
    cost          the loss on neutral text with the edit minus that without it, and KL(before || after)

An edit is a function that opens its context, given the positions to edit in a batch: `texts_effect` edits each text
at its own position, `cost` everywhere but at BOS, as a generation edits every token in its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.hooks import capture
from interp.metrics import kl_divergence
from interp.sites import Site
from probes.capturing import LAST, MEAN
from probes.editing import ALL

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

OpenEdit = Callable[[Bool[Tensor, "batch pos"]], AbstractContextManager[Any]]
"""Opens an edit at the positions of a mask."""

BATCH = 16


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Texts of like length, padded at their ends."""

    numbers: Int[np.ndarray, " text"]
    """Which texts they are."""
    tokens: Int[Tensor, "text pos"]
    """Their ids."""
    real: Bool[Tensor, "text pos"]
    """Where there is a token."""
    last: Int[Tensor, " text"]
    """Position of each text's last token."""

    def chosen(self, handle: ModelHandle, position: str) -> Bool[Tensor, "text pos"]:
        """Return where a probe fitted at `position` reads: all that it takes the mean of, or one place of each text.

        Raises:
            ValueError: a position that a text has not.
        """
        start = 0 if handle.bos_id is None else 1
        places = torch.arange(self.tokens.shape[1])
        own = self.real & (places >= start)
        if position in (MEAN, ALL):
            return own
        number = -1 if position == LAST else int(position)
        at = self.last + 1 + number if number < 0 else torch.full_like(self.last, start + number)
        if ((at < start) | (at > self.last)).any():
            raise ValueError(f"A text has no position {position}; leave it out, or take another position.")
        return places == at[:, None]


def text_batches(handle: ModelHandle, texts: Sequence[str | Tensor], batch: int = BATCH) -> Iterator[TextBatch]:
    """Yield all texts (or ids), the short ones first; one that is longer than the model reads loses its end.

    Raises:
        ValueError: no texts, or one without any token.
    """
    ids = [handle.tokens(one)[0].cpu() if isinstance(one, str) else one.reshape(-1).cpu() for one in texts]
    ids = [one[: handle.n_ctx] for one in ids]
    if not ids:
        raise ValueError("At least one text is needed, got none.")
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for some in (order[i : i + batch] for i in range(0, len(order), batch)):
        lengths = torch.tensor([len(ids[i]) for i in some])
        tokens = torch.zeros(len(some), int(lengths.max()), dtype=torch.long)
        for row, i in enumerate(some):
            tokens[row, : len(ids[i])] = ids[i]
        real = torch.arange(tokens.shape[1]) < lengths[:, None]
        yield TextBatch(np.array(some), tokens, real, lengths - 1)


def word_ids(handle: ModelHandle, words: Sequence[str]) -> list[int]:
    """Return the ids of those words that are one token of this model; most begin with a space.

    Raises:
        ValueError: none of them is.
    """
    found = []
    for word in words:
        ids = handle.tokens(word, bos=False)[0].tolist()
        if len(ids) > 1 and word.startswith(" "):  # a tokenizer that puts a space before every text by itself
            other = handle.tokens(word[1:], bos=False)[0].tolist()
            ids = other if handle.token_strings(other) == [word] else ids
        found += ids if len(ids) == 1 else []
    if not found:
        raise ValueError(f"None of the words {', '.join(map(repr, words[:6]))} is one token of {handle.spec.name}.")
    return list(dict.fromkeys(found))


def preference(
    logits: Float[Tensor, "*batch d_vocab"], words: tuple[Sequence[int], Sequence[int]]
) -> Float[Tensor, "*batch"]:
    """Return the log-odds of words for against words against, in nats; no words against: against all others."""
    lp = logits.double().log_softmax(-1)
    against = list(words[1]) or sorted(set(range(lp.shape[-1])) - set(words[0]))
    return lp[..., list(words[0])].logsumexp(-1) - lp[..., against].logsumexp(-1)


@dataclass(frozen=True, eq=False)
class TextsEffect:
    """What an edit did to texts."""

    preference: Float[np.ndarray, " text"]
    """Change of the words' log-odds, nats; NaN without words."""
    kl: Float[np.ndarray, " text"]
    """KL(before || after) of the next token."""
    top1: Bool[np.ndarray, " text"]
    """Whether the likeliest next token is another."""
    rows: dict[Site, Float[np.ndarray, "text d_in"]]
    """Activations with the edit, at the sites that were asked for."""


@torch.no_grad()
def texts_effect(
    handle: ModelHandle,
    texts: Sequence[str | Tensor],
    change: OpenEdit,
    *,
    other: ModelHandle | None = None,
    position: str = LAST,
    words: tuple[Sequence[int], Sequence[int]] | None = None,
    sites: Sequence[Site] = (),
    batch: int = BATCH,
) -> TextsEffect:
    """Return what an edit changes after the last token of texts.

    Args:
        handle: the model.
        texts: texts, or their ids.
        change: opens the edit; hears where `position` is in each batch.
        other: run under the edit instead of `handle`: a changed copy of the model.
        position: what is edited, as in `probes.capturing`.
        words: ids of words for and against.
        sites: where to read activations under the edit, at `position`.
        batch: texts in a forward pass.

    Raises:
        ValueError: what `text_batches` and the edit refuse.
    """
    n, run = len(texts), handle if other is None else other
    shift, kl, top1 = np.full(n, np.nan), np.zeros(n), np.zeros(n, bool)
    rows = {site: np.zeros((n, handle.width(site))) for site in sites}
    for part in text_batches(handle, texts, batch):
        chosen, each = part.chosen(handle, position), torch.arange(len(part.last))
        before = _logits(handle, part)[each, part.last]
        with change(chosen), capture(run, sites) if sites else nullcontext({}) as taken:
            after = _logits(run, part)[each, part.last]
        kl[part.numbers] = kl_divergence(before.double(), after.double()).clamp_min(0).numpy()
        top1[part.numbers] = (before.argmax(-1) != after.argmax(-1)).numpy()
        if words is not None:
            shift[part.numbers] = (preference(after, words) - preference(before, words)).numpy()
        for site in sites:
            x = taken[site].flatten(2).double().cpu()
            own = chosen[..., None]
            rows[site][part.numbers] = (torch.where(own, x, 0).sum(1) / own.sum(1)).numpy()
    return TextsEffect(shift, kl, top1, rows)


def _logits(handle: ModelHandle, part: TextBatch) -> Float[Tensor, "text pos d_vocab"]:
    logits = handle.forward(part.tokens, mask=part.real)
    if logits is None:
        raise RuntimeError("capture(stop=True) ended the pass before the logits; measure an effect outside of it.")
    return logits.float().cpu()


@torch.no_grad()
def cost(
    handle: ModelHandle,
    blocks: Blocks,
    change: OpenEdit,
    *,
    other: ModelHandle | None = None,
    batch: int = 4,
) -> dict[str, Any]:
    """Return what an edit of every position but BOS costs on `blocks`: loss_a, loss_b, loss_delta, kl_mean, ...

    Args:
        handle: the model.
        blocks: neutral text that nothing was fitted to.
        change: opens the edit.
        other: run under the edit instead of `handle`: a changed copy of the model.
        batch: blocks in a forward pass.

    Returns:
        The numbers of the panel `behaviour` (a is without the edit), in nats per token; the interval is over blocks.
    """
    from interp.compression.panel import Pair
    from interp.compression.panels import Behaviour

    panel, run = Behaviour(), handle if other is None else other
    panel.begin(handle, run, blocks)
    for start in range(0, len(blocks), batch):
        some = blocks.select(torch.arange(start, min(start + batch, len(blocks))))
        tokens, real = some.tokens.long(), some.keep
        keep = real & ~some.bos()
        first = torch.zeros_like(real)
        first[:, 0] = True
        before = handle.logits(tokens).cpu()
        with change(keep):
            after = run.logits(tokens).cpu()
        numbers = torch.arange(start, start + len(tokens))
        panel.update(Pair(tokens, real, keep & ~first, first, numbers, before, after, {}, {}))
    return dict(panel.finish().summary)
