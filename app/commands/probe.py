"""`mechscope probe`: at which layer a model knows something, whether it is linear, beside which controls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import tyro

from app import probing
from app.command import Common
from app.studies.board_options import BoardOptions


@dataclass(frozen=True)
class Args(Common):
    """Fit probes on labelled texts, by layer and position, with all controls; every study is a run of its own.

    Texts are divided by groups, once for all layers; each number has its interval, and beside it the commonest class,
    shuffled labels, a model with random weights, a bag of tokens and the length of the text. The same command again
    finds what is finished.
    """

    model: tyro.conf.Positional[str | None] = None
    """The model: embedded, a local Hugging Face folder, or a hub id. None takes tiny, for board othello6, and with a
    dictionary the one it reads."""
    data: str = "sentiment"
    """Labelled texts: a set that ships (sentiment, gender, tense, quoted_speech, true_false), a .jsonl, .csv or .tsv
    file, or a `datasets` data set (a saved folder, or owner/name on the hub)."""
    study: Literal["sweep", "depth", "transfer", "quality", "selection", "latents", "board"] = "sweep"
    """sweep: every layer and position. depth: from which layer on (Concept Depth), under noise and recipes too.
    transfer: from one set to others. quality: how far apart the classes lie. selection: texts by a dictionary's codes.
    latents: single latents against the labels. board: an Othello model."""
    text: str = "text"
    """Field of --data that holds the text."""
    label: str = "label"
    """Field that holds the label."""
    group: str | None = None
    """Field whose equal values are not divided between training and test, such as the city of a statement."""
    names: tuple[str, ...] = ()
    """Names of the columns of a .csv or .tsv file whose first line has none."""
    split: str = "train"
    """Split of a `datasets` data set."""
    texts: int = 1000
    """Texts at most, drawn by the seed."""
    template: str = "{}"
    """What the model reads, {} being the text: "Judge the statement is True or False. {}"."""
    sites: tuple[str, ...] = ()
    """Kinds (all layers) or sites: resid_post, resid_mid.2, mlp_act, ...; mlp_in is what an MLP reads, after its
    norm. None named takes resid_post (for transfer at two thirds of the depth)."""
    positions: tuple[str, ...] = ()
    """last, mean, or whole numbers: -2 the last token but one, 0 the first after BOS. None named takes last (for
    selection mean)."""
    probe: Literal["logistic", "ridge", "mass-mean", "mass-mean-whitened", "lda", "l1", "mlp"] = "logistic"
    """Kind of probe."""
    C: float | None = None
    """Inverse penalty of logistic and l1; None chooses it by folds that keep groups whole."""
    ks: tuple[int, ...] = ()
    """Numbers of columns for k-sparse probes at every site, from the same activations."""
    test: float | None = None
    """Share of the texts that is measured on; None takes 0.3, for quality and selection 0.5, else 0.4."""
    context: int = 128
    """Longest text in tokens; the rest is cut off."""
    recipe: str | None = None
    """Probe a compressed copy of the model: a recipe's file, name or text, as in `mechscope compress`."""
    recipes: tuple[str, ...] = ()
    """For depth: compressed copies that are compared with the model."""
    noise: bool = False
    """For depth: also with "aaa" or "bbb" before each text."""
    to: tuple[str, ...] = ()
    """For transfer: the other sets, named as --data is; files have the same fields."""
    centring: Literal["train", "each"] = "train"
    """For transfer: train gives a probe nothing of another set but its rows; each takes its own mean from every set."""
    ccs: bool = False
    """For transfer: also CCS, fitted without labels to statements and their denials (with `not`) of one set."""
    sae: str | None = None
    """For selection and latents: run of `mechscope train`; None takes the newest."""
    board: BoardOptions = field(default_factory=BoardOptions)
    """For board: games, layers, dictionaries, interventions."""
    batch: int = 16
    """Texts in a forward pass."""
    resamples: int = 1000
    """Draws of the bootstrap that makes the intervals."""
    seed: int = 0
    """Of the texts, their division, the bootstrap and the controls."""
    device: str | None = None
    """Where to compute, such as cuda; None takes a GPU where there is one."""


def run(args: Args) -> dict[str, Any]:
    """Make the study, or find it; return the run and its numbers."""
    check(args)
    if args.study == "board":
        from app.studies import board_run

        return board_run.answer(args)
    return probing.answer(args)


def check(args: Args) -> None:
    """Refuse what can be seen to be wrong before anything is loaded.

    Raises:
        ValueError: with what an option takes, or the studies that read it.
    """
    for name, least in (("texts", 2), ("context", 2), ("batch", 1), ("resamples", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"{name} must be {least} or more, got {getattr(args, name)}.")
    if args.ks and min(args.ks) < 1:
        raise ValueError(f"--ks are numbers of columns, 1 or more, got {min(args.ks)}.")
    if args.test is not None and not 0 < args.test < 1:
        raise ValueError(f"test is a share of the texts and must lie between 0 and 1, got {args.test}.")
    if "{}" not in args.template:
        raise ValueError(f"--template needs {{}} where the text goes, got {args.template!r}.")
    if args.C is not None and args.probe not in ("logistic", "l1"):
        raise ValueError(f"--C is a penalty of logistic and l1; {args.probe} has none. Leave it out.")
    if args.study == "transfer" and not args.to:
        raise ValueError("--study transfer carries probes from one set to others; name them with --to.")
    usual = Args()
    read = {name for names in probing.READS.values() for name in names}
    for name in sorted(read - set(probing.READS[args.study])):
        if getattr(args, name) != getattr(usual, name):
            studies = ", ".join(study for study, names in probing.READS.items() if name in names)
            raise ValueError(
                f"--{name.replace('_', '-')} is not read by --study {args.study}, but by {studies}; leave it out."
            )
