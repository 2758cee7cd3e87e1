"""What the trainings of embedded models share: a GPT-2, its two optimisers, the rate, and a loop that resumes.

Hidden matrices are trained by Muon (Jordan et al. 2024, as in `torch.optim.Muon`), the rest by AdamW: on two cores
tokens are the scarce thing, and Muon needs fewer of them. The learning rate is constant and then falls linearly to
zero, so more steps asked for before the fall continue the same run.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.checkpoint import load_optimizer_tensors, optimizer_tensors, read_checkpoint, write_checkpoint

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Pace:
    """How long a training goes on, and how often it says and saves something."""

    steps: int
    """Steps in all; the learning rate reaches zero after the last."""
    minutes: float = 1e9
    """Stop, resumably, after so many minutes."""
    log_every: int = 20
    """Steps between lines of the log."""
    evaluate_every: int = 200
    """Steps between evaluations; a multiple of `log_every`."""
    save_seconds: float = 120.0
    """Seconds between checkpoints."""


def build_gpt2(
    vocab: int, context: int, d_model: int, n_layer: int, n_head: int, seed: int, **changes: object
) -> torch.nn.Module:
    """Return a freshly initialised `GPT2LMHeadModel` without dropout; token 0 begins and ends a sequence."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    shape = {"vocab_size": vocab, "n_positions": context, "n_embd": d_model, "n_layer": n_layer, "n_head": n_head}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**shape, **dropout, bos_token_id=0, eos_token_id=0, **changes))  # type: ignore[arg-type]


def build_optimizers(model: torch.nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Return [Muon for the blocks' matrices, at twice the rate, AdamW for embeddings, gains and biases]."""
    matrices = [p for n, p in model.named_parameters() if ".h." in n and p.ndim == 2]
    rest = [p for n, p in model.named_parameters() if not (".h." in n and p.ndim == 2)]
    muon = torch.optim.Muon(matrices, lr=2 * lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adam]


def rate(step: int, steps: int, warmup: int = 100, fall: float = 0.35) -> float:
    """Return the learning-rate factor at `step`: up over `warmup`, flat, then down over the last `fall`."""
    return min(1.0, (step + 1) / warmup, (steps - step) / (fall * steps))


def load_weights(model: torch.nn.Module, path: Path) -> dict[str, Any]:
    """Put the weights of the checkpoint `path` into `model`; return what the checkpoint says of itself."""
    tensors, meta = read_checkpoint(path)
    model.load_state_dict(_model_tensors(tensors), strict=False)
    return meta


def fit(
    model: torch.nn.Module,
    lr: float,
    loss_at: Callable[[int], Tensor],
    evaluate: Callable[[], dict[str, float]],
    work: Path,
    pace: Pace,
    *,
    per_step: tuple[str, int],
    recipe: dict[str, Any],
    optimizers: list[torch.optim.Optimizer] | None = None,
    factor: Callable[[int, int], float] = rate,
) -> dict[str, Any]:
    """Train `model` in place from the checkpoint in `work`, or from the start; return the last checkpoint's meta.

    Ctrl-C and SIGTERM end it after the step in hand, saved.

    Args:
        model: what is trained.
        lr: peak rate of AdamW; not read where `optimizers` are given.
        loss_at: the loss of a step, a pure function of the step and the weights.
        evaluate: measurements for the log, called every `pace.evaluate_every` steps in evaluation mode.
        work: folder of checkpoint.safetensors and log.jsonl.
        pace: how long, how often.
        per_step: what a step consumes: its name and how much (`("tokens", 8192)`).
        recipe: what identifies the training; a checkpoint of another recipe is refused.
        optimizers: others than those of `build_optimizers`, at their peak rates.
        factor: (step, steps) -> part of the peak rate.

    Raises:
        ValueError: the checkpoint in `work` is of another recipe.
    """
    work.mkdir(parents=True, exist_ok=True)
    optimizers = build_optimizers(model, lr) if optimizers is None else optimizers
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("peak_lr", group["lr"])
    meta = _resume(model, optimizers, work / CHECKPOINT, recipe)
    meta |= {"steps": pace.steps, "recipe": recipe}
    started = since = saved = time.monotonic()
    running: list[Tensor] = []
    with _stopped() as stop, (work / "log.jsonl").open("a", encoding="utf-8") as log:
        while meta["step"] < pace.steps and not stop() and time.monotonic() - started < 60 * pace.minutes:
            running.append(_step(model, optimizers, loss_at, meta["step"], factor(meta["step"], pace.steps)))
            meta["step"] += 1
            if meta["step"] % pace.log_every == 0:
                now = time.monotonic()
                seconds, since = now - since, now
                meta["seconds"] += seconds
                row = _line(meta, per_step, running, seconds)
                if meta["step"] % pace.evaluate_every == 0:
                    row["heldout"] = {name: round(value, 5) for name, value in _evaluated(model, evaluate).items()}
                _write(log, row)
                running.clear()
            if time.monotonic() - saved > pace.save_seconds:
                _save(model, optimizers, work / CHECKPOINT, meta)
                saved = time.monotonic()
        _save(model, optimizers, work / CHECKPOINT, meta)
    return meta


def _step(
    model: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    loss_at: Callable[[int], Tensor],
    step: int,
    factor: float,
) -> Tensor:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
    loss = loss_at(step)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.detach()


def _line(meta: dict[str, Any], per_step: tuple[str, int], running: list[Tensor], seconds: float) -> dict[str, Any]:
    """Return a line of the log: how far, the mean loss since the last one, the speed, and the hours left."""
    what, amount = per_step
    left = (meta["steps"] - meta["step"]) * seconds / len(running) / 3600
    return {
        "step": meta["step"],
        what: meta["step"] * amount,
        "loss": round(float(np.mean([float(loss) for loss in running])), 4),
        "per_s": round(len(running) * amount / seconds, 1),
        "hours_left": round(left, 2),
    }


def _evaluated(model: torch.nn.Module, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
    model.eval()
    with torch.inference_mode():
        found = evaluate()
    model.train()
    return found


def _write(log: Any, row: dict[str, Any]) -> None:
    line = json.dumps(row) + "\n"
    log.write(line)
    log.flush()
    sys.stderr.write(line)


def _model_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}


def _resume(
    model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], path: Path, recipe: dict[str, Any]
) -> dict[str, Any]:
    """Load the checkpoint `path` if there is one; return its meta, or that of a start."""
    if not path.exists():
        return {"step": 0, "seconds": 0.0}
    tensors, meta = read_checkpoint(path)
    found = meta.get("recipe", recipe)
    if found != recipe:
        other = sorted(key for key in {*found, *recipe} if found.get(key) != recipe.get(key))
        raise ValueError(
            f"{path} was trained with another {', '.join(other)} "
            f"({', '.join(str(found.get(key)) for key in other)}); use that, or another folder."
        )
    model.load_state_dict(_model_tensors(tensors), strict=False)
    for i, optimizer in enumerate(optimizers):
        load_optimizer_tensors(optimizer, tensors, prefix=f"optimizer{i}.")
    return meta


def _save(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], path: Path, meta: dict[str, Any]) -> None:
    # a tied head is the embedding again, and safetensors stores nothing twice
    tied = bool(getattr(model.config, "tie_word_embeddings", False))  # type: ignore[union-attr]
    state = {f"model.{k}": v for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    for i, optimizer in enumerate(optimizers):
        state |= optimizer_tensors(optimizer, prefix=f"optimizer{i}.")
    write_checkpoint(path, state, meta)


@contextmanager
def _stopped() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C or SIGTERM came; the handlers of before come back afterwards."""
    asked: list[int] = []
    before = {
        sign: signal.signal(sign, lambda number, _: asked.append(number)) for sign in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(asked)
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
