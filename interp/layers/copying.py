"""Whether a head copies: does looking at a token make that token likelier?

    copying            sum of eigenvalues / sum of their sizes, of the map W_U W_O W_V W_E from token to logits: 1 where
                       every eigenvalue is real and positive, -1 where all are negative (Elhage et al. 2021)
    copying_positive   share of the eigenvalues that lie right of 0
    copying_top        share of tokens that are among the k largest logits of what the head writes when it looks at
                       them, from the stream after block 0 (Wang et al. 2022, who take names and k = 5)

The map is d_vocab x d_vocab, but of rank d_head: its eigenvalues other than 0 are those of the d_head x d_head matrix
W_V (W_E^T W_U)^T W_O. Norms are folded in and logits centred over tokens (`interp.layers.head_weights`).
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from interp.hooks import capture
from interp.layers.head_weights import head_weights
from interp.layers.lens import stream_site
from interp.layers.norms import block_norm, final_norm
from interp.layers.weights import layer_bias, layer_matrices
from interp.models.handle import ModelHandle

PORTION = 8192
"""Tokens that are worked on at once."""
ROUNDING = 1e-9
"""Eigenvalues below this share of the largest are 0."""


def ov_eigenvalues(handle: ModelHandle) -> Complex[Tensor, "layer head d_head"]:
    """Return the eigenvalues, other than those that are 0 for want of rank, of each head's map from token to logits."""
    through, found = through_tokens(handle), []
    for layer in range(handle.n_layers):
        heads = head_weights(handle, layer)
        found.append(torch.linalg.eigvals(heads.v @ through @ heads.o))
    return torch.stack(found).cpu()


def through_tokens(handle: ModelHandle) -> Float[Tensor, "d_model d_model"]:
    """Return W_E^T W_U over tokens, the final norm folded into W_U and its mean over tokens taken off, in float64.

    The mean is added to all logits alike, which no probability sees. Tokens come in portions: at full length either
    matrix takes gigabytes in a model of a large vocabulary.
    """
    embedding, read = handle.module.get_input_embeddings().weight.detach(), handle.unembed().detach()
    norm, d = final_norm(handle), handle.d_model
    product, sums = read.new_zeros(d, d, dtype=torch.float64), read.new_zeros(2, d, dtype=torch.float64)
    for rows in torch.arange(handle.d_vocab).split(PORTION):
        part = embedding[rows].double().to(read.device), norm.pull_back(read[rows])
        product += part[0].T @ part[1]
        sums += torch.stack([one.sum(0) for one in part])
    return product - torch.outer(sums[0], sums[1]) / handle.d_vocab


def copying_scores(handle: ModelHandle) -> dict[str, Float[Tensor, "layer head"]]:
    """Return {"copying", "copying_positive"} of every head; 0 and NaN where a head maps nothing to anything.

    Raises:
        ValueError: the model's weights cannot be read as matrices.
    """
    return eigenvalue_scores(ov_eigenvalues(handle))


def eigenvalue_scores(values: Complex[Tensor, "*head n"]) -> dict[str, Float[Tensor, "*head"]]:
    """Return {"copying", "copying_positive"} of eigenvalues."""
    sizes = values.abs()
    there = sizes > ROUNDING * sizes.amax(-1, keepdim=True)
    total = sizes.sum(-1)
    return {
        "copying": torch.where(total > 0, values.real.sum(-1) / total, 0.0),
        "copying_positive": ((values.real > 0) & there).sum(-1) / there.sum(-1).double(),
    }


@torch.no_grad()
def copying_top(handle: ModelHandle, *, k: int = 5, tokens: int = 64, seed: int = 0) -> Float[Tensor, "layer head"]:
    """Return the share of tokens that a head, looking at them, puts among the `k` likeliest; chance is k / d_vocab.

    Heads of layer 0 read the embedding, those above the stream after block 0 of a text of BOS and the token. Biases of
    the values count, as in the published form; that of the output does not.

    Args:
        handle: the model.
        k: likeliest tokens.
        tokens: different tokens that are tried, BOS not among them.
        seed: of the drawing.

    Raises:
        ValueError: k or the number of tokens does not lie in the vocabulary.
    """
    allowed = torch.tensor([i for i in range(handle.d_vocab) if i != handle.bos_id])
    for name, value, most in (("k", k, handle.d_vocab), ("tokens", tokens, len(allowed))):
        if not 1 <= value <= most:
            raise ValueError(f"{name} must lie in 1..{most}, got {value}.")
    chosen = allowed[torch.randperm(len(allowed), generator=torch.Generator().manual_seed(seed))[:tokens]]
    text = (
        chosen[:, None] if handle.bos_id is None else torch.stack([torch.full_like(chosen, handle.bos_id), chosen], 1)
    )
    sites = [stream_site(layer) for layer in (-1, 0)]
    with capture(handle, sites, stop=True) as acts:
        handle.forward(text)
    streams = [acts[site][:, -1] for site in sites]
    found = torch.zeros(handle.n_layers, handle.n_heads)
    for layer in range(handle.n_layers):
        for head, written in enumerate(_written(handle, layer, streams[min(layer, 1)])):
            logits = handle.module.get_output_embeddings()(handle.final_norm(written))
            ranks = (logits > logits.gather(1, chosen.to(logits.device)[:, None])).sum(1)
            found[layer, head] = (ranks < k).float().mean()
    return found


def _written(handle: ModelHandle, layer: int, stream: Float[Tensor, "row d"]) -> Float[Tensor, "head row d"]:
    """Return what each head of a layer writes where it looks at a position with this stream, and at no other."""
    matrices, bias = layer_matrices(handle, layer), layer_bias(handle, layer, "v")
    values = block_norm(handle, layer, "attn")(stream) @ matrices["v"].double().T
    values = (values if bias is None else values + bias.double()).unflatten(1, (-1, handle.d_head))
    values = values.repeat_interleave(handle.n_heads // handle.n_kv_heads, 1)
    out = matrices["o"].double().unflatten(1, (handle.n_heads, handle.d_head))
    return torch.einsum("rhe,dhe->hrd", values, out).to(stream.dtype)
