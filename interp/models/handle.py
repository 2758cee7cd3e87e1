"""A loaded model: the pristine Hugging Face module, its tokenizer, and the transformer-lens bridge on demand.

Two views of one model compute the same logits. The Hugging Face view (`view="hf"`) is fast: fused attention, hooks
only where asked. The bridge (`view="bridge"`) names every intermediate and forms attention patterns. Bridging changes
a module in place, so the bridge gets a copy of the structure that shares every parameter and buffer; only GPT-NeoX's
fused q, k and v weights are copied there, by transformer-lens.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.models.spec import ModelSpec
from interp.models.storage import Storage, measure
from interp.models.taps import attach_hook, check_view, kinds_of, strip_hooks
from interp.models.text import encode, token_texts
from interp.names import unknown
from interp.sites import KINDS, Site
from interp.types import StepReport

if TYPE_CHECKING:
    from interp.hooks import Capture

ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "gpt_neox": "GPTNeoXForCausalLM", "llama": "LlamaForCausalLM"}
"""Family -> what transformer-lens calls it; a subclass of that module has another name but the same parts."""

FINAL_NORMS = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm", "llama": "model.norm"}


class ForwardStopped(Exception):
    """Ends a forward pass when `capture(stop=True)` has all it wanted; `ModelHandle.forward` catches it."""


class ModelHandle:
    """A model ready to be looked into; made by `interp.models.load_model`.

    The module is in evaluation mode and its parameters take no gradient. `lock` is held by every hook context and
    every forward, so that two threads that share a handle never see each other's hooks. `reports` says what the steps
    of its recipe did, and `reading` holds the token ids of the forward that is running (None outside of one).
    """

    def __init__(self, spec: ModelSpec, module: nn.Module, tokenizer: Any = None) -> None:
        config: Any = module.config
        self.spec = spec
        self.module: Any = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.family: str = config.model_type
        self.lock = threading.RLock()
        self.n_layers: int = config.num_hidden_layers
        self.d_model: int = config.hidden_size
        self.n_heads: int = config.num_attention_heads
        self.n_kv_heads: int = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.d_head: int = getattr(config, "head_dim", None) or self.d_model // self.n_heads
        # GPT-2 calls it n_inner, and None there means four times the width
        inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
        self.d_mlp: int = inner or 4 * self.d_model
        self.d_vocab: int = self.unembed().shape[0]
        self.n_ctx: int = config.max_position_embeddings
        self.bos_id = self._find_bos()
        self._captures: list[Capture] = []
        self._attached: list[tuple[Site, Callable[[Tensor], Tensor | None]]] = []
        self._bridge: Any = None
        self._points: dict[str, Any] = {}
        self._digest: str | None = None
        self._base_digest: str | None = None
        self.reading: Tensor | None = None
        self.reports: tuple[StepReport, ...] = ()
        self._vocabulary: list[str] | None = None

    def __repr__(self) -> str:
        return f"ModelHandle({self.spec.name!r}, {self.family}, {self.n_layers} layers, d_model {self.d_model})"

    def _find_bos(self) -> int | None:
        for owner in (self.tokenizer, self.module.config):
            found = getattr(owner, "bos_token_id", None)
            if isinstance(found, int) and 0 <= found < self.d_vocab:  # configurations keep ids of another vocabulary
                return found
        return None

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the embedding."""
        return self.module.get_input_embeddings().weight.device

    @property
    def n_parameters(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    # -- text

    def _require_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ValueError(
                f"The model {self.spec.name!r} has no tokenizer, so it reads token ids only. "
                "Put tokenizer.json beside its weights, or pass load_model(..., tokenizer=...)."
            )
        return self.tokenizer

    def tokens(self, text: str | Sequence[str], bos: bool = True) -> Int[Tensor, "batch pos"]:
        """Return the ids of one text or of several of equal length, BOS first if the model has one and `bos` holds.

        Raises:
            ValueError: without a tokenizer, without any token, with a word that the vocabulary lacks, or if texts
                differ in length.
        """
        tokenizer = self._require_tokenizer()
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError(f"tokens() takes a text or a list of texts, got {text!r:.80}.")
        first = [self.bos_id] if bos and self.bos_id is not None else []
        # Half a surrogate pair is no text; it becomes U+FFFD.
        clean = [one.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for one in texts]
        rows = [first + row for row in encode(tokenizer, clean)]
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1:
            raise ValueError(
                f"Texts of one batch must have the same number of tokens, got {lengths[0]} to {lengths[-1]}. "
                "Tokenize them one by one, or cut them with interp.data."
            )
        if lengths == [0]:
            raise ValueError("The text has no tokens and the model no BOS token; there is nothing to read.")
        return torch.tensor(rows, device=self.device)

    def decode(self, ids: Any) -> str:
        """Return the text of a sequence of ids, special tokens included."""
        return self._require_tokenizer().decode(_flat(ids), clean_up_tokenization_spaces=False)

    def token_strings(self, ids: Any) -> list[str]:
        """Return the exact text of each id; bytes that are no UTF-8 by themselves appear as escapes."""
        words = self.vocabulary()
        return [words[i] for i in self._checked(_flat(ids))]

    def vocabulary(self) -> list[str]:
        """Return the text of every id from 0 to d_vocab - 1."""
        if self._vocabulary is None:
            self._vocabulary = token_texts(self._require_tokenizer(), self.d_vocab)
        return self._vocabulary

    def _checked(self, ids: list[int]) -> list[int]:
        wrong = [i for i in ids if not 0 <= i < self.d_vocab]
        if wrong:
            raise ValueError(f"Token ids must lie in 0..d_vocab-1={self.d_vocab - 1}, got {wrong[0]}.")
        return ids

    # -- computing

    def forward(
        self,
        tokens: Int[Tensor, "*batch pos"],
        view: str = "hf",
        mask: Bool[Tensor, "*shape"] | None = None,
        grad: bool = False,
    ) -> Float[Tensor, "_ _ d_vocab"] | None:
        """Return the logits, or None if `capture(stop=True)` ended the pass early.

        Args:
            tokens: token ids [batch pos]; a single sequence [pos] is taken as a batch of one.
            view: `hf` or `bridge`.
            mask: [batch pos], True at real tokens, False at padding; positions are counted over the real ones.
            grad: keep the graph; also kept while a `capture(grad=True)` is open.

        Raises:
            ValueError: if ids, their number, or the mask do not fit the model.
        """
        check_view(view)
        tokens = self._check_tokens(tokens)
        with self.lock:
            for taken in self._captures:
                taken.begin()
            keep_graph = grad or any(taken.grad for taken in self._captures)
            # no_grad, not inference_mode: captured activations must serve as the input of something trained.
            context: AbstractContextManager = torch.enable_grad() if keep_graph else torch.no_grad()
            options = self._mask_options(tokens, mask)
            before, self.reading = self.reading, tokens
            try:
                with context:
                    if view == "bridge":
                        return self.bridge(tokens, return_type="logits", **options)
                    return self.module(input_ids=tokens, use_cache=False, **options).logits
            except ForwardStopped:
                return None
            finally:
                self.reading = before

    def logits(self, tokens: Int[Tensor, "*batch pos"], view: str = "hf") -> Float[Tensor, "_ _ d_vocab"]:
        """Return the logits; inside a `capture(stop=True)`, which leaves none, that is an error: use `forward`."""
        found = self.forward(tokens, view=view)
        if found is None:
            raise RuntimeError("capture(stop=True) ended the pass before the logits; call forward() there instead.")
        return found

    def _check_tokens(self, tokens: Tensor) -> Tensor:
        if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.ndim not in (1, 2):
            what = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"tokens must be a tensor of ids [batch pos], got {what}. Text goes through tokens().")
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        if tokens.numel() == 0:
            raise ValueError(f"tokens must hold at least one id, got shape {list(tokens.shape)}.")
        if tokens.shape[1] > self.n_ctx:
            raise ValueError(f"The model reads at most n_ctx={self.n_ctx} tokens at a time, got {tokens.shape[1]}.")
        if tokens.device.type == "cpu":  # on a GPU this would wait for everything queued before
            self._checked([int(bound) for bound in tokens.aminmax()])
        return tokens.to(self.device, torch.long)

    def _mask_options(self, tokens: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        if mask is None:
            return {}
        if mask.shape != tokens.shape:
            raise ValueError(f"mask must have the shape of tokens, {list(tokens.shape)}, got {list(mask.shape)}.")
        mask = mask.to(tokens.device, torch.long)
        return {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}

    def unembed(self) -> Float[Tensor, "d_vocab d_model"]:
        """Return the unembedding matrix, one row for each token."""
        return self.module.get_output_embeddings().weight

    @property
    def final_norm(self) -> nn.Module:
        """The norm before the unembedding."""
        return self.module.get_submodule(FINAL_NORMS[self.family])

    def verify(self, tokens: Int[Tensor, "batch pos"] | None = None) -> float:
        """Return the largest absolute difference between the logits of the two views (on random ids by default)."""
        if tokens is None:
            shape = (2, min(self.n_ctx, 32))
            tokens = torch.randint(self.d_vocab, shape, generator=torch.Generator().manual_seed(0))
        return float((self.logits(tokens) - self.logits(tokens, view="bridge")).abs().max())

    def digest(self) -> str:
        """Return the sha256 (hex) over name, format, shape and bytes of every weight."""
        if self._digest is None:
            total = hashlib.sha256()
            for name, tensor in sorted(self.module.state_dict().items()):
                total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
                total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
            self._digest = total.hexdigest()
        return self._digest

    def base_digest(self) -> str:
        """Return the digest that the weights had before the recipe of this model changed them."""
        return self._base_digest or self.digest()

    @property
    def storage(self) -> Storage:
        """What the model takes to store after its recipe, with scales, zero points and masks."""
        return measure(self.module, self.reports)

    def check_weights(self, digest: str | None, who: str, *, base: bool = False) -> None:
        """Refuse to be taken for the model that `who` was made with, whose weights had `digest` (None: not known).

        `base`: what counts are the weights as they were before the recipe.

        Raises:
            ValueError: the weights are others; what was measured with `who` would be wrong without a sign of it.
        """
        found = self.base_digest() if base else self.digest()
        if digest is not None and digest != found:
            raise ValueError(
                f"{who} was made with other weights of {self.spec.name} ({digest[:8]}) than those that are there now "
                f"({found[:8]}). Make it again with these, or bring those back."
            )

    # -- sites

    def sites(self, pattern: str = "*") -> list[Site]:
        """Return the sites of this model whose name (`resid_post.2`) matches the shell `pattern`, in order.

        Raises:
            ValueError: if `pattern` fits no kind of site at all.
        """
        kinds = kinds_of(self.family, self._parallel)
        found = [Site(layer, kind) for layer in range(self.n_layers) for kind in kinds]
        found = [site for site in found if fnmatchcase(str(site), pattern)]
        if not found and not any(fnmatchcase(kind, pattern.partition(".")[0]) for kind in KINDS):
            raise ValueError(unknown("site kind", pattern.partition(".")[0].strip("*"), KINDS))
        return found

    @property
    def _parallel(self) -> bool:
        return bool(getattr(self.module.config, "use_parallel_residual", False))

    def check_site(self, site: Site | str) -> Site:
        """Return `site`, parsed, if this model has it.

        Raises:
            ValueError: with the layers or kinds that it has.
        """
        site = Site.parse(site)
        if site.layer >= self.n_layers:
            raise ValueError(f"{site} lies beyond this model: its layers are 0..{self.n_layers - 1}.")
        kinds = kinds_of(self.family, self._parallel)
        if site.kind not in kinds:
            raise ValueError(
                f"This model has no {site.kind}: attention and MLP read the residual stream side by side, so there is "
                f"nothing between them. Its kinds: {', '.join(kinds)}."
            )
        return site

    def axes(self, site: Site | str) -> list[tuple[str, int | None]]:
        """Return the axes of the activation at `site` as (name, size), the size None where the input decides it."""
        kind = self.check_site(site).kind
        start: list[tuple[str, int | None]] = [("batch", None), ("pos", None)]
        if kind == "pattern":
            return [("batch", None), ("n_heads", self.n_heads), ("query", None), ("key", None)]
        if kind in ("q", "head_out"):
            return [*start, ("n_heads", self.n_heads), ("d_head", self.d_head)]
        if kind in ("k", "v"):
            return [*start, ("n_kv_heads", self.n_kv_heads), ("d_head", self.d_head)]
        return [*start, ("d_mlp", self.d_mlp) if kind == "mlp_act" else ("d_model", self.d_model)]

    def shape(self, site: Site | str) -> str:
        """Return the shape in words: `[batch pos d_model=192]`."""
        return "[" + " ".join(name if size is None else f"{name}={size}" for name, size in self.axes(site)) + "]"

    def width(self, site: Site | str) -> int:
        """Return the numbers per token at `site`, heads flattened; this is the d_in of a dictionary there.

        Raises:
            ValueError: for `pattern`, whose size depends on the input.
        """
        axes = self.axes(site)
        if axes[1][0] != "pos":
            raise ValueError(f"{site} has no width: a pattern has one number for each query and key.")
        width = 1
        for _, size in axes[2:]:
            width *= size or 1
        return width

    # -- the bridge

    @property
    def bridge(self) -> Any:
        """The `TransformerBridge` of this model, built when first used: raw weights, no folding, no tokenizer."""
        with self.lock:
            if self._bridge is None:
                self._bridge = self._build_bridge()
                for site, edit in self._attached:
                    attach_hook(self, site, "bridge", edit)
            return self._bridge

    def _build_bridge(self) -> Any:
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        shared = {id(tensor): tensor for tensor in (*self.module.parameters(), *self.module.buffers())}
        structure = copy.deepcopy(self.module, shared)
        strip_hooks(structure)
        bridge = build_bridge_from_module(
            structure, ARCHITECTURES[self.family], hf_config=structure.config, model_name=self.spec.name
        )
        parts: Any = bridge.modules()
        for part in parts:  # a norm that was taken out (nn.Identity) has no weights to recompute it with
            if isinstance(getattr(part, "original_component", None), nn.Identity):
                part.use_native_layernorm_autograd = True
        # The slices of fused q, k, v weights are new parameters, which would take gradients.
        nn.Module.requires_grad_(bridge, False)
        self._points = dict(bridge.hook_dict)
        return bridge.eval()

    def hook_point(self, site: Site) -> Any:
        """Return the transformer-lens `HookPoint` of `site`."""
        with self.lock:
            _ = self.bridge
            return self._points[site.lens_name]

    def attach(self, site: Site | str, edit: Callable[[Tensor], Tensor | None]) -> None:
        """Apply `edit` to the activation at `site` in every forward from now on, in both views (recipes use this)."""
        site = self.check_site(site)
        with self.lock:
            if site.kind != "pattern":
                attach_hook(self, site, "hf", edit)
            self._attached.append((site, edit))
            if self._bridge is not None:
                attach_hook(self, site, "bridge", edit)


def _flat(ids: Any) -> list[int]:
    """Return a list of ids from an id, a list, a tensor or an array of one sequence."""
    found = torch.as_tensor(ids)
    if found.ndim == 2 and len(found) == 1:
        found = found[0]
    if found.ndim > 1:
        raise ValueError(f"ids must be one sequence, got shape {list(found.shape)}.")
    return [int(i) for i in found.reshape(-1).tolist()]
