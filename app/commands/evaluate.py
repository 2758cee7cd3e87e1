"""`mechscope evaluate`: what a dictionary explains, and what its model loses when it runs through it."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from app import console, sources, targets
from app.command import Common
from app.studies.options import LabelledArgs

if TYPE_CHECKING:
    from torch import Tensor

    from interp.runs import Run
    from sae.evaluation import Evaluation


@dataclass(frozen=True)
class Args(Common):
    """Measure a dictionary inside its model on held-out text: FVU, L0, density, loss recovered, KL.

    A transcoder is measured at the site that it writes; a crosscoder at each of its sites and at all together.
    """

    sae: str | None = None
    """Run of `mechscope train`; None takes the newest."""
    text: str | None = None
    """Other text to measure on (all of it); None takes the held-out part of the text it was trained on."""
    split: str | None = None
    """Split of --text, where it is a hub data set; None takes that of the training."""
    field: str | None = None
    """Key or column of --text that holds the text; None takes that of the training."""
    tokens: int = 100_000
    """Tokens to measure on, at most."""
    recipe: str | None = None
    """Measure in a compressed copy of the model it was trained on: a recipe's file, name or text, as in
    `mechscope compress`."""
    encoder: Literal["own", "omp", "gradient-pursuit", "matching-pursuit"] = "own"
    """Find codes by a pursuit over the dictionary's atoms in place of its own encoder."""
    encoder_k: int | None = None
    """Latents per token of the pursuit; None takes as many as the dictionary's own code of that token has."""
    outlier_norm: float | None = None
    """Leave out rows longer than this many times the median norm; None does as the training did."""
    keep_bos: bool | None = None
    """Whether BOS is measured and spliced too; None does as the training did."""
    studies: tuple[Literal["sparse_probing", "scr", "tpp"], ...] = ()
    """Instead of all that: what a few latents say of labelled texts, in a run of kind "labelled"."""
    labelled: LabelledArgs = dataclasses.field(default_factory=LabelledArgs)
    """Those texts."""
    device: str | None = None
    """Where to compute, such as cuda; None takes a GPU where there is one."""


def run(args: Args) -> dict[str, Any]:
    """Evaluate, or find the evaluation; return the run and its numbers."""
    if args.studies or args.labelled != LabelledArgs():
        return _on_labelled_texts(args)
    from interp.activations.config import check_outlier_norm
    from interp.config import to_json
    from interp.runs import start_run
    from sae.evaluation import evaluate
    from sae.model import load_sae
    from sae.reencode import Reencoded

    if args.tokens < 1:
        raise ValueError(f"tokens must be 1 or more, got {args.tokens}.")
    check_outlier_norm(args.outlier_norm)
    recipe = sources.recipe(args.recipe)
    subject = sources.subject(args.sae, args.runs)
    targets.check_recipe(subject, recipe)
    if args.encoder != "own":
        targets.check_own_input(subject, "--encoder looks for codes of")
    handle = sources.open_subject_model(subject, args.device, recipe)
    spot = targets.placement(subject, handle, args.device)
    data = sources.other_text(subject.data, args.text, args.split, args.field, args.tokens)
    if args.text is None:
        _, blocks = sources.subject_blocks(subject, handle)
    else:
        _, blocks = sources.split_blocks(handle, data)
    blocks = blocks.first(args.tokens)
    drop_bos = subject.drop_bos if args.keep_bos is None else not args.keep_bos
    outlier_norm = subject.outlier_norm if args.outlier_norm is None else args.outlier_norm
    config = {
        "model": to_json(handle.spec) if recipe else subject.run.config["model"],
        "site": subject.run.config["site"],
        "data": to_json(data),
        "sae_run": subject.run.ref,
        "tokens": blocks.digest(),
        "outlier_norm": outlier_norm,
        "drop_bos": drop_bos,
    } | targets.where(subject)
    if args.encoder != "own":
        config |= {"encoder": args.encoder, "encoder_k": args.encoder_k}
    started = time.time()
    slug = f"{subject.run.slug}.{sources.recipe_slug(recipe)}" if recipe else subject.run.slug
    place: dict[str, Any] = {"slug": slug, "parents": [subject.run.ref], "root": args.runs}
    with start_run("evaluation", config, **place, **sources.provenance(config, handle.digest())) as record:
        if record.finished:
            console.note(f"{record.ref} is finished already")
        else:
            sae: Any = load_sae(subject.run, handle.device)
            if args.encoder != "own":
                sae = Reencoded(sae, args.encoder.replace("-", "_"), k=args.encoder_k)
            with console.progress(len(blocks), "blocks", "evaluate") as bar:
                options = {"drop_bos": drop_bos, "outlier_norm": outlier_norm}
                measured, density = evaluate(handle, spot, sae, blocks, on_progress=bar.to, **options)
            _save(record, measured, density, started)
    _show(record, subject)
    return {"run": str(record.path), "site": str(subject.site), **record.summary}


def _on_labelled_texts(args: Args) -> dict[str, Any]:
    """Make the studies that --studies names."""
    from app.studies import options

    options.check(args.studies, args.labelled)
    kept = {"sae", "recipe", "studies", "labelled", "device", *(one.name for one in dataclasses.fields(Common))}
    usual = Args()
    for one in dataclasses.fields(Args):
        if one.name not in kept and getattr(args, one.name) != getattr(usual, one.name):
            raise ValueError(f"--studies reads the labelled texts; leave --{one.name.replace('_', '-')} out.")
    from app.studies.measuring import measure

    where: dict[str, Any] = {"sae": args.sae, "runs": args.runs, "device": args.device}
    return measure(args.studies, args.labelled, recipe=sources.recipe(args.recipe), **where)


def _save(record: Run, measured: Evaluation, density: Tensor, started: float) -> None:
    """Write what was measured and finish the run."""
    import pyarrow as pa

    summary = measured.to_dict() | {"seconds": round(time.time() - started, 1)}
    record.save_json("metrics.json", summary)
    if measured.parts:
        record.save_table("sites.parquet", pa.Table.from_pylist([asdict(part) for part in measured.parts]))
    latents = pa.array(range(len(density)), pa.int32())
    record.save_table("density.parquet", pa.table({"latent": latents, "density": density.numpy()}))
    record.finish(summary)


def _show(record: Run, subject: sources.Subject) -> None:
    """Print the numbers of the finished run."""
    console.table(("metric", "value"), list(record.summary.items()))
    if subject.run.config.get("sites"):
        console.emit()
        rows = record.table("sites.parquet").to_pylist()
        console.table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    if record.summary["unpredicted"]:
        console.note(f"{record.summary['unpredicted']:,} next tokens had a loss that is not finite, and are left out")
