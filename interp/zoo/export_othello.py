"""Turn a checkpoint of `train_othello` into an embedded model: float16 shards, a tokenizer of squares, a measured card.

    python -m interp.zoo.export_othello --work build/othello6
    python -m interp.zoo.export_othello --measure othello6

The second form measures weights that are there already, and prints what the card says of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from interp.checkpoint import read_checkpoint
from interp.data.othello import centre, generate_games, square_names
from interp.data.othello_tokens import GAME, vocabulary
from interp.models import load_model
from interp.models.embedded import embedded_models
from interp.names import unknown
from interp.zoo.export import save_half, save_tokenizer, table
from interp.zoo.train_othello import OthelloConfig, build_model, evaluate
from interp.zoo.training import CHECKPOINT, load_weights

NAMES = {4: "othello4", 6: "othello6", 8: "othello"}
"""Side of the board -> name of the embedded model."""

CARD = """# {name}

A GPT-2-architecture model of {parameters:,} parameters ({n_layer} layers, d_model {d_model}, {n_head} heads, context
{context}, {vocab} tokens) that reads the moves of random Othello games on a board of {side}x{side} squares and tells
which moves may come next. It was made for mechscope, as a world model to probe: it never saw a board. It is no player;
every legal move is as good to it as any other.

## Tokens
`{game}` (id 0) begins a game and ends it, the others are the {squares} squares that can be played: `a1`, `b1`, ..., row
by row without the four in the centre. Black moves first, white holds the centre's main diagonal ({diagonal}). A pass
has no token: who plays a move follows from the rules.

```python
model = mechscope.load_model("{name}")
model.logits(model.tokens("{example}"))   # the text of a game; {game} is put before it
```

## Data
Games in which every move is uniform among the legal ones, generated while training by `interp.data.othello`: those of
step t are a pure function of (seed {seed}, t). No game is shipped.

## Recipe
{games:,} games in {steps:,} steps of {batch}, {hours:.1f} hours on {where}. Muon on the blocks' matrices, AdamW on
the rest, peak rate {lr:g}, flat after a warm-up, then linearly to 0 over the last 35%{stopped}.
{targets}

    {command}

{verdict}

## Measured
On {n:,} fresh games of seed {eval_seed}, over all moves but each game's first, with the weights as shipped
(`python -m interp.zoo.export_othello --measure {name} --games {n_plain} --seed {eval_seed}`):

{table}

Top-1 legal: the likeliest token is a legal move. Legal mass: the probability of all legal moves, which is also how
often a sampled token is one. The floor is E[ln number of legal moves]; a model that gives every legal move the
same probability, and others none, has this loss in expectation.

Licence: MIT, like the rest of mechscope.
"""

TRAINED_ON = {
    "legal": "The target at a position is the uniform distribution over the legal moves, the one that the next move\n"
    "was drawn from; its expected gradient is that of the move played, without the noise of the draw.",
    "played": "The target at a position is the move that was played next.",
}


def measure(model: Any, side: int, n: int, seed: int) -> dict[str, float]:
    """Return `interp.zoo.train_othello.evaluate` of `model` on `n` fresh games of `seed`."""
    return evaluate(model, generate_games(n, side, [seed, 0, 2]))


def rows(found: dict[str, float]) -> dict[str, str]:
    """Return the measurements as the card words them."""
    return {
        "top-1 legal": f"{found['top1_legal']:.4%}",
        "legal mass": f"{found['legal_mass']:.4%}",
        "loss per move": f"{found['loss']:.4f} nats",
        "floor of the loss on these games": f"{found['floor']:.4f} nats",
        "KL divergence from uniform over the legal moves": f"{found['above']:.4f} nats",
    }


def export(work: Path, folder: Path, *, verdict: str, where: str, n: int, seed: int) -> dict[str, float]:
    """Write the checkpoint in `work` to `folder` as an embedded model; return what was measured on it.

    Args:
        work: folder of `train_othello`.
        folder: where config.json, shards, tokenizer and README.md go.
        verdict: a sentence for the card on how far training went.
        where: what it was trained on, for the card ("CPU cores, float32").
        n: fresh games to measure on.
        seed: of these games.

    Raises:
        ValueError: there is no checkpoint in `work`.
    """
    config, model, meta = _read(work / CHECKPOINT)
    before = measure(model.eval(), config.side, n, seed)
    save_half(model, folder)
    found = measure(model.float(), config.side, n, seed)
    fresh = measure(build_model(config).eval(), config.side, n, seed)
    save_tokenizer(
        square_tokenizer(config.side), folder, config.context, bos_token=GAME, eos_token=GAME, pad_token=GAME
    )
    measured = rows(found) | {
        "loss per move before rounding to float16": f"{before['loss']:.4f} nats",
        "top-1 legal of the same model untrained": f"{fresh['top1_legal']:.2%}",
    }
    facts = _facts(config, meta) | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "name": NAMES[config.side],
        "where": where,
        "verdict": verdict,
        "n": n,
        "n_plain": n,
        "eval_seed": seed,
        "table": table(measured),
    }
    (folder / "README.md").write_text(CARD.format(**facts), encoding="utf-8")
    return found


def square_tokenizer(side: int) -> Any:
    """Return a `tokenizers.Tokenizer` of squares: "c4 d3" and "C4D3" are two tokens; other words are refused."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    # no token for the unknown: a square that cannot be played must not pass for another token
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(vocabulary(side))}))
    tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    parts = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[a-h][1-8]"), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)  # type: ignore[assignment]
    tokenizer.add_special_tokens([GAME])
    return tokenizer


def _read(path: Path) -> tuple[OthelloConfig, Any, dict[str, Any]]:
    """Return (configuration, model with its weights, meta) of a checkpoint."""
    if not path.is_file():
        raise ValueError(f"There is no {path}; train first: python -m interp.zoo.train_othello --work {path.parent}")
    _, meta = read_checkpoint(path)
    config = OthelloConfig(**meta["recipe"])
    model: Any = build_model(config)
    load_weights(model, path)
    return config, model, meta


def _facts(config: OthelloConfig, meta: dict[str, Any]) -> dict[str, Any]:
    """Return what the card says of the model and its training."""
    side, names = config.side, square_names(config.side)
    moves = generate_games(1, side, 0).moves[0, :4]
    low, *_, high = centre(side)
    command = f"python -m interp.zoo.train_othello --games {meta['steps'] * config.batch}"
    for key, value in asdict(config).items():
        if value != getattr(OthelloConfig(), key):
            command += f" --{key.replace('_', '-')} {value}"
    stopped = "" if meta["step"] == meta["steps"] else f" (stopped at step {meta['step']:,} of {meta['steps']:,})"
    return asdict(config) | {
        "vocab": config.vocab,
        "context": config.context,
        "game": GAME,
        "squares": config.vocab - 1,
        "diagonal": f"{names[low]} and {names[high]}",
        "example": " ".join(names[move] for move in moves),
        "games": meta["step"] * config.batch,
        "steps": meta["step"],
        "hours": meta["seconds"] / 3600,
        "stopped": stopped,
        "targets": TRAINED_ON[config.targets],
        "command": command,
    }


def _measure_embedded(name: str, n: int, seed: int) -> dict[str, float]:
    """Return `measure` of the embedded model `name`."""
    sides = {known: side for side, known in NAMES.items()}
    if name not in embedded_models() or name not in sides:
        raise ValueError(unknown("embedded Othello model", name, sides.keys() & embedded_models().keys()))
    return measure(load_model(name, device="cpu").module, sides[name], n, seed)


def main() -> None:
    """Write interp/zoo/NAME from the checkpoint in --work, or measure weights that are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--work", type=Path, default=Path("build/othello6"), help="folder of train_othello")
    parser.add_argument("--out", type=Path, default=None, help="default: interp/zoo/NAME")
    parser.add_argument("--verdict", default="", help="a sentence for the card on how far training went")
    parser.add_argument("--where", default="one shared CPU core, float32", help="what it was trained on")
    parser.add_argument("--games", type=int, default=4000, help="fresh games to measure on")
    parser.add_argument("--seed", type=int, default=1, help="of these games")
    parser.add_argument("--measure", default=None, metavar="NAME", help="measure an embedded model, write nothing")
    args = parser.parse_args()
    try:
        if args.measure is not None:
            found = _measure_embedded(args.measure, args.games, args.seed)
        else:
            folder = args.out or Path(__file__).parent / NAMES[_read(args.work / CHECKPOINT)[0].side]
            texts = {"verdict": args.verdict, "where": args.where}
            found = export(args.work, folder, **texts, n=args.games, seed=args.seed)
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
