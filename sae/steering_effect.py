"""What steering by a latent does to a text: next tokens before and after, KL by position, a continuation each way.

found = effect(model, tokens, "resid_post.1", sae, 12, "clamp", 8.0)
found.next_tokens    # what became likelier and less likely
found.positions      # KL(before || after), the latent's value before and after

before = generate(model, tokens, 20, seed=0)
with steer(model, "resid_post.1", sae, 12, "clamp", 8.0):
    after = generate(model, tokens, 20, seed=0)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.hooks import Positions, capture, where
from interp.metrics import kl_divergence
from interp.models import ModelHandle
from interp.sites import Site
from sae.model import Sae
from sae.steering import check_steering, steer, values_at

if TYPE_CHECKING:
    import pyarrow as pa

SIDES = ("before", "after", "gained", "lost")
"""The four lists of next tokens: most likely before, most likely after, most probability gained, most lost."""


@dataclass(frozen=True)
class Effect:
    """A text before and after; probabilities are of the next token, KL is in nats."""

    next_tokens: pa.Table
    """(row, position, side, rank, token_id, text, before, after): the tokens of each of `SIDES`, rank 0 the first.
    `gained` and `lost` hold only tokens whose probability rose or fell, and so may be shorter. text is null where the
    model has no tokenizer."""
    positions: pa.Table
    """(row, position, token_id, text, value_before, value_after, kl, top_before, top_after): each position, the
    latent's value in the dictionary's code of the activation as it was and in that of the steered one (which need not
    be what it was set to), KL(before || after), and the ids of the most likely next token."""

    @property
    def kl(self) -> list[float]:
        """KL by position, row after row."""
        return self.positions.column("kl").to_pylist()


def check_request(
    model: ModelHandle,
    tokens: Int[Tensor, "*batch pos"],
    *,
    positions: Positions = None,
    top: int = 10,
    new_tokens: int = 0,
    temperature: float = 1.0,
) -> None:
    """Refuse what `effect` or `generate` would refuse, without running the model.

    Args:
        model: the model.
        tokens: the text, ids.
        positions: where a latent is to be changed, as in `sae.steering.steer`.
        top: tokens in each list.
        new_tokens: length of the continuations.
        temperature: of the continuations.

    Raises:
        ValueError: a text without tokens or longer than the model reads, a position outside of it, or numbers out of
            range.
    """
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    if top < 1:
        raise ValueError(f"top must be 1 or more, got {top}.")
    if new_tokens < 0:
        raise ValueError(f"new_tokens must be 0 or more, got {new_tokens}.")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a number from 0 on, got {temperature}.")
    if tokens.shape[1] < 1:
        raise ValueError("The text holds no token; give a few words.")
    if tokens.shape[1] + new_tokens > model.n_ctx:
        more = f" and {new_tokens} new ones" if new_tokens else ""
        less = " or fewer new tokens" if new_tokens else ""
        raise ValueError(
            f"The text's {tokens.shape[1]} tokens{more} are more than the n_ctx={model.n_ctx} that the model reads. "
            f"Take a shorter text{less}."
        )
    where(positions, tokens, model)


def effect(
    model: ModelHandle,
    tokens: Int[Tensor, "*batch pos"],
    site: Site | str,
    sae: Sae,
    latent: int,
    how: str = "clamp",
    value: float | None = None,
    *,
    positions: Positions = None,
    at: Sequence[int] | None = (-1,),
    top: int = 10,
    view: str = "hf",
) -> Effect:
    """Run a text without and with a steered latent.

    Args:
        model: the model.
        tokens: the text, ids.
        site: where the dictionary belongs.
        sae: the dictionary.
        latent: which latent.
        how: as in `sae.steering.steer`.
        value: likewise.
        positions: where the latent is changed, likewise.
        at: positions whose next tokens are listed (negative ones from the end); None lists all.
        top: tokens in each list.
        view: `hf` or `bridge`.

    Raises:
        ValueError: what `steer` and `check_request` refuse, or a position of `at` outside of the text.
    """
    check_request(model, tokens, positions=positions, top=top)
    place = check_steering(model, site, sae, latent)
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    listed = _listed(at, tokens.shape[1])
    with capture(model, place, view=view) as plain:
        before = model.logits(tokens, view=view)
    change = steer(model, place, sae, latent, how, value, positions=positions, view=view)
    with change, capture(model, place, view=view) as steered:
        after = model.logits(tokens, view=view)
    with torch.no_grad():
        values = [values_at(sae, taken[place], latent).cpu() for taken in (plain, steered)]
    before, after = before.float().cpu(), after.float().cpu()
    return Effect(
        next_tokens(model, before, after, listed, min(top, model.d_vocab)),
        _positions(model, tokens.cpu(), before, after, values),
    )


def _listed(at: Sequence[int] | None, length: int) -> list[int]:
    """Return the positions whose next tokens are listed, counted from 0."""
    found = range(length) if at is None else at
    for position in found:
        if not -length <= position < length:
            raise ValueError(f"at must hold positions in 0..{length - 1} (or -{length}..-1), got {position}.")
    return sorted({position % length for position in found})


def _texts(model: ModelHandle, ids: list[int]) -> list[str | None]:
    return [*model.token_strings(ids)] if model.tokenizer is not None else [None] * len(ids)


def next_tokens(
    model: ModelHandle,
    before: Float[Tensor, "batch pos d_vocab"],
    after: Float[Tensor, "batch pos d_vocab"],
    listed: list[int],
    top: int,
) -> pa.Table:
    """Return the four lists of `Effect.next_tokens` at the `listed` positions of each text."""
    import pyarrow as pa

    rows: list[tuple[int, int, str, int, int, float, float]] = []
    for row in range(len(before)):
        for position in listed:
            old, new = (logits[row, position].double().softmax(-1) for logits in (before, after))
            for side, by in zip(SIDES, (old, new, new - old, old - new), strict=True):
                amounts, ids = by.topk(top)
                for rank, (amount, token) in enumerate(zip(amounts.tolist(), ids.tolist(), strict=True)):
                    if amount > 0:
                        rows.append((row, position, side, rank, token, float(old[token]), float(new[token])))
    columns = list(zip(*rows, strict=True)) or [()] * 7
    texts = _texts(model, list(columns[4]))
    kinds = (pa.int32(), pa.int32(), pa.string(), pa.int32(), pa.int32(), pa.float64(), pa.float64())
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    arrays.insert(5, pa.array(texts, pa.string()))
    return pa.table(arrays, names=["row", "position", "side", "rank", "token_id", "text", "before", "after"])


def _positions(
    model: ModelHandle,
    tokens: Int[Tensor, "batch pos"],
    before: Float[Tensor, "batch pos d_vocab"],
    after: Float[Tensor, "batch pos d_vocab"],
    values: list[Float[Tensor, "batch pos"]],
) -> pa.Table:
    """Return a row for each position of each text."""
    import pyarrow as pa

    batch, length = tokens.shape
    ids = tokens.flatten().tolist()
    # The divergence of two equal rows can come out a hair below 0.
    kl = kl_divergence(before.double(), after.double()).clamp_min(0)
    return pa.table(
        {
            "row": pa.array([n for n in range(batch) for _ in range(length)], pa.int32()),
            "position": pa.array([*range(length)] * batch, pa.int32()),
            "token_id": pa.array(ids, pa.int32()),
            "text": pa.array(_texts(model, ids), pa.string()),
            "value_before": pa.array(values[0].flatten().tolist(), pa.float32()),
            "value_after": pa.array(values[1].flatten().tolist(), pa.float32()),
            "kl": pa.array(kl.flatten().tolist(), pa.float64()),
            "top_before": pa.array(before.argmax(-1).flatten().tolist(), pa.int32()),
            "top_after": pa.array(after.argmax(-1).flatten().tolist(), pa.int32()),
        }
    )


def generate(
    model: ModelHandle,
    tokens: Int[Tensor, "*batch pos"],
    new_tokens: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
) -> Int[Tensor, "batch longer"]:
    """Return `tokens` continued by `new_tokens` sampled ones, under whatever hooks are open on the model's `hf` view.

    A token is the argmax of logits / temperature + Gumbel noise, and the noise depends on the seed and the step alone:
    the same seed with and without steering differs only where the distributions do. The whole text is read again for
    each token, so that what a hook changes is changed everywhere.

    Args:
        model: the model.
        tokens: the text, ids; several of one length go together.
        new_tokens: how many to add; an end-of-text token does not end the text.
        temperature: 0 takes the most likely token.
        seed: of the noise.

    Raises:
        ValueError: numbers out of range, or more tokens than the model reads at a time.
    """
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    check_request(model, tokens, new_tokens=new_tokens, temperature=temperature)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(new_tokens):
        logits = model.logits(tokens)[:, -1].double().cpu()
        if temperature > 0:
            noise = torch.empty(model.d_vocab, dtype=torch.float64).exponential_(generator=generator)
            logits = logits / temperature - noise.log()
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True).to(tokens.device)], 1)
    return tokens
