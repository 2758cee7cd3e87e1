"""Runs of kind attribution: which of them answer one question, their scores, and the values of each prompt.

A question is a model, a task, its prompts and a metric. What is patched into what (denoising, noising, the baseline) is
a variant of it; methods that share out the metric itself have none and stand beside every variant. Reading needs
pyarrow only. The values of single prompts, which are most of a run, are read for the cell that is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import streamlit as st
from numpy.typing import NDArray

from app.widgets.artefacts import Unreadable, readable
from app.widgets.text import visible
from interp.attribution.agreement import coarse_map
from interp.attribution.result import CELL, DIRECTIONS, PARTS, Attribution
from interp.attribution.saving import KIND, load_attribution
from interp.runs import Run, open_run

PATCHING = "patching"
METHODS = {
    PATCHING: "measured: the activation is really replaced",
    "atp": "attribution patching: difference of the runs × gradient",
    "relp": "difference of the runs × gradient rewritten by LRP rules",
    "ig": "integrated gradients between the two runs",
    "ig_inputs": "integrated gradients, from one input to the other",
    "atp_star": "attribution patching with QK fix and GradDrop",
    "gradient_x_input": "activation × gradient",
    "cp_lrp": "LRP of the metric, attention held fixed",
    "attn_lrp": "LRP of the metric, through the softmax",
    "epsilon": "LRP of the metric, ε rule",
    "gamma": "LRP of the metric, γ rule",
    "alpha_beta": "LRP of the metric, αβ rule",
    "z_plus": "LRP of the metric, z⁺ rule",
}
"""Method -> what it is, in the order of pages; other methods come after these."""
_NAME = re.compile(r"\w[\w.+-]{0,39}")  # what is drawn as a label, where anything else could be markup
_PLACE = re.compile(r"[\w.:,@-]{1,40}")
_NUMBERS = ("score", "stderr", "measured", "measured_stderr")
_BEGINNINGS = ("<|endoftext|>", "<|begin_of_text|>", "<bos>", "<s>")
_LARGEST_MAP = 20_000_000  # cells of one kind


@contextmanager
def sound() -> Iterator[None]:
    """Turn whatever a run that does not fit can raise into `Unreadable`."""
    with readable():
        try:
            yield
        except ValueError as problem:
            raise Unreadable(str(problem).split("\n")[0][:400]) from problem


class Kept(Attribution):
    """An attribution that looks for the cells of each kind once: a page asks for them many times."""

    def of(self, kind: str) -> pa.Table:
        """Return the rows of one kind, see `Attribution.of`."""
        return self._once(("of", kind), lambda: Attribution.of(self, kind))

    def parts(self, kind: str) -> tuple[str, ...]:
        """Return what the cells of `kind` are a part by, see `Attribution.parts`."""
        return self._once(("parts", kind), lambda: Attribution.parts(self, kind))

    def map(self, kind: str, column: str = "score") -> NDArray[np.float64]:
        """Return a column of a kind as an array, see `Attribution.map`; it cannot be written."""

        def read() -> NDArray[np.float64]:
            found = Attribution.map(self, kind, column)
            found.flags.writeable = False
            return found

        return self._once(("map", kind, column), read)

    @cached_property
    def kinds(self) -> list[str]:
        """Kinds of sites that have scores, in the order of computing."""
        return Attribution.kinds.fget(self)  # pyright: ignore[reportOptionalCall]

    def _once(self, key: tuple[str, ...], make: Callable[[], Any]) -> Any:
        kept: dict[tuple[str, ...], Any] = self.__dict__.setdefault("_kept", {})
        if key not in kept:
            kept[key] = make()
        return kept[key]


class Scored:
    """One run of kind attribution, its scores read when they are asked for and kept."""

    def __init__(self, run: Run) -> None:
        """Wrap `run`; nothing is read yet but its records."""
        self.run = run

    @property
    def method(self) -> str:
        """Name of the method, with what it was held to: relevance through a place, paths to a receiver."""
        config = self.run.config
        name = str(config.get("method") or self.run.slug.rpartition(".")[2])
        held = config.get("through") or config.get("receivers") or []
        places = [str(one) for one in held] if isinstance(held, list) else ["?"]
        if not _NAME.fullmatch(name) or not all(_PLACE.fullmatch(place) for place in places):
            return "unnamed method"
        word = "through" if config.get("through") else "to"
        return " ".join([name, word, *places]) if places else name

    @property
    def variant(self) -> str:
        """What is patched into what, such as "noising, mean"; "" where the metric itself is shared out."""
        direction, baseline = (str(self.run.config.get(key) or "") for key in ("direction", "baseline"))
        if direction not in DIRECTIONS or direction == "relevance":
            return ""
        return direction if baseline in ("", "corrupt") or not _NAME.fullmatch(baseline) else f"{direction}, {baseline}"

    @cached_property
    def found(self) -> Attribution:
        """The scores, without the values of single prompts.

        Raises:
            Unreadable: a file is damaged, or holds something else than scores of cells.
        """
        import pyarrow.parquet as pq

        with sound():
            names = pq.read_schema(self.run.file("nodes.parquet")).names
            found = load_attribution(self.run, [name for name in (*CELL, *_NUMBERS) if name in names])
            nodes = found.nodes.combine_chunks()
            lacking = [name for name in (*CELL, "score") if name not in names]
            if lacking or not nodes.num_rows:
                raise ValueError(f"{self.run.ref}/nodes.parquet lacks {', '.join(lacking) or 'scores'}.")
            for name in _NUMBERS:
                column = nodes[name].cast(pa.float64()) if name in names else pa.nulls(len(nodes), pa.float64())
                nodes = nodes.drop_columns([name] if name in names else []).append_column(name, column)
            fields_of = {field.name: getattr(found, field.name) for field in fields(found)}
            found = Kept(**fields_of | {"nodes": nodes})
            for kind in found.kinds:
                if not _NAME.fullmatch(kind):
                    raise ValueError(
                        f"{self.run.ref}/nodes.parquet holds a kind of site that is no name: {kind[:40]!r}."
                    )
                _check_axes(found.of(kind), f"{self.run.ref}/nodes.parquet")
            return found

    @property
    def effect(self) -> float | None:
        """Clean minus corrupted metric; None where the run does not say."""
        values = self.found.values
        both = [values.get(name) for name in ("clean", "corrupt")]
        fits = all(isinstance(value, int | float) and np.isfinite(value) for value in both)
        return float(self.found.effect) if fits else None

    def plane(self, kind: str, axis: str, column: str = "score") -> NDArray[np.float64] | None:
        """Return [layer `axis`] of a kind, added up over the other parts; None where it is not by `axis`."""
        if kind not in self.found.kinds or axis not in self.found.parts(kind):
            return None
        with sound():
            return coarse_map(self.found, kind, (axis,), column)

    def cell(self, kind: str, layer: int, parts: Mapping[str, int], column: str = "score") -> float | None:
        """Return a number of one cell; None where there is none, or the cells of `kind` are by other parts."""
        if kind not in self.found.kinds or set(self.found.parts(kind)) != set(parts):
            return None
        values = self.found.map(kind, column)
        at = (layer, *(parts[part] for part in self.found.parts(kind)))
        inside = all(0 <= i < n for i, n in zip(at, values.shape, strict=True))
        return float(values[at]) if inside and np.isfinite(values[at]) else None

    def rows(self, kind: str, layer: int, **parts: int) -> pa.Table:
        """Return the rows of the cells of a layer at these parts with `per_prompt`, as the file has them."""
        wanted = [("kind", "==", kind), ("layer", "==", layer), *((name, "==", at) for name, at in parts.items())]
        with sound():
            return self.run.table("nodes.parquet", columns=[*PARTS, "score", "stderr", "per_prompt"], filters=wanted)

    def values(self, kind: str, layer: int, **parts: int) -> NDArray[np.float64] | None:
        """Return the score of a cell at each prompt, added up over the parts that are not given; None without any."""
        with sound():
            lists = self.rows(kind, layer, **parts)["per_prompt"].to_pylist()
            if not lists or any(not values for values in lists):
                return None
            return np.sum(np.asarray(lists, dtype=np.float64), axis=0)

    def by_position(self, kind: str, layer: int, **parts: int) -> NDArray[np.float64] | None:
        """Return [prompt pos] of a layer, heads added up where none is named; None where it is not by position."""
        if kind not in self.found.kinds or "pos" not in self.found.parts(kind):
            return None
        with sound():
            table = self.rows(kind, layer, **parts)
            lists = table["per_prompt"].to_pylist()
            if not lists or any(not values for values in lists):
                return None
            at = table["pos"].to_numpy().astype(int)
            found = np.zeros((len(lists[0]), int(at.max()) + 1))
            np.add.at(found.T, at, np.asarray(lists, dtype=np.float64))
            return found

    @cached_property
    def prompts(self) -> list[dict[str, Any]]:
        """Rows of prompts.parquet; [] where the run has none."""
        if "prompts.parquet" not in self.run.files:
            return []
        with sound():
            rows = self.run.table("prompts.parquet").to_pylist()
            if any(len(row["clean"]) != len(row["corrupt"]) for row in rows):
                raise Unreadable(f"{self.run.ref}/prompts.parquet holds pairs of unequal length.")
            return rows


def _check_axes(rows: pa.Table, where: str) -> None:
    """Refuse cells that no map can hold: an axis with gaps, or numbers out of all proportion."""
    size = 1
    for name in ("layer", *(part for part in PARTS if rows[part].null_count < len(rows))):
        values = rows[name].to_numpy()
        if rows[name].null_count or values.min() < 0:
            raise ValueError(f"{where} must say {name} for all cells of a kind or for none, from 0 on.")
        size *= int(values.max()) + 1
    if size > _LARGEST_MAP:
        raise ValueError(f"{where} spans {size:,} cells of one kind; {_LARGEST_MAP:,} can be drawn.")


@st.cache_resource(max_entries=64, show_spinner=False)
def _scored(path: str, modified: int) -> Scored:  # noqa: ARG001  # a part of the cache's key
    folder = Path(path)
    with readable():
        return Scored(open_run(f"{folder.parent.name}/{folder.name}", folder.parent.parent))


def open_scored(run: Run) -> Scored:
    """Return the scores of `run`, read anew when it has changed.

    Raises:
        Unreadable: with what is wrong and what to do.
    """
    with readable():
        modified = (run.path / "manifest.json").stat().st_mtime_ns
    return _scored(str(run.path), modified)


def texts(row: Mapping[str, Any], side: str) -> list[str]:
    """Return the tokens of a side of a prompt as text: `<id>` where the run has no texts."""
    words = row.get(f"{side}_tokens")
    return [str(word) for word in words] if words else [f"<{i}>" for i in row.get(side) or []]


def sentence(row: Mapping[str, Any], side: str) -> str:
    """Return a side of a prompt as one line, without the token that begins every text."""
    words = texts(row, side)
    return visible("".join(words[1:] if words[:1] and words[0] in _BEGINNINGS else words), spaces=False, limit=120)


def in_order(methods: Sequence[Scored]) -> list[Scored]:
    """Return the runs in the order of pages: patching, estimates, relevance, others."""
    known = list(METHODS)
    return sorted(methods, key=lambda one: known.index(one.method) if one.method in known else len(known))


__all__ = ["KIND", "METHODS", "PATCHING", "Kept", "Scored", "in_order", "open_scored", "sentence", "sound", "texts"]
