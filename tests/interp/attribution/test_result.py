"""What an attribution is asked for: kinds, axes, maps, the cells that count most."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from interp.attribution import Attribution

WHOLE = pa.int32()


def nodes(kind: str, score: np.ndarray, *parts: str) -> pa.Table:
    at = np.indices(score.shape).reshape(score.ndim, -1)
    columns: dict[str, Any] = {"kind": [kind] * score.size, "layer": pa.array(at[0], WHOLE)}
    for part in ("pos", "head", "neuron", "latent"):
        axis = at[1 + parts.index(part)] if part in parts else None
        columns[part] = pa.nulls(score.size, WHOLE) if axis is None else pa.array(axis, WHOLE)
    return pa.table(columns | {"score": score.ravel(), "stderr": np.zeros(score.size)})


def attribution(table: pa.Table, **changes: Any) -> Attribution:
    sums = pa.table(
        {"kind": ["resid_pre"], "layer": [0], "part": ["pos"], "explained": [1.0], "total": [2.0], "gap": [1.0]}
    )
    values = {"clean": 3.0, "corrupt": 1.0}
    return Attribution("relp", "logit_diff", "corrupt", "denoising", table, sums, ("a", "b"), values, **changes)


@pytest.fixture
def found() -> Attribution:
    by_head = np.arange(24, dtype=float).reshape(2, 3, 4)
    return attribution(
        pa.concat_tables(
            [nodes("resid_pre", np.array([[1.0, -9.0], [2.0, 3.0]]), "pos"), nodes("head_out", by_head, "pos", "head")]
        )
    )


def test_maps_have_the_axes_of_their_cells(found: Attribution) -> None:
    assert found.kinds == ["resid_pre", "head_out"]
    assert found.parts("resid_pre") == ("pos",)
    assert found.parts("head_out") == ("pos", "head")
    np.testing.assert_array_equal(found.map("resid_pre"), [[1, -9], [2, 3]])
    np.testing.assert_array_equal(found.map("head_out"), np.arange(24).reshape(2, 3, 4))
    assert found.effect == 2.0


def test_a_cell_that_is_not_there_is_nan(found: Attribution) -> None:
    some = attribution(nodes("resid_pre", np.array([[1.0, -9.0], [2.0, 3.0]]), "pos").slice(1))
    assert np.isnan(some.map("resid_pre")[0, 0])
    assert some.map("resid_pre")[1, 1] == 3.0


def test_the_top_is_by_magnitude(found: Attribution) -> None:
    assert found.top(2)["score"].to_pylist() == [23.0, 22.0]
    assert attribution(found.of("resid_pre")).top(1)["score"].to_pylist() == [-9.0]


def test_unknown_names_are_refused(found: Attribution) -> None:
    with pytest.raises(ValueError, match="resid_pre"):
        found.map("resid_per")
    with pytest.raises(ValueError, match="denoising"):
        Attribution("a", "b", "c", "denoise", found.nodes, found.completeness)
