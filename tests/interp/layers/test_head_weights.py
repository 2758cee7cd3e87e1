"""Copying and composition against the dense products, rotary positions against real attention scores."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from interp.hooks import capture
from interp.layers import copying
from interp.layers.composition import compositions, pair_scores
from interp.layers.copying import copying_scores, copying_top, eigenvalue_scores, ov_eigenvalues
from interp.layers.head_weights import HeadWeights, head_weights, is_rotary, rotation
from interp.layers.norms import block_norm, final_norm
from interp.layers.weights import layer_bias
from interp.models import ModelHandle, load_model


def test_heads_read_and_write_as_the_model_does(model: ModelHandle) -> None:
    tokens = torch.randint(1, 300, (2, 7), generator=torch.Generator().manual_seed(0))
    with capture(model, ["resid_pre.1", "q.1", "k.1", "v.1", "head_out.1", "attn_out.1"]) as acts:
        model.forward(tokens)
    heads, norm = head_weights(model, 1), block_norm(model, 1, "attn")
    stream = acts["resid_pre.1"].double()
    group = model.n_heads // model.n_kv_heads
    for name in ("q", "k", "v"):
        # less the norm's bias and the module's own, which are constants
        matrix = getattr(heads, name)
        read = torch.einsum("bpd,hed->bphe", stream, matrix) / norm.scale(stream)[..., None, None]
        real = acts[f"{name}.1"].double()
        real = real if name == "q" else real.repeat_interleave(group, 2)
        rest = real - read
        assert torch.allclose(rest, rest[:1, :1].expand_as(rest), atol=1e-4)
    written = torch.einsum("bphe,hde->bpd", acts["head_out.1"].double(), heads.o)
    bias = layer_bias(model, 1, "o")
    real = norm.centre(acts["attn_out.1"].double() - (0 if bias is None else bias.double()))
    assert torch.allclose(written, real, atol=1e-4)


def test_rotation_turns_scores_as_far_as_the_key_lies_back(model: ModelHandle) -> None:
    tokens = torch.randint(1, 300, (1, 6), generator=torch.Generator().manual_seed(1))
    with capture(model, ["q.0", "k.0"]) as acts, capture(model, "pattern.0", view="bridge") as seen:
        model.forward(tokens)
        model.forward(tokens, view="bridge")
    q, k = acts["q.0"][0].double(), acts["k.0"][0].double()
    k = k.repeat_interleave(model.n_heads // model.n_kv_heads, 1)
    scores = torch.full((model.n_heads, 6, 6), -math.inf, dtype=torch.float64)
    for i in range(6):
        for j in range(i + 1):
            turned = k[j] @ rotation(model, j - i).T
            scores[:, i, j] = (q[i] * turned).sum(-1) / math.sqrt(model.d_head)
    assert torch.allclose(scores.softmax(-1), seen["pattern.0"][0].double(), atol=1e-4)
    assert is_rotary(model) == (model.family != "gpt2")


def dense(handle: ModelHandle, layer: int, head: int, offset: int = 0) -> tuple[Tensor, Tensor]:
    """Return (W_OV, W_QK) [d_model d_model] of a head."""
    heads = head_weights(handle, layer)
    return heads.o[head] @ heads.v[head], heads.q[head].T @ rotation(handle, -offset) @ heads.k[head]


@pytest.mark.parametrize("offset", [0, 3])
def test_composition_is_that_of_dense_products(model: ModelHandle, offset: int) -> None:
    found = compositions(model, offset=offset, baseline=False)
    for (later, head), (earlier, source) in (((1, 0), (0, 3)), ((2, 3), (0, 0)), ((2, 1), (1, 2))):
        ov_2, qk_2 = dense(model, later, head, offset)
        ov_1, _ = dense(model, earlier, source)
        for kind, matrix in (("q", qk_2.T), ("k", qk_2), ("v", ov_2)):
            expected = (matrix @ ov_1).norm() / (matrix.norm() * ov_1.norm())
            assert found[kind][later, head, earlier, source] == pytest.approx(float(expected), rel=1e-6)
    for values in found.values():
        assert torch.isnan(values[0]).all()
        assert torch.isnan(values[1, :, 1:]).all()
        assert torch.isfinite(values[2, :, :2]).all()


def test_only_rotary_models_mind_the_offset(model: ModelHandle) -> None:
    near, far = (compositions(model, offset=offset) for offset in (0, 5))
    same = [torch.allclose(near[kind].nan_to_num(), far[kind].nan_to_num()) for kind in ("q", "k", "v")]
    assert same == ([True, True, True] if model.family == "gpt2" else [False, False, True])


def test_the_baseline_is_what_matrices_turned_at_random_give(gpt2: ModelHandle) -> None:
    g = torch.Generator().manual_seed(0)
    d, heads = 40, 200

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    spectrum = torch.linspace(0.1, 3.0, 6, dtype=torch.float64)[:, None]
    turned = torch.linalg.qr(random(heads, d, d)).Q
    fixed = HeadWeights(random(1, 6, d) * spectrum, random(1, 6, d), random(1, 6, d), random(1, d, 6))
    other = HeadWeights(*[random(1, 6, d) @ turned for _ in range(3)], turned.mT @ random(1, d, 6))
    for values in pair_scores(fixed, other).values():
        assert float(values.square().mean()) == pytest.approx(1 / d, rel=0.1)
    shift = compositions(gpt2, baseline=False)["v"] - compositions(gpt2)["v"]
    assert float(shift[1, 0, 0, 0]) == pytest.approx(1 / math.sqrt(31))


def test_a_head_that_reads_what_another_writes_stands_out() -> None:
    handle = load_model("compiled/induction")  # the induction head 1.1 reads the notes of the previous-token head 0.2
    k = compositions(handle, baseline=False)["k"][1, 1, 0]
    # Both copy a block of 48 tokens, all singular values alike: ||a b I|| / (||a I|| ||b I||) = 1 / sqrt(48).
    assert k.tolist() == pytest.approx([0, 0, 1 / math.sqrt(48), 0])
    assert copying_scores(handle)["copying"][1, 1] > 0.9
    assert copying_top(handle, k=1, tokens=20)[1, 1] == 1


def test_eigenvalues_are_those_of_the_map_from_token_to_logits(
    model: ModelHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "PORTION", 70)  # several portions, the last one smaller
    embedding, read = model.module.get_input_embeddings().weight.double(), final_norm(model).pull_back(model.unembed())
    read = read - read.mean(0)
    found, scores = ov_eigenvalues(model), copying_scores(model)
    for layer, head in ((0, 1), (2, 3)):
        whole = torch.linalg.eigvals(read @ dense(model, layer, head)[0] @ embedding.T)  # [d_vocab d_vocab]
        largest = whole[whole.abs().argsort(descending=True)[: model.d_head]]
        assert largest.abs().sort().values.tolist() == pytest.approx(
            found[layer, head].abs().sort().values.tolist(), rel=1e-5
        )
        expected = float(largest.real.sum() / largest.abs().sum())
        assert float(scores["copying"][layer, head]) == pytest.approx(expected, abs=1e-5)
        assert float(scores["copying_positive"][layer, head]) == pytest.approx(
            float((largest.real > 0).double().mean())
        )


def test_copying_of_eigenvalues_made_by_hand() -> None:
    values = torch.tensor([[2, 1, 1], [-1, -1, 0], [1j, -1j, 0], [3, -1, 0], [0, 0, 0]], dtype=torch.complex128)
    found = eigenvalue_scores(values)
    assert found["copying"].tolist() == [1, -1, 0, 0.5, 0]
    assert found["copying_positive"].nan_to_num(-1).tolist() == [1, 0, 0, 0.5, -1]


def test_copying_by_the_likeliest_tokens(model: ModelHandle) -> None:
    found = copying_top(model, k=3, tokens=10, seed=2)
    allowed = torch.arange(1, 300)
    chosen = allowed[torch.randperm(299, generator=torch.Generator().manual_seed(2))[:10]]
    layer, head = 1, 2
    hits = 0
    for token in chosen.tolist():
        with capture(model, ["resid_post.0", f"v.{layer}"]) as acts:
            model.forward(torch.tensor([[0, token]]))
        stream = acts["resid_post.0"][0, 1]
        norm = block_norm(model, layer, "attn")
        assert torch.allclose(acts[f"v.{layer}"][0, 1].double(), _values(model, layer, norm(stream)), atol=1e-4)
        group = model.n_heads // model.n_kv_heads
        value = acts[f"v.{layer}"][0, 1, head // group]
        out = model.module.get_submodule(_output(model, layer))
        weight = out.weight.T if model.family == "gpt2" else out.weight
        written = value @ weight[:, head * model.d_head : (head + 1) * model.d_head].T
        logits = model.module.get_output_embeddings()(model.final_norm(written))
        hits += token in logits.topk(3).indices.tolist()
    assert float(found[layer, head]) == pytest.approx(hits / 10)
    with pytest.raises(ValueError, match=r"tokens must lie in 1\.\.299, got 300"):
        copying_top(model, tokens=300)


def _output(handle: ModelHandle, layer: int) -> str:
    return {
        "gpt2": f"transformer.h.{layer}.attn.c_proj",
        "gpt_neox": f"gpt_neox.layers.{layer}.attention.dense",
        "llama": f"model.layers.{layer}.self_attn.o_proj",
    }[handle.family]


def _values(handle: ModelHandle, layer: int, normed: Tensor) -> Tensor:
    from interp.layers.weights import layer_matrices

    bias = layer_bias(handle, layer, "v")
    flat = layer_matrices(handle, layer)["v"].double() @ normed + (0 if bias is None else bias.double())
    return flat.unflatten(0, (-1, handle.d_head))


def test_an_offset_outside_of_the_context_is_refused(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match=r"offset must lie in 0\.\.n_ctx-1=63, got 64"):
        compositions(gpt2, offset=64)
