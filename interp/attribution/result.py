"""What every attribution method returns: scores of cells (and edges), and how completely they explain the effect.

A cell is an activation, or a part of it: a site's layer and kind, and where it matters a position, a head, a neuron or
a latent. Its score says by how much the clean activation there raises the metric, in units of the metric:

    denoising   m(corrupted run with the cell of the clean run) - m(corrupted run)
    noising     m(clean run) - m(clean run with the cell of the corrupted run)
    relevance   the share of the metric's own value that the method assigns to the cell

so that a positive score always means: what the clean run has there helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from interp.names import unknown
from interp.sites import KINDS

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import pyarrow as pa

    from interp.figures import TokenStrip

DIRECTIONS = ("denoising", "noising", "relevance")
PARTS = ("pos", "head", "neuron", "latent")
"""What a cell may be a part by, in the order of the axes of `Attribution.map`."""
CELL = ("kind", "layer", *PARTS)


@dataclass(frozen=True, eq=False)
class Attribution:
    """Scores of a method on the pairs of a task, averaged over prompts.

    Tables:
        nodes: kind (string), layer (int32), pos, head, neuron, latent (int32, null where the cell has all of it),
            score (float64), stderr (float64 over prompts, null for one prompt), per_prompt (list<float32>),
            measured (float64: the effect of really patching the cell, null where that was not done), measured_stderr.
        edges: source_kind, source_layer, source_pos, ..., target_kind, target_layer, ... (`CELL` at either end; the
            target of kind `logits` has the number of layers as its layer), score, stderr, per_prompt; or None.
        completeness: kind, layer, part (string), explained (float64, sum of the scores that should add up), total
            (float64, what they should add up to), gap (total - explained).
    """

    method: str
    """Name of the method."""
    target: str
    """Name of the metric."""
    baseline: str
    """What clean activations are compared with: corrupt, zero, mean, resample, or none."""
    direction: str
    """One of `DIRECTIONS`."""
    nodes: pa.Table
    """Scores of cells."""
    completeness: pa.Table
    """How far the scores add up."""
    tokens: tuple[str, ...] = ()
    """What stands at each position: its role, or the token of the first clean prompt."""
    values: dict[str, float] = field(default_factory=dict)
    """Numbers of the whole: `clean` and `corrupt` (mean metric), `prompts`, and what the method adds."""
    edges: pa.Table | None = None
    """Scores of edges, if the method has any."""
    about: dict[str, Any] = field(default_factory=dict)
    """Model, task, arguments of the method: JSON values, kept with the run."""

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(unknown("direction", self.direction, DIRECTIONS))

    @property
    def effect(self) -> float:
        """Mean metric of the clean run minus that of the corrupted one."""
        return self.values["clean"] - self.values["corrupt"]

    @property
    def kinds(self) -> list[str]:
        """Kinds of sites that have scores, in the order of computing."""
        found = set(self.nodes["kind"].unique().to_pylist())
        return sorted(found, key=lambda kind: (KINDS.index(kind) if kind in KINDS else -1, kind))

    def parts(self, kind: str) -> tuple[str, ...]:
        """Return what the cells of `kind` are a part by, such as (`pos`,) or (`head`,).

        Raises:
            ValueError: there is no such kind here.
        """
        chosen = self.of(kind)
        return tuple(part for part in PARTS if chosen[part].null_count < len(chosen))

    def of(self, kind: str) -> pa.Table:
        """Return the rows of `nodes` of one kind.

        Raises:
            ValueError: there is no such kind here.
        """
        if kind not in self.kinds:
            raise ValueError(unknown("kind", kind, self.kinds))
        return self.nodes.take(np.flatnonzero(np.asarray(self.nodes["kind"].to_pylist()) == kind))

    def map(self, kind: str, column: str = "score") -> Float[np.ndarray, "layer ..."]:
        """Return a column of the cells of `kind` as an array, NaN where there is no cell.

        The axes are layers, then those of `parts(kind)`: [layer pos], [layer head], [layer pos head].

        Raises:
            ValueError: there is no such kind here.
        """
        rows = self.of(kind)
        axes = [rows["layer"].to_numpy()] + [rows[part].to_numpy() for part in self.parts(kind)]
        found = np.full([int(axis.max()) + 1 for axis in axes], np.nan)
        found[tuple(axis.astype(int) for axis in axes)] = rows[column].to_numpy()
        return found

    def top(self, n: int = 10) -> pa.Table:
        """Return the `n` rows of `nodes` whose scores are largest in magnitude, the largest first."""
        order = np.argsort(-np.abs(self.nodes["score"].to_numpy()), kind="stable")
        return self.nodes.take(order[:n])

    def with_nodes(self, nodes: pa.Table) -> Attribution:
        """Return the same result with another table of nodes."""
        return replace(self, nodes=nodes)

    def figure(self, kind: str | None = None, column: str = "score") -> go.Figure:
        """Return the map of one kind (None: the first) as an interactive heat map.

        Raises:
            ValueError: there is no such kind here.
        """
        from interp.figures import attribution_map

        return attribution_map(self, kind or self.kinds[0], column=column)

    def strip(self, kind: str, layer: int, tokens: Sequence[str] | None = None) -> TokenStrip:
        """Return the tokens (None: those of the result) shaded by the scores of one layer's positions.

        Raises:
            ValueError: the cells of `kind` are not by position, or `tokens` are not as many as positions.
        """
        from interp.figures import TokenStrip

        if self.parts(kind) != ("pos",):
            raise ValueError(f"A strip needs scores by position; those of {kind} are by {self.parts(kind) or 'layer'}.")
        maps = self.map(kind)
        if not 0 <= layer < len(maps):
            raise ValueError(f"layer must lie in 0..{len(maps) - 1}, got {layer}.")
        values = np.nan_to_num(maps[layer])
        texts = self.tokens if tokens is None else tokens
        if len(texts) != len(values):
            raise ValueError(f"A strip of {len(values)} positions needs as many tokens, got {len(texts)}.")
        return TokenStrip(list(texts), values.tolist())

    def _repr_html_(self) -> str:
        from html import escape

        from interp.figures.attribution import plane
        from interp.figures.heat_table import STYLE, HeatTable
        from interp.figures.text import number

        head = f"<b>{escape(self.method)}</b> · {escape(self.target)} · {escape(self.direction)}"
        effect = f" · clean {self.values['clean']:.4g}" if "clean" in self.values else ""
        effect += f", corrupted {self.values['corrupt']:.4g}" if "corrupt" in self.values else ""
        drawn = []
        for kind in self.kinds:
            values, labels, title = plane(self, kind)
            table = HeatTable(values.tolist(), [str(i) for i in range(len(values))], labels, "layer")
            what = f"{escape(kind)}{f' by {title}' if title else ''} · full colour {number(table.top)}"
            drawn.append(f"<div>{what}</div>{table.html()}")
        return f"<style>{STYLE}</style><div>{head}{effect}</div>{''.join(drawn)}"
