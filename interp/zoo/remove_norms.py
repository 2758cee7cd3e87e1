"""Tune a GPT-2 until it needs no layer norm that divides by each token's own deviation (`interp.layers.without_norm`).

    python -m interp.zoo.remove_norms --model tiny --work build/tiny_without_norm
    python -m interp.zoo.remove_norms --model tiny --work build/tiny_tuned --control    # the same steps, with norms

    python -m interp.zoo.remove_norms --model tiny --work build/tiny_tuned --control    # the same, but norms kept
steps and down to half along a cosine, weight decay 0.01, gradients clipped at 1, and 0.1 times the spread of the final
norm's deviations added to the loss. What comes out is a plain model folder, `WORK/model`, and `WORK/measured.json`.
A run that was stopped (Ctrl-C, kill -9) goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.data import DataSpec, token_blocks
from interp.layers.direct import direct_logits
from interp.layers.without_norm import NormRemoval, Schedule
from interp.metrics import next_token_loss
from interp.models import ModelHandle, load_model
from interp.models.loading import no_progress_bars
from interp.zoo.training import Pace, fit

MOMENTUM = 0.9
"""Of the averages of deviations, for a batch of 32 sequences; (batch / 32)-th power of it for another."""
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class RemovalConfig:
    """How norms are removed."""

    steps: int = 300
    """Steps of tuning."""
    batch: int = 8
    """Sequences in a step."""
    context: int = 256
    """Tokens in a sequence."""
    lr: float = 6e-4
    """Peak rate of AdamW."""
    lr_end: float = 3e-4
    """Rate at the end."""
    warmup: int = 20
    """Steps until the peak rate."""
    spread: float = 0.1
    """Factor of the auxiliary loss."""
    start: int = 20
    """Step of the first removal."""
    gaps: tuple[int, int, int] = (2, 2, 3)
    """Steps between removals of blocks: MLP, q and k, v."""
    seed: int = 0
    """Of the order of the text."""


def remove_norms(
    handle: ModelHandle,
    text: DataSpec,
    work: Path,
    config: RemovalConfig,
    *,
    minutes: float = 1e9,
    control: bool = False,
) -> dict[str, Any]:
    """Tune `handle.module` in place from where `work` stands; return what was measured, saved too when it is done.

    Args:
        handle: a GPT-2; use another handle afterwards, as its module is changed.
        text: what it is tuned on; the part `text.heldout` is for measuring.
        work: checkpoints, log, and in the end the folder `model` and measured.json.
        config: the recipe.
        minutes: stop, resumably, after so many minutes.
        control: keep all norms: the same tuning otherwise, for comparison.

    Raises:
        ValueError: another architecture, fewer steps than the schedule needs, or a checkpoint of another recipe.
    """
    blocks = token_blocks(handle, text)
    train, held = (part.tokens.long() for part in blocks.split(text.heldout or 0.05, seed=config.seed))
    found: dict[str, Any] = {f"{name}_before": value for name, value in _measured(handle, held).items()}
    module = handle.module.requires_grad_(True).train()
    removal = None
    if not control:
        schedule = Schedule(config.start, config.gaps)
        removal = NormRemoval(module, schedule, momentum=MOMENTUM ** (config.batch / 32), eot=handle.bos_id)
        if removal.last_step >= config.steps:
            raise ValueError(f"steps must be above {removal.last_step}, when the last norm goes, got {config.steps}.")

    def loss_at(step: int) -> Tensor:
        tokens = batch_at(train, config, step)
        if removal is None:
            return _loss(module, tokens)
        removal.at(step)
        removal.read(tokens)
        return _loss(module, tokens) + config.spread * removal.spread()

    meta = fit(
        module,
        config.lr,
        loss_at,
        lambda: {"loss": evaluate_loss(module, held, removal)},
        work,
        Pace(config.steps, minutes, evaluate_every=60),
        per_step=("tokens", config.batch * config.context),
        recipe={**asdict(config), "gaps": list(config.gaps), "control": control, "text": text.text},
        optimizers=[torch.optim.AdamW(module.parameters(), lr=config.lr, weight_decay=WEIGHT_DECAY)],
        factor=lambda step, steps: rate(step, steps, config),
    )
    found["steps"] = meta["step"]
    if meta["step"] < config.steps:
        return found
    if removal is not None:
        removal.at(config.steps)
        found["loss_unfolded"] = evaluate_loss(module.eval(), held, removal)
    plain = module.eval().requires_grad_(False) if removal is None else removal.folded()
    found |= _measured(_save(handle, plain, work / "model"), held)
    (work / "measured.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def batch_at(blocks: Tensor, config: RemovalConfig, step: int) -> Tensor:
    """Return the blocks [batch context] of a step: a pure function of seed and step."""
    rng = np.random.default_rng([config.seed, step])
    return blocks[torch.from_numpy(rng.integers(0, len(blocks), config.batch))]


def rate(step: int, steps: int, config: RemovalConfig) -> float:
    """Return the part of the peak rate: up over `warmup`, then down to `lr_end` along a cosine."""
    end = config.lr_end / config.lr
    along = max(0, step - config.warmup) / max(1, steps - config.warmup)
    return min((step + 1) / config.warmup, end + (1 - end) * (1 + math.cos(math.pi * along)) / 2)


@torch.no_grad()
def evaluate_loss(module: Any, blocks: Tensor, removal: NormRemoval | None = None) -> float:
    """Return nats per token."""
    losses = []
    for tokens in blocks.split(16):
        if removal is not None:
            removal.read(tokens)
        losses.append(float(_loss(module, tokens)) * len(tokens))
    return sum(losses) / len(blocks)


def _loss(module: Any, tokens: Tensor) -> Tensor:
    return next_token_loss(module(input_ids=tokens).logits, tokens).mean()


def _save(handle: ModelHandle, plain: Any, folder: Path) -> ModelHandle:
    """Write a plain model folder with the tokenizer of `handle`; return the model as it is read back."""
    with no_progress_bars():
        plain.save_pretrained(folder)
    if handle.tokenizer is not None:
        handle.tokenizer.save_pretrained(folder)
    return load_model(str(folder), device="cpu")


def _measured(handle: ModelHandle, blocks: Tensor) -> dict[str, float]:
    return {"loss": evaluate_loss(handle.module, blocks), **attribution_error(handle, blocks)}


def attribution_error(handle: ModelHandle, blocks: Tensor, rows: int = 8) -> dict[str, float]:
    """Return how far direct contributions are from what removing heads and MLPs takes, and how well they add up.

    `dla_removal_error`: mean |contribution - loss on removal| / mean |loss on removal|, over all positions of `rows`
    sequences but the last, of the next token's logit above the mean.
    """
    tokens = blocks[:rows]
    where = torch.ones_like(tokens, dtype=torch.bool)
    where[:, -1] = False
    targets = tokens[:, 1:].flatten()
    mean = torch.full_like(targets, -1)
    found = direct_logits(handle, tokens, targets, against=mean, where=where, removal=True)
    return {"dla_removal_error": found.removal_error(), "dla_sum_error": float(found.error.abs().max())}


def main() -> None:
    """Parse the command line and tune."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="tiny", help="a GPT-2: an embedded model or a local folder")
    parser.add_argument("--text", default="demo", help="text to tune on")
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and of what comes out")
    parser.add_argument("--steps", type=int, default=300, help="steps of tuning")
    parser.add_argument("--batch", type=int, default=8, help="sequences in a step")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop (resumably) after so many minutes")
    parser.add_argument("--control", action="store_true", help="keep the norms: the same tuning otherwise")
    args = parser.parse_args()
    handle = load_model(args.model, device="cpu")
    config = RemovalConfig(steps=args.steps, batch=args.batch, context=min(256, handle.n_ctx))
    text = DataSpec(args.text, context=config.context)
    found = remove_norms(handle, text, args.work, config, minutes=args.minutes, control=args.control)
    sys.stderr.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
