"""Write random games of Othello as text, one per line of a .jsonl file, for every command that reads text.

    python -m interp.zoo.write_games games.jsonl --games 20000 --seed 3

A world model reads them with `--text games.jsonl`; each is a document of its own, such as `{"text": "d5 e3 f2 ..."}`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from interp.data.othello import Games, generate_games, square_names
from interp.runs.files import replacing

CHUNK = 10_000
"""Games generated at a time."""


def game_texts(games: Games) -> list[str]:
    """Return each game as the names of its squares, a blank between."""
    names = square_names(games.side)
    return [" ".join(names[move] for move in moves if move >= 0) for moves in games.moves]


def write_games(path: Path, n: int, side: int, seed: int) -> None:
    """Write `n` random games to `path`; the same arguments give the same file."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for first in range(0, n, CHUNK):
            for text in game_texts(generate_games(min(CHUNK, n - first), side, [seed, first, 3])):
                file.write(json.dumps({"text": text}) + "\n")


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("path", type=Path, help="the .jsonl file")
    parser.add_argument("--games", type=int, default=20_000, help="how many")
    parser.add_argument("--side", type=int, default=6, help="squares along an edge of the board: 4, 6 or 8")
    parser.add_argument("--seed", type=int, default=0, help="of the games")
    args = parser.parse_args()
    try:
        write_games(args.path, args.games, args.side, args.seed)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
