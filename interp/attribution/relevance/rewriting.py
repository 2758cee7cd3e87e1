"""`rewritten`: forwards of one model with unchanged values and gradients that follow relevance rules.

    with rewritten(handle, "cp_lrp"), capture(handle, "resid_pre.0", grad=True) as acts:
        logits = handle.forward(tokens)
    logits[0, -1, answer].backward()
    relevance = (acts["resid_pre.0"] * acts["resid_pre.0"].grad).sum(-1)     # [batch pos]

The rules hold for `handle.forward` alone, not for what is computed of the logits, inside the context or after it. They
are the thread's own: other threads, and other models in this thread, keep their ordinary gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch.overrides import _get_current_function_mode_stack

from interp.attribution.relevance.operations import Ledger, RelevanceMode
from interp.attribution.relevance.rules import Rules, find_rules
from interp.models.handle import ModelHandle
from interp.models.taps import VIEWS, attach_hook
from interp.names import unknown
from interp.sites import Site

ACTIVATIONS = (
    "gelu", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh", "leaky_relu", "linear",
    "mish", "quick_gelu", "relu", "silu", "swish",
)  # fmt: skip
"""Activation functions (names of transformers) that the Identity-rule knows."""


@contextmanager
def rewritten(handle: ModelHandle, rules: Rules | str = "cp_lrp") -> Iterator[None]:
    """Let the gradients of every `handle.forward` inside the context follow `rules`, in either view.

    Args:
        handle: the model; its lock is held.
        rules: a `Rules`, or the name of a preset. Rules that differ by block build the bridge, whose blocks they
            follow as well.

    Raises:
        ValueError: the preset is unknown, `layers` lie beyond the model, or its activation function has no rule.
        RuntimeError: its gradients are rewritten already.
    """
    rules = find_rules(rules)
    with rewriting(handle, rules, VIEWS if rules.layers else ()):
        yield


@contextmanager
def rewriting(
    handle: ModelHandle, rules: Rules, follow: tuple[str, ...] = (), ledger: Ledger | None = None
) -> Iterator[RelevanceMode]:
    """Do what `rewritten` does; `follow`: views in which the mode is told the running block; `ledger`: of biases."""
    _check(handle, rules)
    mode = RelevanceMode(rules, handle, ledger)
    with handle.lock, ExitStack() as undo:
        if any(
            isinstance(other, RelevanceMode) and other.owner is handle for other in _get_current_function_mode_stack()
        ):
            raise RuntimeError("The gradients of this model are rewritten already; contexts of relevance do not nest.")
        for view in follow:
            for layer in range(handle.n_layers):
                undo.callback(attach_hook(handle, Site(layer, "resid_pre"), view, _Entering(mode, layer)))
            last = Site(handle.n_layers - 1, "resid_post")
            undo.callback(attach_hook(handle, last, view, _Entering(mode, handle.n_layers)))
        undo.enter_context(mode)
        yield mode


class _Entering:
    """A hook that tells a mode which block begins, and changes nothing."""

    def __init__(self, mode: RelevanceMode, layer: int) -> None:
        self.mode, self.layer = mode, layer

    def __call__(self, _value: Any) -> None:
        self.mode.layer = self.layer


def _check(handle: ModelHandle, rules: Rules) -> None:
    config: Any = handle.module.config
    name = getattr(config, "activation_function", None) or getattr(config, "hidden_act", None)
    if rules.activation == "identity" and name not in ACTIVATIONS:
        raise ValueError(
            "The Identity-rule does not know this model's activation function. "
            f"{unknown('activation function', name, ACTIVATIONS)} "
            "Pass Rules(activation='gradient') to take its ordinary gradient."
        )
    if rules.layers is not None and rules.layers[1] > handle.n_layers:
        raise ValueError(f"layers must lie in 0..{handle.n_layers}, the blocks of this model, got {rules.layers}.")
