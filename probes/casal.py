"""CASAL: contrastive steering built into the weights of one module, by training it alone.

    t(x) = a(x) + alpha v(x)          a: resid_post of a block at the text's last token; v: a difference in means or 0
    min_M  mean_x ||t(x) - a_M(x)||^2,     a_M(x) = what the block writes, minus the module's own output, plus M(in(x))

"CASAL: Contrastive Activation Steering for Amortized Learning" (arXiv 2510.02324): activations are cached, one
sub-module of the block's MLP is trained on its cached inputs by this loss alone, and its weights are written back, so
that no hook is left. Forward and backward are local, and only the module changes. Since it writes into the stream
additively, M has to put out its old output plus alpha v(x), at these inputs.

    contrast   target: +v, rest: -v            the paper's: each class is pushed away from the other
    amplify    target: +v, rest: as they are
    flip       rest: +v, target: as they are   the rest comes to say what the target says

`keep` (ours) adds tokens of neutral text, whose outputs are to stay: a module that has only seen the last tokens of
the texts is free to say anything elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.hooks import capture
from interp.models.handle import ModelHandle
from interp.models.taps import BLOCKS, TAPS, mark, strip_hooks
from interp.names import unknown
from interp.sites import Site
from interp.types import RuntimeStep
from probes.capturing import LAST, MEAN
from probes.effects import text_batches
from probes.steering_vectors import is_target, mean_difference

if TYPE_CHECKING:
    from interp.data import Blocks

PLANS = ("contrast", "amplify", "flip")
MODULES = ("down", "mlp")
SIGNS = {"contrast": (1.0, -1.0), "amplify": (1.0, 0.0), "flip": (0.0, 1.0)}
"""Plan -> multiples of v for (target, rest)."""


@dataclass(frozen=True)
class CasalConfig:
    """What is trained, and how."""

    plan: str = "flip"
    """Which class is pushed where, one of `PLANS`; see the module."""
    strength: float = 1.0
    """alpha, in units of the difference between the class means."""
    module: str = "down"
    """One of `MODULES`: the MLP's last matrix, or all of the MLP."""
    steps: int = 400
    """Steps of Adam."""
    rate: float = 1e-3
    """Learning rate at the start; it falls to 0 linearly."""
    batch: int = 128
    """Rows in a step, of the texts and of the kept tokens each."""
    keep: float = 1.0
    """Weight of the kept tokens' loss; without such tokens nothing is kept."""
    seed: int = 0
    """Of the batches."""

    def __post_init__(self) -> None:
        """Refuse unknown names and numbers out of range."""
        if self.plan not in PLANS:
            raise ValueError(unknown("plan", str(self.plan), PLANS))
        if self.module not in MODULES:
            raise ValueError(unknown("module", str(self.module), MODULES))
        for name, least in (("steps", 1), ("batch", 1), ("keep", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}.")
        if not self.rate > 0:
            raise ValueError(f"rate must be above 0, got {self.rate}.")


@dataclass(frozen=True, eq=False)
class Casal:
    """A model with one trained module."""

    handle: ModelHandle
    """The copy of the model; it has no hooks, and all its other weights are those of the original."""
    module: str
    """Path of the module that was trained."""
    losses: Float[np.ndarray, " step"]
    """Loss at each step: squared distance from the target, summed over d_model, mean over rows."""
    missed: dict[str, float]
    """Share of the wanted move that is missed on the rows trained on, ||t - a_M||^2 / ||t - a||^2, pooled over the
    pushed rows (`pushed`), and the same distance for the others per pushed row (`held`, `kept`)."""
    vector: Float[np.ndarray, " d_model"]
    """v, the difference in means at resid_post of the block."""

    @property
    def trained(self) -> dict[str, Tensor]:
        """The parameters of the module, by their whole names."""
        own = self.handle.module.get_submodule(self.module).named_parameters()
        return {f"{self.module}.{name}": value.detach() for name, value in own}


@dataclass(frozen=True, eq=False)
class _Rows:
    """What a module reads and writes, row by row, and the stream after its block."""

    inputs: Float[Tensor, "row d_in"]
    outputs: Float[Tensor, "row d_model"]
    stream: Float[Tensor, "row d_model"]


def casal(
    handle: ModelHandle,
    texts: Sequence[str | Tensor],
    labels: Any,
    target: Any,
    layer: int,
    config: CasalConfig | None = None,
    *,
    position: str = LAST,
    keep: Blocks | None = None,
    on_progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> Casal:
    """Return a copy of the model with the steering built into one module of block `layer`.

    Args:
        handle: the model; it is left as it is.
        texts: texts of the class and of the rest, or their ids.
        labels: a label for each.
        target: the label of the class.
        layer: the block, counted from 0.
        config: what is trained, and how.
        position: the token that is steered, `last` or a number; not `mean`.
        keep: neutral text whose tokens are to stay as they are; None keeps nothing.
        on_progress: hears (steps done, steps in all).

    Raises:
        ValueError: a model with steps that act while it runs, no text on one of the sides, no such block or position.
    """
    config = config or CasalConfig()
    if position == MEAN:
        raise ValueError("CASAL steers one token of each text; name a position such as last.")
    after = handle.check_site(Site(layer, "resid_post"))
    fresh = copy_model(handle)
    path = ".".join(
        (
            BLOCKS[handle.family],
            str(layer),
            TAPS[handle.family]["mlp_act" if config.module == "down" else "mlp_out"].module,
        )
    )
    rows = _text_rows(handle, path, after, texts, position)
    chosen = is_target(labels, target, len(texts))
    v = mean_difference(rows.stream, chosen, True).vector
    sign = torch.tensor(np.where(chosen, *SIGNS[config.plan]), dtype=torch.float32)
    wanted = rows.outputs + config.strength * sign[:, None] * torch.as_tensor(v, dtype=torch.float32)
    kept = None if keep is None or config.keep == 0 else _block_rows(handle, path, after, keep)
    module = fresh.module.get_submodule(path)
    trained, losses = _train(module, rows.inputs, wanted, kept, config, on_progress)
    with torch.no_grad():
        for own, new in zip(module.parameters(), trained.parameters(), strict=True):
            own.copy_(new)
    missed = _missed(trained, rows, wanted, sign != 0, kept)
    return Casal(fresh, path, np.array(losses), missed, v)


def copy_model(handle: ModelHandle, changed: Mapping[str, Any] | None = None) -> ModelHandle:
    """Return a copy of the model that shares nothing with it.

    Args:
        handle: the model.
        changed: parameters that are other in the copy, by their whole names.

    Raises:
        ValueError: a model with steps that act while it runs, or a parameter that it has not.
    """
    if handle._attached or any(isinstance(step, RuntimeStep) for step in handle.spec.recipe):
        raise ValueError("A recipe with steps that act while the model runs cannot be copied; leave these steps out.")
    module = copy.deepcopy(handle.module)
    strip_hooks(module)
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in (changed or {}).items():
            if name not in own:
                raise ValueError(unknown("parameter", name, own))
            own[name].copy_(torch.as_tensor(value))
    return ModelHandle(replace(handle.spec, name=f"{handle.spec.name} (casal)", recipe=()), module, handle.tokenizer)


@contextmanager
def _watch(handle: ModelHandle, path: str) -> Iterator[dict[str, Tensor]]:
    """Keep what the module at `path` reads and writes in each forward."""
    seen: dict[str, Tensor] = {}

    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen["inputs"], seen["outputs"] = args[0].detach(), output.detach()

    with handle.lock:
        registered = handle.module.get_submodule(path).register_forward_hook(mark(hook))
        try:
            yield seen
        finally:
            registered.remove()


@torch.no_grad()
def _text_rows(handle: ModelHandle, path: str, after: Site, texts: Sequence[str | Tensor], position: str) -> _Rows:
    """Return a row for each text."""
    found: dict[int, tuple[Tensor, ...]] = {}
    for part in text_batches(handle, texts):
        chosen = part.chosen(handle, position).to(handle.device)
        with _watch(handle, path) as seen, capture(handle, after, stop=True) as taken:
            handle.forward(part.tokens, mask=part.real)
        sides = (seen["inputs"], seen["outputs"], taken[after])
        rows = zip(*(side[chosen].float().cpu() for side in sides), strict=True)
        found |= dict(zip(part.numbers.tolist(), rows, strict=True))
    return _Rows(*(torch.stack(side) for side in zip(*(found[i] for i in range(len(texts))), strict=True)))


@torch.no_grad()
def _block_rows(handle: ModelHandle, path: str, after: Site, blocks: Blocks) -> _Rows:
    """Return a row for each token of neutral text but BOS."""
    found: list[tuple[Tensor, ...]] = []
    for start in range(0, len(blocks), 4):
        some = blocks.select(torch.arange(start, min(start + 4, len(blocks))))
        chosen = (some.keep & ~some.bos()).to(handle.device)
        with _watch(handle, path) as seen, capture(handle, after, stop=True) as taken:
            handle.forward(some.tokens.long())
        found.append(tuple(side[chosen].float().cpu() for side in (seen["inputs"], seen["outputs"], taken[after])))
    return _Rows(*(torch.cat(side) for side in zip(*found, strict=True)))


def _train(
    module: nn.Module,
    inputs: Float[Tensor, "row d_in"],
    wanted: Float[Tensor, "row d_model"],
    kept: _Rows | None,
    config: CasalConfig,
    on_progress: Callable[[int, int], object],
) -> tuple[nn.Module, list[float]]:
    """Return (a trained float32 copy of the module, loss at each step)."""
    trained = copy.deepcopy(module).float().cpu().requires_grad_(True)
    adam = torch.optim.Adam(trained.parameters(), lr=config.rate)
    fall = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 1e-3, config.steps)
    generator, losses = torch.Generator().manual_seed(config.seed), []
    for step in range(config.steps):
        loss = _distance(trained, inputs, wanted, config.batch, generator)
        if kept is not None:
            loss = loss + config.keep * _distance(trained, kept.inputs, kept.outputs, config.batch, generator)
        adam.zero_grad()
        loss.backward()
        adam.step()
        fall.step()
        losses.append(loss.item())
        on_progress(step + 1, config.steps)
    return trained.requires_grad_(False), losses


def _distance(
    module: nn.Module,
    inputs: Float[Tensor, "row d_in"],
    wanted: Float[Tensor, "row d_model"],
    batch: int,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Return the squared distance from what is wanted, mean over rows drawn without replacement."""
    drawn = slice(None) if len(inputs) <= batch else torch.randperm(len(inputs), generator=generator)[:batch]
    return (module(inputs[drawn]) - wanted[drawn]).square().sum(1).mean()


@torch.no_grad()
def _missed(
    module: nn.Module, rows: _Rows, wanted: Float[Tensor, "row d_model"], pushed: Tensor, kept: _Rows | None
) -> dict[str, float]:
    """Return squared distances from what was wanted, in units of the mean squared push."""
    push = float((wanted - rows.outputs)[pushed].square().sum(1).mean()) or 1.0
    parts = {"pushed": (rows.inputs[pushed], wanted[pushed]), "held": (rows.inputs[~pushed], wanted[~pushed])}
    if kept is not None:
        parts["kept"] = (kept.inputs, kept.outputs)
    return {name: float((module(x) - y).square().sum(1).mean()) / push for name, (x, y) in parts.items() if len(x)}
