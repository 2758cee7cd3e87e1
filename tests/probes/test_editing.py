"""Edits in a running model: the probability is reached at the tensor that the probe was fitted on, and undone after."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.compression import read_recipe
from interp.hooks import capture
from interp.models import ModelHandle, ModelSpec, load_model
from probes import LogisticProbe, Source
from probes.capturing import capture_texts
from probes.editing import change_rows, edit

WORDS = ("the", "cat", "sat", "on", "mat", "and", "dog", "log")


def texts(n: int = 40) -> tuple[list[str], np.ndarray]:
    """Return texts of several lengths that end in one of two words, and which."""
    rng = np.random.default_rng(0)
    label = np.arange(n) % 2 == 0
    made = [" ".join([*rng.choice(WORDS, rng.integers(2, 6)), "sea" if one else "king"]) for one in label]
    return made, label


def fitted(handle: ModelHandle, site: str, position: str = "last", k: int = 2) -> LogisticProbe:
    made, label = texts()
    taken = capture_texts(handle, made, [site], [position])
    y = label.astype(int) if k == 2 else np.arange(len(made)) % k
    return LogisticProbe(C=1.0, source=taken.source(site, position)).fit(taken.rows(site, position), y)


def test_it_is_reached_at_the_probe(model: ModelHandle) -> None:
    probe, tokens = fitted(model, "resid_post.1"), model.tokens("the cat sat on the king")
    with capture(model, ["resid_post.1", "resid_post.0"]) as plain:
        before = model.logits(tokens)
    with edit(model, probe, 1, 0.9) as done, capture(model, ["resid_post.1", "resid_post.0"]) as taken:
        after = model.logits(tokens)
    x, y = plain["resid_post.1"], taken["resid_post.1"]
    assert probe.predict_proba(x[0, -1:])[0, 1] < 0.9
    assert probe.predict_proba(y[0, -1:])[0, 1] == pytest.approx(0.9, abs=1e-5)
    assert torch.equal(x[:, :-1], y[:, :-1])
    assert torch.equal(plain["resid_post.0"], taken["resid_post.0"])
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])
    (row,) = done.table().to_pylist()
    assert (row["site"], row["row"], row["position"]) == ("resid_post.1", 0, tokens.shape[1] - 1)
    assert row["before"] == pytest.approx(probe.predict_proba(x[0, -1:])[0, 1])
    assert row["after"] == pytest.approx(0.9, abs=1e-5)
    assert row["size"] == pytest.approx(float((y - x)[0, -1].norm() / x[0, -1].norm()), rel=1e-4)
    assert torch.equal(model.logits(tokens), before)


def test_one_that_has_it_is_left_alone(gpt2: ModelHandle) -> None:
    probe, tokens = fitted(gpt2, "resid_post.1"), gpt2.tokens("the cat sat on the king")
    before = gpt2.logits(tokens)
    with edit(gpt2, probe, 0, 0.5) as done:  # "king" is the first class
        after = gpt2.logits(tokens)
    (row,) = done.table().to_pylist()
    assert row["before"] == row["after"] > 0.5
    assert row["size"] == 0
    assert torch.equal(before, after)


def test_softmax_at_several_layers_in_turn(model: ModelHandle) -> None:
    sites = ["resid_pre.1", "mlp_out.1", "resid_post.2"]
    probes = [fitted(model, site, k=3) for site in sites]
    tokens = model.tokens("the cat sat on the king")
    with edit(model, probes, 2, 0.8) as done, capture(model, sites) as taken:
        model.logits(tokens)
    for site, probe in zip(sites, probes, strict=True):
        assert probe.predict_proba(taken[site][0, -1:])[0, 2] >= 0.8 - 1e-5
    rows = {row["site"]: row for row in done.table().to_pylist()}
    with capture(model, sites) as plain:
        model.logits(tokens)
    last = probes[2].predict_proba(plain["resid_post.2"][0, -1:])[0, 2]
    assert rows["resid_post.2"]["before"] != pytest.approx(last, abs=1e-3)  # it saw what the first two had made


def test_heads_are_edited_flat(gpt2: ModelHandle) -> None:
    probe, tokens = fitted(gpt2, "head_out.1"), gpt2.tokens("the cat sat on the king")
    with edit(gpt2, probe, 1, 0.9), capture(gpt2, "head_out.1") as taken:
        gpt2.logits(tokens)
    assert probe.predict_proba(taken["head_out.1"].flatten(2)[0, -1:])[0, 1] == pytest.approx(0.9, abs=1e-5)


def test_a_mean_is_moved_as_a_whole(gpt2: ModelHandle) -> None:
    probe, tokens = fitted(gpt2, "resid_post.0", "mean"), gpt2.tokens("the cat sat on the king")
    with capture(gpt2, "resid_post.0") as plain:
        gpt2.logits(tokens)
    with edit(gpt2, probe, 1, 0.9), capture(gpt2, "resid_post.0") as taken:
        gpt2.logits(tokens)
    step = (taken["resid_post.0"] - plain["resid_post.0"])[0]
    assert torch.equal(step[0], torch.zeros_like(step[0]))  # BOS is no token of the text
    torch.testing.assert_close(step[1:], step[1:2].expand_as(step[1:]), atol=1e-5, rtol=1e-4)
    mean = taken["resid_post.0"][0, 1:].double().mean(0, keepdim=True)
    assert probe.predict_proba(mean)[0, 1] == pytest.approx(0.9, abs=1e-5)


def test_positions(gpt2: ModelHandle) -> None:
    tokens = gpt2.tokens("the cat sat on the king")
    length = tokens.shape[1]
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[0, 2] = True
    cases = {"last": [length - 1], "-2": [length - 2], "0": [1], "all": [*range(1, length)]}
    found = {name: name for name in cases} | {(2, -1): (2, -1), None: None}
    wanted = cases | {(2, -1): [2, length - 1], None: cases["all"]}
    for name, positions in found.items():
        with change_rows(gpt2, "resid_post.0", lambda x: x + 1, positions) as done:
            gpt2.logits(tokens)
        assert [row["position"] for row in done.table().to_pylist()] == wanted[name], name
    with change_rows(gpt2, "resid_post.0", lambda x: x + 1, mask) as done:
        gpt2.logits(tokens)
    assert [row["position"] for row in done.table().to_pylist()] == [2]
    with (
        pytest.raises(ValueError, match="all, last, mean, or a whole number"),
        change_rows(gpt2, "resid_post.0", abs, "x"),
    ):
        pass


def fail(_logits: torch.Tensor) -> None:
    raise RuntimeError("stop here")


def test_it_is_undone_after_an_error(gpt2: ModelHandle) -> None:
    probe, tokens = fitted(gpt2, "resid_post.1"), gpt2.tokens("the cat sat on the king")
    before = gpt2.logits(tokens)
    with pytest.raises(RuntimeError, match="stop here"), edit(gpt2, probe, 1, 0.99):
        fail(gpt2.logits(tokens))
    with pytest.raises(ValueError, match="must return rows"), change_rows(gpt2, "resid_post.1", lambda x: x[:, :3]):
        gpt2.logits(tokens)
    assert torch.equal(gpt2.logits(tokens), before)


def test_another_tensor_or_model_is_refused(gpt2: ModelHandle, llama: ModelHandle) -> None:
    probe = fitted(gpt2, "resid_post.1")
    with pytest.raises(ValueError, match="with other weights"), edit(llama, probe, 1, 0.9):
        pass
    with pytest.raises(ValueError, match="Two probes are of resid_post.1"), edit(gpt2, [probe, probe], 1, 0.9):
        pass
    with pytest.raises(ValueError, match="At least one probe"), edit(gpt2, [], 1, 0.9):
        pass
    blind = LogisticProbe(C=1.0).fit(np.eye(32), np.arange(32) % 2)
    with pytest.raises(ValueError, match="does not know what it was fitted on"), edit(gpt2, blind, 1, 0.9):
        pass
    # A probe of a block's input moves that, and not the output: the published code is off by one here.
    source = probe.source
    assert source is not None
    probe.source = replace(source, site="resid_post.0")
    tokens = gpt2.tokens("the cat sat on the king")
    with edit(gpt2, probe, 1, 0.9), capture(gpt2, ["resid_post.0", "resid_post.1"]) as taken:
        gpt2.logits(tokens)
    assert probe.predict_proba(taken["resid_post.0"][0, -1:])[0, 1] == pytest.approx(0.9, abs=1e-5)


def test_both_views_agree(model: ModelHandle) -> None:
    probe, tokens = fitted(model, "resid_post.1"), model.tokens("the cat sat on the king")
    with edit(model, probe, 1, 0.9):
        plain = model.logits(tokens)
    with edit(model, probe, 1, 0.9, view="bridge"):
        bridge = model.logits(tokens, view="bridge")
    torch.testing.assert_close(plain, bridge, atol=2e-4, rtol=1e-4)


def test_compressed_copies(model_folder: object) -> None:
    base = load_model(str(model_folder), device="cpu")
    recipe = read_recipe("[{step: rtn, bits: 8}]")
    small = load_model(ModelSpec(str(model_folder), recipe=recipe), device="cpu")
    tokens = base.tokens("the cat sat on the king")
    own = fitted(small, "resid_post.1")
    with edit(small, own, 1, 0.9) as done:
        small.logits(tokens)
    assert done.table().to_pylist()[0]["after"] == pytest.approx(0.9, abs=1e-5)
    theirs = fitted(base, "resid_post.1")
    with pytest.raises(ValueError, match="with other weights"), edit(small, theirs, 1, 0.9):
        pass
    with edit(small, theirs, 1, 0.9, same_weights=False) as done:
        small.logits(tokens)
    assert done.table().to_pylist()[0]["after"] == pytest.approx(0.9, abs=1e-5)
    assert Source.of(small, "resid_post.1").digest != Source.of(base, "resid_post.1").digest
