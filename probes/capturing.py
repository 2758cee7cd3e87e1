"""Activations of texts at many sites and positions, in one pass of the model.

    last    the text's last token        mean    the mean over its tokens
    -2      the last token but one       0, 1    the first token, the second

BOS is no token of a text: it is in no mean, and 0 is what comes after it. Padding is in nothing. A text that is longer
than `context` loses its end. Beside the kinds of `interp.sites` there is `mlp_in`: what the MLP of a block reads, the
residual stream after its norm, which is where the released Concept Depth code looks.

Held are one float32 for each text, site, position and number, and the activations of one batch at all sites
(`held_bytes`); no text is read twice, however many probes are fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.attribution.randomisation import randomised
from interp.hooks import capture
from interp.models import load_model
from interp.models.taps import BLOCKS, TAPS
from interp.names import unknown
from interp.sites import KINDS, Site
from interp.types import RuntimeStep
from probes.source import Source

if TYPE_CHECKING:
    from interp.models import ModelHandle

LAST, MEAN = "last", "mean"
MLP_IN = "mlp_in"
"""What an MLP reads: the residual stream after the norm. No site, since nothing can be put there."""
CONTEXT, BATCH = 128, 16


@dataclass(frozen=True, eq=False)
class Captured:
    """Texts as rows, for each site and position."""

    model: str
    """Name of the model."""
    digest: str
    """SHA-256 of its weights."""
    sites: tuple[str, ...]
    """What was read, such as `resid_post.3` or `mlp_in.3`."""
    positions: tuple[str, ...]
    """Where in a text."""
    values: dict[str, Float[np.ndarray, "text position _"]]
    """The activations of each site; sites may differ in d_in."""
    tokens: tuple[Int[np.ndarray, " _"], ...]
    """Ids of each text as it was read, BOS left out."""
    cut: int
    """Texts that were longer than the context, and lost their end."""

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.tokens)

    @cached_property
    def lengths(self) -> Int[np.ndarray, " text"]:
        """Tokens of each text, BOS left out."""
        return np.array([len(ids) for ids in self.tokens])

    def rows(self, site: str, position: str) -> Float[np.ndarray, "text d_in"]:
        """Return a row for each text.

        Raises:
            ValueError: this site or position was not captured.
        """
        if site not in self.values:
            raise ValueError(unknown("captured site", site, self.sites))
        if position not in self.positions:
            raise ValueError(unknown("captured position", position, self.positions))
        return self.values[site][:, self.positions.index(position)]

    def source(self, site: str, position: str) -> Source | None:
        """Return what these rows are; None for `mlp_in`, which a probe cannot be read at by itself."""
        return None if site.startswith(MLP_IN) else Source(site, self.model, self.digest, position)

    def token_at(self, position: str) -> Int[np.ndarray, " text"] | None:
        """Return the id of the token that stands there in each text; None for the mean."""
        place = _index(position)
        return None if place is None else np.array([ids[place] for ids in self.tokens])


def parse_position(position: str | int) -> str:
    """Return a position as it is called: `last` (also for -1), `mean`, or a whole number.

    Raises:
        ValueError: it is none of these.
    """
    text = str(position).strip()
    if text in (LAST, MEAN):
        return text
    if not text.removeprefix("-").isdecimal():
        raise ValueError(f"A position is last, mean, or a whole number such as -2 or 0, got {text!r}.")
    return LAST if int(text) == -1 else str(int(text))


def _index(position: str) -> int | None:
    return None if position == MEAN else -1 if position == LAST else int(position)


def least_length(positions: Sequence[str | int]) -> int:
    """Return how many tokens a text must have, so that all positions are in it."""
    places = [_index(parse_position(one)) for one in positions]
    return max(1 if place is None else -place if place < 0 else place + 1 for place in places)


def expand_sites(handle: ModelHandle, sites: Sequence[str]) -> tuple[str, ...]:
    """Return the sites that kinds (`resid_post`, `mlp_in`: all layers) and sites (`mlp_act.2`) name, each once.

    Raises:
        ValueError: an unknown kind, a site that the model lacks, `pattern`, or none at all.
    """
    found: list[str] = []
    for text in sites:
        kind, _, layer = text.partition(".")
        if kind != MLP_IN and kind not in KINDS and not text.startswith("blocks."):
            raise ValueError(unknown("site kind", kind, (*KINDS, MLP_IN)))
        if not layer:
            layers = range(handle.n_layers)
            found += [f"{kind}.{i}" for i in layers] if kind == MLP_IN else map(str, handle.sites(f"{kind}.*"))
        else:
            found.append(text if kind == MLP_IN else str(handle.check_site(text)))
    for site in found:
        handle.width(_tap(handle, site)[0])  # refuses what has none
    if not found:
        raise ValueError(f"At least one site that the model has is needed, got {', '.join(sites) or 'none'}.")
    return tuple(dict.fromkeys(found))


def _tap(handle: ModelHandle, name: str) -> tuple[Site, nn.Module | None]:
    """Return the site that is read, and the norm that its activation then goes through."""
    kind, _, layer = name.partition(".")
    if kind != MLP_IN:
        return handle.check_site(name), None
    if not layer.isdecimal():
        raise ValueError(f"A site is written KIND.LAYER, such as {MLP_IN}.2, got {name!r}.")
    parallel = not handle.sites("resid_mid.*")
    site = handle.check_site(Site(int(layer), "resid_pre" if parallel else "resid_mid"))
    path = f"{BLOCKS[handle.family]}.{layer}.{TAPS[handle.family]['resid_mid'].module}"
    return site, handle.module.get_submodule(path)


def held_bytes(
    handle: ModelHandle, sites: Sequence[str], positions: int, texts: int, *, context: int = CONTEXT, batch: int = BATCH
) -> int:
    """Return the bytes of what `capture_texts` returns, and of the largest batch on the way."""
    width = sum(handle.width(_tap(handle, site)[0]) for site in sites)
    return 4 * width * (texts * positions + batch * min(context, handle.n_ctx))


@torch.no_grad()
def capture_texts(
    handle: ModelHandle,
    texts: Sequence[str],
    sites: Sequence[str],
    positions: Sequence[str | int] = (LAST,),
    *,
    context: int = CONTEXT,
    batch: int = BATCH,
    on_progress: Callable[[int], object] = lambda _: None,
) -> Captured:
    """Return the activations of the texts.

    Args:
        handle: the model.
        texts: of any lengths.
        sites: kinds for all layers, or sites, as in `expand_sites`.
        positions: `last`, `mean`, or whole numbers.
        context: longest text in tokens, BOS included; the rest is cut off.
        batch: texts in a forward pass; texts of like length go together.
        on_progress: hears the number of texts done so far.

    Raises:
        ValueError: a text that lacks one of the positions, an activation that is not finite, an unknown site.
    """
    if context < 2 or batch < 1:
        raise ValueError(f"context must be 2 or more and batch 1 or more, got {context} and {batch}.")
    names, wanted = expand_sites(handle, sites), tuple(dict.fromkeys(map(parse_position, positions)))
    whole = [handle.tokens(text)[0].cpu() for text in texts]
    ids = [one[: min(context, handle.n_ctx)] for one in whole]
    start = 0 if handle.bos_id is None else 1
    check_lengths([len(one) - start for one in ids], wanted)
    taps = {name: _tap(handle, name) for name in names}
    values = {n: np.empty((len(ids), len(wanted), handle.width(taps[n][0])), np.float32) for n in names}
    order, done = sorted(range(len(ids)), key=lambda i: len(ids[i])), 0
    for some in (order[i : i + batch] for i in range(0, len(order), batch)):
        acts, mask = _forward(handle, [ids[i] for i in some], {site for site, _ in taps.values()})
        mask[:, :start] = False
        for name, (site, norm) in taps.items():
            x = (acts[site] if norm is None else norm(acts[site])).flatten(2).float()
            values[name][some] = _taken(x, mask, wanted).cpu().numpy()
        done += len(some)
        on_progress(done)
    for name, found in values.items():
        _check_finite(found, name, handle.spec.name)
    cut = sum(len(one) < len(other) for one, other in zip(ids, whole, strict=True))
    tokens = tuple(one[start:].numpy() for one in ids)
    return Captured(handle.spec.name, handle.digest(), names, wanted, values, tokens, cut)


def random_model(handle: ModelHandle, seed: int = 0) -> ModelHandle:
    """Return a model of the same shape that has learned nothing: each weight tensor shuffled.

    Steps of a recipe that act while the model runs cannot be copied, so with such a recipe all of it is left out.
    """
    if any(isinstance(step, RuntimeStep) for step in handle.spec.recipe):
        handle = load_model(replace(handle.spec, recipe=()), device=handle.device)
    return randomised(handle, seed)


def check_lengths(lengths: Sequence[int], positions: Sequence[str]) -> None:
    """Refuse texts of `lengths` tokens that lack one of the positions.

    Raises:
        ValueError: with how many there are, and the first of them.
    """
    least = least_length(positions)
    short = [number for number, length in enumerate(lengths) if length < least]
    if short:
        raise ValueError(
            f"Positions {', '.join(positions)} need texts of {least} tokens or more; {len(short)} of {len(lengths)} "
            f"texts are shorter (text {short[0]} has {lengths[short[0]]}). Leave these out, or ask for fewer positions."
        )


def _forward(handle: ModelHandle, ids: list[Tensor], sites: set[Site]) -> tuple[dict[Site, Tensor], Tensor]:
    """Return (activations of padded texts, which tokens are real)."""
    tokens = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row, one in enumerate(ids):
        tokens[row, : len(one)], mask[row, : len(one)] = one, True
    with capture(handle, sorted(sites), stop=True) as taken:
        handle.forward(tokens.to(handle.device), mask=mask)
    return dict(taken), mask.to(handle.device)


def _taken(
    x: Float[Tensor, "text pos d_in"], mask: Tensor, positions: Sequence[str]
) -> Float[Tensor, "text position d_in"]:
    """Return the activations at the positions; `mask` says which tokens are the text's own."""
    first, count = mask.int().argmax(1), mask.sum(1)
    each = torch.arange(len(x), device=x.device)
    found = []
    for position in positions:
        place = _index(position)
        if place is None:
            own = mask[..., None].to(x.dtype)
            # Padding is left out by choosing, not by a product with 0: of NaN that would be NaN.
            found.append(torch.where(own > 0, x, 0).sum(1) / count[:, None])
        else:
            found.append(x[each, first + (place if place >= 0 else count + place)])
    return torch.stack(found, 1)


def _check_finite(values: Float[np.ndarray, "text position d_in"], site: str, model: str) -> None:
    wrong = ~np.isfinite(values).reshape(len(values), -1).all(1)
    if wrong.any():
        raise ValueError(
            f"{model} makes NaN or infinity at {site} for {int(wrong.sum())} of {len(values)} texts, the first is text "
            f"{int(wrong.argmax())}. No probe can be fitted to that: leave these texts out, or load it in float32."
        )
