"""`mechscope demo`: the main job on the embedded model, from text to features, each step a command of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app import console
from app.command import Common
from app.commands import capture, evaluate, features, train
from sae.config import TrainConfig


@dataclass(frozen=True)
class Args(Common):
    """Capture, train, evaluate, describe features and explore, on the embedded language model.

    Everything is computed here and now, on text that the model wrote itself; nothing is downloaded. Given again, the
    command finds the finished steps and opens the explorer.
    """

    site: str = "resid_post.2"
    """Where the dictionary is trained."""
    d_sae: int = 3072
    """Number of latents."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(tokens=3_000_000, batch=2048))
    """The optimisation."""
    explore: bool = True
    """Open the explorer at the end; `--no-explore` only computes."""
    port: int | None = None
    """Port of the explorer on this machine; None finds a free one."""


def run(args: Args) -> dict[str, Any]:
    """Run the five steps; return the dictionary's run and its headline numbers."""
    started = time.time()
    console.note("1/4  capture: activations of tiny as it reads its own stories")
    store = capture.run(capture.Args(model="tiny", site=(args.site,), runs=args.runs))
    console.note("2/4  train: a sparse dictionary on them")
    sae = train.run(train.Args(store=_ref(store), d_sae=args.d_sae, train=args.train, runs=args.runs))
    console.note("3/4  evaluate: what the model loses when it runs through the dictionary")
    measured = evaluate.run(evaluate.Args(sae=_ref(sae), runs=args.runs))
    console.note("4/4  features: what each latent fires on, and what it says")
    described = features.run(features.Args(sae=_ref(sae), runs=args.runs))
    result = {
        "run": sae["run"],
        "evaluation_run": measured["run"],
        "features_run": described["run"],
        "site": args.site,
        **{key: measured[key] for key in ("fvu", "l0", "dead_share", "ce_delta", "kl")},
        "ce_recovered": measured["ce_recovered_mean"],
        "train_seconds": sae["seconds"],
        "seconds": round(time.time() - started, 1),
    }
    console.emit(
        f"\n{args.d_sae:,} latents on {args.site}, {result['l0']:.1f} active per token, explain "
        f"{1 - result['fvu']:.1%} of the variance. Spliced into the model they recover {result['ce_recovered']:.1%} "
        f"of the loss that ablating to the mean costs; {result['dead_share']:.1%} never fired on the held-out text. "
        f"{result['seconds']:.0f} s in all."
    )
    if args.explore:
        from app.commands import explore

        explore.run(explore.Args(runs=args.runs, port=args.port))
    return result


def _ref(result: dict[str, Any]) -> str:
    """Return the name of the run that a command reports."""
    return Path(result["run"]).name
