"""How attributions are drawn: figures and static tables, with nothing of the model's text left as markup."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from interp.attribution import Attribution
from interp.figures import (
    HeatTable,
    agreement_matrix,
    attribution_map,
    conservation_curve,
    estimate_scatter,
    prompt_values,
)

INT = pa.int32()


@pytest.fixture
def found() -> Attribution:
    layers, positions = np.indices((3, 2)).reshape(2, -1)
    nulls = pa.nulls(6, INT)
    nodes = pa.table(
        {
            "kind": ["mlp_out"] * 6, "layer": pa.array(layers, INT), "pos": pa.array(positions, INT), "head": nulls,
            "neuron": nulls, "latent": nulls, "score": [0.0, 1.0, -2.0, 3.0, float("nan"), 0.5],
        }
    )  # fmt: skip
    sums = {"kind": ["mlp_out"], "layer": [0], "part": ["pos"], "explained": [1.0], "total": [2.0], "gap": [1.0]}
    tokens = ("<b>bold</b>", "b")
    return Attribution("atp", "logit_diff", "corrupt", "denoising", nodes, pa.table(sums), tokens, {"clean": 1.0})


def test_the_map_holds_the_scores(found: Attribution) -> None:
    drawn = found.figure().data[0]
    np.testing.assert_array_equal(drawn.z, found.map("mlp_out"))
    assert (drawn.zmin, drawn.zmax) == (-3.0, 3.0)
    labels = attribution_map(found, "mlp_out").layout.xaxis.ticktext
    assert labels[0].startswith("0 '&lt;b&gt;")


def test_a_position_is_chosen_in_maps_by_position_and_head() -> None:
    values = np.zeros((2, 3, 4))
    values[1, 2, 3] = -5.0

    class Scores:
        tokens = ()

        def map(self, kind: str, column: str = "score") -> np.ndarray:
            return values

        def parts(self, kind: str) -> tuple[str, ...]:
            return ("pos", "head")

    assert attribution_map(Scores(), "head_out").data[0].z[1, 3] == -5.0
    assert not attribution_map(Scores(), "head_out", position=0).data[0].z.any()


def test_a_result_draws_itself_without_a_script(found: Attribution) -> None:
    html = found._repr_html_()
    assert html.count("<td ") == 6
    assert "full colour 3.00" in html
    assert "<script" not in html
    assert "<b>bold" not in html
    assert 'class="none"' in html  # the cell without a score
    assert html.count("background:rgb") == 4  # neither that nor the 0, which helps as little as it hurts


def test_a_strip_shades_positions(found: Attribution) -> None:
    assert list(found.strip("mlp_out", 1).values) == [-2.0, 3.0]
    assert list(found.strip("mlp_out", 2).values) == [0.0, 0.5]
    with pytest.raises(ValueError, match="2 positions needs as many tokens, got 3"):
        found.strip("mlp_out", 0, ["a", "b", "c"])
    heads = replace(
        found, nodes=found.nodes.rename_columns(["kind", "layer", "head", "pos", "neuron", "latent", "score"])
    )
    with pytest.raises(ValueError, match="by position"):
        heads.strip("mlp_out", 0)


def test_heat_table_refuses_labels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\[2, 1\]"):
        HeatTable([[1.0], [2.0, 3.0]], ["a", "b"], ["c"])
    assert "1 more columns" in HeatTable([[0.0] * 65], ["a"], [str(i) for i in range(65)]).html()


def test_the_agreement_is_written_into_its_cells() -> None:
    fig = agreement_matrix(["a", "b"], np.array([[1.0, np.nan], [0.25, 1.0]]))
    assert [note.text for note in fig.layout.annotations] == ["1.00", "0.25", "1.00"]


def test_estimates_are_drawn_against_the_measured() -> None:
    fig = estimate_scatter([0.0, 2.0], {"<i>atp": [0.5, 1.0], "relp": [0.0, 2.0]}, ["x", "<b>y"])
    assert list(fig.data[1].y) == [0.5, 1.0]
    assert fig.data[1].name == "&lt;i&gt;atp"
    assert fig.data[0].x[0] < 0 < 2 < fig.data[0].x[1]
    assert fig.data[2].text[1] == "&lt;b&gt;y"


def test_conservation_is_one_curve_for_each_method_and_kind() -> None:
    rows = [
        {"method": method, "kind": "resid_pre", "layer": layer, "explained": 1.0 + layer, "total": 2.0}
        for method in ("cp_lrp", "attn_lrp")
        for layer in range(3)
    ]
    fig = conservation_curve(rows)
    assert [line.name for line in fig.data] == ["cp_lrp · resid_pre", "attn_lrp · resid_pre"]
    assert list(fig.data[0].y) == [1.0, 2.0, 3.0]
    assert fig.layout.shapes[0].y0 == 2.0


def test_conservation_as_a_share_has_one_goal_for_all() -> None:
    rows = [
        {"method": "atp", "kind": "resid_pre", "layer": 0, "explained": 2.0, "total": 4.0},
        {"method": "cp_lrp", "kind": "resid_pre", "layer": 0, "explained": 3.0, "total": 3.0},
        {"method": "none", "kind": "resid_pre", "layer": 0, "explained": 1.0, "total": 0.0},
    ]
    fig = conservation_curve(rows, share=True)
    assert [list(line.y) for line in fig.data] == [[0.5], [1.0]]
    assert [shape.y0 for shape in fig.layout.shapes] == [1.0]
    rounded = [rows[0], rows[0] | {"total": 4.0 + 1e-6}]
    assert len(conservation_curve(rounded).layout.shapes) == 1


def test_prompts_are_in_the_order_of_the_first_method() -> None:
    fig = prompt_values({"a": [1.0, 3.0, 2.0], "<b>": [0.0, -1.0, 5.0]}, ["x", "<i>y", "z"])
    assert [list(line.y) for line in fig.data] == [[3.0, 2.0, 1.0], [-1.0, 5.0, 0.0]]
    assert [line[0] for line in fig.data[1].customdata] == [1, 2, 0]
    assert fig.data[0].text[0] == "prompt 1: &lt;i&gt;y"
    assert fig.data[1].name == "&lt;b&gt;"
