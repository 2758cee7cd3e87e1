"""OV and QK of heads: against the dense matrices, the model's own scores, and a compiled circuit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from interp.hooks import capture
from interp.layers.head_svd import head_rows, singular_tokens
from interp.layers.head_weights import head_weights
from interp.layers.norms import block_norm
from interp.layers.vocabulary import Vocabulary, token_rows
from interp.layers.weights import layer_matrices
from interp.models import ModelHandle


def dense(handle: ModelHandle, layer: int, head: int, which: str) -> Tensor:
    """Return OV or QK from the whole matrices, by slices and loops."""
    m, width = layer_matrices(handle, layer), handle.d_head
    kv = head * handle.n_kv_heads // handle.n_heads
    norm = block_norm(handle, layer, "attn")
    mean = torch.eye(32) - (1 / 32 if norm.centred else 0)
    fold = torch.diag(norm.gain.float()) @ mean

    def rows(name: str, i: int) -> Tensor:
        return m[name][i * width : (i + 1) * width] @ fold

    if which == "ov":
        return mean @ m["o"][:, head * width : (head + 1) * width] @ rows("v", kv)
    return rows("q", head).T @ rows("k", kv) / math.sqrt(width)


@pytest.mark.parametrize("which", ["ov", "qk"])
def test_circuits_are_products_of_the_models_matrices(model: ModelHandle, which: str) -> None:
    for head in range(4):
        expected = dense(model, 1, head, which).double()
        found = head_weights(model, 1).circuit(head, which)
        assert torch.allclose(found.dense, expected, atol=1e-5)
        assert torch.allclose(found.values, torch.linalg.svdvals(expected)[:8], atol=1e-4)
        row = head_rows(model, 1)[head]
        p = found.values / found.values.sum()
        assert row[f"{which}_rank"] == pytest.approx(float(torch.special.entr(p).sum().exp()))
        assert row[f"{which}_size"] == pytest.approx(float(torch.linalg.matrix_norm(expected, 2)), rel=1e-4)
        assert row[f"{which}_top"] == pytest.approx(row[f"{which}_size"] ** 2 / float(found.dense.square().sum()))


def test_what_ov_says_is_what_a_head_attending_to_one_token_writes(model: ModelHandle) -> None:
    tokens = torch.tensor([[7]])  # one position: attention is 1
    with capture(model, ["resid_pre.1", "head_out.1"]) as acts:
        model.forward(tokens)
    norm, m = block_norm(model, 1, "attn"), layer_matrices(model, 1)
    x = norm.centre(acts["resid_pre.1"][0, 0].double()) / norm.scale(acts["resid_pre.1"][0, 0])
    with capture(model, "head_out.1") as zero:  # what biases add
        from interp.hooks import patch

        with patch(model, "resid_pre.1", torch.zeros_like):
            model.forward(tokens)
    for head in range(4):
        moved = (acts["head_out.1"] - zero["head_out.1"])[0, 0, head].double()
        written = m["o"][:, head * 8 : head * 8 + 8].double() @ moved
        assert torch.allclose(head_weights(model, 1, centred=False).circuit(head, "ov").dense @ x, written, atol=1e-4)
        assert torch.allclose(head_weights(model, 1).circuit(head, "ov").dense @ x, norm.centre(written), atol=1e-4)


def test_singular_directions_are_decoded_by_the_vocabulary(gpt2: ModelHandle) -> None:
    vocabulary = Vocabulary(gpt2)
    rows = singular_tokens(vocabulary, 0, 2, n=2, k=4)
    u, s, vh = head_weights(gpt2, 0).circuit(2, "ov").svd()
    for i, row in enumerate(rows):
        assert row["value"] == pytest.approx(float(s[i]))
        gain = gpt2.final_norm.weight
        written = gpt2.unembed() @ (gain * (u[:, i].float() - u[:, i].float().mean()))
        written = written - written.mean()
        sign = 1 if written[written.abs().argmax()] > 0 else -1
        assert row["writes"] == gpt2.token_strings((sign * written).topk(4).indices)
        read = gpt2.module.transformer.wte.weight @ vh[i].float()
        assert row["reads"] == gpt2.token_strings((sign * read).topk(4).indices)
    assert set(singular_tokens(vocabulary, 0, 2, "qk", n=1)[0]) >= {"query", "key"}
    with pytest.raises(ValueError, match="head must lie"):
        singular_tokens(vocabulary, 0, 4)
    with pytest.raises(ValueError, match="circuit"):
        singular_tokens(vocabulary, 0, 0, "vo")


def test_functionals_name_tokens(gpt2: ModelHandle) -> None:
    n = token_rows(gpt2, {3: 1, 9: -1})
    assert n.nonzero()[:, 0].tolist() == [3, 9]
    assert float(n[9]) == -1
    for odd in ({}, {300: 1.0}):
        with pytest.raises(ValueError, match="at least one token|Token ids"):
            token_rows(gpt2, odd)
