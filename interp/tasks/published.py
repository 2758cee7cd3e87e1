"""Circuits that papers have published, read from a folder of the user's (`$MECHSCOPE_DATA/circuits`).

    ioi             GPT-2 small, 26 heads in seven groups (Wang et al. 2023)
    greater_than    GPT-2 small, nine heads and eight MLPs (Hanna et al. 2023)
    docstring       a four-layer attention-only model, six heads (Heimersheim and Janiak 2023)

The files are `TASK_ground_truth.json`; nothing of them is part of this package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.names import unknown

if TYPE_CHECKING:
    import pyarrow as pa

PUBLISHED = ("ioi", "greater_than", "docstring")
_EDGE = re.compile(r"(?P<source>IN|A\d+\.\d+)->(?P<target>OUT|A\d+\.\d+)(?:\.(?P<reads>[QKV]))?")


@dataclass(frozen=True, order=True)
class Node:
    """A component of a circuit."""

    kind: str
    """`head_out`, `mlp_out`, `input` or `output`."""
    layer: int = -1
    """Block; -1 for input and output."""
    head: int = -1
    """Head; -1 where the node is none."""


@dataclass(frozen=True)
class Edge:
    """What one component tells another."""

    source: Node
    """The one that writes."""
    target: Node
    """The one that reads."""
    reads: str = "in"
    """Input of a head that it reaches: `q`, `k`, `v`; `in` where the source does not say, or there is only one."""


@dataclass(frozen=True)
class PublishedCircuit:
    """A circuit as it was published."""

    task: str
    """Name of the task."""
    model: str
    """The model it was found in."""
    roles: dict[Node, str]
    """Node -> what it is said to do; empty where the source does not say."""
    edges: frozenset[Edge]
    """Edges, input and output among their ends."""

    @property
    def nodes(self) -> frozenset[Node]:
        """The heads and MLPs of the circuit."""
        return frozenset(self.roles)

    def truth(self, n_layers: int, n_heads: int) -> pa.Table:
        """Return every head (and MLP, if the circuit names any) of such a model, and whether it is in the circuit.

        The columns are those of a compiled model's truth; `effect` is null, for no paper gives it.

        Raises:
            ValueError: the model is smaller than the circuit.
        """
        import pyarrow as pa

        deep, wide = max(node.layer for node in self.roles), max(node.head for node in self.roles)
        if deep >= n_layers or wide >= n_heads:
            raise ValueError(
                f"The circuit is one of {self.model} and reaches layer {deep} and head {wide}; this model has "
                f"{n_layers} layers of {n_heads} heads."
            )
        cells = [Node("head_out", layer, head) for layer in range(n_layers) for head in range(n_heads)]
        if any(node.kind == "mlp_out" for node in self.roles):
            cells += [Node("mlp_out", layer) for layer in range(n_layers)]
        nothing = pa.nulls(len(cells), pa.int32())
        return pa.table(
            {
                "kind": pa.array([cell.kind for cell in cells], pa.string()),
                "layer": pa.array([cell.layer for cell in cells], pa.int32()),
                "pos": nothing,
                "head": pa.array([None if cell.head < 0 else cell.head for cell in cells], pa.int32()),
                "neuron": nothing,
                "latent": nothing,
                "role": pa.array([self.roles.get(cell) for cell in cells], pa.string()),
                "in_circuit": pa.array([cell in self.roles for cell in cells], pa.bool_()),
                "effect": pa.nulls(len(cells), pa.float64()),
            }
        )


def published_circuit(task: str, folder: str | Path) -> PublishedCircuit:
    """Return the published circuit of `task` from `folder`.

    Raises:
        ValueError: no such circuit is known, or its file is absent or of another form.
    """
    if task not in PUBLISHED:
        raise ValueError(unknown("published circuit", task, PUBLISHED))
    path = Path(folder).expanduser() / f"{task}_ground_truth.json"
    if not path.is_file():
        raise ValueError(f"There is no {path.name} in {folder}: name the folder with the published circuits.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        read = {"ioi": _ioi, "greater_than": _greater_than, "docstring": _docstring}[task]
        roles, edges = read(data)
        return PublishedCircuit(task, str(data["model"]), roles, frozenset(edges))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not have the form of a published circuit: {error!r}.") from error


def _ends(groups: dict[str, list[Node]]) -> dict[str, list[Node]]:
    """Return the groups, and input and output as groups of their own."""
    return groups | {"INPUT": [Node("input")], "OUTPUT": [Node("output")]}


def _between(sources: Iterable[Node], targets: Iterable[Node], reads: Iterable[str] = ("in",)) -> set[Edge]:
    """Return every edge from `sources` to `targets` that goes forward."""
    ways = tuple(reads) or ("in",)
    return {
        Edge(source, target, way)
        for source in sources
        for target in targets
        for way in ways
        if source.kind == "input" or target.kind == "output" or _before(source, target)
    }


def _before(source: Node, target: Node) -> bool:
    """Return whether `source` is computed before `target`: in a layer attention comes before the MLP."""
    return (source.layer, source.kind == "mlp_out") < (target.layer, target.kind == "mlp_out")


def _ioi(data: dict[str, Any]) -> tuple[dict[Node, str], set[Edge]]:
    groups = {role: [Node("head_out", *head) for head in heads] for role, heads in data["heads"].items()}
    roles = {node: role for role, nodes in groups.items() for node in nodes}
    named = _ends(groups)
    edges = [_between(named[one["src"]], named[one["dst"]], one["inputs"]) for one in data["group_connections"]]
    return roles, set().union(*edges)


def _greater_than(data: dict[str, Any]) -> tuple[dict[Node, str], set[Edge]]:
    groups = {
        role: [
            Node("head_out", part["layer"], part["head"]) if part["kind"] == "attn" else Node("mlp_out", part["layer"])
            for part in parts
        ]
        for role, parts in data["groups"].items()
    }
    named = _ends(groups)
    pairs = [tuple(pair) for pair in data["connected_group_pairs"]]
    pairs += [("INPUT", group) for group in ("0305", "01", "MEARLY")]
    pairs += [("MEARLY", "MEARLY"), ("MLATE", "MLATE"), ("AMID", "OUTPUT"), ("MLATE", "OUTPUT")]
    edges = [_between(named[source], named[target]) for source, target in pairs]
    return {node: role for role, nodes in groups.items() for node in nodes}, set().union(*edges)


def _docstring(data: dict[str, Any]) -> tuple[dict[Node, str], set[Edge]]:
    edges = set()
    for text in data["edges"]:
        match = _EDGE.fullmatch(text)
        if match is None:
            raise ValueError(f"the edge {text!r} is not written A0.5->A1.4.V")
        edges.add(Edge(_node(match["source"]), _node(match["target"]), (match["reads"] or "in").lower()))
    return {Node("head_out", *head): "" for head in data["heads"]}, edges


def _node(text: str) -> Node:
    """Return the node that `IN`, `OUT` or `A1.4` stands for."""
    if text in ("IN", "OUT"):
        return Node("input" if text == "IN" else "output")
    layer, head = text[1:].split(".")
    return Node("head_out", int(layer), int(head))
