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
from sae.backends import Choices, current, using
from sae.batches import Batch, Batches, check_source, read_batch
from sae.config import TrainConfig, default_dead_after, default_lr
from sae.initialise import initialise
from sae.model import Sae
from sae.rules import Context

SAMPLE_ROWS = 8192
"""Rows that the initialisation looks at."""


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
        trained = [parameter for parameter in sae.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=self.peak_lr, fused=True)
        self.kernels = current() or Choices()
        self.silent = torch.zeros(sae.d_sae, dtype=torch.long, device=sae.W_dec.device)

    @property
    def lr(self) -> float:
        """Adam's rate at this step: up from 0, flat, down to 0."""
        steps, config = self.config.steps, self.config
        up = (self.step + 1) / max(1.0, config.warmup * steps)
        down = (steps - self.step) / max(1.0, config.decay * steps)
        return self.peak_lr * min(1.0, up, down)

    @property
    def needs(self) -> frozenset[str]:
        """Fields of `Batch` that a step needs beside x."""
        return frozenset((*self.sae.rule.needs, *self.sae.target.needs))

    def check(self, batches: Batches) -> None:
        """Refuse a source of batches that lacks what the rule or the target needs."""
        config = self.sae.config
        check_source(batches, self.sae.rule.needs, f"The rule {config.rule!r}")
        check_source(batches, self.sae.target.needs, f"The target {config.target.kind!r}")
        if batches.d_in != self.sae.d_in:
            raise ValueError(f"The dictionary reads rows of width d_in={self.sae.d_in}, the source has {batches.d_in}.")

    @property
    def done(self) -> bool:
        """Whether every step has been taken."""
        return self.step >= self.config.steps

    @property
    def tokens(self) -> int:
        """Rows seen so far."""
        return self.step * self.config.batch

    def advance(self, raw: Float[Tensor, "batch d_in"] | Batch) -> dict[str, Tensor | float]:
        """Take one optimiser step on raw activations and return its metrics (`mse` and `fvu` before the step)."""
        with using(self.kernels):
            return self._advance(raw if isinstance(raw, Batch) else Batch(raw))

    def _advance(self, batch: Batch) -> dict[str, Tensor | float]:
        sae, lr = self.sae, self.lr
        x, scale = sae.normaliser.into(batch.x.to(sae.W_dec.device, sae.W_dec.dtype))
        dead = self.silent >= self.dead_after
        generator = torch.Generator(x.device).manual_seed(self.config.seed * 1_000_003 + self.step)
        out = sae.target.scale(scale)
        # One unit of a normalised reconstruction is `factor` units of a raw one.
        gradient = None if batch.gradient is None else batch.gradient.to(x) * out.factor
        y = sae.target.wanted(batch, x)
        straight = sae.target.bypass(x)
        wanted = y if straight is None else y - straight  # what is left for the atoms
        ctx = Context(self.step, self.config.steps, generator, dead, gradient, None if wanted is x else wanted)
        code = sae.encode_normalised(x, ctx)
        sparse = sae.decode_normalised(code)
        mse = mse_loss(sparse, wanted)
        recon = sparse if straight is None else sparse + straight
        losses = {
            **sae.target.losses(mse, lambda: sae.normaliser.back(recon, out), batch),
            **sae.rule.penalties(x, code, sparse, sae, ctx),
        }
        if self.config.aux:
            losses["aux"] = self.config.aux * auxk_loss(x, sparse, dead, sae, wanted)
        loss = torch.stack(list(losses.values())).sum()
        grad_norm = self._update(loss)
        sae.rule.observe(code, ctx)
        self.silent = torch.where(code.fired(), 0, self.silent + len(code))
        self.whole = True
        metrics = {name: value.detach() for name, value in losses.items()}
        fvu = mse.detach() / vector_norm(y - y.mean(0)).square() * y.numel()
        l0, dead_share = code.l0().double().mean(), dead.double().mean()
        own = {"loss": loss.detach(), "fvu": fvu, "l0": l0, "dead_share": dead_share, "grad_norm": grad_norm, "lr": lr}
        if taken := own.keys() & metrics.keys():
            raise ValueError(f"The rule {sae.config.rule!r} calls a penalty {sorted(taken)[0]!r}, a metric's name.")
        return own | metrics

    def _update(self, loss: Float[Tensor, ""]) -> Tensor:
        """Backward, project, clip, step, renormalise: atoms have unit length whenever anybody looks."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.zero_grad()
        loss.backward()
        atoms, unit = self.sae.W_dec, self.sae.unit_atoms
        if unit and atoms.grad is not None:
            # Along an atom the gradient only changes its length, which the renormalisation undoes: spare Adam that.
            along = vecdot(atoms.grad, atoms.data)
            if self.sae.config.target.blocks:  # length 1 is then not Euclidean length 1
                along /= vecdot(atoms.data, atoms.data)
            atoms.grad.addcmul_(along.unsqueeze(1), atoms.data, value=-1)
        grad_norm = self._clip(loss)
        self.whole = False
        self.optimizer.step()
        if unit:
            atoms.data /= self.sae.length(atoms.data).unsqueeze(1)
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
    training = Training(sae, config)
    training.check(batches)
    first = range(min(config.steps, -(-SAMPLE_ROWS // config.batch)))
    found = [read_batch(batches, step, training.needs & {"y"}) for step in first]
    x = torch.cat([batch.x for batch in found])[:SAMPLE_ROWS].float()
    pairs = [batch.y for batch in found if batch.y is not None]
    initialise(sae, x, config.seed, torch.cat(pairs)[:SAMPLE_ROWS].float() if pairs else None)
    return training


def train(training: Training, batches: Batches, listeners: Sequence[Listener] = ()) -> Sae:
    """Train to the end and return the dictionary, in evaluation mode (`train_together` with one)."""
    return train_together([training], batches, [listeners])[0]


def train_together(
    trainings: Sequence[Training], batches: Batches, listeners: Sequence[Sequence[Listener]] = ()
) -> list[Sae]:
    """Train several dictionaries in one pass over the activations; return them, in evaluation mode.

    Each is bit for bit what it is when trained alone: batches are a function of the step, and a training takes a step
    only at its own number. Their lengths may so differ, and some may go on from a checkpoint.

    Ctrl-C ends the step in hand, lets the listeners save, and raises KeyboardInterrupt; a second one does not wait for
    the step. Every listener hears of the end, whatever the others raise.

    Args:
        trainings: what is trained, all with the same rows per step.
        batches: the activations.
        listeners: those of each training; none for all where left out.

    Raises:
        ValueError: the trainings want batches of different sizes, or something that the source does not give.
    """
    heard = list(zip(trainings, listeners or [()] * len(trainings), strict=True))
    if len(sizes := {training.config.batch for training in trainings}) > 1:
        raise ValueError(f"Dictionaries trained in one pass share its batches, got sizes {sorted(sizes)}.")
    for training in trainings:
        training.check(batches)
    with ExitStack() as ends:
        for training, hears in heard:
            ends.callback(training.sae.train().eval)
            for listener in reversed(hears):
                ends.callback(listener.on_stop, training)
        with interruptible() as stopped:
            while (pending := [pair for pair in heard if not pair[0].done]) and not stopped.is_set():
                step = min(training.step for training, _ in pending)
                due = [pair for pair in pending if pair[0].step == step]
                batch = read_batch(batches, step, frozenset().union(*(training.needs for training, _ in due)))
                for training, hears in due:
                    metrics = training.advance(batch)
                    for listener in hears:
                        listener.on_step(training, metrics)
        if pending:
            raise KeyboardInterrupt
    for training in trainings:
        training.sae.finalise()
    return [training.sae for training in trainings]


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
