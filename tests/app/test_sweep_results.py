"""The table of a sweep: which cells are on the front, columns and their types."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sweeps.results import Axis, Record, axis, front, label, lines, missing, to_table


def record(index: int, x: float, y: float, status: str = "finished", **parameters: object) -> Record:
    return Record(index, f"{index:08x}", parameters, status, 1.0, {"l0": x, "fvu": y}, {"sae": f"sae/a-{index:08x}"})


L0, FVU = Axis("l0"), Axis("fvu")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    records = [record(i, x, y) for i, (x, y) in enumerate(points)]

    def beaten(x: int, y: int) -> bool:
        return any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)

    assert front(records, L0, FVU) == {i for i, (x, y) in enumerate(points) if not beaten(x, y)}


def test_failed_cells_and_missing_numbers_are_on_no_front() -> None:
    records = [record(0, 1, math.nan), record(1, 1, 0.1, "failed"), record(2, 3, 0.5)]
    assert front(records, L0, FVU) == {2}


def test_larger_can_be_better() -> None:
    records = [record(0, 8, 0.5), record(1, 8, 0.9)]
    assert front(records, L0, axis("fvu:max")) == {1}
    assert axis("ce_recovered_mean").larger
    assert not axis("ce_recovered_mean:min").larger
    assert not axis("kl").larger
    with pytest.raises(ValueError, match="NAME:min or NAME:max, got 'kl:low'"):
        axis("kl:low")


def test_the_table_has_a_row_for_each_cell_and_typed_columns() -> None:
    records = [
        record(0, 8, 0.5, k=8, lr=1, site="resid_post.1", bos=True),
        Record(1, "00000001", {"k": 16, "lr": 0.5, "site": None, "bos": False}, "failed", 0.1, error="no"),
    ]
    table = to_table(records, {0})
    assert table.column("front").to_pylist() == [True, False]
    assert table.column("status").to_pylist() == ["finished", "failed"]
    assert table.column("error").to_pylist() == [None, "no"]
    assert table.column("metrics.fvu").to_pylist() == [0.5, None]
    assert table.column("runs.sae").to_pylist() == ["sae/a-00000000", None]
    types = {name: str(table.schema.field(f"parameters.{name}").type) for name in ("k", "lr", "site", "bos")}
    assert types == {"k": "int64", "lr": "double", "site": "string", "bos": "bool"}


def test_people_see_what_differs_best_first() -> None:
    records = [record(0, 16, 0.2, k=16, d=1), record(1, 8, 0.5, k=8, d=1), record(2, 8, 0.7, k=4, d=1)]
    headers, rows = lines(records, [L0, FVU])
    assert headers == ["", "k", "l0", "fvu", "seconds", "runs"]
    assert [row[:4] for row in rows] == [["*", 8, 8, 0.5], ["", 4, 8, 0.7], ["*", 16, 16, 0.2]]
    assert label(records[0], ["k"]) == "k=16"


def test_an_unknown_metric_is_named() -> None:
    assert "no cell measured 'fuv'; did you mean 'fvu'?" in missing([record(0, 1, 2)], [L0, Axis("fuv")])[0]
    assert missing([record(0, 1, 2, "failed")], [Axis("fuv")]) == []
