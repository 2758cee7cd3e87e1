"""Path patching against its definition, pass by pass, and where no path leads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.attribution import Cell, patch_map, path_patch
from interp.hooks import capture, patch
from interp.models import ModelHandle
from interp.models.taps import BLOCKS
from interp.tasks import LogitDiff, Pairs


def put(cell: Cell, new: Tensor) -> Callable[[Tensor], Tensor]:
    """Return an edit that puts the part of `new` that the cell names."""

    def edit(value: Tensor) -> Tensor:
        at = (slice(None), slice(None) if cell.pos is None else cell.pos)
        at = at if cell.head is None else (*at, cell.head)
        value[at] = new[at]
        return value

    return edit


def read_by_mlp(model: ModelHandle, layer: int, found: list[Tensor], new: Tensor | None = None, pos: int | None = None):
    """Note what an MLP reads; with `new`, let it read that at `pos` (None: everywhere)."""

    def hook(_module: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if new is None:
            found.append(args[0].clone())
            return None
        value = args[0].clone()
        where = slice(None) if pos is None else pos
        value[:, where] = new[:, where]
        return (value,)

    return model.module.get_submodule(f"{BLOCKS[model.family]}.{layer}.mlp").register_forward_pre_hook(hook)


def effect_by_passes(
    model: ModelHandle, pairs: Pairs, sender: Cell, receiver: Cell | str, freeze_mlps: bool = True
) -> Tensor:
    """Return the denoising effect on each prompt in four passes, as the papers write them down."""
    metric, rows = LogitDiff(pairs.correct, pairs.wrong), torch.arange(len(pairs))
    heads = [f"head_out.{layer}" for layer in range(model.n_layers)]
    mlps = [f"mlp_out.{layer}" for layer in range(model.n_layers)] if freeze_mlps else []
    with capture(model, [*heads, *mlps]) as acts:  # pass 1: the base run
        before = metric(model.logits(pairs.corrupt), rows)
        base = {name: acts[name].clone() for name in (*heads, *mlps)}
    with capture(model, sender.site) as acts:  # ... and the other one
        model.logits(pairs.clean)
        sent = acts[sender.site].clone()
    read: list[Tensor] = []
    with ExitStack() as opened:  # pass 2
        for name in (*heads, *mlps):
            opened.enter_context(patch(model, name, lambda value, name=name: base[name]))
        opened.enter_context(patch(model, sender.site, put(sender, sent)))
        if isinstance(receiver, str):
            return metric(model.logits(pairs.corrupt), rows) - before
        if receiver.kind == "mlp_act":
            opened.callback(read_by_mlp(model, receiver.layer, read).remove)
            model.logits(pairs.corrupt)
        else:
            with capture(model, receiver.site) as acts:
                model.logits(pairs.corrupt)
                read.append(acts[receiver.site].clone())
    if receiver.kind == "mlp_act":  # pass 3 and 4
        hook = read_by_mlp(model, receiver.layer, [], read[0], receiver.pos)
        try:
            return metric(model.logits(pairs.corrupt), rows) - before
        finally:
            hook.remove()
    with patch(model, receiver.site, put(receiver, read[0])):
        return metric(model.logits(pairs.corrupt), rows) - before


SENDERS = [Cell("head_out", 0, None, 1), Cell("mlp_out", 0, 2), Cell("resid_pre", 1, 3), Cell("head_out", 1, -1, 0)]
RECEIVERS = [Cell("q", 2, -1, 3), Cell("k", 1, None, 1), Cell("v", 2, None, 0), Cell("mlp_act", 1), "logits"]


@pytest.mark.parametrize("freeze_mlps", [True, False])
def test_edges_are_those_of_the_definition(model: ModelHandle, pairs: Pairs, freeze_mlps: bool) -> None:
    found = path_patch(model, pairs, SENDERS, RECEIVERS, freeze_mlps=freeze_mlps, batch=5)
    rows = iter(found.edges.to_pylist())
    seen = []
    for receiver in RECEIVERS:
        for sender in SENDERS:
            wanted = effect_by_passes(model, pairs, sender, receiver, freeze_mlps)
            row = next(rows)
            np.testing.assert_allclose(row["per_prompt"], wanted, atol=1e-5)
            assert (row["source_kind"], row["source_layer"]) == (sender.kind, sender.layer)
            assert row["target_kind"] == ("logits" if isinstance(receiver, str) else receiver.kind)
            assert row["score"] == pytest.approx(float(wanted.mean()), abs=1e-5)
            seen.append(abs(row["score"]))
    assert sum(score > 1e-3 for score in seen) > 5


def test_what_comes_before_the_sender_receives_nothing(model: ModelHandle, pairs: Pairs) -> None:
    late = [Cell("mlp_out", 2), Cell("head_out", 1, 3, 2)]
    early = [Cell("k", 0), Cell("q", 1), Cell("v", 2, 1), Cell("mlp_act", 2, 2)]
    found = path_patch(model, pairs, late, early)
    assert not np.any(found.edges["score"])
    assert found.values["rows_run"] == 2 * 2  # pass 2 of two senders on two prompts


def test_the_last_layer_has_direct_effects_only(gpt2: ModelHandle, pairs: Pairs) -> None:
    heads = [Cell("head_out", 2, None, head) for head in range(4)]
    direct = path_patch(gpt2, pairs, heads, freeze_mlps=False, direction="noising")
    whole = patch_map(gpt2, pairs, "head_out.2", parts=("head",), direction="noising")
    np.testing.assert_allclose(direct.edges["score"], whole.nodes["score"], atol=1e-5)
    np.testing.assert_allclose(direct.nodes["score"], direct.edges["score"], atol=1e-9)
    assert direct.direction == "noising"


def test_several_positions_and_all_receivers_at_once(gpt2: ModelHandle, pairs: Pairs) -> None:
    everywhere = path_patch(gpt2, pairs, [Cell("mlp_out", 0)], [Cell("q", 1), Cell("k", 1), "logits"])
    listed = path_patch(
        gpt2, pairs, [[Cell("mlp_out", 0, pos) for pos in range(5)]], [[Cell("q", 1, pos) for pos in range(5)]]
    )
    assert listed.edges["source_pos"].to_pylist() == [None]
    assert listed.edges["score"][0].as_py() == pytest.approx(everywhere.edges["score"][0].as_py(), abs=1e-6)
    row = everywhere.completeness.to_pylist()[0]
    scores = everywhere.edges["score"].to_numpy()
    assert row["explained"] == pytest.approx(scores[0] + scores[1])
    assert row["total"] == pytest.approx(everywhere.nodes["score"][0].as_py())
    assert abs(row["gap"]) > 1e-6  # a head's pattern is no sum of what its query and its key do


def test_bad_paths_are_refused_and_hooks_are_gone(
    gpt2: ModelHandle, neox: ModelHandle, pairs: Pairs, count_hooks: Callable[[ModelHandle], int]
) -> None:
    with pytest.raises(ValueError, match="Unknown kind that can send 'q'"):
        path_patch(gpt2, pairs, [Cell("q", 0)])
    with pytest.raises(ValueError, match="Unknown kind that can receive 'mlp_out'"):
        path_patch(gpt2, pairs, [Cell("mlp_out", 0)], [Cell("mlp_out", 1)])
    with pytest.raises(ValueError, match="or for receivers 'logits', got 'logit'"):
        path_patch(gpt2, pairs, [Cell("mlp_out", 0)], ["logit"])
    with pytest.raises(ValueError, match="differ in their position only"):
        path_patch(gpt2, pairs, [[Cell("head_out", 0, 1, 1), Cell("head_out", 0, 1, 2)]])
    with pytest.raises(ValueError, match=r"0\.\.3, got 4"):
        path_patch(gpt2, pairs, [Cell("head_out", 0, 1, 4)])
    with pytest.raises(ValueError, match="no cell is given"):
        path_patch(gpt2, pairs, [])
    before = count_hooks(neox)

    def stops(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        path_patch(neox, pairs, [Cell("head_out", 0)], [Cell("q", 1)], on_progress=stops)
    assert count_hooks(neox) == before
