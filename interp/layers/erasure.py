"""From which layer on a token's residual stream is no longer needed (Csordas, Manning and Potts 2025).

The stream at layer l and position t is replaced by its mean over text, and the model runs on from there:

    l2(l, t)    largest |p - p'|_2 over the answer positions; p are next-token probabilities     (as published)
    drop(l, t)  mean over the answers of p(answer) - p'(answer)

Layer 0 is the embeddings, layer l the stream after l blocks, so that there are L + 1 of them. The answers of a text are
its last tokens. What the mean leaves in (a token looks average) and what it cannot take back (what other positions read
from t in earlier layers) both count as not needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.attribution.patching.cone import why_not
from interp.attribution.patching.effects import Engine, make_engine
from interp.hooks import capture
from interp.layers.tokens import later_rows
from interp.models.handle import ModelHandle
from interp.sites import Cell, Site

BATCH = 16
"""Rows of one run."""


@dataclass(frozen=True, eq=False)
class Erasure:
    """What erasing the stream of one token at one layer does to the answers, averaged over prompts."""

    positions: list[int]
    """The positions that were erased, one at a time."""
    l2: Float[Tensor, "prompt layer position"]
    """Largest L2 distance of the next-token probabilities over the answer positions; layer 0 is the embeddings."""
    drop: Float[Tensor, "prompt layer position"]
    """Mean loss of probability of the answers."""

    def needless_from(self, threshold: float = 0.1) -> Int[Tensor, "prompt position"]:
        """Return the first layer from which on erasing changes no answer by `threshold` or more; L + 1: there is none.

        Layer 0 means that the token was never needed.
        """
        matters = self.l2 >= threshold
        layers = torch.arange(1, matters.shape[1] + 1)[None, :, None]
        return (matters * layers).amax(1)


def stream_sites(handle: ModelHandle) -> list[Site]:
    """Return the sites of the stream before each block and after the last: L + 1 of them."""
    last = handle.n_layers - 1
    return [*(Site(layer, "resid_pre") for layer in range(last + 1)), Site(last, "resid_post")]


@torch.no_grad()
def mean_stream(
    handle: ModelHandle, batches: Iterable[Int[Tensor, "_ _"]], keep: Bool[Tensor, "seq pos"] | None = None
) -> Float[Tensor, "layer d"]:
    """Return the mean of the residual stream at each layer, over finite tokens after position 0.

    Args:
        handle: the model.
        batches: token ids.
        keep: which of their positions count (None: all); for batches of one length.

    Raises:
        ValueError: no token counts.
    """
    sites, sums, count, seen = stream_sites(handle), None, [0] * (handle.n_layers + 1), 0
    for tokens in batches:
        with capture(handle, sites, stop=True) as acts:
            handle.forward(tokens)
        some = None if keep is None else keep[seen : seen + len(tokens)]
        seen += len(tokens)
        rows = [later_rows(acts[site], some) for site in sites]
        new = torch.stack([x.sum(0) for x in rows])
        sums = new if sums is None else sums + new
        count = [n + len(x) for n, x in zip(count, rows, strict=True)]
    if sums is None or min(count) == 0:
        raise ValueError("A mean of the stream needs at least one finite token after position 0, got none.")
    return sums / torch.tensor(count, dtype=sums.dtype, device=sums.device)[:, None]


@torch.no_grad()
def residual_erasure(
    handle: ModelHandle,
    tokens: Int[Tensor, "prompt pos"],
    means: Float[Tensor, "layer d"],
    *,
    answers: int = 1,
    positions: Sequence[int] | None = None,
    batch: int = BATCH,
    exact_path: str = "cone",
) -> Erasure:
    """Return what erasing each layer and position does to the last tokens of each prompt.

    Args:
        handle: the model.
        tokens: token ids without padding, the answers at the end.
        means: what is put in at each layer, of `mean_stream`.
        answers: how many tokens at the end are answers.
        positions: what is erased, counted from the start; None: all positions that the model reads but 0.
        batch: rows in one run.
        exact_path: `cone` computes only what the erasure can change, `full` runs whole forwards.

    Raises:
        ValueError: prompts that are too short for so many answers, means that do not fit, a position out of range.
    """
    n_pos = tokens.shape[1] - 1
    if not 1 <= answers <= n_pos:
        raise ValueError(f"answers must lie in 1..{n_pos}, one less than the tokens of a prompt, got {answers}.")
    sites = stream_sites(handle)
    if means.shape != (len(sites), handle.d_model):
        raise ValueError(f"means must be [layer d] {[len(sites), handle.d_model]}, got {list(means.shape)}.")
    positions = list(range(1, n_pos)) if positions is None else list(positions)
    if not positions or not all(0 <= position < n_pos for position in positions):
        raise ValueError(f"positions must lie in 0..{n_pos - 1}, the last token being an answer only; got {positions}.")
    read, targets = tokens[:, :-1].to(handle.device, torch.long), tokens[:, -answers:].to(handle.device, torch.long)
    reason = "asked for" if exact_path == "full" else why_not(handle, "hf")
    engine = make_engine(handle, read, answers, "hf", reason)[0]
    base = handle.logits(read)[:, -answers:].float().softmax(-1)
    source = {site: row.to(base).expand(1, n_pos, -1) for site, row in zip(sites, means, strict=True)}
    shape = (len(tokens), len(sites), len(positions))
    l2, drop = (torch.full(shape, math.nan, dtype=torch.float64) for _ in range(2))
    for column, position in enumerate(positions):
        for rows in torch.cartesian_prod(torch.arange(len(sites)), torch.arange(len(tokens))).split(batch):
            layer, prompt = rows.T
            found = _erased(engine, [sites[i] for i in layer.tolist()], prompt.to(base.device), source, position)
            moved = found - base[prompt.to(base.device)]
            of_answer = moved.gather(2, targets[prompt.to(base.device)][..., None])[..., 0]
            l2[prompt, layer, column] = torch.linalg.vector_norm(moved, dim=-1).amax(1).double().cpu()
            drop[prompt, layer, column] = -of_answer.mean(1).double().cpu()
    return Erasure(positions, l2, drop)


def _erased(
    engine: Engine, sites: list[Site], prompts: Tensor, source: dict[Site, Tensor], position: int
) -> Float[Tensor, "row read d_vocab"]:
    """Return next-token probabilities at the answers, each row with another site erased at `position`."""
    patches = [(Cell(site.kind, site.layer, pos=position),) for site in sites]
    used = {site: source[site] for site in sites}
    logits = engine(patches, prompts, used, torch.zeros_like(prompts), first=position)
    return logits.float().softmax(-1)
