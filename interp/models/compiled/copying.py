"""The circuit of induction, written by hand: a previous-token head and, later, an induction head.

The residual stream holds one-hot blocks: `token` (which token stands here), `note` (which token stood before), `out`
(what comes next) and `place` (which position this is). With E the last position, t its token and n_j the note at j,

    previous-token head   score(i, j) = 40 [j = i - 1],                     note_i = token_{i-1}
    induction head        score(E, j) = 10 [n_j = t] + 5 [j = 0],           out_E = sum_j p_j token_j
    logits                10 out_E

BOS, at position 0, is where the induction head rests when no note fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from interp.models.compiled.blank import selection, write_head
from interp.models.compiled.truth import every_cell, truth_table
from interp.sites import Cell
from interp.tasks.induction import repeated_pairs

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import GPT2LMHeadModel

    from interp.tasks.pairs import Pairs

HALF = 12
"""Tokens that are repeated in the model's own pairs."""
TO_PREVIOUS, MATCH, REST, GAIN = 40.0, 10.0, 5.0, 10.0
"""Scores of the previous-token head, of a fitting note, of position 0; factor from `out` to logits."""


@dataclass(frozen=True)
class Copying:
    """Where the two heads of the circuit are."""

    previous: tuple[int, int]
    """Layer and head of the previous-token head."""
    induction: tuple[int, int]
    """Layer and head of the induction head, in a later layer."""

    def blocks(self, config: Mapping[str, Any]) -> dict[str, range]:
        """Return the coordinates of each block of the residual stream; `junk` is what the circuit leaves over."""
        v, p, d = config["vocab_size"], config["n_positions"], config["n_embd"]
        return {
            "token": range(v),
            "note": range(v, 2 * v),
            "out": range(2 * v, 3 * v),
            "place": range(3 * v, 3 * v + p),
            "junk": range(3 * v + p, d),
        }

    def write(self, module: GPT2LMHeadModel, config: Mapping[str, Any]) -> None:
        """Write embeddings, the two heads and the unembedding into a blank `module`."""
        block, d = self.blocks(config), config["n_embd"]
        token, note, out, place = (selection(d, block[name]) for name in ("token", "note", "out", "place"))
        module.transformer.wte.weight.copy_(token.T)
        module.transformer.wpe.weight.copy_(place.T)
        before = TO_PREVIOUS * place.roll(-1, dims=1)  # position i asks for position i - 1
        before[block["place"][0]] = 0.0
        write_head(module, *self.previous, q=before, k=place, v=token, o=note.T)
        ask = torch.cat([MATCH * token, torch.zeros(d, 1)], dim=1)
        offer = torch.cat([note, place[:, :1]], dim=1)
        rest = torch.zeros(ask.shape[1])
        rest[-1] = REST
        value = token.clone()
        value[block["token"][0]] = 0.0  # BOS says nothing
        write_head(module, *self.induction, q=ask, k=offer, q_bias=rest, v=value, o=out.T)
        module.lm_head.weight.copy_(GAIN * out.T)

    def metric(
        self,
        note: Int[np.ndarray, "cell prompt pos"],
        value: Int[np.ndarray, "cell prompt pos"],
        query: Int[np.ndarray, "cell prompt"],
        answers: tuple[Int[np.ndarray, " prompt"], Int[np.ndarray, " prompt"]],
    ) -> Float[np.ndarray, "cell prompt"]:
        """Return the logit difference at the last position that these notes, values and last tokens lead to."""
        scores = MATCH * (note == query[..., None])
        scores[..., 0] += REST
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        right, wrong = ((value == answer[:, None]) & (value != 0) for answer in answers)
        return GAIN * (weights * (right.astype(float) - wrong)).sum(-1)

    def patched(
        self, pairs: Pairs, cells: Sequence[Cell | None], base: np.ndarray, source: np.ndarray
    ) -> Float[np.ndarray, "cell prompt"]:
        """Return the metric of the `base` prompts with each of `cells` as in the `source` prompts.

        Raises:
            ValueError: the pairs have several correct or wrong answers, so that the formula does not hold.
        """
        if pairs.correct.shape[1] != 1 or pairs.wrong.shape[1] != 1:
            raise ValueError("The truth about copying holds for one correct and one wrong answer per prompt.")
        answers = (pairs.correct[:, 0].numpy(), pairs.wrong[:, 0].numpy())
        own = {name: np.repeat(part[None], len(cells), axis=0) for name, part in _parts(base).items()}
        other, last = _parts(source), base.shape[1] - 1
        for i, cell in enumerate(cells):
            if cell is None:
                continue
            at_end = cell.pos in (None, last)
            whole = at_end and self._writes_out(cell)  # the answer itself: as if the whole prompt were the other
            places = slice(None) if whole or cell.pos is None else slice(cell.pos, cell.pos + 1)
            for name in other if whole else self._changes(cell):
                if name == "query":
                    own[name][i] = other[name] if at_end else own[name][i]
                elif name == "token":  # below the previous-token head the notes change that it makes of the token
                    own["note"][i][:, _noted(cell.pos)] = other["note"][:, _noted(cell.pos)]
                else:
                    own[name][i][:, places] = other[name][:, places]
        return self.metric(own["note"], own["value"], own["query"], answers)

    def _writes_out(self, cell: Cell) -> bool:
        """Return whether `cell`, at the last position, holds what the induction head has written."""
        layer, head = self.induction
        if cell.layer == layer:
            return cell.kind in ("attn_out", "resid_mid", "resid_post") or (
                cell.kind == "head_out" and cell.head == head
            )
        return cell.layer > layer and cell.kind in ("resid_pre", "resid_mid", "resid_post")

    def _changes(self, cell: Cell) -> tuple[str, ...]:
        """Return what `cell` holds that the circuit goes on to read."""
        (first, prev), second = self.previous, self.induction[0]
        if cell.kind in ("resid_pre", "resid_mid", "resid_post"):
            at = cell.layer + {"resid_pre": 0.0, "resid_mid": 0.5, "resid_post": 1.0}[cell.kind]
            if at <= first:
                return ("token", "value", "query")
            return ("note", "value", "query") if at <= second else ()
        if cell.layer == first and (cell.kind == "attn_out" or (cell.kind == "head_out" and cell.head == prev)):
            return ("note",)
        if (cell.layer, cell.head) == self.previous and cell.kind == "v":
            return ("token",)
        if (cell.layer, cell.head) == self.induction:
            return {"q": ("query",), "k": ("note",), "v": ("value",)}.get(cell.kind, ())
        return ()


def _noted(pos: int | None) -> slice:
    """Return the positions that note the token at `pos`: the next one, and position 0 itself."""
    return slice(None) if pos is None else slice(0, 2) if pos == 0 else slice(pos + 1, pos + 2)


def _parts(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Return the notes, values and last tokens of prompts; position 0 can only note itself."""
    note = np.roll(tokens, 1, axis=1)
    note[:, 0] = tokens[:, 0]
    return {"note": note, "value": tokens.copy(), "query": tokens[:, -1].copy()}


def copying_truth(where: Copying, config: Mapping[str, Any], pairs: Pairs, direction: str) -> pa.Table:
    """Return the truth about every cell of a model whose circuit is `where`."""
    clean, corrupt = pairs.clean.numpy(), pairs.corrupt.numpy()
    cells = every_cell(config["n_layer"], config["n_head"], pairs.n_pos)
    return truth_table(partial(where.patched, pairs), cells, clean, corrupt, pairs.roles, direction)


def copying_pairs(config: Mapping[str, Any], n: int, seed: int) -> Pairs:
    """Return pairs of the induction task over the model's vocabulary."""
    return repeated_pairs(range(1, config["vocab_size"]), 0, n, HALF, seed)
