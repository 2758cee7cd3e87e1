"""`mechscope steer`: clamp, ablate or add one latent; what the model says next, before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from app import console, sources
from app.command import Common

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from interp.models import ModelHandle
    from interp.runs import Run
    from interp.sites import Site
    from interp.types import Recipe
    from sae.model import Sae

ASKED = ("latent", "how", "value", "text", "positions", "top", "new_tokens", "temperature")
"""Options that are part of a run's identity."""


@dataclass(frozen=True)
class Args(Common):
    """Steer a model by one latent on a text: next tokens before and after, KL by position, a continuation each way."""

    latent: int
    """The latent."""
    text: str
    """The text that the model reads (the text itself)."""
    sae: str | None = None
    """Run of `mechscope train`; None takes the newest."""
    how: Literal["clamp", "ablate", "add"] = "clamp"
    """Hold the latent at --value, hold it at 0, or add --value times its atom."""
    value: float | None = None
    """In the latent's units, as its examples show them; negative too. Not for ablate."""
    positions: tuple[int, ...] | None = None
    """Positions to change, 0 the first token (BOS, where the model has one), negative ones from the end; None changes
    all but BOS, in continuations too."""
    recipe: str | None = None
    """Steer a compressed copy of the model: a recipe's file, name or text, as in `mechscope compress`."""
    top: int = 10
    """Tokens in each list of next tokens."""
    new_tokens: int = 20
    """Length of the continuations; 0 leaves them out."""
    temperature: float = 1.0
    """Of the continuations; 0 takes the most likely token."""
    seed: int = 0
    """Of the continuations: both have the same noise."""
    device: str | None = None
    """Where to compute, such as cuda; None takes a GPU where there is one."""


def run(args: Args) -> dict[str, Any]:
    """Steer, or find what was steered; return the run, its numbers and what was gained and lost."""
    from sae.model import load_sae
    from sae.steering import Steering

    Steering(args.latent, args.how, args.value)  # refused before a model is loaded
    recipe = sources.recipe(args.recipe)
    subject = sources.subject(args.sae, args.runs)
    handle = sources.open_subject_model(subject, args.device, recipe)
    record = steered(args, subject, handle, load_sae(subject.run, handle.device), recipe)
    return _show(record)


def steered(args: Args, subject: sources.Subject, handle: ModelHandle, sae: Sae, recipe: Recipe = ()) -> Run:
    """Return the finished run of what `args` asks for: made now, or found.

    Args:
        args: the request; its `sae`, `recipe` and `device` are what the others were loaded by.
        subject: the dictionary's run and where it belongs.
        handle: the model.
        sae: the dictionary.
        recipe: steps that the model has beyond those it was trained in.

    Raises:
        ValueError: the request does not fit dictionary, model or text; no run is begun then.
    """
    from interp.config import to_json
    from interp.runs import start_run
    from sae.steering import Steering, check_steering
    from sae.steering_effect import check_request

    Steering(args.latent, args.how, args.value)
    check_steering(handle, subject.site, sae, args.latent)
    tokens = handle.tokens(args.text)
    limits: dict[str, Any] = {name: getattr(args, name) for name in ("positions", "top", "new_tokens", "temperature")}
    check_request(handle, tokens, **limits)
    config = {
        "model": to_json(handle.spec) if recipe else subject.run.config["model"],
        "weights": handle.digest(),
        "site": subject.run.config["site"],
        "sae_run": subject.run.ref,
    } | {name: getattr(args, name) for name in ASKED}
    slug = f"{subject.run.slug}.{args.latent}.{args.how}"
    place: dict[str, Any] = {"slug": slug, "parents": [subject.run.ref], "root": args.runs, "seed": args.seed}
    with start_run("steering", config, **place, model={**config["model"], "digest": handle.digest()}) as record:
        if record.finished:
            console.note(f"{record.ref} is finished already")
        else:
            _measure(args, sae, subject.site, handle, tokens, record)
    return record


def _measure(args: Args, sae: Sae, site: Site, handle: ModelHandle, tokens: Tensor, record: Run) -> None:
    """Write the tables, the continuations and the summary."""
    from sae.steering import steer
    from sae.steering_effect import effect, generate

    asked: dict[str, Any] = {"how": args.how, "value": args.value, "positions": args.positions}
    found = effect(handle, tokens, site, sae, args.latent, **asked, top=args.top)
    texts = None
    if args.new_tokens:
        sampling: dict[str, Any] = {"temperature": args.temperature, "seed": args.seed}
        sides = {"before": generate(handle, tokens, args.new_tokens, **sampling)}
        with steer(handle, site, sae, args.latent, **asked):
            sides["after"] = generate(handle, tokens, args.new_tokens, **sampling)
        new = {side: ids[0, tokens.shape[1] :].tolist() for side, ids in sides.items()}
        texts = {side: {"ids": ids, "text": handle.decode(ids)} for side, ids in new.items()}
    record.save_table("next_tokens.parquet", found.next_tokens)
    record.save_table("positions.parquet", found.positions)
    record.save_json("continuations.json", texts)
    record.finish(summary(found.positions) | _request(args))


def _request(args: Args) -> dict[str, Any]:
    """Return what the summary says of the request."""
    return {"latent": args.latent, "how": args.how, "value": args.value}


def summary(positions: pa.Table) -> dict[str, Any]:
    """Return the headline numbers: KL in nats, positions whose top next token changed, the latent's own values."""
    rows = positions.to_pylist()
    kl = [row["kl"] for row in rows]
    own = [row["value_before"] for row in rows]
    return {
        "tokens": len(rows),
        "kl_mean": sum(kl) / len(kl),
        "kl_max": max(kl),
        "kl_last": kl[-1],
        "top1_changed": sum(row["top_before"] != row["top_after"] for row in rows),
        "active": sum(value != 0 for value in own),
        "value_low": min(own),
        "value_high": max(own),
    }


def _show(record: Run) -> dict[str, Any]:
    """Print the positions, the next tokens and the continuations; return the result."""
    places = record.table("positions.parquet").to_pylist()
    lists = record.table("next_tokens.parquet").to_pylist()
    texts = record.json("continuations.json")
    columns = ("position", "text", "value_before", "value_after", "kl")
    console.table(columns, [[row[name] for name in columns] for row in places])
    sides = {side: [row for row in lists if row["side"] == side] for side in ("gained", "lost")}
    for side, rows in sides.items():
        console.emit()
        console.table((side, "before", "after"), [[repr(row["text"]), row["before"], row["after"]] for row in rows])
    for side, made in (texts or {}).items():
        console.emit(f"\n{side}: {made['text']}")
    console.emit()
    console.table(("total", "value"), list(record.summary.items()))
    if not record.summary["active"] and record.summary["how"] == "ablate":
        console.note("the latent is silent on this text, so removing it changes nothing")
    keep = ("token_id", "text", "before", "after")
    short = {side: [{name: row[name] for name in keep} for row in rows] for side, rows in sides.items()}
    return {"run": str(record.path), **record.summary, **short, "continuations": texts}
