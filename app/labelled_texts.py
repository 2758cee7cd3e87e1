"""Labelled texts by name: a set that ships, a file, or a `datasets` data set (a folder that was saved, or the hub)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import sources

if TYPE_CHECKING:
    from interp.data import Labelled
    from interp.runs import Run

MOST_ROWS = 100_000
"""Rows of a hub data set that are read, at most."""


@dataclass(frozen=True)
class Fields:
    """Where in a row text and label are; sets that ship need none."""

    text: str = "text"
    """Field that holds the text."""
    label: str = "label"
    """Field that holds the label."""
    group: str | None = None
    """Field whose equal values are not divided between training and test."""
    names: tuple[str, ...] = ()
    """Names of the columns of a .csv or .tsv file whose first line has none."""
    split: str = "train"
    """Split of a hub data set."""


def read_texts(name: str, fields: Fields) -> Labelled:
    """Return the labelled texts that `name` means.

    Raises:
        ValueError: neither a set, nor a file, nor a data set that can be read; a field or label that does not fit.
    """
    from interp.data import read_labelled
    from interp.data.labelled import FORMATS
    from interp.data.sets import SETS, labelled_set
    from interp.names import unknown

    path = Path(name).expanduser()
    if name in SETS:
        if fields != Fields():
            raise ValueError(f"The set {name} ships with its labels and groups; leave --text, --label and so on out.")
        return labelled_set(name)
    if path.is_file():
        return read_labelled(path, fields.text, fields.label, fields.group, names=fields.names or None)
    if name.lower().endswith(FORMATS):
        raise ValueError(f"There is no file {name}; check the path.")
    if path.is_dir() or (name.count("/") == 1 and not name.startswith((".", "/", "~"))):
        return _data_set(name, fields)
    raise ValueError(f"{unknown('labelled set', name, SETS)} Or name a .jsonl, .csv or .tsv file; there is none here.")


def _data_set(name: str, fields: Fields) -> Labelled:
    """Return the labelled texts of a `datasets` data set."""
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    from interp.data.labelled import labelled_rows

    try:
        if Path(name).expanduser().is_dir():
            found: Any = load_from_disk(str(Path(name).expanduser()))
            if isinstance(found, DatasetDict):
                found = _split(found, fields.split, name)
            rows: Any = found
        else:
            whole, _, config = name.partition(":")
            rows = load_dataset(whole, config or None, split=fields.split, streaming=True)
        kind = (rows.features or {}).get(fields.label)
        named: Callable[[int], str] = getattr(kind, "int2str", str)
        limit = len(rows) if isinstance(rows, Dataset) else MOST_ROWS
        return labelled_rows(
            _numbered(islice(rows, limit), name, fields.label, named), name, fields.text, fields.label, fields.group
        )
    except (OSError, DatasetsError) as error:
        raise ValueError(
            f"{name!r} cannot be read as a data set: {str(error).rstrip('.')}. Check the spelling and the network, or "
            "save the texts as .jsonl and name that file."
        ) from error


def _split(found: Any, split: str, name: str) -> Any:
    from interp.names import unknown

    if split not in found:
        raise ValueError(unknown(f"split of {name}:", split, found))
    return found[split]


def _numbered(rows: Any, name: str, label: str, named: Callable[[int], str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, fields) of each row, class numbers by their names where the data set has some."""
    for number, row in enumerate(rows):
        held = row.get(label)
        known = isinstance(held, int) and not isinstance(held, bool) and held >= 0  # -1: it has no label
        yield f"row {number} of {name}", row | {label: named(held)} if known else row


def digest(labelled: Labelled) -> str:
    """Return the SHA-256 over every text, its label and its group."""
    total = hashlib.sha256()
    for row in zip(labelled.texts, labelled.labels, labelled.groups, strict=True):
        total.update("\0".join(row).encode("utf-8", "surrogatepass") + b"\1")
    return total.hexdigest()


def about(name: str, fields: Fields, labelled: Labelled) -> dict[str, Any]:
    """Return what a run's configuration says of its texts."""
    from interp.config import to_json

    return {"name": sources.slug(name), "digest": digest(labelled), "texts": len(labelled), "fields": to_json(fields)}


def prompts_of(run: Run) -> list[dict[str, Any]]:
    """Return the rows of texts.parquet of a study (content, label, group, part) with `prompt`: what the model read."""
    settings = run.config.get("settings")
    template = str(settings.get("template") or "{}") if isinstance(settings, dict) else "{}"
    rows = run.table("texts.parquet").to_pylist()
    return [row | {"prompt": template.replace("{}", row["content"])} for row in rows]
