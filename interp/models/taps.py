"""The one table that says where a site lies in a Hugging Face model, and the one way to hook it in either view.

A tap is a module, its input or its output, and a view of that tensor. Fused projections are sliced: GPT-2's `c_attn`
puts out [q | k | v]; GPT-NeoX's `query_key_value` puts out, head by head, [q_h | k_h | v_h]. The bridge of
transformer-lens has a hook point of its own for each site (`Site.lens_name`).

`resid_mid` needs care in both views: the block reads it twice, as the input of the second norm and as the residual
that the MLP is added to, and a hook that returns a new tensor reaches the norm only (transformer-lens' own
`hook_resid_mid` behaves like that). So it is written in place, into the tensor that both readers share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from interp.names import unknown
from interp.sites import LENS_NAMES, Site

if TYPE_CHECKING:
    from interp.models.handle import ModelHandle

Hook = Callable[[Tensor], Tensor | None]
"""What is called with the activation at a site; a returned tensor replaces it."""

VIEWS = ("hf", "bridge")


@dataclass(frozen=True)
class Tap:
    """Where one kind of site lies in the Hugging Face module."""

    module: str
    """Path of the module within the block; empty for the block itself."""
    side: str
    """`input` or `output` of that module; of a tuple the first element counts."""
    view: str = "whole"
    """`whole` [batch pos d], `heads` [batch pos head d_head]; `thirds:i`, `by_head:i`: slice i of a fused q, k, v."""
    in_place: bool = False
    """True: written into the tensor itself, because the block has a second reader of it."""


BLOCKS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "llama": "model.layers"}
"""Family (the `model_type` of a Hugging Face configuration) -> path of its list of blocks."""

_STREAM = {"resid_pre": Tap("", "input"), "resid_post": Tap("", "output"), "mlp_out": Tap("mlp", "output")}

TAPS: dict[str, dict[str, Tap]] = {
    "gpt2": _STREAM
    | {
        "q": Tap("attn.c_attn", "output", "thirds:0"),
        "k": Tap("attn.c_attn", "output", "thirds:1"),
        "v": Tap("attn.c_attn", "output", "thirds:2"),
        "head_out": Tap("attn.c_proj", "input", "heads"),
        "attn_out": Tap("attn", "output"),
        "resid_mid": Tap("ln_2", "input", in_place=True),
        "mlp_act": Tap("mlp.c_proj", "input"),
    },
    "gpt_neox": _STREAM
    | {
        "q": Tap("attention.query_key_value", "output", "by_head:0"),
        "k": Tap("attention.query_key_value", "output", "by_head:1"),
        "v": Tap("attention.query_key_value", "output", "by_head:2"),
        "head_out": Tap("attention.dense", "input", "heads"),
        "attn_out": Tap("attention", "output"),
        "resid_mid": Tap("post_attention_layernorm", "input", in_place=True),
        "mlp_act": Tap("mlp.dense_4h_to_h", "input"),
    },
    "llama": _STREAM
    | {
        "q": Tap("self_attn.q_proj", "output", "heads"),
        "k": Tap("self_attn.k_proj", "output", "heads"),
        "v": Tap("self_attn.v_proj", "output", "heads"),
        "head_out": Tap("self_attn.o_proj", "input", "heads"),
        "attn_out": Tap("self_attn", "output"),
        "resid_mid": Tap("post_attention_layernorm", "input", in_place=True),
        "mlp_act": Tap("mlp.down_proj", "input"),
    },
}
"""Family -> kind -> tap. `pattern` is in none: sdpa never forms it, so it exists in the bridge only."""


def check_view(view: str) -> str:
    """Return `view` if it is one; else raise ValueError with the nearest match."""
    if view not in VIEWS:
        raise ValueError(unknown("view", str(view), VIEWS))
    return view


def attach_hook(handle: ModelHandle, site: Site, view: str, hook: Hook) -> Callable[[], None]:
    """Call `hook` with the activation at `site` in every forward of `view`; return what removes exactly this hook.

    Hooks of one site run in the order in which they were attached, each seeing what the one before returned.

    Raises:
        ValueError: if the model has no such site, or not in this view.
    """
    handle.check_site(site)
    if check_view(view) == "bridge":
        return _attach_to_bridge(handle, site, hook)
    if site.kind not in TAPS[handle.family]:
        raise ValueError(
            f"{site} exists only in the bridge: the plain Hugging Face model runs fused attention (sdpa), which never "
            "forms the pattern. Pass view='bridge'."
        )
    tap = TAPS[handle.family][site.kind]
    path = ".".join(part for part in (BLOCKS[handle.family], str(site.layer), tap.module) if part)
    module = handle.module.get_submodule(path)
    shaped = _shaped(tap, handle.d_head, hook)
    if tap.side == "output":
        registered = module.register_forward_hook(mark(lambda _module, _args, output: _first(output, shaped)))
    else:
        registered = module.register_forward_pre_hook(
            mark(lambda _module, args, kwargs: _input(args, kwargs, shaped)), with_kwargs=True
        )
    return registered.remove


def _attach_to_bridge(handle: ModelHandle, site: Site, hook: Hook) -> Callable[[], None]:
    point = handle.hook_point(site)
    shaped = in_place(hook) if site.kind == "resid_mid" else hook
    lens = point.add_hook(lambda value, hook: shaped(value))  # noqa: ARG005 - transformer-lens passes `hook` by name

    def remove() -> None:
        lens.hook.remove()
        point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not lens]

    return remove


def in_place(hook: Hook) -> Hook:
    """Return `hook` as one that writes its result into the tensor it was given."""

    def write(tensor: Tensor) -> None:
        value = hook(tensor.clone())  # a copy: what `hook` keeps or differentiates must not change under it
        if value is not None:
            tensor.copy_(value)

    return write


def _shaped(tap: Tap, d_head: int, hook: Hook) -> Hook:
    """Return `hook` (of the site's own shape) as a hook of the whole tensor at the tap."""
    if tap.in_place:
        return in_place(hook)
    if tap.view == "whole":
        return hook

    def replace(tensor: Tensor) -> Tensor | None:
        value = hook(slice_view(tensor, tap.view, d_head))
        if value is None:
            return None
        if tap.view == "heads":
            return value.reshape(tensor.shape)
        changed = tensor.clone()
        slice_view(changed, tap.view, d_head).copy_(value)
        return changed

    return replace


def slice_view(tensor: Tensor, view: str, d_head: int) -> Tensor:
    """Return the part of `tensor` that `view` names, sharing its memory: [batch pos head d_head] unless `whole`."""
    kind, _, index = view.partition(":")
    if kind == "heads":
        return tensor.unflatten(-1, (-1, d_head))
    if kind == "thirds":
        third = tensor.shape[-1] // 3
        return tensor.narrow(-1, int(index) * third, third).unflatten(-1, (-1, d_head))
    if kind == "by_head":
        return tensor.unflatten(-1, (-1, 3, d_head))[..., int(index), :]
    return tensor


def _first(output: Any, hook: Hook) -> Any:
    """Return what replaces a module's `output` (None: nothing), `hook` acting on the tensor or a tuple's first."""
    if isinstance(output, tuple):
        value = hook(output[0])
        return None if value is None else (value, *output[1:])
    return hook(output)


def _input(args: tuple, kwargs: dict[str, Any], hook: Hook) -> tuple[tuple, dict[str, Any]] | None:
    """Return what replaces a module's arguments (None: nothing), `hook` acting on the hidden states."""
    value = hook(args[0] if args else kwargs["hidden_states"])
    if value is None:
        return None
    return ((value, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": value})


def mark(function: Callable) -> Callable:
    """Return `function`, marked as a hook of this package, so that `strip_hooks` finds it in a copy of the module."""
    function._mechscope = True  # type: ignore[attr-defined]
    return function


def per_token(edit: Callable) -> Callable:
    """Return `edit`, marked as exact on any part of a text: what it makes of a token depends on that activation alone.

    Patching then need not run whole texts (`interp.attribution.patching.cone`). Rounding is left unmarked: it turns the
    last bit, in which two ways of computing differ, into a step.
    """
    edit.per_token = True  # type: ignore[attr-defined]
    return edit


def strip_hooks(module: nn.Module) -> None:
    """Remove the hooks of this package from `module`, which was copied while some were attached."""
    for part in module.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "_mechscope", False)]:
                del hooks[key]


def kinds_of(family: str, parallel: bool) -> list[str]:
    """Return the kinds that a model of `family` has; `parallel` blocks (attention beside the MLP) lack resid_mid."""
    return [
        kind
        for kind in LENS_NAMES
        if (kind in TAPS[family] or kind == "pattern") and not (parallel and kind == "resid_mid")
    ]
