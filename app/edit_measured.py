"""What an edit of `mechscope edit` does to a text, to held-out texts and to neutral text, written into its run.

probabilities.parquet   site, before, after, size
next_tokens.parquet     the next tokens that gain and lose most, as of `mechscope steer`
continuations.json      before, after
cost.json               what the edit of every token costs on neutral text
module.safetensors      with casal: the parameters that were trained
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from app import console
from app.editing import Question, Way, last_site

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray
    from torch import Tensor

    from app.commands.edit import Args
    from interp.data import Blocks
    from interp.runs import Run
    from interp.sites import Site
    from probes.effects import TextsEffect

HELD_OUT = 64
"""Held-out texts that are edited, at most."""
LONG = 0.5
"""Share of an activation's length above which a move is called long."""


def measure(question: Question, args: Args, way_: Way, blocks: Blocks, record: Run) -> None:
    """Write what the edit does to the text, to held-out texts and to neutral text; finish the run."""
    import pyarrow as pa

    from probes.effects import cost

    tokens = question.handle.tokens(args.text)
    before, after = _effects(question, way_, [tokens[0]], list(question.probes))
    rows = [
        _probability(site, probe, args.target, before.rows[site], after.rows[site])
        for site, probe in question.probes.items()
    ]
    record.save_table("probabilities.parquet", pa.Table.from_pylist(rows))
    _what_follows(question, args, way_, tokens, record)
    found = cost(question.handle, blocks, way_.open, other=way_.model)
    record.save_json("cost.json", found)
    if way_.changed is not None:
        record.save_tensors("module.safetensors", way_.changed)
    kept = ("loss_a", "loss_delta", "loss_delta_low", "loss_delta_high", "kl_mean")
    record.finish(
        {"how": args.how, "target": args.target, "site": rows[-1]["site"]}
        | {name: rows[-1][name] for name in ("before", "after", "size")}
        | {"kl": float(after.kl[0]), "top1_changed": bool(after.top1[0])}
        | _held_out(question, args, way_)
        | {f"neutral_{name}": found[name] for name in kept}
        | way_.about
    )


def _what_follows(question: Question, args: Args, way_: Way, tokens: Tensor, record: Run) -> None:
    """Write the next tokens that gain and lose most, and a continuation each way."""
    from sae.steering_effect import generate, next_tokens

    handle = question.handle
    plain = handle.logits(tokens).float().cpu()
    with way_.open(question.position):
        moved = way_.model.logits(tokens).float().cpu()
    top = min(args.top, handle.d_vocab)
    record.save_table("next_tokens.parquet", next_tokens(handle, plain, moved, [tokens.shape[1] - 1], top))
    texts = None
    if args.new_tokens:
        sampling: dict[str, Any] = {"temperature": args.temperature, "seed": args.seed}
        sides = {"before": generate(handle, tokens, args.new_tokens, **sampling)}
        with way_.open(question.position):
            sides["after"] = generate(way_.model, tokens, args.new_tokens, **sampling)
        new = {side: ids[0, tokens.shape[1] :].tolist() for side, ids in sides.items()}
        texts = {side: {"ids": ids, "text": handle.decode(ids)} for side, ids in new.items()}
    record.save_json("continuations.json", texts)


def _effects(question: Question, way_: Way, texts: list[Any], sites: list[Site]) -> tuple[TextsEffect, TextsEffect]:
    """Return texts without and with the edit."""
    from probes.effects import texts_effect

    options: dict[str, Any] = {"position": question.position, "sites": sites}
    plain = texts_effect(question.handle, texts, lambda _: nullcontext(), **options)
    return plain, texts_effect(question.handle, texts, way_.open, other=way_.model, **options)


def _probability(site: Site, probe: Any, target: str, before: NDArray, after: NDArray) -> dict[str, Any]:
    """Return a row of probabilities.parquet."""
    from probes.hyperplane import class_number

    sides: list[float | None] = [None, None]
    if probe.link_ != "identity":
        number = class_number(probe, target)
        sides = [float(probe.predict_proba(x)[0, number]) for x in (before, after)]
    size = float(np.linalg.norm(after - before) / np.linalg.norm(before))
    return {"site": str(site), "before": sides[0], "after": sides[1], "size": size}


def _held_out(question: Question, args: Args, way_: Way) -> dict[str, Any]:
    """Return what the reader makes of held-out texts of other labels, and how far their next tokens change."""
    chosen = np.flatnonzero(~question.train & (question.labels != args.target))[:HELD_OUT]
    last = question.handle.check_site(last_site(question.handle))
    plain, edited = _effects(question, way_, question.ids(chosen), [last])
    own = last in question.probes and args.how != "casal"  # then the reader would read its own edit
    reads = [
        None if own else float((question.reader.predict(one.rows[last]).astype(str) == args.target).mean())
        for one in (plain, edited)
    ]
    return {
        "probe_accuracy": _accuracy(question),
        "held_out": len(chosen),
        "held_out_reads_before": reads[0],
        "held_out_reads_after": reads[1],
        "held_out_kl": float(edited.kl.mean()),
        "held_out_top1_changed": float(edited.top1.mean()),
    }


def _accuracy(question: Question) -> float:
    """Return the accuracy of the last site's probe on the held-out texts."""
    from probes.capturing import capture_texts

    site, probe = list(question.probes.items())[-1]
    chosen = np.flatnonzero(~question.train)
    texts, place = [question.texts[i] for i in chosen], question.position
    found = capture_texts(question.handle, texts, [str(site)], [place], context=question.context)
    given = probe.predict(found.rows(str(site), question.position)).astype(str)
    return float((given == question.labels[chosen]).mean())


def show(record: Run) -> dict[str, Any]:
    """Print probabilities, next tokens, continuations and totals; return the result."""
    lists = record.table("next_tokens.parquet").to_pylist()
    texts = record.json("continuations.json")
    _table(record.table("probabilities.parquet"))
    sides = {side: [row for row in lists if row["side"] == side] for side in ("gained", "lost")}
    for side, rows in sides.items():
        console.emit()
        console.table((side, "before", "after"), [[repr(row["text"]), row["before"], row["after"]] for row in rows])
    for side, made in (texts or {}).items():
        console.emit(f"\n{side}: {made['text']}")
    console.emit()
    console.table(("total", "value"), list(record.summary.items()))
    if record.summary["size"] > LONG:
        console.note(
            f"the move is {record.summary['size']:.1f} times as long as the activation: a probe that hardly tells the "
            "labels apart takes that to reach a probability, and the model is thrown off"
        )
    keep = ("token_id", "text", "before", "after")
    short: Mapping[str, Any] = {
        side: [{name: row[name] for name in keep} for row in rows] for side, rows in sides.items()
    }
    return {"run": str(record.path), **record.summary, **short, "continuations": texts}


def _table(found: pa.Table) -> None:
    rows = found.to_pylist()
    console.table(found.column_names, [[row[name] for name in found.column_names] for row in rows])
