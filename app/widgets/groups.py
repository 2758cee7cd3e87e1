"""Dictionaries that can be compared: same model, same site, same target, same text; and how each was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from app.widgets.dictionaries import model_name
from app.widgets.loaded import model_key
from app.widgets.text import count, place_of, visible
from interp.config import digest
from interp.runs import Run, find_runs
from sae.pareto import pareto

METRICS = {
    "fvu": "FVU",
    "ce_recovered_mean": "CE recovered",
    "ce_delta": "loss added",
    "kl": "KL",
    "dead_share": "dead",
}
"""Column -> how pages call it."""


@dataclass(frozen=True)
class Group:
    """Dictionaries of one model, site, target and text, newest first."""

    key: str
    """Eight hexadecimal digits, the same in every folder."""
    model: str
    """The model's name."""
    site: str
    """Where they read and write."""
    text: str
    """What they were trained on, in short."""
    dictionaries: list[Run]
    """Their runs."""
    evaluations: dict[str, Run] = field(default_factory=dict)
    """{ref of a dictionary: its newest evaluation in the model as it is, by its own encoder}."""
    features: dict[str, Run] = field(default_factory=dict)
    """{ref of a dictionary: its newest features run}."""

    @property
    def label(self) -> str:
        """Model, site and text, for a menu."""
        return f"{self.model} · {self.site} · {self.text} ({len(self.dictionaries)})"

    @property
    def unmeasured(self) -> list[Run]:
        """Dictionaries without an evaluation."""
        return [run for run in self.dictionaries if run.ref not in self.evaluations]

    @property
    def texts(self) -> int:
        """On how many different texts they were evaluated."""
        return len({str(run.config.get("tokens")) for run in self.evaluations.values()})

    @cached_property
    def by_ref(self) -> dict[str, Run]:
        """{ref: dictionary}."""
        return {run.ref: run for run in self.dictionaries}

    @cached_property
    def points(self) -> pa.Table:
        """The rows of `sae.pareto.pareto`: of the evaluation, else of the end of training; without L0 and FVU none."""
        measured = [self.evaluations.get(run.ref, run) for run in self.dictionaries]
        fit = [run for run in measured if all(isinstance(run.summary.get(key), int | float) for key in ("l0", "fvu"))]
        return pareto(fit, dictionaries=self.dictionaries)

    @property
    def metrics(self) -> list[str]:
        """Those of `METRICS` that any of the points has."""
        return [
            name for name in METRICS if self.points.num_rows and self.points[name].null_count < self.points.num_rows
        ]


def groups(root: Path) -> list[Group]:
    """Return the finished dictionaries of the folder `root` in groups, the largest first."""
    runs = find_runs(root, finished=True)
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.kind == "sae" and isinstance(run.config.get("sae"), Mapping):
            found[_key(run)].append(run)
    own = {run.ref: model_key(run.config) for members in found.values() for run in members}
    evaluated, described = (_newest(runs, kind, own) for kind in ("evaluation", "features"))
    made = [_group(key, members, evaluated, described) for key, members in found.items()]
    return sorted(made, key=lambda group: -len(group.dictionaries))


def _key(run: Run) -> str:
    config = run.config
    parts = [
        model_key(config),
        place_of(config),
        config["sae"].get("target"),
        config.get("data"),
        config.get("with_model"),
    ]
    return digest(parts)[:8]


def _newest(runs: Sequence[Run], kind: str, own: Mapping[str, str]) -> dict[str, Run]:
    """Return {dictionary: newest run of `kind` made from it}, in the model it was trained on and by its own encoder.

    Runs are newest first, and `own` is the model of each dictionary.
    """
    found: dict[str, Run] = {}
    for run in runs:
        ref = str(run.config.get("sae_run") or next(iter(run.parents), ""))
        fits = run.kind == kind and ref in own and "encoder" not in run.config
        if fits and model_key(run.config) in ("", own[ref]):
            found.setdefault(ref, run)
    return found


def _group(key: str, members: list[Run], evaluated: Mapping[str, Run], described: Mapping[str, Run]) -> Group:
    config = members[0].config
    model, data = model_key(config), config.get("data") or {}
    text = visible(Path(str(data.get("text", "unknown text"))).name, spaces=False, limit=40)
    if isinstance(data.get("tokens"), int):
        text += f", {count(data['tokens'])} tokens"
    kind = str((config["sae"].get("target") or {}).get("kind", "input"))
    site = place_of(config) + ("" if kind in ("input", "transcoder", "crosscoder") else f" ({visible(kind)})")
    own = [run.ref for run in members]
    return Group(
        key, model_name(model) if model else "unknown model", site, text, members,
        {ref: evaluated[ref] for ref in own if ref in evaluated},
        {ref: described[ref] for ref in own if ref in described},
    )  # fmt: skip
