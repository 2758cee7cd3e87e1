"""The studies of `mechscope probe` that hand back tables: transfer, alignment quality, data selection, latents.

Each table is a file, NAME.parquet, of a run of kind "probes"; what the columns are stands with the study.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from app import console, sources
from app.probing import Progress, Question
from app.studies.alignment_quality import alignment_quality
from app.studies.data_selection import data_selection
from app.studies.latent_auroc import latent_auroc
from app.studies.probe_transfer import USUAL, probe_transfer
from interp.data import Labelled
from interp.runs import Run
from probes.study import StudyResult
from probes.transfer import CCS_NAME
from sae.model import load_sae

if TYPE_CHECKING:
    from app.commands.probe import Args

ROWS = 40
"""Rows of a table that are printed."""
HIDDEN = ("text", "pairs")
"""Columns that are not."""


def transfer_study(question: Question, args: Args, record: Run, progress: Progress) -> dict[str, Any]:
    """Carry probes over from each of --data and --to to all of them."""
    sets = {sources.slug(args.data): read_by_model(question)}
    for name, one in question.others.items():
        sets[name] = _in_template(one, args.template)
    total = sum(map(len, sets.values()))
    options: dict[str, Any] = {"resamples": args.resamples, "centring": args.centring, **_shared(question, args)}
    options["probes"] = (*USUAL, CCS_NAME) if args.ccs else USUAL
    found = probe_transfer(question.handle, sets, question.sites[0], on_progress=_told(progress, total), **options)
    return _kept(record, found)


def quality_study(question: Question, args: Args, record: Run, progress: Progress) -> dict[str, Any]:
    """Measure how far apart the classes lie at each layer, and in all pooled."""
    told = _told(progress, len(question.labelled))
    labelled, options = read_by_model(question), _shared(question, args)
    return _kept(record, alignment_quality(question.handle, labelled, question.sites, on_progress=told, **options))


def selection_study(question: Question, args: Args, record: Run, progress: Progress) -> dict[str, Any]:
    """Rank texts by their likeness to a class, in the codes of a dictionary."""
    return _with_dictionary(data_selection, 2, question, args, record, progress)


def latents_study(question: Question, args: Args, record: Run, progress: Progress) -> dict[str, Any]:
    """Measure how well single latents tell the labels."""
    return _with_dictionary(latent_auroc, 3, question, args, record, progress)


def _with_dictionary(
    study: Callable[..., StudyResult], passes: int, question: Question, args: Args, record: Run, progress: Progress
) -> dict[str, Any]:
    assert question.subject is not None  # `ask` opens one for these studies
    sae = load_sae(question.subject.run, question.handle.device)
    told = _told(progress, passes * len(question.labelled))
    options: dict[str, Any] = {"resamples": args.resamples, **_shared(question, args)}
    labelled = read_by_model(question)
    return _kept(record, study(question.handle, sae, question.subject.site, labelled, on_progress=told, **options))


def read_by_model(question: Question) -> Labelled:
    """Return the texts as the model reads them, in the template."""
    labelled = question.labelled
    return Labelled(question.prompts, labelled.labels, labelled.groups)


def _in_template(labelled: Labelled, template: str) -> Labelled:
    texts = tuple(template.replace("{}", text) for text in labelled.texts)
    return Labelled(texts, labelled.labels, labelled.groups)


def _shared(question: Question, args: Args) -> dict[str, Any]:
    (position,) = question.positions
    return {"positions": position, "context": args.context, "test": question.test, "seed": args.seed}


def _told(progress: Progress, total: int) -> Callable[[int], None]:
    return lambda done: progress(done, total, "texts")


def _kept(record: Run, found: StudyResult) -> dict[str, Any]:
    """Write the tables; return the summary."""
    for name, table in found.tables.items():
        record.save_table(f"{name}.parquet", table)
    return dict(found.summary)


def show(record: Run) -> None:
    """Print the tables of a finished study, the longer ones in part, and its numbers."""
    for name in (one for one in record.files if one.endswith(".parquet")):
        rows = record.table(name).to_pylist()
        console.emit(name.removesuffix(".parquet"))
        heads = [head for head in rows[0] if head not in HIDDEN] if rows else []
        console.table(heads, [[_short(row[head]) for head in heads] for row in rows[:ROWS]])
        console.emit(f"({len(rows) - ROWS:,} more rows)" if len(rows) > ROWS else "")
    console.table(("number", "value"), [(key, _short(value)) for key, value in record.summary.items()])


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
