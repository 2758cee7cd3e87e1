"""The profile: one pass for all families, kept and found again, two models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from interp.data import Blocks
from interp.layers import profile as profile_module
from interp.layers.family import Batch, FamilyResult, Measure, layer_table
from interp.layers.profile import profile
from interp.layers.result import Profile, curves, load_profile
from interp.models import ModelHandle, load_model
from interp.runs import RunDamaged, start_run
from interp.sites import Site
from tests.conftest import build_handle, build_module

OWN = ["stream", "geometry", "similarity", "spectra", "coding"]


def text(blocks: int = 6, context: int = 10) -> Blocks:
    tokens = torch.randint(1, 300, (blocks, context), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    tokens[:, 0] = 0
    return Blocks(tokens, torch.ones_like(tokens, dtype=torch.bool), 1, True, 0)


class Counts:
    """A family that counts what it is given."""

    name = "counts"
    measures = (Measure("seen", "tokens seen"),)

    def __init__(self, kind: str = "resid_post", refuse: str = "") -> None:
        self.kind, self.refuse = kind, refuse

    def sites(self, handle: ModelHandle) -> tuple[Site, ...]:
        return (Site(1, self.kind),)

    def begin(self, handle: ModelHandle, blocks: Blocks) -> None:
        self.batches: list[Batch] = []
        if self.refuse == "begin":
            raise ValueError("not this model.")

    def update(self, batch: Batch) -> None:
        self.batches.append(batch)

    def finish(self) -> FamilyResult:
        if self.refuse == "finish":
            raise ValueError("not this text.")
        seen = sum(int(batch.keep.sum()) for batch in self.batches)
        return FamilyResult({"seen": seen}, layer_table([(1, "seen", "", float(seen))]))


def numbers(found: Profile) -> dict[str, list[Any]]:
    return {name: part.result.layers.to_pylist() for name, part in found.parts.items()}


def same(a: Profile, b: Profile) -> None:
    assert numbers(a).keys() == numbers(b).keys()
    for name, rows in numbers(a).items():
        for one, other in zip(rows, numbers(b)[name], strict=True):
            assert one["value"] == pytest.approx(other["value"], rel=1e-4, abs=1e-6, nan_ok=True), (name, one)


def test_activations_are_captured_once_for_all_families(gpt2: ModelHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    forward = ModelHandle.forward

    def counted(self: ModelHandle, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        passes.append(len(tokens))
        return forward(self, tokens, *args, **kwargs)

    monkeypatch.setattr(ModelHandle, "forward", counted)
    whole = profile(gpt2, OWN, blocks=text())
    assert passes == [6]
    passes.clear()
    monkeypatch.setattr(profile_module, "BATCH_FLOATS", 2 * 10 * (300 + 3 * 500))
    parts = profile(gpt2, OWN, blocks=text())
    assert sum(passes) == 6
    assert len(passes) > 1
    same(whole, parts)


def test_a_batch_is_what_the_model_read(gpt2: ModelHandle) -> None:
    blocks = text()
    blocks.keep[3, 6:] = False
    blocks.tokens[2, 4] = 0  # BOS within a block
    one = Counts("q")
    found = profile(gpt2, [one], blocks=blocks)
    (batch,) = one.batches
    assert batch.acts[Site(1, "q")].shape == (6, 10, 32)
    assert torch.equal(batch.logits, gpt2.logits(blocks.tokens))
    assert not batch.keep[:, 0].any()
    assert not batch.keep[2, 4]
    assert not batch.keep[3, 6:].any()
    assert batch.with_first[:, 0].all()
    assert int(batch.keep.sum()) == 6 * 9 - 1 - 4
    assert found.results["counts"].summary == {"seen": 49}
    assert found.about["tokens"] == 56


def test_one_prompt_is_enough(model: ModelHandle) -> None:
    found = profile(model, blocks=text(1), families=OWN)
    assert list(found.parts) == OWN
    rows = found.results["similarity"].layers.to_pylist()
    assert all(row["value"] != row["value"] for row in rows if row["measure"] == "map_error")  # no other sequence


def test_who_refuses_is_left_out_unless_asked_for(gpt2: ModelHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    for refuse, why in (("begin", "not this model."), ("finish", "not this text.")):
        with pytest.raises(ValueError, match=f"The family counts: {why}"):
            profile(gpt2, [Counts(refuse=refuse)], blocks=text())
        monkeypatch.setattr(profile_module, "build_families", lambda _, refuse=refuse: [Counts(refuse=refuse)])
        found = profile(gpt2, blocks=text())
        assert (found.parts, found.refused) == ({}, {"counts": why})
        monkeypatch.undo()
    with pytest.raises(ValueError, match="resid_mid"):
        profile(build_handle("neox"), [Counts("resid_mid")], blocks=text())
    with pytest.raises(ValueError, match="reads n_ctx=64 tokens at most, got 65"):
        profile(gpt2, ["stream"], blocks=text(1, 65))


def test_a_profile_is_saved_and_found_again(gpt2: ModelHandle, tmp_path: Path) -> None:
    found = profile(gpt2, OWN, blocks=text())
    with start_run("layers", {"x": 1}, slug="tiny", root=tmp_path) as run:
        found.save(run)
        run.finish({})
    again = load_profile(run)
    assert numbers(again) == numbers(found)
    assert again.model == found.model
    assert again.results["similarity"].tables["pairs"].equals(found.results["similarity"].tables["pairs"])
    assert again.parts["stream"].measures == found.parts["stream"].measures
    assert list(load_profile(run, ["coding"]).parts) == ["coding"]
    with start_run("other", {"x": 1}, slug="tiny", root=tmp_path) as other:
        other.finish({})
    with pytest.raises(ValueError, match="is no profile"):
        load_profile(other)
    with start_run("layers", {"x": 2}, slug="tiny", root=tmp_path) as bad:
        bad.save_json("summary.json", {"families": {"stream": {}}})
        bad.finish({})
    with pytest.raises(RunDamaged, match="is not that of a profile"):
        load_profile(bad)


def test_families_are_told_as_they_finish_and_known_ones_are_skipped(gpt2: ModelHandle) -> None:
    kept: list[str] = []
    heard: list[tuple[int, int, str]] = []
    profile(
        gpt2, ["stream", "coding"], blocks=text(), on_part=lambda name, _: kept.append(name),
        on_progress=lambda *progress: heard.append(progress),
    )  # fmt: skip
    assert kept == ["stream", "coding"]
    assert heard == [(6, 6, "blocks"), (1, 2, "families"), (2, 2, "families")]
    rest = profile(gpt2, ["stream", "coding"], blocks=text(), skip=["stream"])
    assert list(rest.parts) == ["coding"]


def test_a_recipe_is_what_is_profiled(model_folder: Path) -> None:
    from interp.compression import read_recipe
    from interp.models import ModelSpec

    plain = load_model(str(model_folder))
    pruned = load_model(ModelSpec(str(model_folder), recipe=read_recipe("[{step: magnitude, sparsity: 0.9}]")))
    a, b = (profile(one, ["spectra", "stream"], blocks=text()) for one in (plain, pruned))
    assert b.model.startswith("gpt2 magnitude")
    changed = [x["value"] != y["value"] for x, y in zip(numbers(a)["spectra"], numbers(b)["spectra"], strict=True)]
    assert sum(changed) > len(changed) / 2
    assert "magnitude" in a.beside(b)._repr_html_()


def test_curves_have_their_layers_in_order() -> None:
    table = layer_table([(1, "m", "q", 2.0, 1.0, 3.0), (0, "m", "q", 5.0), (0, "m", "", 4.0), (0, "n", "q", 9.0)])
    found = curves(table, "m")
    assert list(found) == ["q", ""]
    layers, values, low, high = found["q"]
    assert (layers, values) == ([0, 1], [5.0, 2.0])
    assert low[0] != low[0]
    assert (low[1], high[1]) == (1.0, 3.0)
    assert isinstance(table, pa.Table)
    assert layer_table([]).num_rows == 0


def test_two_depths_share_the_axis_of_relative_depth(gpt2: ModelHandle) -> None:
    deep = load_model(build_module("gpt2", n_layer=5))
    a, b = (profile(one, ["geometry"], blocks=text(2)) for one in (gpt2, deep))
    fig = a.beside(b).figure()
    lines = [trace for trace in fig.data if trace.customdata is not None]
    assert len(lines) == 2 * len(a.parts["geometry"].measures)
    assert list(lines[0].x) == [0, 1 / 3, 2 / 3, 1]
    assert list(lines[1].x) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert list(lines[1].customdata[-1]) == [4, 1]
    alone = a.figure(["geometry"])
    assert list(alone.data[0].x) == [-1, 0, 1, 2]
    with pytest.raises(ValueError, match="Unknown family 'stream'"):
        a.figure(["stream"])
    same_names = a.beside(a).names
    assert same_names[0] != same_names[1]
