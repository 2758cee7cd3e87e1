"""Runs of kind compare: two models, what changed between them, and the null runs that say how much noise would do.

Reading needs pyarrow only. A table or a number that a run lacks is None here, and its part of the page says so; a file
that is damaged raises `Unreadable`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import streamlit as st

from app.widgets.artefacts import FeatureSet, Unreadable, open_features, readable
from app.widgets.text import visible
from interp.runs import Run, find_runs, open_run

pc: Any = pyarrow.compute  # its functions are made when it is imported, so a type checker sees none

_LABEL = 60  # characters of a model's label


@dataclass(frozen=True)
class Pair:
    """One piece of text with the values of a latent in both models."""

    rank: int
    block: int
    position: int
    """Of the token with the largest activation, in its block."""
    start: int
    """Position of the first token shown."""
    ids: list[int]
    a: list[float]
    b: list[float]

    @property
    def centre(self) -> int:
        """Index of that token among the tokens shown."""
        return self.position - self.start


class Comparison:
    """One run of kind compare, its tables read when they are asked for and kept."""

    def __init__(self, run: Run) -> None:
        """Wrap `run`; nothing is read yet but its records."""
        self.run = run
        self._tables: dict[str, pa.Table] = {}

    @property
    def ref(self) -> str:
        """What names the run."""
        return self.run.ref

    @property
    def null_of(self) -> str:
        """Ref of the comparison whose null this is; "" for a comparison of its own."""
        return str(self.run.config.get("null_of") or "")

    @property
    def sae_ref(self) -> str:
        """Ref of the dictionary whose features were followed; "" where there was none."""
        return str(self.run.config.get("sae_run") or "")

    @property
    def a(self) -> str:
        """Label of the first model."""
        return model_label(self.run.config.get("a"))

    @property
    def b(self) -> str:
        """Label of the second model."""
        return model_label(self.run.config.get("b"))

    @property
    def change(self) -> str:
        """What b is to a, in a few words: its recipe where the models have one name, else its label."""
        a, b = (_model(self.run.config.get(key)) for key in "ab")
        same = all(a.get(key) == b.get(key) for key in ("name", "revision"))
        recipe = recipe_label(b.get("recipe")) if same and not a.get("recipe") else ""
        if not recipe and same and a.get("recipe") == b.get("recipe"):
            recipe = "itself" if a == b else f"in {b.get('dtype')}"
        if self.null_of:
            recipe = _null_label(self.run.config.get("null"), b.get("recipe"))
        return visible(recipe or self.b, spaces=False, limit=_LABEL)

    @cached_property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """{panel: {name: number or text}}, as summary.json has it."""
        with readable():
            found = self.run.json("summary.json")
        if not isinstance(found, dict) or not all(isinstance(part, dict) for part in found.values()):
            raise Unreadable(
                f"{self.ref}/summary.json must hold one mapping for each panel. Make the comparison again."
            )
        return found

    def number(self, panel: str, name: str) -> float | None:
        """Return a number of a panel's summary; None where the panel did not run or says none."""
        found = self.summaries.get(panel, {}).get(name)
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None

    def headline(self, *names: str) -> float | None:
        """Return the first of `names` that is a number in the run's own summary."""
        found = (self.run.summary.get(name) for name in names)
        return next((float(n) for n in found if isinstance(n, int | float) and not isinstance(n, bool)), None)

    def has(self, panel: str, table: str) -> bool:
        """Return whether the run holds that table."""
        return f"{panel}.{table}.parquet" in self.run.files

    def table(self, panel: str, name: str, *columns: str) -> pa.Table | None:
        """Return the table `name` of `panel`, None where the run has none.

        Raises:
            Unreadable: the file is damaged, or lacks one of `columns`.
        """
        file = f"{panel}.{name}.parquet"
        if file not in self._tables:
            if not self.has(panel, name):
                return None
            with readable():
                self._tables[file] = self.run.table(file).combine_chunks()
        table = self._tables[file]
        lacking = [column for column in columns if column not in table.column_names]
        if lacking:
            raise Unreadable(f"{self.ref}/{file} lacks the columns {', '.join(lacking)}. Make the comparison again.")
        return table

    @cached_property
    def vocabulary(self) -> dict[int, str]:
        """Text of each token id that the examples hold."""
        with readable():
            table = self.run.table("vocab.parquet", columns=["token_id", "text"])
            return dict(zip(table["token_id"].to_pylist(), table["text"].to_pylist(), strict=True))

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each id; `<id>` for one that the vocabulary lacks."""
        return [self.vocabulary.get(i, f"<{i}>") or "" for i in ids]

    def pairs(self, latent: int, side: str) -> list[Pair]:
        """Return the largest activations of `latent` in model `side` ("a" or "b"), with the values in both."""
        if not self.has("survival", "examples"):
            return []
        with readable():
            wanted = [("latent", "==", latent), ("side", "==", side)]
            rows = self.run.table("survival.examples.parquet", filters=wanted).to_pylist()
            found = [
                Pair(int(row["rank"]), int(row["block"]), int(row["position"]), int(row["start"]), row["token_ids"],
                     row["values_a"], row["values_b"])
                for row in rows
            ]  # fmt: skip
            if any(not len(pair.ids) == len(pair.a) == len(pair.b) for pair in found):
                raise Unreadable(f"{self.ref}/survival.examples.parquet holds lists of unequal length.")
        return sorted(found, key=lambda pair: pair.rank)

    def latent(self, latent: int) -> dict[str, Any] | None:
        """Return what survival says of `latent`; None where it says nothing."""
        table = self.table("survival", "latents", "latent", "r", "state")
        if table is None:
            return None
        with readable():
            rows = table.filter(pc.equal(table["latent"], latent)).to_pylist()
        return rows[0] if rows else None

    def features(self) -> FeatureSet | None:
        """Return the newest features run of the dictionary, for labels and links; None where there is none."""
        if not self.sae_ref:
            return None
        found = find_runs(self.run.root, kind="features", finished=True)
        run = next((r for r in found if self.sae_ref in (*r.parents, r.config.get("sae_run"))), None)
        try:
            return open_features(run.path) if run else None
        except Unreadable:
            return None


@st.cache_resource(max_entries=32, show_spinner=False)
def _comparison(path: str, modified: int) -> Comparison:  # noqa: ARG001  # a part of the cache's key
    folder = Path(path)
    with readable():
        return Comparison(open_run(f"{folder.parent.name}/{folder.name}", folder.parent.parent))


def open_comparison(run: Run) -> Comparison:
    """Return the comparison of `run`, read anew when it has changed.

    Raises:
        Unreadable: with what is wrong and what to do.
    """
    with readable():
        modified = (run.path / "manifest.json").stat().st_mtime_ns
    return _comparison(str(run.path), modified)


def comparisons(root: Path) -> list[Comparison]:
    """Return the finished comparisons of the folder `root`, newest first, null runs last."""
    found = [open_comparison(run) for run in find_runs(root, kind="compare", finished=True)]
    return sorted(found, key=lambda one: bool(one.null_of))


def nulls_of(chosen: Comparison, among: Iterable[Comparison]) -> list[Comparison]:
    """Return the null runs of `chosen`, the smaller label first."""
    return sorted((one for one in among if one.null_of == chosen.ref), key=lambda one: one.change)


def same_start(chosen: Comparison, among: Iterable[Comparison]) -> list[Comparison]:
    """Return the other comparisons with the same first model, null runs left out, the smallest KL first."""
    start = _start(chosen)
    found = [one for one in among if one.ref != chosen.ref and not one.null_of and _start(one) == start]
    return sorted(found, key=_damage)


def _start(one: Comparison) -> str:
    """Return what identifies the first model: its specification, and the hash of its weights where the run has it."""
    weights = one.run.config.get("weights")
    held = weights.get("a") if isinstance(weights, Mapping) else None
    return json.dumps([one.run.config.get("a"), held], sort_keys=True, default=str)


def _damage(one: Comparison) -> float:
    try:
        found = one.number("behaviour", "kl_mean")
    except Unreadable:
        found = None
    return float("inf") if found is None else found


def labels(found: Sequence[Comparison]) -> dict[str, str]:
    """Return {ref: a short label}, the hash added where two would be alike."""
    keys = [(one.change, one.null_of) for one in found]  # a null is told apart by what it belongs to
    return {
        one.ref: key[0] if keys.count(key) == 1 else f"{key[0]} {one.run.id}"
        for one, key in zip(found, keys, strict=True)
    }


def _model(spec: Any) -> Mapping[str, Any]:
    return spec if isinstance(spec, Mapping) else {"name": str(spec or "unknown")}


def model_label(spec: Any) -> str:
    """Return a model of a run's configuration in a few words: name, revision, recipe."""
    model = _model(spec)
    name = Path(str(model.get("name") or "unknown")).name
    revision = f"@{model['revision']}" if model.get("revision") else ""
    parts = [f"{name}{revision}", recipe_label(model.get("recipe"))]
    return visible(" ".join(part for part in parts if part), spaces=False, limit=_LABEL)


def recipe_label(recipe: Any) -> str:
    """Return a recipe's JSON in a few words: "rtn 4-bit group 64, magnitude sparsity 0.3"; "" for none."""
    return ", ".join(_step(step) for step in _steps(recipe))


def _steps(recipe: Any) -> Sequence[Any]:
    return recipe if isinstance(recipe, Sequence) and not isinstance(recipe, str) else [recipe] if recipe else []


def _name(step: Any) -> str:
    found = (step.get("step") or step.get("name")) if isinstance(step, Mapping) else step
    return str(found or "step").replace("_", " ")


def _null_label(null: Any, recipe: Any) -> str:
    """Return a null's kind and the strength that gave the wanted KL: "weight noise 0.13", "random prune 1.1%"."""
    last = next(iter(reversed(_steps(recipe))), None)
    name = _name((null.get("kind") if isinstance(null, Mapping) else null) or last or "null")
    step = last if isinstance(last, Mapping) else {}
    std, sparsity = (value if isinstance(value := step.get(key), int | float) else None for key in ("std", "sparsity"))
    return f"{name} {std:.2g}" if std is not None else f"{name} {100 * sparsity:.2g}%" if sparsity is not None else name


def _step(step: Any) -> str:
    name = _name(step)
    if not isinstance(step, Mapping):
        return name
    parts = [f"{step['bits']}-bit"] if step.get("bits") else []
    sparsity = step.get("sparsity")
    parts += [f"{100 * sparsity:.3g}%"] if isinstance(sparsity, int | float) else []
    for key, value in step.items():
        if key not in _SAID and value not in (None, False, "", [], ()) and (key, value) not in _USUAL:
            parts.append(key if value is True else f"{key} {_short(value)}")
    return " ".join([name, *parts])


_SAID = ("step", "name", "bits", "sparsity", "seed")
_USUAL = (("mode", "symmetric"), ("scope", "matrix"))


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return "+".join(_short(item) for item in value[:4]) + ("…" if len(value) > 4 else "")
    return str(value)
