"""How well the model knows the rules on the same rows: legal moves it names first, and their probability.

    top-1 legal   share of rows whose likeliest square is a legal move
    legal mass    mean probability of all legal moves

Said apart for rows before and after passes, as the probes are, since what a model makes of a pass shows in both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from app.studies.board.accuracy import RESAMPLES, subsets
from app.studies.board.positions import Positions
from interp.data.othello_tokens import legal_tokens
from interp.models import ModelHandle
from probes.intervals import bootstrap, weighted_mean

BATCH = 128


def move_rows(
    handle: ModelHandle, positions: Positions, rows: Bool[np.ndarray, " row"], subject: str, seed: int
) -> list[dict[str, Any]]:
    """Return top-1 legal and legal mass over some rows, by passes, with intervals over games."""
    first, mass = _told(handle, positions)
    found = []
    for name, chosen in subsets(positions).items():
        here = chosen & rows
        row: dict[str, Any] = {"subject": subject, "positions": name, "counted": int(here.sum())}
        for measure, values in (("top1_legal", first), ("legal_mass", mass)):
            if not here.any():
                row |= {measure: None, f"{measure}_low": None, f"{measure}_high": None}
                continue
            span = bootstrap(weighted_mean(values[here]), positions.game[here], resamples=RESAMPLES, seed=seed)
            ends = [float(end) if np.isfinite(end) else None for end in (span.low, span.high)]
            row |= {measure: span.value, f"{measure}_low": ends[0], f"{measure}_high": ends[1]}
        found.append(row)
    return found


def _told(handle: ModelHandle, positions: Positions) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row whether the likeliest square is legal, and the probability of all legal ones."""
    legal = torch.from_numpy(legal_tokens(positions.games))
    first, mass = [], []
    for start in range(0, len(positions.tokens), BATCH):
        piece = slice(start, start + BATCH)
        kept = torch.from_numpy(positions.kept[piece])
        logits = handle.logits(positions.tokens[piece].to(handle.device)).float().cpu()[kept]
        allowed = legal[piece][kept]
        best = logits[:, 1:].argmax(-1, keepdim=True) + 1
        first.append(allowed.gather(-1, best)[:, 0].float())
        mass.append((logits.softmax(-1) * allowed).sum(-1))
    return torch.cat(first).numpy(), torch.cat(mass).numpy()
