"""Family `importance`: how much each block matters, by many measures, and which of them order blocks as skipping does.

The work is in `interp.layers.influence`, `skip_loss`, `gates`, `layer_relevance` and `rank_agreement`. All measures see
the same even sample of the blocks of text, so that their orders can be compared sequence by sequence.
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.layers.families.depth import finite
from interp.layers.family import Batch, FamilyResult, Measure, layer_table
from interp.layers.gates import GateGradients, gate_gradients
from interp.layers.influence import Influence, weight_outliers
from interp.layers.layer_relevance import LayerRelevance, layer_relevance
from interp.layers.rank_agreement import Scores, rank_agreement, spearman
from interp.layers.sampling import Spread, bootstrap
from interp.layers.skip_loss import MEASURES, SkipLoss, greedy_order
from interp.layers.suffix import affordable, batches, check_additive
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

REFERENCE = "skip_loss"
"""What the other measures are held against."""
PAIR_LAYERS = 8
"""Layers up to which every pair of blocks is skipped too."""


class ImportanceFamily:
    """Scores of blocks by cosine, weights, gradients, relevance and by skipping; the agreement of their orders."""

    name = "importance"
    measures = (
        Measure("skip_loss", "loss without the block", "nats", "The measured rise; the others are held against it."),
        Measure("skip_kl", "KL of the output without it", "nats", "KL(p || p without the block)."),
        Measure("skip_top1", "same likeliest token without it", "share", "Low: the block decides tokens."),
        Measure("scaled_loss", "loss with the block scaled down", "nats", "What it adds times a small factor (IST)."),
        Measure("influence", "block influence (1 - cosine)", "", "How far it turns the stream; LIM is this - 1."),
        Measure("influence_first", "the same at position 0", "", "Apart: its stream is often far longer."),
        Measure("angle", "angle over so many blocks", "half turns", "From before this block; low: they may go."),
        Measure("weight_outliers", "weights above mean + 1 std (ZD)", "share", "Smaller is called more important."),
        Measure("relevance", "share of LRP relevance", "share", "Of the absolute relevance of what blocks add."),
        Measure("taylor", "loss without it, predicted", "nats", "First order; skipping is far from where it holds."),
        Measure("taylor_abs", "the same without signs", "nats", "Sum of |what is added · gradient| over positions."),
        Measure("fisher", "Fisher of the block's gate", "nats²", "Mean squared gradient of a sequence's loss."),
    )  # fmt: skip

    def __init__(
        self, prompts: int = 16, beta: float = 0.25, greedy_steps: int = 4, resamples: int = 500, seed: int = 0
    ) -> None:
        """Choose how much is run.

        Args:
            prompts: blocks of text.
            beta: factor of `scaled_loss`.
            greedy_steps: blocks that are removed one after the other.
            resamples: draws of sequences for intervals.
            seed: of the draws.

        Raises:
            ValueError: a number out of range.
        """
        if min(prompts, greedy_steps, resamples) < 1 or not 0 < beta < 1:
            raise ValueError(
                "prompts, greedy_steps and resamples must be 1 or more and beta between 0 and 1, got "
                f"{prompts}, {greedy_steps}, {resamples}, {beta}."
            )
        self.prompts, self.beta, self.greedy_steps = prompts, beta, greedy_steps
        self.resamples, self.seed = resamples, seed

    def sites(self, handle: ModelHandle) -> tuple[Site, ...]:  # noqa: ARG002
        """Return the cheapest one: it needs the text, and runs the sampled part by itself."""
        return (Site(0, "resid_pre"),)

    def begin(self, handle: ModelHandle, blocks: Blocks) -> None:
        """Begin.

        Raises:
            ValueError: the model's blocks do not add to the stream, or blocks of text are a single token.
        """
        if blocks.context < 3:
            raise ValueError(f"Importance needs blocks of 3 tokens or more, got {blocks.context}.")
        check_additive(handle, blocks.tokens)
        layers = handle.n_layers
        pairs = layers * (layers - 1) / 2 if layers <= PAIR_LAYERS else 0
        forwards = 6 + 0.75 * (2 * layers + pairs + self.greedy_steps * layers)
        self.handle, self.total = handle, len(blocks)
        prompts, self._length = affordable(handle, blocks.context, forwards, self.prompts)
        self._spread = Spread(len(blocks), prompts)
        self._loss, self._influence = SkipLoss(handle), Influence()
        self._gates: GateGradients | None = None
        self._relevance: LayerRelevance | None = None
        self._refused = ""

    def update(self, batch: Batch) -> None:
        """Measure the sampled rows of a batch."""
        chosen = self._spread.next(len(batch.tokens)).to(batch.tokens.device)
        keep, n = batch.keep[:, : self._length], self._length
        chosen = chosen[batch.predicts[chosen, : n - 1].any(1) & keep[chosen].any(1)]
        for rows in chosen.split(batches(batch.tokens[:, :n], self.handle.d_vocab)) if len(chosen) else ():
            tokens, real = batch.tokens[rows, :n].contiguous(), batch.real[rows, :n]
            base = self._loss.add(tokens, real)
            self._influence.update(base.stream, keep[rows])
            gates = gate_gradients(self.handle, tokens, real)
            self._gates = gates if self._gates is None else self._gates + gates
            if not self._refused:
                self._add_relevance(tokens, real)

    def _add_relevance(self, tokens: torch.Tensor, real: torch.Tensor) -> None:
        try:
            found = layer_relevance(self.handle, tokens, real)
        except ValueError as error:  # an activation function that has no rule; the other measures stand without it
            self._refused = str(error)
            return
        self._relevance = found if self._relevance is None else self._relevance + found

    def finish(self) -> FamilyResult:
        """Return curves, and the tables `agreement`, `greedy`, `pairs` and `angles`.

        Raises:
            ValueError: no block of text predicts a token.
        """
        if self._gates is None:
            raise ValueError("Importance needs text that predicts tokens; there was none.")
        scores, zd = self._scores(self._gates), weight_outliers(self.handle).numpy()
        rows = self._rows(scores, zd)
        measured = {name: one for name, one in scores.items() if name not in (REFERENCE, "skip_kl", "skip_top1")}
        measured["weight_outliers"] = Scores(-zd[None])  # smaller shares are called more important
        agreement = rank_agreement(measured, scores[REFERENCE], resamples=self.resamples, seed=self.seed)
        steps = greedy_order(self._loss, min(self.greedy_steps, self.handle.n_layers - 1))
        pairs = self._pairs(self._gates)
        whole = scores[REFERENCE].values()[0]
        summary: dict[str, Any] = {
            "loss": float(self._loss.losses.sum() / self._loss.tokens.sum()),
            "least_important": int(whole.argmin()),
            "most_important": int(whole.argmax()),
            "greedy_order": " ".join(str(block) for block, _ in steps),
            **{f"spearman_{one.measure}": finite(one.spearman) for one in agreement},
            "pair_spearman": _pair_agreement(pairs),
            "prompts": len(self._loss.tokens),
            "prompts_of": self.total,
            "tokens": int(self._loss.tokens.sum()),
            "relevance_refused": self._refused or None,
        }
        return FamilyResult(summary, layer_table(rows), self._tables(agreement, steps, pairs))

    def _scores(self, gates: GateGradients) -> dict[str, Scores]:
        """Return every measure that has text, as sums over sequences."""
        tokens = self._loss.tokens.numpy()
        skipped = torch.stack([self._loss.sums((layer,)) for layer in range(self.handle.n_layers)], 1).numpy()
        scaled = [self._loss.sums((layer,), self.beta)[:, 0] for layer in range(self.handle.n_layers)]
        turned, kept = (part.numpy() for part in self._influence.sequences())
        ones = np.ones(len(tokens))
        found = {f"skip_{name}": Scores(skipped[:, :, i], tokens) for i, name in enumerate(MEASURES)}
        found["scaled_loss"] = Scores(torch.stack(scaled, 1).numpy(), tokens)
        found["influence"] = Scores(turned, kept)
        found["taylor"] = Scores(-gates.gradient.numpy(), tokens)
        found["taylor_abs"] = Scores(gates.size.numpy(), tokens)
        found["fisher"] = Scores(gates.per_token.square().numpy(), ones)
        if self._relevance is not None:
            mass = self._relevance.mass
            found["relevance"] = Scores(mass.numpy(), mass.sum(1).numpy())
        return found

    def _rows(self, scores: dict[str, Scores], zd: np.ndarray) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        for name, one in scores.items():
            for layer, value in enumerate(one.values()[0]):
                counts = np.ones(len(one.sums)) if one.counts is None else one.counts
                ends = bootstrap(one.sums[:, layer], counts, self.resamples, self.seed)
                rows.append((layer, name, "", finite(value), *map(finite, ends)))
        rows += [(layer, "weight_outliers", "", float(value)) for layer, value in enumerate(zd)]
        rows += [(layer, "influence_first", "", finite(v)) for layer, v in enumerate(self._influence.first().tolist())]
        for layer, row in enumerate(self._influence.angles().tolist()):
            for n, value in enumerate(row[:4], 1):
                if layer + n <= self.handle.n_layers:
                    rows.append((layer, "angle", str(n), finite(value)))
        return rows

    def _pairs(self, gates: GateGradients) -> list[dict[str, Any]]:
        """Return, for each pair of blocks, the Fisher and, where it is affordable, the measured interaction."""
        measured = self.handle.n_layers <= PAIR_LAYERS
        fisher, interactions = gates.fisher, gates.interactions
        rows = []
        for a, b in combinations(range(self.handle.n_layers), 2):
            joint = self._loss.means((a, b))["loss"] if measured else None
            alone = sum(self._loss.means((layer,))["loss"] for layer in (a, b))
            rows.append(
                {
                    "a": a, "b": b, "fisher": float(fisher[a, b]), "correlation": finite(float(interactions[a, b])),
                    "joint_loss": joint, "interaction": None if joint is None else joint - alone,
                }
            )  # fmt: skip
        return rows

    def _tables(self, agreement: Any, steps: Any, pairs: list[dict[str, Any]]) -> dict[str, Any]:
        import pyarrow as pa

        ranks = [
            {name: finite(value) if isinstance(value, float) else value for name, value in asdict(one).items()}
            for one in agreement
        ]
        greedy = [{"removed": i, "block": block, **measures} for i, (block, measures) in enumerate(steps, 1)]
        mean, last = self._influence.angles(), self._influence.angles(last=True)
        layers = self.handle.n_layers
        angles = [
            {
                "first": first, "blocks": n, "angle": finite(float(mean[first, n - 1])),
                "angle_last": finite(float(last[first, n - 1])),
            }
            for n in range(1, layers + 1)
            for first in range(layers + 1 - n)
        ]  # fmt: skip
        tables = {"agreement": ranks, "greedy": greedy, "angles": angles, "pairs": pairs}
        return {name: pa.Table.from_pylist(rows) for name, rows in tables.items() if rows}


def _pair_agreement(pairs: list[dict[str, Any]]) -> float | None:
    """Return Spearman's rho of the Fisher and the measured interactions of pairs; None for fewer than three."""
    if len(pairs) < 3 or pairs[0]["interaction"] is None:
        return None
    columns = [np.array([[row[name] for row in pairs]]) for name in ("fisher", "interaction")]
    return finite(float(spearman(*columns)[0]))
