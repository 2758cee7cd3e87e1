"""The Jacobian lens: the stream's mean first-order effect on the last stream (Gurnee et al. 2026).

    J_l = mean over sequences and positions t of  sum_{t' >= t} d h_last,t' / d h_l,t
    lens_l(h) = W_U norm_f(J_l h) + b_U

Positions t and t' leave out the first `skip` and the last one. What later positions make of h_l,t counts as well as
what this one does. It has no constant term, so that it is not exact even for a model that is linear with biases. A
Jacobian is exact: one backward pass for each output dimension, several of them side by side.

transformer-lens (`tools.analysis.JacobianLens`) has the same estimator and definition; it takes texts and a tokenizer,
and keeps its matrices in a pickle, so that it is not used here but compared with in the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.hooks import capture
from interp.layers.lens import TrainedLens, stream_site
from interp.layers.lens_config import JacobianLensConfig
from interp.layers.lens_runs import load_lens, save_lens
from interp.runs import Run

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle


def fit_jacobian_lens(
    handle: ModelHandle,
    blocks: Blocks,
    config: JacobianLensConfig | None = None,
    run: Run | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> TrainedLens:
    """Return the Jacobian lens of a model, fitted or taken from a finished run.

    Args:
        handle: the model.
        blocks: the text; the first blocks whose first `config.context` tokens are real.
        config: how; None takes the defaults.
        run: where it is kept (`interp.layers.lens_runs.lens_run`), finished here; None keeps it nowhere.
        on_progress: hears (sequences done, sequences in all); an exception in it stops the fit.

    Raises:
        ValueError: no block is that long.
    """
    if run is not None and run.finished:
        return load_lens(run, handle)
    config = config or JacobianLensConfig()
    length = min(config.context, blocks.context)
    whole = blocks.keep[:, :length].all(1).nonzero()[: config.sequences, 0]
    if len(whole) == 0 or length < config.skip + 2:
        raise ValueError(
            f"The Jacobian lens needs blocks of skip + 2 = {config.skip + 2} real tokens or more, got {len(whole)} "
            f"blocks of {length}. Use a longer context or a smaller skip."
        )
    total = torch.zeros(handle.n_layers, handle.d_model, handle.d_model, dtype=torch.float64)
    for done, tokens in enumerate(blocks.tokens[whole, :length]):
        total += mean_jacobians(handle, tokens, skip=config.skip, dims=config.dims)
        if run is not None:
            run.progress(done + 1, len(whole), "sequences")
        if on_progress is not None:
            on_progress(done + 1, len(whole))
    delta = (total / len(whole) - torch.eye(handle.d_model, dtype=torch.float64)).float()
    lens = TrainedLens("jacobian", delta, torch.zeros(delta.shape[:2]), handle.digest())
    if run is not None:
        save_lens(run, lens)
        run.finish({"lens": "jacobian", "sequences": len(whole), "context": length})
    return lens


def mean_jacobians(
    handle: ModelHandle, tokens: Int[Tensor, " pos"], *, skip: int = 16, dims: int = 16
) -> Float[Tensor, "stream d_model d_model"]:
    """Return J of one sequence for the embeddings and the streams after all blocks but the last, in float64.

    Rows are dimensions of the last stream, columns those of the earlier one.

    Args:
        handle: the model.
        tokens: the sequence.
        skip: first positions that are left out.
        dims: output dimensions of one backward pass.
    """
    sites = [stream_site(layer) for layer in range(-1, handle.n_layers)]
    valid = slice(skip, len(tokens) - 1)
    found = torch.zeros(handle.n_layers, handle.d_model, handle.d_model, dtype=torch.float64)
    with torch.enable_grad(), capture(handle, sites, grad=True, stop=True) as acts:
        handle.forward(tokens.expand(min(dims, handle.d_model), -1))
        *sources, last = (acts[site] for site in sites)
    starts = range(0, handle.d_model, last.shape[0])
    for start in starts:
        count = min(last.shape[0], handle.d_model - start)
        cotangent = torch.zeros_like(last)
        copies = torch.arange(count, device=last.device)
        cotangent[copies, valid, start + copies] = 1.0
        gradients = torch.autograd.grad(last, sources, cotangent, retain_graph=start != starts[-1])
        for matrix, gradient in zip(found, gradients, strict=True):
            matrix[start : start + count] = gradient[:count, valid].double().mean(1).cpu()
    return found
