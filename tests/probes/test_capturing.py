"""Activations of texts at sites and positions: the same as reading each text by itself, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.hooks import capture, patch
from interp.models import ModelHandle
from interp.sites import Site
from probes.capturing import (
    capture_texts,
    check_lengths,
    expand_sites,
    held_bytes,
    least_length,
    parse_position,
)

TEXTS = ["the cat sat on the mat", "a dog", "the king and the queen of the land went to the sea", "log log log"]


def slowly(handle: ModelHandle, text: str, site: str, position: str) -> np.ndarray:
    """Return one row, read from this text alone and without padding."""
    tokens = handle.tokens(text)
    with capture(handle, site) as acts:
        handle.forward(tokens)
    x = acts[Site.parse(site)][0].flatten(1)[1 if handle.bos_id is not None else 0 :]
    row = x.mean(0) if position == "mean" else x[-1 if position == "last" else int(position)]
    return row.numpy()


def test_rows_are_those_of_each_text_by_itself(model: ModelHandle) -> None:
    sites, positions = ["resid_post", "mlp_act.1", "q.0"], ["last", "mean", "-2", 0, 1]
    found = capture_texts(model, TEXTS, sites, positions, batch=3)
    assert found.sites == ("resid_post.0", "resid_post.1", "resid_post.2", "mlp_act.1", "q.0")
    for site in found.sites:
        for position in found.positions:
            wanted = np.stack([slowly(model, text, site, position) for text in TEXTS])
            assert np.allclose(found.rows(site, position), wanted, atol=2e-5), (site, position)


def test_the_batch_does_not_matter_and_the_order_is_kept(gpt2: ModelHandle) -> None:
    one, all_ = (capture_texts(gpt2, TEXTS, ["resid_post"], ["mean"], batch=size) for size in (1, 8))
    turned = capture_texts(gpt2, TEXTS[::-1], ["resid_post"], ["mean"], batch=2)
    for site in one.sites:
        assert np.allclose(one.rows(site, "mean"), all_.rows(site, "mean"), atol=2e-5)
        assert np.allclose(one.rows(site, "mean"), turned.rows(site, "mean")[::-1], atol=2e-5)


def test_mlp_in_is_what_the_mlp_reads(model: ModelHandle) -> None:
    found = capture_texts(model, TEXTS, ["mlp_in"], ["last"])
    seen: list[torch.Tensor] = []
    blocks = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "llama": "model.layers"}[model.family]
    for layer in range(model.n_layers):
        mlp = model.module.get_submodule(f"{blocks}.{layer}.mlp")
        hook = mlp.register_forward_pre_hook(lambda _module, args: seen.append(args[0][0, -1].clone()))
        try:
            model.forward(model.tokens(TEXTS[2]))
        finally:
            hook.remove()
        assert np.allclose(found.rows(f"mlp_in.{layer}", "last")[2], seen[-1].numpy(), atol=2e-5)
    assert found.source("mlp_in.0", "last") is None


def test_sources_lengths_and_tokens(gpt2: ModelHandle) -> None:
    found = capture_texts(gpt2, TEXTS, ["resid_post.1"], ["last", 0], context=6)
    source = found.source("resid_post.1", "last")
    assert source is not None
    assert (source.site, source.digest, source.positions) == ("resid_post.1", gpt2.digest(), "last")
    whole = [gpt2.tokens(text)[0, 1:].tolist() for text in TEXTS]
    assert found.lengths.tolist() == [min(len(ids), 5) for ids in whole]
    assert found.cut == sum(len(ids) > 5 for ids in whole) > 0
    last, first = found.token_at("last"), found.token_at("0")
    assert last is not None
    assert first is not None
    assert last.tolist() == [ids[:5][-1] for ids in whole]
    assert first.tolist() == [ids[0] for ids in whole]
    assert found.token_at("mean") is None


def test_padding_with_what_is_not_finite_is_left_out(gpt2: ModelHandle) -> None:
    def spoil(x: torch.Tensor) -> torch.Tensor:
        x[0, 5:] = torch.nan  # beyond the shorter text of two
        return x

    with patch(gpt2, "resid_post.2", spoil):
        found = capture_texts(gpt2, ["a cat", "the cat sat on the mat and sat"], ["resid_post.2"], ["mean", "last"])
    assert np.isfinite(found.rows("resid_post.2", "mean")).all()


def test_an_activation_that_is_not_finite_is_refused_by_site_and_text(gpt2: ModelHandle) -> None:
    def spoil(x: torch.Tensor) -> torch.Tensor:
        x[1] = torch.nan
        return x

    with (
        patch(gpt2, "resid_post.2", spoil),
        pytest.raises(ValueError, match=r"NaN or infinity at resid_post\.2 for 1 of 2 texts, the first is text 1"),
    ):
        capture_texts(gpt2, ["a cat", "the cat sat"], ["resid_post"])


def test_ragged_texts_are_refused_where_a_position_is_missing(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match=r"need texts of 8 tokens or more; 3 of 4 texts are shorter \(text 0 has 6\)"):
        capture_texts(gpt2, TEXTS, ["resid_post"], ["last", "-8"])
    with pytest.raises(ValueError, match="1 tokens or more"):
        check_lengths([3, 0], ["mean"])


@pytest.mark.parametrize(
    ("text", "wanted"), [("last", "last"), (-1, "last"), ("mean", "mean"), ("-3", "-3"), (0, "0"), ("07", "7")]
)
def test_positions_have_one_name(text: str | int, wanted: str) -> None:
    assert parse_position(text) == wanted


def test_what_is_no_position_or_site_is_refused(neox: ModelHandle, gpt2: ModelHandle) -> None:
    assert least_length(["mean", "-3", 1]) == 3
    for wrong in ("first", "", "1.5", "--1"):
        with pytest.raises(ValueError, match="last, mean, or a whole number"):
            parse_position(wrong)
    with pytest.raises(ValueError, match="resid_post"):
        expand_sites(gpt2, ["resid_pots"])
    with pytest.raises(ValueError, match="pattern has one number for each query"):
        expand_sites(gpt2, ["pattern.0"])
    with pytest.raises(ValueError, match="no resid_mid"):
        expand_sites(neox, ["resid_mid.0"])
    with pytest.raises(ValueError, match="At least one site"):
        expand_sites(neox, ["resid_mid"])
    with pytest.raises(ValueError, match=r"KIND\.LAYER"):
        expand_sites(gpt2, ["mlp_in.x"])
    with pytest.raises(ValueError, match="layers are 0"):
        expand_sites(gpt2, ["mlp_in.9"])
    found = capture_texts(gpt2, TEXTS, ["resid_post.0"])
    with pytest.raises(ValueError, match=r"resid_post\.0"):
        found.rows("resid_post.1", "last")
    with pytest.raises(ValueError, match="last"):
        found.rows("resid_post.0", "mean")


def test_memory_that_is_held(gpt2: ModelHandle) -> None:
    found = capture_texts(gpt2, TEXTS, ["resid_post", "mlp_act.0"], ["last", "mean"], batch=2, context=16)
    rows = sum(values.nbytes for values in found.values.values())
    batch = 2 * 16 * 4 * sum(values.shape[2] for values in found.values.values())
    assert held_bytes(gpt2, found.sites, 2, len(TEXTS), context=16, batch=2) == rows + batch
