"""Family `depth`: what later layers and outputs lose with each block, erasure, and gradients along a path.

The work is in `interp.layers.skipping`, `interp.layers.erasure` and `interp.layers.path_gradients`. It takes an even
sample of the blocks of text, and of these a few for the parts that run the model at every layer and position.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.layers.erasure import Erasure, mean_stream, residual_erasure
from interp.layers.family import Batch, FamilyResult, Measure, layer_table
from interp.layers.path_gradients import KINDS, PathScore, layer_path_gradients, position_rows
from interp.layers.sampling import Spread, bootstrap
from interp.layers.skipping import SkipMatrix, depth_score, layer_effects, skip_effects
from interp.layers.suffix import BUDGET, FEW_TOKENS, Suffix, affordable, batches, check_additive
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

EVERYWHERE: dict[str, dict[str, Any]] = {
    "current": {},
    "direct": {"local": True},
    "attn": {"part": "attn"},
    "mlp": {"part": "mlp"},
}
"""How a block is left out at all positions: it, it without what blocks do to each other, its attention, its MLP."""
WAYS = (*EVERYWHERE, "future")
"""These, and before a position t alone."""
LEAST_TOKENS = 16
"""Real tokens below which a block of text is too short for a position t with tokens on both sides."""


class DepthFamily:
    """How much of what blocks compute later blocks and the output make use of."""

    name = "depth"
    measures = (
        Measure("later", "change of later blocks without it", "× what they add", "Mean over tokens and later blocks."),
        Measure("later_max", "the same, largest", "× what they add", "As published; one odd token decides it."),
        Measure("output", "change of the output without it", "L2 of p", "Mean over tokens; at most 1.41."),
        Measure("output_max", "the same, largest", "L2 of p", "As published; one odd token decides it."),
        Measure("output_kl", "KL of the output without it", "nats", "KL(p || p without the block), mean over tokens."),
        Measure("erased", "change of answers, stream erased", "L2 of p", "One token's stream put to the mean."),
        Measure("path_change", "answers' probability from layer's output", "p", "Against its mean over positions."),
        Measure("path_gap", "what integrated gradients miss of it", "p", "0 if the path has points enough."),
    )  # fmt: skip

    def __init__(
        self,
        prompts: int = 12,
        splits: int = 1,
        erased_prompts: int = 2,
        erased_positions: int = 12,
        path_prompts: int = 2,
        path_steps: int = 32,
        path_tokens: int = 64,
        answers: int = 8,
        seed: int = 0,
    ) -> None:
        """Choose how much is run.

        Args:
            prompts: blocks of text whose blocks of the model are skipped.
            splits: positions t in each of them.
            erased_prompts: how many of them are erased position by position.
            erased_positions: positions erased in each, evenly spread.
            path_prompts: how many of them have integrated gradients.
            path_steps: points of the path; up to 16 times as many where the gradients miss their sum.
            path_tokens: tokens of such a prompt, and of an erased one.
            answers: tokens at the end of such a prompt that are answers.
            seed: of the positions t.

        Raises:
            ValueError: a number below 1, or as many answers as tokens.
        """
        given = (prompts, splits, erased_prompts, erased_positions, path_prompts, path_steps, answers)
        if min(given) < 1 or path_tokens <= answers:
            raise ValueError(
                f"All numbers must be 1 or more and path_tokens above answers, got {given}, {path_tokens}."
            )
        self.prompts, self.splits, self.seed = prompts, splits, seed
        self.erased_prompts, self.erased_positions = erased_prompts, erased_positions
        self.path_prompts, self.path_steps, self.path_tokens, self.answers = (
            path_prompts, path_steps, path_tokens, answers,
        )  # fmt: skip

    def sites(self, handle: ModelHandle) -> tuple[Site, ...]:  # noqa: ARG002
        """Return the cheapest one: it needs the text, and runs the sampled part by itself."""
        return (Site(0, "resid_pre"),)

    def begin(self, handle: ModelHandle, blocks: Blocks) -> None:
        """Begin.

        Raises:
            ValueError: the model's blocks do not add to the stream, or the text is too short.
        """
        if blocks.context < LEAST_TOKENS:
            raise ValueError(f"Depth use needs blocks of {LEAST_TOKENS} tokens or more, got {blocks.context}.")
        check_additive(handle, blocks.tokens)
        self.handle, self.total = handle, len(blocks)
        forwards = (len(WAYS) - 1 + self.splits) * 0.75 * handle.n_layers
        prompts, self._length = affordable(handle, blocks.context, forwards, self.prompts)
        self._spread = Spread(len(blocks), prompts)
        self._generator = torch.Generator().manual_seed(self.seed)
        self._found = {way: SkipMatrix() for way in WAYS}
        self._suffix: Suffix | None = None
        self._texts: list[Tensor] = []

    def update(self, batch: Batch) -> None:
        """Skip blocks on the sampled rows of a batch."""
        chosen = self._spread.next(len(batch.tokens)).to(batch.tokens.device)
        real, n = batch.real[:, : self._length], self._length
        chosen = chosen[real[chosen].sum(1) >= LEAST_TOKENS]
        for rows in chosen.split(batches(batch.tokens[:, :n], self.handle.d_vocab)) if len(chosen) else ():
            tokens, keep = batch.tokens[rows, :n].contiguous(), batch.keep[rows, :n]
            self._suffix = Suffix(self.handle, tokens) if self._suffix is None else self._suffix
            base = self._suffix.base(tokens)
            common: dict[str, Any] = {"keep": keep, "suffix": self._suffix, "base": base}
            for way, more in EVERYWHERE.items():
                self._found[way].update(skip_effects(self.handle, tokens, **common, **more))
            for _ in range(self.splits):
                until = self._bounds(keep)
                self._found["future"].update(skip_effects(self.handle, tokens, **common, until=until))
            self._texts += [row[there][: self.path_tokens] for row, there in zip(tokens, real[rows], strict=True)]

    def _bounds(self, keep: Tensor) -> Tensor:
        """Return a position t for each row, as published one of 8, 16, ... up to 4 before the end."""
        ends = keep.shape[1] - keep.flip(1).int().argmax(1)
        found = [range(8, max(9, int(end) - 4), 8) for end in ends]
        return torch.tensor([r[int(torch.randint(len(r), (), generator=self._generator))] for r in found])

    def finish(self) -> FamilyResult:
        """Return curves, and the tables `skips`, `erasure` and `paths`.

        Raises:
            ValueError: no block of text is long enough.
        """
        if not self._texts:
            raise ValueError(f"Depth use needs blocks of {LEAST_TOKENS} real tokens or more; there was none.")
        rows, summary = self._skips()
        erased, paths = self._erasures(), self._paths()
        rows += _erasure_rows(erased) + _path_rows(paths)
        tables = {"skips": self._skip_table(), "erasure": _erasure_table(erased), "paths": _path_table(paths)}
        summary |= {
            "path_gap_worst": max(abs(one.gap) for found in paths for one in found),
            "prompts": len(self._texts),
            "prompts_of": self.total,
            "erased_prompts": len(erased),
            "path_prompts": len(paths),
        }
        return FamilyResult(summary, layer_table(rows), tables)

    def _skips(self) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
        rows: list[tuple[Any, ...]] = []
        summary: dict[str, Any] = {}
        for way, found in self._found.items():
            change, output = found.change(), found.output()
            later = {kind: layer_effects(change[kind]) for kind in ("mean", "max")}
            sums, tokens = (part.numpy() for part in found.output_by_sequence())
            layers = len(later["mean"])
            ends = [[finite(end) for end in bootstrap(sums[:, i], tokens, 500, 0)] for i in range(2 * layers)]
            for layer in range(layers):
                if layer < layers - 1:  # after the last block there is none to change
                    rows += [(layer, "later", way, float(later["mean"][layer]))]
                    rows += [(layer, "later_max", way, float(later["max"][layer]))]
                rows += [(layer, "output", way, float(output["mean"][0, layer]), *ends[layer])]
                rows += [(layer, "output_max", way, float(output["max"][0, layer]))]
                rows += [(layer, "output_kl", way, float(output["mean"][1, layer]), *ends[layers + layer])]
            if way in ("current", "future"):
                summary |= {
                    f"depth_score_{way}": finite(depth_score(later["mean"])),
                    f"depth_score_{way}_max": finite(depth_score(later["max"])),
                    f"depth_score_{way}_output": finite(depth_score(output["mean"][0])),
                    f"later_second_over_first_{way}": halves(later["mean"][:-1]),
                }
            summary[f"tokens_{way}"] = found.tokens
        return rows, summary

    def _skip_table(self) -> Any:
        import pyarrow as pa

        rows = []
        for way, found in self._found.items():
            change = found.change()
            for s in range(self.handle.n_layers):
                for affected in range(s, self.handle.n_layers):
                    values = {kind: finite(float(change[kind][s, affected])) for kind in change}
                    rows.append({"way": way, "skipped": s, "affected": affected, **values})
        return pa.Table.from_pylist(rows)

    def _erasures(self) -> list[Erasure]:
        means = mean_stream(self.handle, [text[None] for text in self._texts])
        found = []
        for text in self._texts[: self.erased_prompts]:
            answers = min(self.answers, len(text) - 2)
            last = len(text) - 1
            positions = sorted({1 + i * (last - 1) // self.erased_positions for i in range(self.erased_positions)})
            found.append(residual_erasure(self.handle, text[None], means, answers=answers, positions=positions))
        return found

    def _paths(self) -> list[list[PathScore]]:
        kinds, steps, texts = KINDS, self.path_steps, self._texts[: self.path_prompts]
        most = 16 * steps
        each = steps * self.handle.n_layers * self.handle.n_parameters  # for a token: forward and backward, of half
        if each * len(kinds) * sum(map(len, texts)) > BUDGET:
            kinds, steps, texts, most = KINDS[:1], min(steps, 16), [texts[0][:FEW_TOKENS]], 0
        return [
            layer_path_gradients(
                self.handle,
                text[None],
                kinds=kinds,
                steps=steps,
                most_steps=most,
                answers=min(self.answers, len(text) - 2),
            )
            for text in texts
        ]


def finite(value: float) -> float | None:
    """Return the number, None where it is none: tables hold nulls, not NaN."""
    return float(value) if math.isfinite(value) else None


def halves(effects: Tensor) -> float | None:
    """Return the mean of the second half over that of the first; None where it cannot be told."""
    half = len(effects) // 2
    if half == 0 or not float(effects[:half].mean()) > 0:
        return None
    return float(effects[half:].mean() / effects[:half].mean())


def _erasure_rows(found: list[Erasure]) -> list[tuple[Any, ...]]:
    """Return rows of the mean over prompts and positions, layer -1 being the embeddings."""
    l2 = np.concatenate([one.l2.numpy()[0] for one in found], 1)  # [layer position]
    return [(layer - 1, "erased", "", finite(float(np.nanmean(row)))) for layer, row in enumerate(l2)]


def _path_rows(found: list[list[PathScore]]) -> list[tuple[Any, ...]]:
    part = {"resid_post": "block", "attn_out": "attn", "mlp_out": "mlp"}
    rows = []
    for same in zip(*found, strict=True):
        site, n = same[0].site, len(same)
        rows.append((site.layer, "path_change", part[site.kind], sum(one.change for one in same) / n))
        rows.append((site.layer, "path_gap", part[site.kind], sum(abs(one.gap) for one in same) / n))
    return rows


def _erasure_table(found: list[Erasure]) -> Any:
    import pyarrow as pa

    rows = [
        {
            "prompt": prompt, "layer": layer - 1, "position": position,
            "l2": finite(float(one.l2[0, layer, column])), "drop": finite(float(one.drop[0, layer, column])),
        }
        for prompt, one in enumerate(found)
        for layer in range(one.l2.shape[1])
        for column, position in enumerate(one.positions)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def _path_table(found: list[list[PathScore]]) -> Any:
    import pyarrow as pa

    rows = [
        {"prompt": prompt, "kind": kind, "layer": layer, "position": position, "score": score}
        for prompt, one in enumerate(found)
        for kind, layer, position, score in position_rows(one)
    ]
    return pa.Table.from_pylist(rows)
