"""Train an embedded world model: a GPT-2 that reads the moves of random Othello games and tells what may come next.

    python -m interp.zoo.train_othello --side 6 --work build/othello6 --games 300000

The games are generated on the way: those of a step are a pure function of (seed, step), so a stopped run (Ctrl-C,
kill -9) goes on where it was. The model never sees a board, only squares (Li et al. 2023, Emergent world
representations).

The next move of a random game is uniform among the legal ones, so the cross-entropy cannot fall below
E[ln number of legal moves], its floor. With `targets="played"` a position's target is the move that was played; with
`targets="legal"` it is the uniform distribution that this move was drawn from. Both have the same expected loss and
gradient given the moves so far; the second has no noise of the draw and needs fewer games.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.othello import Games, check_side, generate_games
from interp.data.othello_tokens import game_tokens, legal_tokens
from interp.zoo.training import Pace, build_gpt2, fit

TARGETS = ("legal", "played")


@dataclass(frozen=True)
class OthelloConfig:
    """What the model is and how it is trained."""

    side: int = 6
    """Squares along an edge of the board: 4, 6 or 8."""
    n_layer: int = 6
    """Transformer blocks."""
    d_model: int = 96
    """Width of the residual stream."""
    n_head: int = 3
    """Attention heads in each block."""
    batch: int = 64
    """Games in a step."""
    lr: float = 3e-3
    """Peak AdamW rate; Muon takes twice that, matched to AdamW's update size."""
    targets: str = "legal"
    """What a position is trained on: `legal` (the uniform distribution over legal moves) or `played` (one of them)."""
    seed: int = 0
    """Of the initialisation and of every step's games."""

    def __post_init__(self) -> None:
        check_side(self.side)
        if self.targets not in TARGETS:
            raise ValueError(f"targets must be one of {', '.join(TARGETS)}, got {self.targets!r}.")

    @property
    def vocab(self) -> int:
        """Tokens: the squares that can be played, and the one that begins and ends a game."""
        return self.side**2 - 3

    @property
    def context(self) -> int:
        """Longest sequence: the token that begins a game, and a game without a pass."""
        return self.side**2 - 3


def build_model(config: OthelloConfig) -> torch.nn.Module:
    """Return a freshly initialised `GPT2LMHeadModel`; its head is not tied to the embedding."""
    return build_gpt2(
        config.vocab,
        config.context,
        config.d_model,
        config.n_layer,
        config.n_head,
        config.seed,
        activation_function="gelu",
        tie_word_embeddings=False,
    )


def games_at(config: OthelloConfig, step: int) -> Games:
    """Return the games of one step."""
    return generate_games(config.batch, config.side, [config.seed, step])


def heldout_games(config: OthelloConfig, n: int) -> Games:
    """Return `n` games of a stream that training never draws from."""
    return generate_games(n, config.side, [config.seed, 0, 1])


def target_distribution(games: Games, targets: str) -> Float[Tensor, "game position token"]:
    """Return what comes next as probabilities; rows after the end of a game are zero."""
    allowed = legal_tokens(games)
    if targets == "legal":
        return torch.from_numpy(allowed / np.maximum(allowed.sum(axis=-1, keepdims=True), 1)).float()
    following = np.roll(game_tokens(games), -1, axis=1)  # the last position holds the first token, 0: the end
    chosen = torch.nn.functional.one_hot(torch.from_numpy(following), allowed.shape[-1])
    return chosen.float() * torch.from_numpy(allowed.any(axis=-1, keepdims=True))


def loss_of(model: Any, games: Games, targets: str) -> Tensor:
    """Return the cross-entropy in nats per position of `games` up to and with the end of each."""
    device = model.lm_head.weight.device
    wanted = target_distribution(games, targets).to(device, non_blocking=True)
    tokens = torch.from_numpy(game_tokens(games)).to(device, non_blocking=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(input_ids=tokens, use_cache=False).logits
    return -(wanted * logits.float().log_softmax(-1)).sum() / wanted.sum()


@torch.inference_mode()
def evaluate(model: Any, games: Games, chunk: int = 256) -> dict[str, float]:
    """Return how well `model` knows the rules on `games`, over all moves but each game's first.

    `loss` in nats per move played, `floor` its least value E[ln number of legal moves] on these games, `above` the
    mean KL divergence from the uniform distribution over legal moves to the model's, `top1_legal` the share of
    positions whose likeliest token is a legal move, and `legal_mass` the mean probability of all legal moves.
    """
    device = model.lm_head.weight.device
    tokens, allowed = game_tokens(games), legal_tokens(games)
    allowed[..., 0] = False
    totals: dict[str, float] = dict.fromkeys(("loss", "floor", "above", "top1_legal", "legal_mass"), 0.0)
    count = 0
    for first in range(0, len(tokens), chunk):
        rows = torch.from_numpy(tokens[first : first + chunk]).to(device)
        legal = torch.from_numpy(allowed[first : first + chunk]).to(device)[:, 1:-1]
        log_p = model(input_ids=rows, use_cache=False).logits[:, 1:-1].float().log_softmax(-1)
        counts, played = legal.sum(-1), rows[:, 2:]
        live = counts > 0
        floor = counts.clamp(min=1).log()
        mean = torch.where(legal, log_p, 0.0).sum(-1) / counts.clamp(min=1)
        best = legal.gather(-1, log_p.argmax(-1, keepdim=True)).squeeze(-1)
        found = {
            "loss": -log_p.gather(-1, played[..., None]).squeeze(-1),
            "floor": floor,
            "above": -mean - floor,
            "top1_legal": best.float(),
            "legal_mass": torch.where(legal, log_p.exp(), 0.0).sum(-1),
        }
        count += int(live.sum())
        for name, values in found.items():
            totals[name] += float(values[live].double().sum())
    return {name: total / count for name, total in totals.items()}


def train(config: OthelloConfig, work: Path, pace: Pace, device: str = "cpu", heldout: int = 512) -> dict[str, Any]:
    """Train until `pace` ends, from the checkpoint in `work` if there is one; return what the checkpoint says."""
    model = build_model(config).to(device)
    kept = heldout_games(config, heldout)
    return fit(
        model,
        config.lr,
        lambda step: loss_of(model, games_at(config, step), config.targets),
        lambda: evaluate(model, kept),
        work,
        pace,
        per_step=("games", config.batch),
        recipe=asdict(config),
    )


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--work", type=Path, default=None, help="checkpoint and log (default: build/othelloSIDE)")
    parser.add_argument("--games", type=float, default=300_000, help="games to train on in all")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop (resumably) after so many minutes")
    parser.add_argument("--evaluate-every", type=int, default=200, help="steps between evaluations")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    for field in fields(OthelloConfig):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), default=field.default, help=f"default {field.default}")
    args = parser.parse_args()
    config = OthelloConfig(**{field.name: getattr(args, field.name) for field in fields(OthelloConfig)})
    pace = Pace(round(args.games / config.batch), args.minutes, evaluate_every=args.evaluate_every)
    train(config, args.work or Path(f"build/othello{config.side}"), pace, args.device)


if __name__ == "__main__":
    main()
