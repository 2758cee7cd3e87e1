"""Path patching: what one component does through another (Wang et al. 2022; Goldowsky-Dill et al. 2023).

Four passes for a sender and a receiver:

    1. run the base and the other prompt, keep their activations
    2. run the base with the sender's output taken from the other run, while all heads (and MLPs, if `freeze_mlps`) put
       out what they do in the base run; keep what the receiver reads then
    3. run the base with the receiver reading that, everything after it computed anew
    4. score = the change of the metric, with the sign of `interp.attribution.result`

What a head reads is replaced in its q, k or v; what an MLP reads in its activations `mlp_act`, which are a function of
it. The receiver `logits` is the direct effect: the metric in pass 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.attribution.patching.cells import Patch, as_patch, overwrite
from interp.attribution.patching.cone import why_not
from interp.attribution.patching.effects import Count, Progress, evaluate, make_engine
from interp.attribution.patching.maps import about, measured_nodes, values_of
from interp.attribution.patching.measure import Measured, check_request
from interp.attribution.patching.runs import last_logits, metric_of, resolve_metric, run
from interp.attribution.patching.sources import Plan, make_plan
from interp.attribution.result import CELL, Attribution
from interp.attribution.tables import completeness_table, score_columns, token_labels
from interp.hooks import capture
from interp.models import ModelHandle
from interp.models.taps import attach_hook
from interp.names import unknown
from interp.sites import Cell, Site
from interp.tasks import Metric, Pairs, measured

if TYPE_CHECKING:
    import pyarrow as pa

SENDERS = ("resid_pre", "head_out", "attn_out", "mlp_out")
"""Kinds that can send."""
RECEIVERS = ("q", "k", "v", "mlp_act")
"""Kinds that can receive, besides `LOGITS`."""
LOGITS = "logits"


def path_patch(
    handle: ModelHandle,
    pairs: Pairs,
    senders: Iterable[Cell | Iterable[Cell]],
    receivers: Iterable[Cell | Iterable[Cell] | str] = (LOGITS,),
    *,
    metric: Metric | Callable[[Tensor, Tensor], Tensor] | str | None = None,
    direction: str = "denoising",
    freeze_mlps: bool = True,
    batch: int = 64,
    exact_path: str = "cone",
    on_progress: Progress | None = None,
) -> Attribution:
    """Return the effect of each sender on the metric through each receiver, along the direct path between them.

    Args:
        handle: the model.
        pairs: clean and corrupted prompts.
        senders: cells of `SENDERS`; several cells of one site and head are one sender at several positions.
        receivers: cells of `RECEIVERS` likewise, and "logits".
        metric: a name, a `Metric`, a function of (logits, rows), or None for the task's own.
        direction: `denoising` (base: the corrupted run) or `noising` (base: the clean run, as in the papers).
        freeze_mlps: whether MLPs put out what they do in the base run in pass 2; if not, paths through them count as
            direct, as in Wang et al.
        batch: rows in one forward.
        exact_path: of pass 3, as in `patch_map`.
        on_progress: hears (rows done, rows in all) after each forward; an exception in it stops the run.

    Returns:
        `edges`: one row for each sender and receiver. `nodes`: each sender with all receivers but the logits reading
        it at once (with the logits, where they are the only one). `completeness`: the sums of the one, by layer and
        kind of the sender, beside those of the other.

    Raises:
        ValueError: a cell that cannot send or receive, or is not there; otherwise as `patch_map`.
    """
    sending = [_node(handle, one, SENDERS, pairs.n_pos, "send") for one in senders]
    given: list[Patch | str] = [
        one if isinstance(one, str) and one == LOGITS else _node(handle, one, RECEIVERS, pairs.n_pos, "receive")
        for one in receivers
    ]
    check_request(sending, batch, exact_path)
    check_request(given, batch, exact_path)
    found = resolve_metric(handle, pairs, metric, batch)
    plan = make_plan(handle, pairs, [], direction=direction)
    ends = [metric_of(handle, tokens, found, batch) for tokens in (pairs.clean, pairs.corrupt)]
    reason = "asked for" if exact_path == "full" else why_not(handle, "hf")
    paths = Paths(handle, plan, sending, given, found, freeze_mlps, batch)
    count = Count(len(sending) * len(pairs) * (1 + len(paths.patches)), on_progress)
    parts = []
    for prompts in torch.arange(len(pairs), device=handle.device).split(batch):
        effects, reason = paths.measure(prompts, reason, count)
        parts.append(plan.sign * effects)
    effects, clean, corrupt = (part.double().cpu().numpy() for part in (torch.cat(parts, 2), *ends))
    flat = effects.reshape(-1, len(pairs))
    whole = Measured(flat, clean, corrupt, found.name, direction, "full" if reason else "cone", reason, count.run)
    labels = [one if isinstance(one, str) else _label(one) for one in given]
    return Attribution(
        method="path_patching",
        target=found.name,
        baseline="corrupt",
        direction=direction,
        nodes=measured_nodes([_label(one) for one in sending], effects[-1]),
        completeness=_completeness(sending, given, effects),
        tokens=token_labels(handle, pairs),
        values=values_of(whole),
        edges=_edges(handle, [_label(one) for one in sending], labels, effects[: len(given)]),
        about=about(handle, pairs, whole) | {"freeze_mlps": freeze_mlps, "batch": batch},
    )


def _node(handle: ModelHandle, given: Any, kinds: Sequence[str], n_pos: int, verb: str) -> Patch:
    """Return a sender or receiver: cells of one kind, layer and head."""
    if isinstance(given, str):
        raise ValueError(f"A cell that can {verb} is a Cell, or for receivers {LOGITS!r}, got {given!r}.")
    patch = as_patch(handle, given, n_pos)
    for cell in patch:
        if cell.kind not in kinds:
            raise ValueError(unknown(f"kind that can {verb}", cell.kind, kinds))
    if len({(cell.kind, cell.layer, cell.part) for cell in patch}) > 1:
        raise ValueError(f"The cells that {verb} together must differ in their position only, got {list(patch)}.")
    return patch


def _label(patch: Patch) -> Cell:
    """Return the cell that stands for several: its position is None."""
    first = patch[0]
    return first if len(patch) == 1 else Cell(first.kind, first.layer, None, first.head, first.neuron)


class Paths:
    """Senders and receivers of one model, measured on a few prompts at a time."""

    def __init__(
        self,
        handle: ModelHandle,
        plan: Plan,
        senders: Sequence[Patch],
        receivers: Sequence[Patch | str],
        metric: Metric,
        freeze_mlps: bool,
        batch: int,
    ) -> None:
        self.handle, self.plan, self.senders, self.receivers = handle, plan, senders, receivers
        self.metric, self.batch = metric, batch
        self.patches = [one for one in receivers if not isinstance(one, str)]
        if len(self.patches) > 1:
            self.patches.append(tuple(cell for one in self.patches for cell in one))
        kinds = ("head_out", "mlp_out") if freeze_mlps else ("head_out",)
        self.frozen = [Site(layer, kind) for layer in range(handle.n_layers) for kind in kinds]
        self.sent = sorted({cell.site for one in senders for cell in one})
        self.read = sorted({cell.site for one in self.patches for cell in one})

    def measure(
        self, prompts: Int[Tensor, " prompt"], reason: str, count: Count
    ) -> tuple[Float[Tensor, "target sender prompt"], str]:
        """Return m(patched) - m(base): every receiver, then all at once; and why by whole forwards, if so."""
        chosen = slice(int(prompts[0]), int(prompts[-1]) + 1)
        reads, tokens = self.metric.reads, self.plan.base[chosen]
        engine, reason = make_engine(self.handle, tokens, reads, "hf", reason)
        acts, logits = run(self.handle, tokens, sorted({*self.frozen, *self.sent, *self.read}), reads)
        source = self.plan.activations(self.handle, chosen, {site: acts[site] for site in self.sent}, "hf")
        base = measured(self.metric, logits, prompts)
        found = base.new_zeros(len(self.receivers) + 1, len(self.senders), len(prompts))
        at = torch.cartesian_prod(torch.arange(len(self.senders)), torch.arange(len(prompts)))
        for rows in at.split(self.batch):
            sender, prompt = rows.T
            received, direct = self._send(tokens, acts, source, sender.tolist(), prompt)
            value = measured(self.metric, direct, prompts[prompt.to(prompts.device)]) - base[prompt.to(base.device)]
            count.add(len(rows), run=True)
            through = []
            if self.patches:
                read = {site: acts[site] for site in self.read}
                given = (read, received, base, prompt, prompts, self.metric, self.batch, count)
                through = list(evaluate(engine, self.patches, *given))
            all_of_them = through.pop() if len(through) > 1 else through[0] if through else value
            each = iter(through)
            columns = [value if isinstance(one, str) else next(each) for one in self.receivers]
            found[:, sender, prompt] = torch.stack([*columns, all_of_them])
        return found, reason

    def _send(
        self, tokens: Tensor, acts: dict[Site, Tensor], source: dict[Site, Tensor], sender: list[int], prompt: Tensor
    ) -> tuple[dict[Site, Tensor], Tensor]:
        """Run pass 2 for rows of (sender, prompt); return what the receivers read, and the logits."""
        patches = [self.senders[i] for i in sender]
        with self.handle.lock, ExitStack() as opened:
            opened.enter_context(last_logits(self.handle, self.metric.reads))
            for site in sorted({*self.frozen, *self.sent}):
                frozen = acts[site][prompt] if site in self.frozen else None
                hook = _frozen(site, frozen, patches, source.get(site), prompt)
                opened.callback(attach_hook(self.handle, site, "hf", hook))
            received = opened.enter_context(capture(self.handle, self.read)) if self.read else {}
            logits = self.handle.logits(tokens[prompt.to(tokens.device)])
        return {site: _unreached(site, value, acts[site][prompt], patches) for site, value in received.items()}, logits


def _frozen(
    site: Site, frozen: Tensor | None, patches: Sequence[Patch], source: Tensor | None, rows: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return a hook that puts the base run's activation (None: leaves what is there), then what the senders send."""

    def write(value: Tensor) -> Tensor:
        changed = value.clone() if frozen is None else frozen.clone()
        if source is not None:
            overwrite(changed, site, patches, source, rows.to(value.device))
        return changed

    return write


def _unreached(site: Site, received: Tensor, base: Tensor, patches: Sequence[Patch]) -> Tensor:
    """Return what was received, to the bit that of the base run before the sender, in the model or the text."""
    kept = received.clone()
    for row, patch in enumerate(patches):
        first = min(cell.pos or 0 for cell in patch)
        if site < patch[0].site:
            kept[row] = base[row]
        else:
            kept[row, :first] = base[row, :first]
    return kept


def _edges(
    handle: ModelHandle, senders: Sequence[Cell], receivers: Sequence[Cell | str], effects: np.ndarray
) -> pa.Table:
    """Return the table `Attribution.edges`; the logits are the receiver of kind `logits` after the last layer."""
    import pyarrow as pa

    end = {"kind": LOGITS, "layer": handle.n_layers}
    pairs = [(source, target) for target in receivers for source in senders]
    columns: dict[str, Any] = {}
    for side, nodes in (("source", [one for one, _ in pairs]), ("target", [other for _, other in pairs])):
        for name in CELL:
            values = [end.get(name) if isinstance(node, str) else getattr(node, name, None) for node in nodes]
            columns[f"{side}_{name}"] = pa.array(values, pa.string() if name == "kind" else pa.int32())
    return pa.table(columns | score_columns(effects.reshape(-1, effects.shape[-1])))


def _completeness(senders: Sequence[Patch], receivers: Sequence[Patch | str], effects: np.ndarray) -> pa.Table:
    """Return what the edges of each kind and layer of senders add up to, beside all receivers at once."""
    mean = effects.mean(2)
    summed = [i for i, one in enumerate(receivers) if not isinstance(one, str)] or [0]
    groups: dict[tuple[str, int], list[int]] = {}
    for i, one in enumerate(senders):
        groups.setdefault((one[0].kind, one[0].layer), []).append(i)
    return completeness_table(
        (kind, layer, "receivers", float(mean[np.ix_(summed, own)].sum()), float(mean[-1, own].sum()))
        for (kind, layer), own in groups.items()
    )
