"""Rewritten gradients of whole models against transformers written out by hand, with detached factors."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from interp.attribution.relevance import PRESETS, RelevanceMode, Rules, rewritten
from interp.compression.steps.activations import QuantiseActivations
from interp.hooks import capture
from interp.models import load_model
from interp.sites import Site

if TYPE_CHECKING:
    from interp.models import ModelHandle

FAMILIES = ("gpt2", "neox", "llama")
KINDS = ("resid_pre", "v", "head_out", "attn_out", "mlp_act", "mlp_out")


# -- the reference: three forwards in plain torch. Nothing here knows of modes, modules or hooks.


def half(x: Tensor) -> Tensor:
    """x, with half of its gradient."""
    return x / 2 + (x / 2).detach()


def layer_norm(x: Tensor, part: Any, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt().detach()
    return centred / scale * part.weight + part.bias


def rms_norm(x: Tensor, part: Any, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt().detach() * part.weight


def mix(q: Tensor, k: Tensor, v: Tensor, kind: str) -> Tensor:
    """Causal attention of [batch head pos d_head], by the rule for attention."""
    n = q.shape[-2]
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = half(scores) if kind == "taylor" else scores
    pattern = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    pattern = pattern.detach() if kind == "frozen" else pattern
    return half(pattern @ v) if kind == "taylor" else pattern @ v


def turned(x: Tensor, base: float, dims: int) -> Tensor:
    """Rotary positions on the first `dims` numbers of each head."""
    angles = torch.arange(x.shape[-2])[:, None] / base ** (torch.arange(0, dims, 2) / dims)
    cos, sin = (torch.cat([f(angles)] * 2, -1).to(x) for f in (torch.cos, torch.sin))
    turn, rest = x[..., :dims], x[..., dims:]
    swapped = torch.cat([-turn[..., dims // 2 :], turn[..., : dims // 2]], -1)
    return torch.cat([turn * cos + swapped * sin, rest], -1)


class Reference:
    """A model by hand; `acts` keeps every activation, so that its gradient can be asked for."""

    def __init__(self, handle: ModelHandle, kind: str) -> None:
        self.module, self.kind, self.acts = handle.module, kind, {}
        self.n_heads = handle.n_heads

    def keep(self, name: str, x: Tensor) -> Tensor:
        x = x if x.requires_grad else x.detach().requires_grad_()
        self.acts[name] = x
        return x

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.module.config.hidden_size // self.n_heads)).transpose(1, 2)

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = mix(q, k, v, self.kind).transpose(1, 2)
        return self.keep(f"head_out.{layer}", out).flatten(2)

    def gpt2(self, tokens: Tensor) -> Tensor:
        core = self.module.transformer
        x = core.wte.weight[tokens] + core.wpe.weight[: tokens.shape[1]]
        for i, block in enumerate(core.h):
            x = self.keep(f"resid_pre.{i}", x)
            y = layer_norm(x, block.ln_1, block.ln_1.eps) @ block.attn.c_attn.weight + block.attn.c_attn.bias
            q, k, v = map(self.heads, y.chunk(3, -1))
            v = self.keep(f"v.{i}", v.transpose(1, 2)).transpose(1, 2)
            y = self.attention(i, q, k, v) @ block.attn.c_proj.weight + block.attn.c_proj.bias
            x = x + self.keep(f"attn_out.{i}", y)
            y = layer_norm(x, block.ln_2, block.ln_2.eps) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
            y = y * (0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))).detach()
            y = self.keep(f"mlp_act.{i}", y) @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
            x = x + self.keep(f"mlp_out.{i}", y)
        return layer_norm(x, core.ln_f, core.ln_f.eps) @ self.module.lm_head.weight.T

    def neox(self, tokens: Tensor) -> Tensor:
        core = self.module.gpt_neox
        x = core.embed_in.weight[tokens]
        for i, block in enumerate(core.layers):
            x = self.keep(f"resid_pre.{i}", x)
            a, m = block.attention, block.mlp
            y = F.linear(layer_norm(x, block.input_layernorm, 1e-5), a.query_key_value.weight, a.query_key_value.bias)
            q, k, v = y.unflatten(-1, (self.n_heads, 3, -1)).permute(3, 0, 2, 1, 4)
            v = self.keep(f"v.{i}", v.transpose(1, 2)).transpose(1, 2)
            y = self.attention(i, turned(q, 10000, 2), turned(k, 10000, 2), v)
            y = self.keep(f"attn_out.{i}", F.linear(y, a.dense.weight, a.dense.bias))
            z = F.linear(
                layer_norm(x, block.post_attention_layernorm, 1e-5), m.dense_h_to_4h.weight, m.dense_h_to_4h.bias
            )
            z = self.keep(f"mlp_act.{i}", z * (0.5 * (1 + torch.erf(z / 2**0.5))).detach())
            x = x + y + self.keep(f"mlp_out.{i}", F.linear(z, m.dense_4h_to_h.weight, m.dense_4h_to_h.bias))
        return layer_norm(x, core.final_layer_norm, 1e-5) @ self.module.lm_head.weight.T

    def llama(self, tokens: Tensor) -> Tensor:
        core, eps = self.module.model, self.module.config.rms_norm_eps
        x = core.embed_tokens.weight[tokens]
        for i, block in enumerate(core.layers):
            x = self.keep(f"resid_pre.{i}", x)
            a, m = block.self_attn, block.mlp
            y = rms_norm(x, block.input_layernorm, eps)
            q, k, v = (self.heads(y @ part.weight.T) for part in (a.q_proj, a.k_proj, a.v_proj))
            v = self.keep(f"v.{i}", v.transpose(1, 2)).transpose(1, 2)
            k, v = (one.repeat_interleave(self.n_heads // one.shape[1], 1) for one in (turned(k, 10000, 8), v))
            y = self.attention(i, turned(q, 10000, 8), k, v) @ a.o_proj.weight.T
            x = x + self.keep(f"attn_out.{i}", y)
            y = rms_norm(x, block.post_attention_layernorm, eps)
            gate, up = y @ m.gate_proj.weight.T, y @ m.up_proj.weight.T
            y = self.keep(f"mlp_act.{i}", half(gate * torch.sigmoid(gate).detach() * up))
            x = x + self.keep(f"mlp_out.{i}", y @ m.down_proj.weight.T)
        return rms_norm(x, core.norm, eps) @ self.module.lm_head.weight.T


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 300, (2, 7), generator=torch.Generator().manual_seed(11))


def contrast(logits: Tensor) -> Tensor:
    return (logits[:, -1, 17] - logits[:, -1, 3]).sum()


def rhos(handle: ModelHandle, rules: Rules | str, tokens: Tensor, view: str = "hf") -> dict[str, Tensor]:
    sites = [site for kind in KINDS for site in handle.sites(f"{kind}.*")]
    with rewritten(handle, rules), capture(handle, sites, view=view, grad=True) as acts:
        logits = handle.forward(tokens, view=view)
    assert logits is not None
    grads = torch.autograd.grad(contrast(logits), [acts[site] for site in sites])
    return dict(zip(map(str, sites), grads, strict=True))


@pytest.mark.parametrize("view", ["hf", "bridge"])
@pytest.mark.parametrize(("preset", "kind"), [("cp_lrp", "frozen"), ("attn_lrp", "taylor"), ("relp_qk", "gradient")])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_model_written_by_hand(
    family: str, preset: str, kind: str, view: str, request: pytest.FixtureRequest, tokens: Tensor
) -> None:
    handle = request.getfixturevalue(family)
    reference = Reference(handle, kind)
    logits = getattr(reference, family)(tokens)
    torch.testing.assert_close(logits.detach(), handle.logits(tokens), rtol=1e-4, atol=1e-4)
    wanted = dict(zip(reference.acts, torch.autograd.grad(contrast(logits), [*reference.acts.values()]), strict=True))
    found = rhos(handle, preset, tokens, view)
    assert found.keys() == wanted.keys()
    for name, rho in found.items():
        scale = float(wanted[name].abs().max())
        assert scale > 0
        assert float((rho - wanted[name]).abs().max()) <= 1e-5 * scale, name


@pytest.mark.parametrize("view", ["hf", "bridge"])
@pytest.mark.parametrize("preset", PRESETS)
def test_values_stay_what_they_are(model: ModelHandle, preset: str, view: str, tokens: Tensor) -> None:
    plain = model.logits(tokens, view=view)
    with rewritten(model, preset), capture(model, "resid_pre.0", view=view, grad=True):
        logits = model.forward(tokens, view=view)
    assert logits is not None
    assert float((logits.detach() - plain).abs().max()) <= 1e-6 * float(plain.abs().max())


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "gradient"])
def test_both_views_have_the_same_gradients(model: ModelHandle, preset: str, tokens: Tensor) -> None:
    both = [rhos(model, preset, tokens, view) for view in ("hf", "bridge")]
    for name, rho in both[0].items():
        torch.testing.assert_close(rho, both[1][name], rtol=1e-3, atol=1e-4 * float(rho.abs().max()))


def test_the_preset_gradient_is_the_gradient(model: ModelHandle, tokens: Tensor) -> None:
    found = rhos(model, "gradient", tokens)
    sites = [Site.parse(name) for name in found]
    with capture(model, sites, grad=True) as acts:
        logits = model.forward(tokens)
    assert logits is not None
    for rho, plain in zip(found.values(), torch.autograd.grad(contrast(logits), [acts[s] for s in sites]), strict=True):
        assert torch.equal(rho, plain)


@pytest.mark.parametrize("view", ["hf", "bridge"])
def test_rules_of_some_layers_hold_there_alone(gpt2: ModelHandle, view: str, tokens: Tensor) -> None:
    early = rhos(gpt2, Rules(linear="gamma", layers=(0, 2)), tokens, view)
    everywhere, nowhere = rhos(gpt2, "gamma", tokens, view), rhos(gpt2, "cp_lrp", tokens, view)
    for name in ("resid_pre.2", "mlp_act.2"):
        torch.testing.assert_close(early[name], nowhere[name])
        assert not torch.allclose(early[name], everywhere[name])
    assert not torch.allclose(early["resid_pre.0"], nowhere["resid_pre.0"])
    inner = Rules(linear="zero", layers=(0, 3), elsewhere="gamma")  # what lies past the blocks: the unembedding
    last = rhos(gpt2, inner, tokens, view)["mlp_out.2"]
    torch.testing.assert_close(last, everywhere["mlp_out.2"])
    assert not torch.allclose(last, nowhere["mlp_out.2"])


# -- being undone


def hooks_of(handle: ModelHandle) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in handle.module.modules())


def test_nothing_is_left_after_an_exception(gpt2: ModelHandle, tokens: Tensor) -> None:
    before, hooks = rhos(gpt2, "gradient", tokens), hooks_of(gpt2)
    with pytest.raises(ZeroDivisionError), rewritten(gpt2, Rules(linear="gamma", layers=(0, 1))):
        raise ZeroDivisionError
    assert torch._C._len_torch_function_stack() == 0
    assert hooks_of(gpt2) == hooks
    assert gpt2.lock.acquire(blocking=False)
    gpt2.lock.release()
    after = rhos(gpt2, "gradient", tokens)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_contexts_of_one_model_do_not_nest(gpt2: ModelHandle, neox: ModelHandle) -> None:
    with rewritten(gpt2), rewritten(neox), pytest.raises(RuntimeError, match="do not nest"), rewritten(gpt2, "gamma"):
        pass


def test_a_metric_inside_of_the_context_keeps_its_gradient(gpt2: ModelHandle, tokens: Tensor) -> None:
    with rewritten(gpt2, "cp_lrp"), capture(gpt2, "resid_pre.2", grad=True) as acts:
        logits = gpt2.forward(tokens)
        assert logits is not None
        inside = logits[:, -1].softmax(-1)[:, 17].sum()
        (rho,) = torch.autograd.grad(inside, acts["resid_pre.2"], retain_graph=True)
    (wanted,) = torch.autograd.grad(logits[:, -1].softmax(-1)[:, 17].sum(), acts["resid_pre.2"])
    assert float(rho.abs().max()) > 0
    assert torch.equal(rho, wanted)


def test_another_model_in_the_context_keeps_its_gradient(
    gpt2: ModelHandle, make_model: Callable[..., ModelHandle], tokens: Tensor
) -> None:
    other = make_model("gpt2", n_layer=1)

    def grad() -> Tensor:
        with capture(other, "resid_pre.0", grad=True) as acts:
            logits = other.forward(tokens)
        assert logits is not None
        return torch.autograd.grad(contrast(logits), acts["resid_pre.0"])[0]

    wanted = grad()
    with rewritten(gpt2, "cp_lrp"):
        assert torch.equal(grad(), wanted)


def test_another_thread_keeps_its_gradients() -> None:
    def grad() -> Tensor:
        x = torch.linspace(-2, 2, 9, dtype=torch.float64).requires_grad_()
        return torch.autograd.grad(F.silu(x).sum(), x)[0]

    plain, seen = grad(), {}
    entered, done = threading.Event(), threading.Event()

    def other() -> None:
        entered.wait(10)
        seen["other"] = grad()
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with RelevanceMode(Rules()):
        entered.set()
        assert done.wait(10)
        seen["own"] = grad()
    thread.join()
    assert torch.equal(seen["other"], plain)
    assert not torch.allclose(seen["own"], plain)


def test_two_threads_on_one_model_do_not_mix(gpt2: ModelHandle, tokens: Tensor) -> None:
    wanted = {preset: rhos(gpt2, preset, tokens)["resid_pre.0"] for preset in ("gradient", "cp_lrp")}
    wrong: list[str] = []

    def work(preset: str) -> None:
        for _ in range(5):
            if not torch.equal(rhos(gpt2, preset, tokens)["resid_pre.0"], wanted[preset]):
                wrong.append(preset)

    threads = [threading.Thread(target=work, args=(preset,)) for preset in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- what cannot be done


def test_an_activation_without_a_rule_is_refused(make_module: Callable[..., torch.nn.Module], tokens: Tensor) -> None:
    handle = load_model(make_module("gpt2", activation_function="tanh"))
    with pytest.raises(ValueError, match="activation function 'tanh'"), rewritten(handle, "cp_lrp"):
        pass
    assert rhos(handle, Rules(activation="gradient"), tokens).keys()


@pytest.mark.parametrize(
    "name", ["gelu", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "quick_gelu", "silu", "relu", "mish"]
)
def test_every_known_activation_keeps_its_relevance(
    name: str, make_module: Callable[..., torch.nn.Module], tokens: Tensor
) -> None:
    handle = load_model(make_module("gpt2", activation_function=name, n_layer=1).double())
    module = copy.deepcopy(handle.module.transformer.h[0].mlp.act)
    x = torch.linspace(-3, 3, 13, dtype=torch.float64).requires_grad_()
    with RelevanceMode(Rules()):
        y = module(x)
    (rho,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(x * rho, y)  # R_x = R_y, number by number
    assert rhos(handle, "cp_lrp", tokens).keys()  # and the model is not refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear": "gama"}, "did you mean 'gamma'"),
        ({"attention": "off"}, "Unknown rule for attention"),
        ({"epsilon": -1.0}, "epsilon must be a number from 0 on"),
        ({"alpha": 0.5}, "alpha must be a number from 1 on"),
        ({"gamma": float("nan")}, "gamma must be a number"),
        ({"layers": (2, 1)}, "first < last"),
    ],
)
def test_bad_rules_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rules(**change)


def test_bad_presets_and_layers_are_refused(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match="did you mean 'cp_lrp'"), rewritten(gpt2, "cplrp"):
        pass
    with pytest.raises(ValueError, match=r"layers must lie in 0\.\.3"), rewritten(gpt2, Rules(layers=(0, 9))):
        pass


# -- operations beside the models' own


def test_a_norm_of_torch_is_one_made_of_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, rho = (torch.randn(*shape, generator=generator) for shape in ((3, 8), (8,), (3, 8)))

    def grad(norm: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = x.clone().requires_grad_()
        with RelevanceMode(Rules()):
            y = norm(leaf)
        torch.testing.assert_close(y, norm(x))
        return torch.autograd.grad(y, leaf, rho)[0]

    parts = grad(lambda a: a * torch.rsqrt(a.pow(2).mean(-1, keepdim=True) + 1e-5) * weight)
    torch.testing.assert_close(grad(lambda a: F.rms_norm(a, (8,), weight, 1e-5)), parts)
    scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(parts, rho * weight * scale)

    def by_hand(a: Tensor) -> Tensor:
        a = a - a.mean(-1, keepdim=True)
        return a / (a.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    torch.testing.assert_close(grad(lambda a: F.layer_norm(a, (8,), weight, None, 1e-5)), grad(by_hand))


def test_rounding_passes_gradients_straight_through() -> None:
    x = torch.tensor([0.2, 1.7, -2.4], requires_grad=True)
    with RelevanceMode(Rules()):
        y = torch.round(x / 0.5) * 0.5
    assert torch.equal(y, torch.tensor([0.0, 1.5, -2.5]))
    (rho,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(rho, torch.ones(3))


def test_a_copy_with_quantised_activations_has_nearly_the_same_relevance(
    model: ModelHandle, make_model: Callable[..., ModelHandle], tokens: Tensor
) -> None:
    family = {"gpt2": "gpt2", "gpt_neox": "neox", "llama": "llama"}[model.family]
    copied = make_model(family)
    QuantiseActivations(8, ("resid_post.*", "mlp_act.*", "v.*")).attach(copied)
    wanted, found = rhos(model, "cp_lrp", tokens), rhos(copied, "cp_lrp", tokens)
    for name in ("resid_pre.0", "mlp_act.1", "v.1"):
        similar = F.cosine_similarity(found[name].flatten(), wanted[name].flatten(), dim=0)
        assert 0.99 < float(similar) < 1 - 1e-7, name
