"""Pairs from files of prompts: auto-circuit's JSON and the csv files of EAP-IG.

JSON   {"prompts": [{"clean", "corrupt", "answers": [text], "wrong_answers": [text]}, ...]}
csv    clean, corrupted, and one of
           label                        the year of greater-than, two digits
           answer, wrong_answer         texts
           correct_idx, incorrect_idx   token ids of the file's own model; refused where they are not words of the
                                        prompt in this model's tokens
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from interp.tasks.greater_than import YEARS
from interp.tasks.pairs import Pairs
from interp.tasks.templates import padded
from interp.tasks.words import ids_of, piece_id

if TYPE_CHECKING:
    from interp.models.handle import ModelHandle

Row = tuple[str, str, list[int], list[int]]


def pairs_from_file(
    handle: ModelHandle, path: str | Path, n: int | None = None, length: int | None = None, metric: str | None = None
) -> Pairs:
    """Return the pairs in a file, in this model's tokens.

    Args:
        handle: the model.
        path: a JSON or csv file.
        n: the first so many; None: all.
        length: take only the prompts of so many tokens (without BOS) and leave the others out.
        metric: name of the metric; None: `probability_diff` for a file with years, else `logit_diff`.

    Raises:
        ValueError: the file has another form, prompts differ in length, or answers are not single tokens.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"There is no file of prompts {path}.")
    rows = _json(handle, path) if path.suffix == ".json" else _csv(handle, path)
    tokens = [(ids_of(handle, row[0]), ids_of(handle, row[1])) for row in rows]
    if length is not None:
        chosen = [i for i, (one, other) in enumerate(tokens) if len(one) == len(other) == length]
        rows, tokens = [rows[i] for i in chosen], [tokens[i] for i in chosen]
    rows, tokens = rows[:n], tokens[:n]
    _check_lengths(path, tokens, length)
    lacking = sum(not row[2] or not row[3] for row in rows)
    if lacking:
        raise ValueError(
            f"{lacking} of {len(rows)} prompts of {path.name} have no right or no wrong answer that is one token of "
            f"{handle.spec.name}."
        )
    bos = [] if handle.bos_id is None else [handle.bos_id]
    years = path.suffix == ".csv" and "label" in _header(path)
    return Pairs(
        path.stem,
        torch.tensor([[*bos, *one] for one, _ in tokens]),
        torch.tensor([[*bos, *other] for _, other in tokens]),
        padded([row[2] for row in rows]),
        padded([row[3] for row in rows]),
        metric or ("probability_diff" if years else "logit_diff"),
    )


def _check_lengths(path: Path, tokens: list[tuple[list[int], list[int]]], length: int | None) -> None:
    """Refuse prompts of different length, and say which lengths there are."""
    if not tokens:
        raise ValueError(f"{path.name} has no prompts{'' if length is None else f' of {length} tokens'}.")
    lengths = Counter((len(one), len(other)) for one, other in tokens)
    if len(lengths) > 1 or any(one != other for one, other in lengths):
        listed = ", ".join(
            f"{count} of {one}" if one == other else f"{count} of {one} and {other}"
            for (one, other), count in sorted(lengths.items())
        )
        raise ValueError(
            f"All prompts of a batch must have the same number of tokens, clean and corrupted; {path.name} has "
            f"{listed} tokens. Pass length= to take those of one length."
        )


def _json(handle: ModelHandle, path: Path) -> list[Row]:
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))["prompts"]
        texts = [(one["clean"], one["corrupt"], one["answers"], one["wrong_answers"]) for one in prompts]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of prompts in auto-circuit's form: {error!r}.") from error
    known: dict[str, int | None] = {}
    return [
        (clean, corrupt, _ids(handle, right, known), _ids(handle, wrong, known))
        for clean, corrupt, right, wrong in texts
    ]


def _ids(handle: ModelHandle, pieces: list[str], known: dict[str, int | None]) -> list[int]:
    """Return the ids of the pieces that are single tokens; `known` remembers them."""
    for piece in pieces:
        if piece not in known:
            known[piece] = piece_id(handle, piece)
    return [index for piece in pieces if (index := known[piece]) is not None]


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file), [])


def _csv(handle: ModelHandle, path: Path) -> list[Row]:
    header = _header(path)
    answers = next((pair for pair in _ANSWERS if set(pair) <= set(header)), None)
    if answers is None or not {"clean", "corrupted"} <= set(header):
        raise ValueError(
            f"{path} must have the columns clean and corrupted, and label, or answer and wrong_answer, or correct_idx "
            f"and incorrect_idx; it has {', '.join(header) or 'none'}."
        )
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    known: dict[str, int | None] = {}
    rows = []
    for line in lines:
        if answers == ("label",):
            year = f"{int(line['label']):02}"
            right = [other for other in YEARS if other > year]
            wrong = [other for other in YEARS if other <= year]
            found = _ids(handle, right, known), _ids(handle, wrong, known)
        elif answers == ("answer", "wrong_answer"):
            found = _ids(handle, [line["answer"]], known), _ids(handle, [line["wrong_answer"]], known)
        else:
            found = _checked(handle, path, line, "correct_idx"), _checked(handle, path, line, "incorrect_idx")
        rows.append((line["clean"], line["corrupted"], *found))
    return rows


_ANSWERS = (("label",), ("answer", "wrong_answer"), ("correct_idx", "incorrect_idx"))


def _checked(handle: ModelHandle, path: Path, line: dict[str, str], column: str) -> list[int]:
    """Return the token id of a line if it is a word of its prompt in this model's tokens."""
    index = int(line[column])
    if index >= handle.d_vocab or index not in ids_of(handle, line["clean"]):
        raise ValueError(
            f"{path.name} gives answers as token ids of another tokenizer: {index} is no token of its prompt in "
            f"{handle.spec.name}."
        )
    return [index]
