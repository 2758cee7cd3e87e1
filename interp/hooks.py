"""Reading and changing activations: `capture`, `patch`, `ablate`, `splice`.

    with patch(model, "resid_post.1", lambda x: 2 * x), capture(model, "resid_post.1") as acts:
        logits = model.forward(tokens)
    acts["resid_post.1"]  # the doubled activation

All are context managers over one `ModelHandle` and either of its views (`view="hf"`, `view="bridge"`). They hold the
handle's lock, and remove exactly their own hooks at the end, also after an exception. They nest. At one site they act
in the order in which they were entered: the inner sees what the outer made of the activation, so a `capture` inside a
`patch` reads the patched value and a `capture` around a `patch` the original one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from interp.models.handle import ForwardStopped, ModelHandle
from interp.models.taps import attach_hook, check_view
from interp.names import unknown
from interp.sites import Site, parse_sites
from interp.types import Dictionary

HOWS = ("zero", "mean", "resample")

Positions = Sequence[int] | Bool[Tensor, "batch pos"] | None
"""Which positions: numbers (negative ones count from the end), a mask, or None for all."""


class Activations(dict[Site, Tensor]):
    """What `capture` read in the last forward, by site or by its name."""

    def __missing__(self, key: Any) -> Tensor:
        site = Site.parse(key) if isinstance(key, str) else key
        if site is not key and site in self:
            return self[site]
        held = ", ".join(map(str, self)) or "nothing yet: call model.forward(tokens) inside the context"
        raise KeyError(f"{site} was not captured; captured: {held}.")


class Capture:
    """One open `capture`: what it wants, what it has seen in this forward, and where it puts it."""

    def __init__(self, model: ModelHandle, sites: list[Site], stop: bool, view: str, grad: bool) -> None:
        self.model, self.sites, self.stop, self.view, self.grad = model, sites, stop, view, grad
        self.seen: set[Site] = set()
        self.found = Activations()

    def begin(self) -> None:
        """Forget which sites were seen; `ModelHandle.forward` calls this before each pass."""
        self.seen.clear()

    def take(self, site: Site, value: Tensor) -> Tensor | None:
        """Keep `value`; end the forward if every open capture has all it wanted and allows it."""
        if self.grad:
            value = value if value.requires_grad else value.detach().requires_grad_()
            value.retain_grad()
        self.found[site] = value if self.grad else value.detach()
        self.seen.add(site)
        others = [taken for taken in self.model._captures if taken.view == self.view]
        if all(taken.stop and len(taken.seen) == len(taken.sites) for taken in others):
            raise ForwardStopped
        return value if self.grad else None


@contextmanager
def capture(
    model: ModelHandle,
    sites: Site | str | Iterable[Site | str],
    *,
    stop: bool = False,
    view: str = "hf",
    grad: bool = False,
) -> Iterator[Activations]:
    """Read the activations at `sites` in each forward inside the context; the last forward's are kept.

    Args:
        model: the model.
        sites: one site or several, as `Site` or by name.
        stop: end the forward after the last wanted site, which then returns None; nested captures all have to allow it.
        view: `hf` or `bridge`.
        grad: keep the graph. An activation that depends on nothing differentiable becomes a leaf, and after
            `backward()` every captured tensor has its `.grad`. Otherwise the tensors are detached.

    Yields:
        A dictionary from site (or its name) to the activation, [batch pos d] or [batch pos head d_head].
    """
    wanted = [model.check_site(site) for site in parse_sites(sites)]
    taken = Capture(model, wanted, stop, check_view(view), grad)
    with model.lock, ExitStack() as undo:
        for site in wanted:
            undo.callback(attach_hook(model, site, view, lambda value, site=site: taken.take(site, value)))
        model._captures.append(taken)
        undo.callback(model._captures.remove, taken)
        yield taken.found


@contextmanager
def patch(
    model: ModelHandle, site: Site | str, edit: Callable[[Tensor], Tensor], *, view: str = "hf"
) -> Iterator[None]:
    """Replace the activation at `site` by `edit(activation)` in every forward inside the context.

    `edit` gets a copy, which it may change in place, and returns a tensor of the same shape (number format and device
    are adapted).

    Raises:
        ValueError: from the forward, if what `edit` returns does not fit.
    """
    site = model.check_site(site)

    def replace(value: Tensor) -> Tensor:
        return _fitting(edit(value.clone()), value, f"The edit at {site}")

    with model.lock, ExitStack() as undo:
        undo.callback(attach_hook(model, site, view, replace))
        yield


def _fitting(new: Any, value: Tensor, who: str) -> Tensor:
    """Return `new` in the format of `value`, or raise ValueError if it is no tensor of that shape."""
    if not isinstance(new, Tensor):
        raise ValueError(f"{who} must return a tensor {list(value.shape)}, got {type(new).__name__}.")
    if new.shape != value.shape:
        raise ValueError(f"{who} must return a tensor {list(value.shape)}, got {list(new.shape)}.")
    return new.to(value.device, value.dtype)


@contextmanager
def ablate(
    model: ModelHandle,
    site: Site | str,
    how: str = "zero",
    *,
    reference: Tensor | None = None,
    positions: Positions = None,
    view: str = "hf",
    seed: int = 0,
) -> Iterator[None]:
    """Remove what the activation at `site` says about its input.

    `zero` puts zeros. `mean` puts the mean over the rows of `reference`. `resample` puts rows of `reference` drawn with
    replacement, the same ones in every forward of one shape. Rows are the activations of single tokens: `reference` has
    the shape of the site's activation with any leading axes, [d], [rows d] or [batch pos d]; without one, the rows are
    those of the ablated batch itself.

    Args:
        model: the model.
        site: where.
        how: `zero`, `mean` or `resample`.
        reference: activations of this site on other text.
        positions: which positions to ablate, as numbers (negative ones from the end) or a mask [batch pos]; None: all.
        view: `hf` or `bridge`.
        seed: of the drawing.

    Raises:
        ValueError: for an unknown `how`, a reference that does not fit, a position outside of the text.
    """
    site = model.check_site(site)
    if how not in HOWS:
        raise ValueError(unknown("ablation", str(how), HOWS))
    if site.kind == "pattern" and how != "zero":
        raise ValueError(
            f"A pattern can be ablated by zero only, got {how!r}: its rows have different lengths. Use patch."
        )
    row = [size for _, size in model.axes(site)[2:]]
    if reference is not None and list(reference.shape[-len(row) :]) != row:
        raise ValueError(f"reference at {site} must end in the axes {row}, got {list(reference.shape)}.")

    def edit(value: Tensor) -> Tensor:
        rows = (value if reference is None else reference.to(value)).reshape(-1, *value.shape[2:])
        if how == "zero":
            new = torch.zeros_like(value)
        elif how == "mean":
            new = rows.mean(0).expand_as(value)
        else:
            generator = torch.Generator().manual_seed(seed)
            new = rows[torch.randint(len(rows), tuple(value.shape[:2]), generator=generator).to(value.device)]
        if positions is None:
            return new
        if site.kind == "pattern":  # [batch head query key]: positions are queries
            return _mixed(value.transpose(1, 2), new.transpose(1, 2), positions).transpose(1, 2)
        return _mixed(value, new, positions)

    with patch(model, site, edit, view=view):
        yield


def _mixed(old: Tensor, new: Tensor, positions: Positions) -> Tensor:
    """Return `new` at `positions` and `old` elsewhere; both [batch pos ...]."""
    if isinstance(positions, Tensor) and positions.dtype == torch.bool:
        chosen = fitting_mask(positions, old, "positions")
    else:
        chosen = torch.zeros(old.shape[:2], dtype=torch.bool, device=old.device)
        for position in positions or ():
            if not -old.shape[1] <= int(position) < old.shape[1]:
                raise ValueError(f"positions must lie in 0..{old.shape[1] - 1}, got {int(position)}.")
            chosen[:, int(position)] = True
    return torch.where(chosen.reshape(*chosen.shape, *[1] * (old.ndim - 2)), new, old)


def where(positions: Positions, x: Shaped[Tensor, "*shape"], model: ModelHandle) -> Bool[Tensor, "batch pos"]:
    """Return which positions of an activation or a text [batch pos ...] are meant; None: all but BOS of what is read.

    Raises:
        ValueError: a position outside of the text, or a mask of another shape.
    """
    batch, length = x.shape[:2]
    if positions is None:
        if model.bos_id is None or model.reading is None:
            return torch.ones(batch, length, dtype=torch.bool)
        return model.reading != model.bos_id
    if isinstance(positions, Tensor) and positions.dtype == torch.bool:
        if positions.shape != (batch, length):
            raise ValueError(
                f"positions must be a mask [batch pos] {[batch, length]}, got {list(positions.shape)}. Where the text "
                "grows, give numbers, or None."
            )
        return positions
    numbers: Int[Tensor, " n"] = torch.as_tensor(positions, dtype=torch.long).reshape(-1)
    outside = numbers[(numbers < -length) | (numbers >= length)]
    if len(outside):
        raise ValueError(f"positions must lie in 0..{length - 1} (or -{length}..-1), got {int(outside[0])}.")
    chosen = torch.zeros(batch, length, dtype=torch.bool)
    chosen[:, numbers] = True
    return chosen


def fitting_mask(mask: Tensor, value: Shaped[Tensor, "batch pos *rest"], name: str) -> Bool[Tensor, "batch pos"]:
    """Return the boolean `mask` [batch pos] on the device of `value`, or refuse it by its `name`.

    Raises:
        ValueError: another type, or another shape than the first two axes of `value`.
    """
    if mask.dtype != torch.bool or mask.shape != value.shape[:2]:
        raise ValueError(
            f"{name} must be a boolean tensor [batch pos] {list(value.shape[:2])}, got {mask.dtype} {list(mask.shape)}."
        )
    return mask.to(value.device)


@contextmanager
def splice(
    model: ModelHandle,
    site: Site | str,
    dictionary: Dictionary,
    *,
    keep: Bool[Tensor, "batch pos"] | None = None,
    error: bool = False,
    view: str = "hf",
) -> Iterator[None]:
    """Replace the activation x at `site` by the reconstruction x_hat of `dictionary`.

    Args:
        model: the model.
        site: where; heads are flattened for the dictionary, [batch pos head d_head] to [tokens, head * d_head].
        dictionary: what encodes and decodes; its d_in is the width of the site.
        keep: True where x is replaced; the other positions pass through untouched and the dictionary never sees them.
        error: add the error x - x_hat back as a constant. The value is then x, bit by bit, while the gradient runs
            through the dictionary.
        view: `hf` or `bridge`.

    Raises:
        ValueError: if the dictionary or `keep` does not fit.
    """
    site = model.check_site(site)
    if dictionary.d_in != model.width(site):
        raise ValueError(f"The dictionary reads d_in={dictionary.d_in} numbers, but {site} has {model.width(site)}.")

    def edit(value: Tensor) -> Tensor:
        rows = value.flatten(2).flatten(0, 1)
        chosen = None if keep is None else fitting_mask(keep, value, "keep").flatten()
        if chosen is not None and not chosen.any():
            return value
        x = rows if chosen is None else rows[chosen]
        # Dictionaries compute in float32 at least; a model in half precision gets its own format back.
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        x_hat, _ = dictionary.forward(wide)
        x_hat = _fitting(x_hat, x, f"The dictionary at {site}")
        if error:
            x_hat = x.detach() + (x_hat - x_hat.detach())
        if chosen is not None:
            x_hat = rows.index_put((chosen.nonzero()[:, 0],), x_hat)
        return x_hat.reshape(value.shape)

    with patch(model, site, edit, view=view):
        yield
