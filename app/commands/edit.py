"""`mechscope edit`: move a text to another label inside a model, by a probe, a difference in means or CASAL."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from app import console
from app.command import Common


@dataclass(frozen=True)
class Args(Common):
    """Edit an attribute of a text inside the model: probabilities, next tokens, a continuation each way, and the cost.

    A probe is fitted on labelled texts, or taken from a run of `mechscope probe`; part of the texts is held out. The
    cost is measured on neutral text that nothing was fitted to.
    """

    model: tyro.conf.Positional[str] = "tiny"
    """The model: embedded, a local Hugging Face folder, or a hub id."""
    target: str = "positive"
    """The label that the text is moved to."""
    text: str = "The captain was cruel to everybody."
    """The text that the model reads (the text itself)."""
    how: Literal["hyperplane", "mean_difference", "leace", "casal"] = "hyperplane"
    """To the probability --p of the probe; by --strength differences in means; by a swap of what LEACE would erase; or
    by steering that is trained into one module."""
    data: str = "sentiment"
    """Labelled texts: a set that ships, a .jsonl, .csv or .tsv file, or a `datasets` data set."""
    probe: str | None = None
    """Take texts and probes from this run of `mechscope probe` instead of --data."""
    site: tuple[str, ...] = ()
    """Where; several are edited one after the other. None takes two thirds of the depth, or the run's best."""
    position: str | None = None
    """last, mean, or a whole number: -2 the last token but one. None takes last, or the run's best."""
    p: float = 0.9
    """The probability, for hyperplane; what has it already is left alone."""
    strength: float = 1.0
    """In units of the difference between the means (mean_difference, casal); for leace 1 swaps, 0 changes nothing."""
    plan: Literal["contrast", "amplify", "flip"] = "flip"
    """For casal: push the rest to the label (flip), the label's own further (amplify), or both apart (contrast)."""
    module: Literal["down", "mlp"] = "down"
    """For casal: train the MLP's last matrix, or all of the MLP."""
    steps: int = 400
    """For casal: steps of training."""
    keep: float = 1.0
    """For casal: weight of keeping tokens of neutral text as they are."""
    save: Path | None = None
    """For casal: write the model into this new folder, as a plain Hugging Face model."""
    recipe: str | None = None
    """Edit a compressed copy of the model: a recipe's file, name or text, as in `mechscope compress`."""
    data_text: str = "text"
    """Field of --data that holds the text."""
    data_label: str = "label"
    """Field that holds the label."""
    data_group: str | None = None
    """Field whose equal values are not divided between training and test."""
    data_names: tuple[str, ...] = ()
    """Names of the columns of a .csv or .tsv file whose first line has none."""
    texts: int = 1000
    """Texts at most, drawn by the seed."""
    test: float = 0.3
    """Share of the texts that is held out."""
    C: float | None = None
    """Inverse penalty of the probes; None chooses it by folds that keep groups whole."""
    neutral: str = "demo"
    """Neutral text that the cost is measured on."""
    neutral_tokens: int = 8192
    """Tokens of it; half are kept by casal, the other half measured."""
    top: int = 8
    """Tokens in each list of next tokens."""
    new_tokens: int = 20
    """Length of the continuations; 0 leaves them out."""
    temperature: float = 1.0
    """Of the continuations; 0 takes the most likely token."""
    seed: int = 0
    """Of the texts, their division, the training and the continuations."""
    device: str | None = None
    """Where to compute, such as cuda; None takes a GPU where there is one."""


def run(args: Args) -> dict[str, Any]:
    """Edit, or find what was edited; return the run, its numbers, and what was gained and lost."""
    from app import edit_measured, editing
    from interp.runs import start_run
    from sae.steering_effect import check_request

    check(args)
    started = time.time()
    question = editing.ask(args)
    handle = question.handle
    limits: dict[str, Any] = {name: getattr(args, name) for name in ("top", "new_tokens", "temperature")}
    check_request(handle, handle.tokens(args.text), **limits)
    place: dict[str, Any] = {"slug": question.slug, "parents": list(question.parents), "root": args.runs}
    model = {**question.config["model"], "digest": handle.digest()}
    with start_run(editing.KIND, question.config, **place, seed=args.seed, model=model) as record:
        if record.finished:
            console.note(f"{record.ref} is finished already")
        else:
            kept, measured = editing.neutral(args, handle)
            with console.stages({"steps": "train the module"}, record) as progress:
                way = editing.way(question, args, kept, lambda done, total: progress(done, total, "steps"))
            edit_measured.measure(question, args, way, measured, record)
    shown = edit_measured.show(record)
    console.note(f"{time.time() - started:.0f} seconds")
    if args.save is None:
        return shown
    return shown | {"saved": _save(args.save.expanduser(), question, record)}


def _save(folder: Path, question: Any, record: Any) -> str:
    """Write the copy with the trained module into `folder`; return its path."""
    from app.commands import compress
    from probes.casal import copy_model

    copy = copy_model(question.handle, record.tensors("module.safetensors"))
    origin = {"base": question.handle.spec.name, "base_digest": question.handle.digest(), "run": record.ref}
    saved = str(compress.save(copy, folder, origin | {"config": question.config}))
    console.note(f"{saved} holds the edited model; `mechscope compare {question.handle.spec.name} {saved}` compares")
    return saved


def check(args: Args) -> None:
    """Refuse what can be seen to be wrong before anything is loaded.

    Raises:
        ValueError: with what an option takes, or the way that it belongs to.
    """
    from app.commands import compress
    from interp.models import ModelSpec

    for name, least in (("texts", 2), ("steps", 1), ("neutral_tokens", 512)):
        if getattr(args, name) < least:
            raise ValueError(f"{name} must be {least} or more, got {getattr(args, name)}.")
    if not args.text.strip():
        raise ValueError("--text is what the model reads; give it some.")
    for name in ("p", "test"):
        if not 0 < getattr(args, name) < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {getattr(args, name)}.")
    if args.save is not None:
        if args.how != "casal":
            raise ValueError(f"--save needs --how casal: {args.how} acts while the model runs, and changes no weights.")
        compress.check_folder(args.save, ModelSpec(args.model))
