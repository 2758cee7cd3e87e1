"""Train a dictionary: one loop that fits one screen; logs, checkpoints and progress bars listen.

Batches are a function of the step and every draw is seeded by (seed, step), so the state below is all that a resumed
training needs to be the training that was never broken.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vecdot, vector_norm
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from interp.checkpoint import load_optimizer_tensors, optimizer_tensors
from sae.auxk import auxk_loss
from sae.config import TrainConfig, default_dead_after, default_lr
from sae.initialise import initialise
from sae.model import Sae
from sae.rules import Context

SAMPLE_ROWS = 8192
"""Rows that the initialisation looks at."""


@runtime_checkable
class Batches(Protocol):
    """Where activations come from: a store, or anything that gives the batch of a step."""

    d_in: int

    def batch(self, step: int) -> Float[Tensor, "batch d_in"]:
        """Return the activations of `step`, always the same for the same step."""
        ...


@runtime_checkable
class Listener(Protocol):
    """What hears of the training; it changes nothing in it."""

    def on_step(self, training: Training, metrics: dict[str, Tensor | float]) -> None:
        """Hear of a finished step; metrics may be 0-d tensors."""
        ...

    def on_stop(self, training: Training) -> None:
        """Hear that the training ends here, finished or not."""
        ...


class Training:
    """A training in progress: the dictionary, its optimiser, and how long each latent has been silent."""

    def __init__(self, sae: Sae, config: TrainConfig) -> None:
        """Start at step 0; `restore` goes on from a checkpoint."""
        self.sae, self.config, self.step = sae, config, 0
        self.whole = True  # False while a step is half done: such a state must not be saved
        self.peak_lr = config.lr if config.lr is not None else default_lr(sae.d_sae, config.steps)
        self.dead_after = config.dead_after if config.dead_after is not None else default_dead_after(config.tokens)
        self.optimizer = torch.optim.Adam(sae.parameters(), lr=self.peak_lr, fused=True)
        self.silent = torch.zeros(sae.d_sae, dtype=torch.long, device=sae.W_dec.device)

    @property
    def lr(self) -> float:
        """Adam's rate at this step: up from 0, flat, down to 0."""
        steps, config = self.config.steps, self.config
        up = (self.step + 1) / max(1.0, config.warmup * steps)
        down = (steps - self.step) / max(1.0, config.decay * steps)
        return self.peak_lr * min(1.0, up, down)

    @property
    def tokens(self) -> int:
        """Rows seen so far."""
        return self.step * self.config.batch

    def advance(self, raw: Float[Tensor, "batch d_in"]) -> dict[str, Tensor | float]:
        """Take one optimiser step on raw activations and return its metrics (`mse` and `fvu` before the step)."""
        sae, lr = self.sae, self.lr
        x, _ = sae.normaliser.into(raw.to(sae.W_dec.device, sae.W_dec.dtype))
        dead = self.silent >= self.dead_after
        generator = torch.Generator(x.device).manual_seed(self.config.seed * 1_000_003 + self.step)
        ctx = Context(self.step, self.config.steps, generator, dead)
        code = sae.encode_normalised(x, ctx)
        recon = sae.decode_normalised(code)
        mse = mse_loss(recon, x)
        losses = {"mse": mse, **sae.rule.penalties(x, code, recon, sae, ctx)}
        if self.config.aux:
            losses["aux"] = self.config.aux * auxk_loss(x, recon, dead, sae)
        loss = torch.stack(list(losses.values())).sum()
        grad_norm = self._update(loss)
        sae.rule.observe(code, ctx)
        self.silent = torch.where(code.fired(), 0, self.silent + len(code))
        self.whole = True
        metrics = {name: value.detach() for name, value in losses.items()}
        fvu = mse.detach() / vector_norm(x - x.mean(0)).square() * x.numel()
        l0, dead_share = code.l0().double().mean(), dead.double().mean()
        return {
            "loss": loss.detach(),
            "fvu": fvu,
            "l0": l0,
            "dead_share": dead_share,
            "grad_norm": grad_norm,
            "lr": lr,
            **metrics,
        }

    def _update(self, loss: Float[Tensor, ""]) -> Tensor:
        """Backward, project, clip, step, renormalise: atoms have unit length whenever anybody looks."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.zero_grad()
        loss.backward()
        atoms, unit = self.sae.W_dec, self.sae.unit_atoms
        if unit and atoms.grad is not None:
            # Along an atom the gradient only changes its length, which the renormalisation undoes: spare Adam that.
            atoms.grad.addcmul_(vecdot(atoms.grad, atoms.data).unsqueeze(1), atoms.data, value=-1)
        grad_norm = self._clip(loss)
        self.whole = False
        self.optimizer.step()
        if unit:
            atoms.data /= vector_norm(atoms.data, dim=1, keepdim=True).clamp_min(torch.finfo(atoms.dtype).tiny)
        self.step += 1
        return grad_norm

    def _clip(self, loss: Float[Tensor, ""]) -> Tensor:
        """Shorten the gradient to `clip` and return its norm before that; nothing is changed if it is not finite."""
        parameters = [parameter for parameter in self.sae.parameters() if parameter.grad is not None]
        grad_norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        value, norm = torch.stack([loss.detach(), grad_norm]).tolist()  # the step's only wait for a GPU
        for name, number in (("loss", value), ("gradient's norm", norm)):
            if not math.isfinite(number):
                raise ValueError(
                    f"The {name} became {number} at step {self.step}; lower --lr (now {self.lr:.2g}) or look at the "
                    "activations with `mechscope capture`, which counts what is not finite."
                )
        if norm > self.config.clip:
            clip_grads_with_norm_(parameters, self.config.clip, grad_norm)
        return grad_norm

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state as tensors, for a checkpoint."""
        weights = {f"sae.{name}": value for name, value in self.sae.state_dict().items()}
        return weights | {"silent": self.silent} | optimizer_tensors(self.optimizer, "optimizer.")

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Go on from what `tensors` and {"step"} of a checkpoint say."""
        self.sae.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("sae.")})
        self.silent = tensors["silent"].to(self.silent.device)
        load_optimizer_tensors(self.optimizer, tensors, "optimizer.")
        self.step = meta["step"]


def begin(sae: Sae, batches: Batches, config: TrainConfig) -> Training:
    """Return a training at step 0, its dictionary initialised from the first batches."""
    first = range(min(config.steps, -(-SAMPLE_ROWS // config.batch)))
    initialise(sae, torch.cat([batches.batch(step) for step in first])[:SAMPLE_ROWS].float(), config.seed)
    return Training(sae, config)


def train(training: Training, batches: Batches, listeners: Sequence[Listener] = ()) -> Sae:
    """Train to the end and return the dictionary, in evaluation mode.

    Ctrl-C ends the step in hand, lets the listeners save, and raises KeyboardInterrupt; a second one does not wait for
    the step. Every listener hears of the end, whatever the others raise.
    """
    sae = training.sae.train()
    with ExitStack() as ends:
        ends.callback(sae.eval)
        for listener in reversed(listeners):
            ends.callback(listener.on_stop, training)
        with interruptible() as stopped:
            while training.step < training.config.steps and not stopped.is_set():
                metrics = training.advance(batches.batch(training.step))
                for listener in listeners:
                    listener.on_step(training, metrics)
        if training.step < training.config.steps:
            raise KeyboardInterrupt
    sae.finalise()
    return sae


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that no step is left half done; the second interrupts as usual.

    In another thread than the main one, where no signal arrives, the event never sets.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
