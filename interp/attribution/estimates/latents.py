"""Attribution to latents of dictionaries, with a node for what they leave out (Marks et al. 2024, arXiv 2403.19647).

A dictionary writes an activation as a sum over latents and a rest, x = sum_i f_i d_i + e, d_i in raw units. With g the
gradient of the metric at x, which a method gives (first order, integrated along the site's path, or rewritten),

    score of latent i = (f_i d_i at clean - f_i d_i at corrupted) . g
    score of the rest = (e at clean - e at corrupted) . g

so that all of them add up to the site's own score. The model keeps x as it is: gradients pass through the dictionary's
decoder for its latents only, and earlier sites see the model's own gradient. Where a dictionary normalises every row by
itself, d_i holds the row's scale and e the row's offset.

Only latents that are on in either run have a score. The rest is the cell of kind `error.KIND` without a latent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.attribution.estimates.cells import Scores, described
from interp.attribution.estimates.integrated import site_gradients
from interp.attribution.estimates.latent_check import checked_latents
from interp.attribution.estimates.question import (
    BATCH,
    AskedMetric,
    Progress,
    Question,
    Reading,
    ask,
    read,
    read_gradients,
    read_other,
)
from interp.attribution.relevance.rewriting import rewritten
from interp.attribution.relevance.rules import Rules
from interp.attribution.result import Attribution
from interp.attribution.tables import completeness_table, nodes_of, token_labels
from interp.models import ModelHandle
from interp.names import unknown
from interp.sites import Site
from interp.tasks.pairs import Pairs
from interp.types import Dictionary

METHODS = ("atp", "ig", "relp")
ERROR = "error."
"""What the kind of the cells of a dictionary's rest begins with."""


@dataclass
class _Collected:
    """Scores of one site's latents and rest, from all batches."""

    keys: list[np.ndarray] = field(default_factory=list)
    """pos * d_sae + latent, of every active slot (pos 0 where positions are summed)."""
    prompts: list[np.ndarray] = field(default_factory=list)
    """The prompt of every slot."""
    scores: list[np.ndarray] = field(default_factory=list)
    """The score of every slot."""
    errors: list[np.ndarray] = field(default_factory=list)
    """[batch pos] (or [batch 1]) the score of the rest."""
    totals: list[np.ndarray] = field(default_factory=list)
    """[batch] the site's own score."""


def latent_attribution(
    handle: ModelHandle,
    pairs: Pairs,
    dictionaries: Mapping[Site | str, Dictionary],
    method: str = "atp",
    *,
    metric: AskedMetric = None,
    direction: str | None = None,
    parts: Iterable[str] = ("pos",),
    batch: int = BATCH,
    on_progress: Progress | None = None,
    check: int = 10,
    steps: int = 10,
    rules: Rules | str = "relp",
) -> Attribution:
    """Return the estimated effect of every latent, and of what the dictionaries leave out.

    Args:
        handle: the model.
        pairs: clean and corrupted prompts.
        dictionaries: site (or its name) -> the dictionary that reads and writes there.
        method: where the gradient comes from: `atp`, `ig` (along the site's own path) or `relp`.
        metric: what is explained; None is the task's own.
        direction: `denoising` (None) or `noising`.
        parts: `pos` for a score at each position, nothing for their sum.
        batch: prompts in a forward pass.
        on_progress: hears (done, total) batches of prompts, then cells of the check.
        check: number of cells, the largest and as many random ones, that are really patched beside the estimate.
        steps: points of the path of `ig`.
        rules: rules of `relp`.

    Raises:
        ValueError: no dictionary, one that does not fit its site, an unknown method or part, and what `ask` refuses.
    """
    found = {handle.check_site(site): dictionary for site, dictionary in dictionaries.items()}
    asked = (parts,) if isinstance(parts, str) else tuple(parts)
    if method not in METHODS:
        raise ValueError(unknown("method", str(method), METHODS))
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}.")
    if set(asked) - {"pos"}:
        raise ValueError(f"Latents are a part by pos or by nothing else, got parts {', '.join(map(str, asked))}.")
    for site, dictionary in found.items():
        if dictionary.d_in != handle.width(site):
            raise ValueError(
                f"The dictionary reads d_in={dictionary.d_in} numbers, but {site} has {handle.width(site)}."
            )
    question = ask(handle, pairs, list(found), metric, direction, "corrupt", asked, batch)
    values, collected = Scores(), {site: _Collected() for site in question.sites}
    batches = question.batches()
    for done, rows in enumerate(batches, 1):
        _add_batch(question, found, rows, method, steps, rules, values, collected)
        if on_progress is not None:
            on_progress(done, len(batches))
    attribution = _result(question, method, values, collected, found)
    return checked_latents(attribution, question, found, check, check, on_progress=on_progress)


def _add_batch(
    question: Question,
    dictionaries: Mapping[Site, Dictionary],
    rows: Int[Tensor, " batch"],
    method: str,
    steps: int,
    rules: Rules | str,
    values: Scores,
    collected: dict[Site, _Collected],
) -> None:
    """Add the scores of the prompts `rows`."""
    if method == "ig":
        base = read(question, rows)
        other = read_other(question, rows, base)
        grads = dict(site_gradients(question, rows, base, other, steps, "activations"))
    else:
        base = _gradients(question, rows, method, rules)
        other, grads = read_other(question, rows, base), base.grads
    values.add_values(question, base.values, other.values)
    denoising = question.plan.direction == "denoising"
    for site, dictionary in dictionaries.items():
        pair = (other.acts[site], base.acts[site]) if denoising else (base.acts[site], other.acts[site])
        _add_site(collected[site], dictionary, pair, grads[site], rows.cpu().numpy(), "pos" in question.parts)


def _gradients(question: Question, rows: Int[Tensor, " batch"], method: str, rules: Rules | str) -> Reading:
    """Return the base run with plain or rewritten gradients."""
    if method == "atp":
        return read_gradients(question, rows)
    return read_gradients(question, rows, lambda: rewritten(question.handle, rules))


def _add_site(
    collected: _Collected,
    dictionary: Dictionary,
    pair: tuple[Tensor, Tensor],
    grad: Tensor,
    prompts: Int[np.ndarray, " batch"],
    by_pos: bool,
) -> None:
    """Add the scores at one site; `pair` holds the activations of the clean and of the corrupted run."""
    batch, length = grad.shape[:2]
    flat = grad.flatten(2).flatten(0, 1)
    whole = ((pair[0] - pair[1]) * grad).flatten(2).sum(-1).cpu().double()  # [batch pos]
    rest = whole.flatten().clone()
    for act, sign in zip(pair, (1.0, -1.0), strict=True):
        row, latent, score = slot_scores(dictionary, act.flatten(2).flatten(0, 1), flat)
        rest.index_add_(0, row, -sign * score)
        at = (row % length).numpy() if by_pos else np.zeros(len(row), np.int64)
        collected.keys.append(at * dictionary.d_sae + latent.numpy())
        collected.prompts.append(prompts[(row // length).numpy()])
        collected.scores.append(sign * score.numpy())
    rest = rest.view(batch, length)
    collected.errors.append((rest if by_pos else rest.sum(1, keepdim=True)).numpy())
    collected.totals.append(whole.sum(1).numpy())


def slot_scores(
    dictionary: Dictionary, rows: Float[Tensor, "row d_in"], grad: Float[Tensor, "row d_in"]
) -> tuple[Int[Tensor, " slot"], Int[Tensor, " slot"], Float[Tensor, " slot"]]:
    """Return (row, latent, f_i d_i . g) of every active slot of the codes of `rows`.

    Raises:
        ValueError: the code's values are no part of the reconstruction's graph.
    """
    with torch.enable_grad():
        wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        x_hat, code = dictionary.forward(wide.detach().requires_grad_())
        target = (x_hat.reshape(grad.shape) * grad.to(x_hat)).sum()
        (back,) = torch.autograd.grad(target, code.values, allow_unused=True)
    if back is None:
        raise ValueError(
            f"{type(dictionary).__name__}.forward must decode the very `values` of the code that it returns; no "
            "gradient reaches them."
        )
    values = code.values.detach()
    if code.pointers is None:
        row = torch.arange(len(values), device=values.device)[:, None].expand(values.shape)
    else:
        row = torch.arange(len(rows), device=values.device).repeat_interleave(code.pointers.diff())
    active = values != 0
    return row[active].cpu(), code.indices[active].cpu(), (values * back)[active].cpu().double()


def _result(
    question: Question,
    method: str,
    values: Scores,
    collected: dict[Site, _Collected],
    dictionaries: Mapping[Site, Dictionary],
) -> Attribution:
    """Return the scores of all sites as one result."""
    import pyarrow as pa

    by_pos, prompts = "pos" in question.parts, len(question.pairs)
    tables, rows = [], []
    for site, found in collected.items():
        keys, inverse = np.unique(np.concatenate(found.keys), return_inverse=True)
        latents = np.zeros((prompts, len(keys)))
        np.add.at(latents, (np.concatenate(found.prompts), inverse), np.concatenate(found.scores))
        errors, total = np.concatenate(found.errors), float(np.concatenate(found.totals).mean())
        at, latent = np.divmod(keys, dictionaries[site].d_sae)
        names = ["pos"] if by_pos else []
        tables.append(nodes_of(site.kind, site.layer, [*names, "latent"], [*([at] if by_pos else []), latent], latents))
        places = [np.arange(errors.shape[1])] if by_pos else []
        tables.append(nodes_of(ERROR + site.kind, site.layer, names, places, errors))
        of_latents = float(latents.sum(1).mean())
        rows.append((site.kind, site.layer, "latents", of_latents, total))
        rows.append((site.kind, site.layer, "all", of_latents + float(errors.sum(1).mean()), total))
    numbers = {
        "clean": float(torch.cat(values.clean).mean()),
        "corrupt": float(torch.cat(values.corrupt).mean()),
        "prompts": float(prompts),
    }
    return Attribution(
        f"latents_{method}",
        question.metric.name,
        "corrupt",
        question.plan.direction,
        pa.concat_tables(tables),
        completeness_table(rows),
        token_labels(question.handle, question.pairs),
        numbers,
        about=described(question),
    )
