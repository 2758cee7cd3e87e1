"""Rewriting gradients while a model runs: every operation of torch is looked up, and its rule applied.

`RelevanceMode` is a `TorchFunctionMode`: while it is entered, and in its thread alone, calls of torch come to it first.
It knows operations, not modules, so one table serves every architecture, compressed copies, and both views of a model.
Values stay what they are; what changes is which factors of them count as constants:

    layer_norm            (x - mean) * constant                       rsqrt, sqrt     constant (norms made of parts)
    silu, gelu, mish      x * constant                                tanh, sigmoid, erf   constant (gelu made of parts)
    u * v                 gradient halved                             round           passed straight through
    softmax, or q and k of fused attention      constant (`frozen`); half, half and a quarter (`taylor`)
    linear, addmm, x @ W  `interp.attribution.relevance.linear`

An operation acts on gradients only if what goes in carries some, so weights and masks cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from interp.attribution.relevance.linear import RuledLinear, linear_rule
from interp.attribution.relevance.rules import Rules

Handler = Callable[["RelevanceMode", Callable, tuple, dict[str, Any]], Any]


@runtime_checkable
class Reader(Protocol):
    """What runs forwards: `reading` is None outside of one."""

    reading: Tensor | None


class Ledger:
    """What the biases of each layer take of the relevance, summed over the batch."""

    def __init__(self) -> None:
        self.taken: dict[int, float] = {}

    def note(self, layer: int, amount: Tensor) -> None:
        """Add `amount` to what the biases of `layer` took."""
        self.taken[layer] = self.taken.get(layer, 0.0) + float(amount)


class RelevanceMode(TorchFunctionMode):
    """Applies `rules` to the operations of its thread, while it is entered.

    With an `owner`, only during the owner's forwards: what else is computed inside of the context, such as a metric of
    the logits, keeps its ordinary gradient. `layer` is the block that is running, for rules that differ by block.
    """

    def __init__(self, rules: Rules, owner: Reader | None = None, ledger: Ledger | None = None) -> None:
        super().__init__()
        self.rules, self.owner, self.ledger = rules, owner, ledger
        self.layer = 0
        self.linear = {name: linear_rule(rules, name) for name in (rules.linear, rules.elsewhere)}
        self._find = handlers(rules, ledger is not None).get

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        handler = self._find(func)
        if handler is None or (self.owner is not None and self.owner.reading is None) or not torch.is_grad_enabled():
            return func(*args, **kwargs) if kwargs else func(*args)
        return handler(self, func, args, kwargs or {})


def handlers(rules: Rules, ledger: bool = False) -> dict[Any, Handler]:
    """Return the table from an operation of torch to what is done instead; `ledger`: biases are counted, too."""
    found: dict[Any, Handler] = {}

    def put(handler: Handler, operations: Iterable[Any]) -> None:
        found.update(dict.fromkeys(operations, handler))

    varied = any(name != "zero" for name in (rules.linear, rules.elsewhere if rules.layers else rules.linear))
    if varied or ledger:
        put(_linear, (F.linear,))
        put(_addmm, (torch.addmm, Tensor.addmm))
    if ledger:
        put(_add_bias, (torch.add, Tensor.add))
    if rules.norm == "detached" or ledger:
        put(_layer_norm, (F.layer_norm, torch.layer_norm))
    if rules.norm == "detached":
        put(_rms_norm, (F.rms_norm, torch.rms_norm))
        put(_constant, (torch.sqrt, Tensor.sqrt, torch.rsqrt, Tensor.rsqrt))
    if rules.activation == "identity":
        found.update({F.silu: _silu, F.gelu: _gelu, F.mish: _mish})
        put(_constant, (torch.tanh, Tensor.tanh, torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.erf, Tensor.erf))
        put(_straight, (torch.round, Tensor.round))
    if rules.product == "half":
        put(_product, (torch.mul, Tensor.mul, torch.multiply, Tensor.multiply))
    if rules.attention == "frozen":
        put(_constant, (F.softmax, torch.softmax, Tensor.softmax))
    if rules.attention != "gradient":
        found[F.scaled_dot_product_attention] = _fused_attention
    if rules.attention == "taylor" or varied:
        put(_matmul, (torch.matmul, Tensor.matmul, torch.bmm, Tensor.bmm))
    return found


# -- linear layers


def _linear(mode: RelevanceMode, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    x, weight, bias = _arguments(args, kwargs, ("input", "weight", "bias"))
    return _ruled(mode, func, args, kwargs, x, weight, bias)


def _addmm(mode: RelevanceMode, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    if len(args) != 3 or kwargs:
        return func(*args, **kwargs)
    bias, x, weight = args
    return _ruled(mode, func, args, kwargs, x, weight.t(), bias)


def _ruled(
    mode: RelevanceMode,
    func: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Any:
    if not x.requires_grad or weight.requires_grad:
        return func(*args, **kwargs)
    rule = mode.linear[mode.rules.linear_at(mode.layer)]
    if rule is None:
        return _counted(mode, func(*args, **kwargs), bias)
    ledger, layer = mode.ledger, mode.layer
    note = None if ledger is None else lambda amount: ledger.note(layer, amount)
    return RuledLinear.apply(x, weight, bias, rule, note)


def _counted(mode: RelevanceMode, y: Tensor, bias: Any) -> Tensor:
    """Return `y`, of which `bias` is an additive part; its relevance is counted in the backward."""
    if mode.ledger is not None and isinstance(bias, Tensor) and y.requires_grad:
        ledger, layer = mode.ledger, mode.layer
        y.register_hook(lambda rho: ledger.note(layer, (rho * bias).sum()))
    return y


def _add_bias(mode: RelevanceMode, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    y = func(*args, **kwargs)
    biases = [value for value in args if isinstance(value, nn.Parameter) and not value.requires_grad]
    return _counted(mode, y, biases[0]) if len(biases) == 1 else y


def _matmul(mode: RelevanceMode, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    if len(args) != 2 or kwargs:
        return func(*args, **kwargs)
    x, y = args
    if x.requires_grad and y.requires_grad:
        return _Scaled.apply(func(x, y), 0.5) if mode.rules.attention == "taylor" else func(x, y)
    if y.ndim == 2 and not y.requires_grad:
        return _ruled(mode, func, args, kwargs, x, y.t(), None)
    return func(x, y)


# -- norms


class _FrozenNorm(torch.autograd.Function):
    """LayerNorm whose standard deviation is a constant in the backward; the mean is not."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        y, _, scale = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(scale, *() if weight is None else (weight,))
        ctx.shape = shape
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale, *weight = ctx.saved_tensors
        # torch's own backward, rstd (gw - mean(gw) - x_hat mean(gw x_hat)), of an input whose x_hat is zero: what is
        # left are the weight, the mean and the scale, in one kernel.
        rho, _, _ = torch.ops.aten.native_layer_norm_backward(
            grads[0],
            torch.zeros_like(grads[0]),
            ctx.shape,
            torch.zeros_like(scale),
            scale,
            weight[0] if weight else None,
            None,
            [True, False, False],
        )
        return rho, None, None, None, None


def _layer_norm(mode: RelevanceMode, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    x, shape, weight, bias, eps = _arguments(args, kwargs, ("input", "normalized_shape", "weight", "bias", "eps"))
    if not x.requires_grad:
        return func(*args, **kwargs)
    if mode.rules.norm == "gradient":
        return _counted(mode, func(*args, **kwargs), bias)
    y = _FrozenNorm.apply(x, tuple(shape), weight, bias, 1e-5 if eps is None else eps)
    return y if mode.ledger is None else _counted(mode, y, bias)


def _rms_norm(_mode: RelevanceMode, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    x, shape, weight, eps = _arguments(args, kwargs, ("input", "normalized_shape", "weight", "eps"))
    if not x.requires_grad:
        return func(*args, **kwargs)
    wide = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
    power = wide.pow(2).mean(tuple(range(-len(shape), 0)), keepdim=True)
    y = x * torch.rsqrt(power + (torch.finfo(x.dtype).eps if eps is None else eps)).to(x.dtype)
    return y if weight is None else y * weight


# -- activations


def _constant(_mode: RelevanceMode, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    if args and args[0].requires_grad:
        return func(args[0].detach(), *args[1:], **kwargs)
    y = func(*args, **kwargs)
    return y.detach() if y.requires_grad else y


def _silu(_mode: RelevanceMode, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    (x,) = _arguments(args, kwargs, ("input",))
    return x * torch.sigmoid(x.detach()) if x.requires_grad else func(*args, **kwargs)


def _gelu(_mode: RelevanceMode, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    (x,) = _arguments(args, kwargs, ("input",))
    if not x.requires_grad:
        return func(*args, **kwargs)
    value = x.detach()
    if kwargs.get("approximate") == "tanh":  # (1 + tanh u) / 2 is sigmoid 2u
        return x * torch.sigmoid(math.sqrt(8 / math.pi) * (value + 0.044715 * value.pow(3)))
    return x * torch.erf(value * math.sqrt(0.5)).add_(1).mul_(0.5)


def _mish(_mode: RelevanceMode, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    (x,) = _arguments(args, kwargs, ("input",))
    return x * torch.tanh(F.softplus(x.detach())) if x.requires_grad else func(*args, **kwargs)


class _Straight(torch.autograd.Function):
    """A function whose gradient is that of the identity."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor, func: Callable, rest: tuple, kwargs: dict[str, Any]) -> Tensor:
        return func(x, *rest, **kwargs)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None, None, None


def _straight(_mode: RelevanceMode, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    if args and args[0].requires_grad:
        return _Straight.apply(args[0], func, args[1:], kwargs)
    return func(*args, **kwargs)


# -- products and attention


class _Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied with a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] * ctx.factor, None


def _product(_mode: RelevanceMode, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    y = func(*args, **kwargs)
    first, second = _arguments(args, kwargs, ("input", "other"))
    if isinstance(second, Tensor) and second.requires_grad and first.requires_grad:
        return _Scaled.apply(y, 0.5)
    return y


def _fused_attention(mode: RelevanceMode, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    q, k, v = _arguments(args, kwargs, ("query", "key", "value"))
    if len(args) < 3:
        raise ValueError("Relevance of fused attention needs query, key and value by position, not by name.")
    rest = args[3:]
    if mode.rules.attention == "frozen":
        return func(q.detach(), k.detach(), v, *rest, **kwargs)
    q, k, v = (_Scaled.apply(x, c) if x.requires_grad else x for x, c in ((q, 0.25), (k, 0.25), (v, 0.5)))
    return func(q, k, v, *rest, **kwargs)


def _arguments(args: tuple, kwargs: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
    """Return the arguments `names`, which stand first in this order, None where one is missing."""
    return [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]
