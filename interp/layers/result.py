"""What was found by layer: measures, tables, profiles, and the runs that hold them. Reading needs no model library.

A run of kind "layers" holds `summary.json` (families: summary, measures, seconds; refused; about), and for each family
`FAMILY.layers.parquet` (layer, measure, part, value, low, high) and `FAMILY.TABLE.parquet` for each table of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from interp.names import unknown
from interp.runs import RunDamaged

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import pyarrow as pa

    from interp.figures import Multiple
    from interp.runs import Run

COLUMNS = ("layer", "measure", "part", "value", "low", "high")
"""Columns of a table by layer. `part` is what of the layer it is ("attn", "q", "" for all of it); low and high are null
where there is no interval."""
KIND = "layers"
"""Kind of the run that holds a profile."""
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Measure:
    """What one curve over layers shows."""

    name: str
    """Its name in tables."""
    label: str
    """Title of its figure: a few words."""
    unit: str = ""
    """Unit of the values, such as "nats"; "" for a plain number."""
    note: str = ""
    """One sentence that helps to read it: what high and low mean, or its trap."""


@dataclass(frozen=True)
class FamilyResult:
    """What a family found."""

    summary: dict[str, int | float | str | None]
    """Headline numbers by name."""
    layers: pa.Table
    """Values by layer, see `COLUMNS`."""
    tables: dict[str, pa.Table] = field(default_factory=dict)
    """Other tables by name: layer by layer, by head, by neuron."""


def layer_table(rows: Iterable[tuple[Any, ...]]) -> pa.Table:
    """Return the table by layer of rows (layer, measure, part, value) or (layer, measure, part, value, low, high)."""
    import pyarrow as pa

    full = [(*row, None, None)[:6] for row in rows]
    kinds = (pa.int32(), pa.string(), pa.string(), pa.float64(), pa.float64(), pa.float64())
    columns = zip(*full, strict=True) if full else [()] * len(COLUMNS)
    arrays = [pa.array(list(values), kind) for values, kind in zip(columns, kinds, strict=True)]
    return pa.table(dict(zip(COLUMNS, arrays, strict=True)))


@dataclass(frozen=True)
class Part:
    """What one family found in a model, and what it took."""

    result: FamilyResult
    """Summary and tables."""
    measures: tuple[Measure, ...]
    """What its table by layer holds."""
    seconds: float = 0.0
    """Time of the family by itself; the forward passes that all share are not in it."""


@dataclass(frozen=True)
class Profile:
    """Measures by layer of one model."""

    model: str
    """The model in a few words: its name and its recipe."""
    n_layers: int
    """Its blocks."""
    parts: dict[str, Part]
    """What each family found, by its name."""
    refused: dict[str, str] = field(default_factory=dict)
    """Families that could not be measured, with the reason."""
    about: dict[str, Any] = field(default_factory=dict)
    """Blocks, context, tokens, and the seconds of the forward passes that all families share."""

    @property
    def results(self) -> dict[str, FamilyResult]:
        """What each family found, without what it took."""
        return {name: part.result for name, part in self.parts.items()}

    def beside(self, other: Profile) -> Beside:
        """Return this profile with that of another model beside it."""
        return Beside(self, other)

    def multiples(self, families: Sequence[str] | None = None) -> list[Multiple]:
        """Return the small figures of `families` (None: all that were measured).

        Raises:
            ValueError: a family that the profile does not hold.
        """
        return multiples([self], families)

    def figure(self, families: Sequence[str] | None = None, *, columns: int = 4) -> go.Figure:
        """Return small multiples of `families` (None: all) on one axis of layers.

        Raises:
            ValueError: a family that the profile does not hold.
        """
        from interp.figures import layer_multiples

        return layer_multiples(self.multiples(families), [self.model], columns=columns)

    def save(self, run: Run) -> None:
        """Write the tables of every family and `summary.json` into `run`."""
        for name, part in self.parts.items():
            save_part(run, name, part)
        save_summary(run, self)

    def _repr_html_(self) -> str:
        """Return the headline numbers of each family for notebooks."""
        return _html([self])


@dataclass(frozen=True)
class Beside:
    """The profiles of two models; where their depths differ, the axis is the share of the blocks that was passed."""

    a: Profile
    """The first."""
    b: Profile
    """The other."""

    @property
    def names(self) -> tuple[str, str]:
        """What the models are called, the second told apart where both are alike."""
        return self.a.model, self.b.model if self.b.model != self.a.model else f"{self.b.model} (b)"

    def figure(self, families: Sequence[str] | None = None, *, columns: int = 4) -> go.Figure:
        """Return small multiples with both models in each, of the families (None: all) that either of them has."""
        from interp.figures import layer_multiples

        return layer_multiples(multiples([self.a, self.b], families), self.names, columns=columns)

    def _repr_html_(self) -> str:
        """Return the headline numbers of both for notebooks."""
        return _html([self.a, self.b], self.names)


def multiples(
    profiles: Sequence[Profile], families: Sequence[str] | None = None, measures: Sequence[str] | None = None
) -> list[Multiple]:
    """Return a small figure for each measure, with the lines of all profiles.

    Args:
        profiles: of one model or two.
        families: whose measures; None takes all of any profile.
        measures: names of those that are wanted; None takes all.

    Raises:
        ValueError: no profile holds one of the families.
    """
    from interp.figures import LayerLine, Multiple

    known = list(dict.fromkeys(name for one in profiles for name in one.parts))
    for name in families or ():
        if name not in known:
            raise ValueError(unknown("family", name, known))
    deep = len({one.n_layers for one in profiles}) > 1
    found = []
    for name in known if families is None else families:
        held = [(i, one, one.parts[name]) for i, one in enumerate(profiles) if name in one.parts]
        titles = {measure.name: measure for _, _, part in held for measure in part.measures}
        for measure in (one for one in titles.values() if measures is None or one.name in measures):
            lines = []
            for i, one, part in held:
                scale = one.n_layers if deep else None
                for label, points in curves(part.result.layers, measure.name).items():
                    lines.append(LayerLine(label, *points, model=i, blocks=scale))
            if lines:
                found.append(Multiple(measure.label, lines, unit=measure.unit, note=measure.note, group=name))
    return found


def curves(table: pa.Table, measure: str) -> dict[str, tuple[list[int], list[float], list[float], list[float]]]:
    """Return {part: (layers, values, low, high)} of one measure, layers ascending; NaN where there is no number."""
    nan = float("nan")
    rows = [row for row in table.to_pylist() if row["measure"] == measure]
    found = {}
    for part in dict.fromkeys(row["part"] for row in rows):
        own = sorted((row for row in rows if row["part"] == part), key=lambda row: row["layer"])
        numbers = [[nan if row[key] is None else row[key] for row in own] for key in ("value", "low", "high")]
        found[part] = ([row["layer"] for row in own], *numbers)
    return found


def save_part(run: Run, name: str, part: Part) -> None:
    """Write the tables of one family into `run`."""
    run.save_table(f"{name}.layers.parquet", part.result.layers)
    for table, rows in part.result.tables.items():
        run.save_table(f"{name}.{table}.parquet", rows)


def save_summary(run: Run, found: Profile) -> None:
    """Write `summary.json`: all of the profile but its tables."""
    families = {
        name: {
            "summary": part.result.summary,
            "measures": [asdict(measure) for measure in part.measures],
            "tables": sorted(part.result.tables),
            "seconds": part.seconds,
        }
        for name, part in found.parts.items()
    }
    about = {"model": found.model, "n_layers": found.n_layers, "refused": found.refused, "about": found.about}
    run.save_json(SUMMARY, {"families": families, **about})


def load_profile(run: Run, families: Sequence[str] | None = None) -> Profile:
    """Return the profile that a run of kind "layers" holds; of one that is not finished, what is there.

    Args:
        run: the run.
        families: which of them; None takes all.

    Raises:
        ValueError: the run is of another kind.
        RunError: a file is missing or damaged.
    """
    if run.kind != KIND:
        raise ValueError(f"{run.ref} is no profile; make one with `mechscope layers`.")
    data = run.json(SUMMARY)
    try:
        parts = {
            name: Part(
                FamilyResult(
                    dict(one["summary"]),
                    run.table(f"{name}.layers.parquet"),
                    {table: run.table(f"{name}.{table}.parquet") for table in one["tables"]},
                ),
                tuple(Measure(**measure) for measure in one["measures"]),
                float(one["seconds"]),
            )
            for name, one in data["families"].items()
            if families is None or name in families
        }
        return Profile(data["model"], int(data["n_layers"]), parts, dict(data["refused"]), dict(data["about"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise RunDamaged(f"{run.ref}/{SUMMARY} is not that of a profile ({error}). Make it again.") from error


def _html(profiles: Sequence[Profile], names: Sequence[str] | None = None) -> str:
    """Return the headline numbers of profiles as a table, a column for each."""
    names = [one.model for one in profiles] if names is None else names
    rows = []
    for family in dict.fromkeys(name for one in profiles for name in one.parts):
        summaries: list[Mapping[str, Any]] = [
            one.parts[family].result.summary if family in one.parts else {} for one in profiles
        ]
        for key in dict.fromkeys(key for summary in summaries for key in summary):
            cells = "".join(f"<td>{escape(_shown(summary.get(key)))}</td>" for summary in summaries)
            rows.append(f"<tr><td>{escape(family)}</td><td>{escape(key)}</td>{cells}</tr>")
    refused = {name: why for one in profiles for name, why in one.refused.items()}
    notes = "".join(f"<div>{escape(name)}: {escape(why)}</div>" for name, why in refused.items())
    heads = "".join(f"<th>{escape(name)}</th>" for name in names)
    return f"<table><tr><th>family</th><th>what</th>{heads}</tr>{''.join(rows)}</table>{notes}"


def _shown(value: object) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
