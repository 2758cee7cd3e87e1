"""What pages read: runs of kind features, sae and evaluation, opened once for each (folder, date) and kept.

Reading needs pyarrow and numpy, no model library. Whatever is wrong with a file comes out as `Unreadable`, whose text
says which file, why, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import streamlit as st
from numpy.typing import NDArray

from app.widgets.text import visible
from interp.runs import Run, RunError, find_runs, open_run

pc: Any = pyarrow.compute  # its functions are made when it is imported, so a type checker sees none

EXAMPLE_GROUPS = {"top": "Top", "quantile": "Quantiles", "random": "Random", "near_miss": "Near misses"}
_SEARCHED_AT_ONCE = 20_000  # examples whose text is in memory while searching


class Unreadable(ValueError):
    """A run, or a part of it, cannot be shown."""


@contextmanager
def readable() -> Iterator[None]:
    """Turn everything that a damaged file can raise into `Unreadable`."""
    try:
        yield
    except (RunError, OSError, pa.ArrowException) as problem:
        raise Unreadable(str(problem)) from problem
    except (KeyError, IndexError, TypeError, AttributeError) as problem:
        what = f"{type(problem).__name__}: {problem}"
        raise Unreadable(
            f"A file of the run lacks what this page shows ({what}). Run `mechscope runs verify`."
        ) from problem


@dataclass(frozen=True)
class Example:
    """A piece of text around one token."""

    group: str
    rank: int
    quantile: int
    """-1 where the group has none."""
    value: float
    """Activation at the centre; in a near miss, what it was before the rule."""
    block: int
    position: int
    """Of the centre in its block."""
    start: int
    """Position of the first token shown."""
    ids: list[int]
    values: list[float]

    @property
    def centre(self) -> int:
        """Index of the centre among the tokens shown."""
        return self.position - self.start


class FeatureSet:
    """One features run: the table of latents in memory, the rest read when it is asked for."""

    def __init__(self, run: Run) -> None:
        """Read the table of latents of `run`."""
        self.run = run
        self.latents: pa.Table = run.table("latents.parquet").combine_chunks()
        self.index: NDArray[np.int64] = self.column("latent").astype(np.int64)
        if self.index.size == 0 or not (np.diff(self.index) > 0).all():
            raise Unreadable(f"{run.ref}/latents.parquet must list latents in growing order, at least one of them.")

    def __len__(self) -> int:
        """Return the number of latents."""
        return self.latents.num_rows

    @property
    def sae_ref(self) -> str:
        """Ref of the dictionary whose latents these are; "" where the run does not say."""
        parents = [ref for ref in self.run.parents if ref.startswith("sae/")]
        return str(self.run.config.get("sae_run") or (parents[0] if parents else ""))

    @cached_property
    def sae(self) -> Run | None:
        """The dictionary's run, or None where it is gone."""
        try:
            return open_run(self.sae_ref, self.run.root)
        except RunError:
            return None

    @cached_property
    def site(self) -> str:
        """Where the dictionary reads, such as "resid_post.2"."""
        return str(self.run.config.get("site") or (self.sae.config.get("site", "") if self.sae else ""))

    @property
    def written(self) -> str:
        """Site whose direct logits are shown: the one written, of a crosscoder the last of the (first) model."""
        config = self.run.config
        return str(config.get("target_site") or [self.site, *config.get("sites", ())][-1])

    @property
    def evaluation(self) -> Run | None:
        """The newest evaluation of the dictionary, or None."""
        found = find_runs(self.run.root, kind="evaluation", finished=True)
        return next((run for run in found if self.sae_ref in run.parents), None)

    @property
    def tokens(self) -> int | None:
        """How many tokens were read."""
        found = self.run.summary.get("tokens", self.run.config.get("tokens"))
        return found if isinstance(found, int) else None

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of latents.parquet as an array that cannot be written."""
        if name not in self.latents.column_names:
            raise Unreadable(f"{self.run.ref}/latents.parquet has no column {name!r}; make the features again.")
        array = self.latents.column(name).to_numpy(zero_copy_only=False)
        array.flags.writeable = False
        return array

    @property
    def signed(self) -> bool:
        """Whether the code takes negative values, so that a latent has two ends; older runs do not say."""
        return self.has("count_negative")

    def has(self, name: str) -> bool:
        """Return whether latents.parquet has the column `name`."""
        return name in self.latents.column_names

    def row(self, latent: int) -> dict[str, Any]:
        """Return the row of `latent`; a latent that is not there is refused."""
        at = int(np.searchsorted(self.index, latent))
        if at >= self.index.size or self.index[at] != latent:
            raise Unreadable(f"{self.run.ref} has no latent {latent}; it has {self.index[0]} to {self.index[-1]}.")
        return self.latents.slice(at, 1).to_pylist()[0]

    @cached_property
    def vocabulary(self) -> dict[int, str]:
        """Text of each token id."""
        with readable():
            table = self.run.table("vocab.parquet", columns=["token_id", "text"])
            return dict(zip(table["token_id"].to_pylist(), table["text"].to_pylist(), strict=True))

    @cached_property
    def token_lines(self) -> list[str]:
        """The first tokens at each end of each latent in one line, nothing hidden and short."""
        if not self.has("top_tokens"):
            return [""] * len(self)
        tops = [_line(tokens) for tokens in self.latents.column("top_tokens").to_pylist()]
        if not self.has("bottom_tokens"):
            return tops
        bottoms = [_line(tokens) for tokens in self.latents.column("bottom_tokens").to_pylist()]
        return [f"{top} | − {bottom}" if bottom else top for top, bottom in zip(tops, bottoms, strict=True)]

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each id; `<id>` for one that the vocabulary lacks."""
        return [self.vocabulary.get(i, f"<{i}>") or "" for i in ids]

    def examples(self, latent: int, group: str) -> list[Example]:
        """Return the examples of `latent` in `group`, best first (quantiles: highest first)."""
        with readable():
            table = self.run.table("examples.parquet", filters=[("latent", "==", latent), ("group", "==", group)])
            names = {"group", "rank", "quantile", "value", "block", "position", "start"}
            found = [
                Example(ids=row["token_ids"], values=row["values"], **{name: row[name] for name in names})
                for row in table.to_pylist()
            ]
        return sorted(found, key=lambda example: (-example.quantile, example.rank))

    def histogram(self, latent: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return (counts [bins], edges [bins+1]) of the activations of `latent`."""
        self.row(latent)
        with readable():
            at = int(np.searchsorted(self.index, latent))
            edges = np.asarray(self.run.tensors("histograms.safetensors")["edges"], dtype=np.float64)
            return self.run.rows("histograms.safetensors", "counts", at).astype(np.int64), edges

    def negative(self, latent: int) -> NDArray[np.int64] | None:
        """Return how many of the counts of `histogram` are of activations below 0; None where none can be."""
        if not self.signed:
            return None
        with readable():
            at = int(np.searchsorted(self.index, latent))
            return self.run.rows("histograms.safetensors", "negative", at).astype(np.int64)

    def related(self, name: str, latent: int) -> list[dict[str, Any]]:
        """Return the rows of `latent` in logits.parquet or neighbours.parquet, best first."""
        with readable():
            rows = self.run.table(name, filters=[("latent", "==", latent)]).to_pylist()
            return sorted(rows, key=lambda row: row["rank"])

    def top_tokens(self, latent: int, value: float = 1.0) -> list[str]:
        """Return the tokens at the end of `latent` on which `value` lies, strongest first; [] where there are none."""
        return list(self.row(latent).get("bottom_tokens" if value < 0 and self.signed else "top_tokens") or [])


def _line(tokens: list[str | None] | None) -> str:
    return " ".join(visible(token or "", limit=12) for token in list(dict.fromkeys(tokens or []))[:3])


@st.cache_resource(max_entries=8, show_spinner=False)
def _features(path: str, modified: int) -> FeatureSet:  # noqa: ARG001  # a part of the cache's key
    folder = Path(path)
    with readable():
        return FeatureSet(open_run(f"{folder.parent.name}/{folder.name}", folder.parent.parent))


def open_features(path: Path) -> FeatureSet:
    """Return the features run in the folder `path`, read anew when it has changed.

    Raises:
        Unreadable: with what is wrong and what to do.
    """
    with readable():
        modified = (path / "manifest.json").stat().st_mtime_ns
    return _features(str(path), modified)


@st.cache_data(max_entries=64, show_spinner="Searching the examples' text…")
def _latents_with_text(path: str, modified: int, query: str) -> list[int]:
    features = _features(path, modified)
    with readable():
        texts = pa.array([features.vocabulary.get(i, "")[:200] for i in range(max(features.vocabulary, default=0) + 1)])
        table = features.run.table("examples.parquet", columns=["latent", "group", "token_ids"])
        table = table.filter(pc.not_equal(table["group"], "near_miss"))
        found: set[int] = set()
        for batch in table.to_batches(max_chunksize=_SEARCHED_AT_ONCE):
            ids = batch.column("token_ids")
            flat = pc.min_element_wise(ids.flatten(), pa.scalar(len(texts) - 1, ids.type.value_type))
            lists = pa.ListArray.from_arrays(_offsets(ids), texts.take(flat))
            hits = pc.match_substring(pc.binary_join(lists, ""), query, ignore_case=True)
            found.update(batch.column("latent").filter(hits).unique().to_pylist())
    return sorted(found)


def _offsets(lists: pa.ListArray) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def latents_with_text(features: FeatureSet, query: str) -> list[int]:
    """Return the latents with an active example whose text contains `query` (case aside)."""
    modified = (features.run.path / "manifest.json").stat().st_mtime_ns
    return _latents_with_text(str(features.run.path), modified, query)


def latents_with_top_token(features: FeatureSet, query: str) -> list[int]:
    """Return the latents with a token at either end that contains `query` (case aside)."""
    found: set[int] = set()
    for name in ("top_tokens", "bottom_tokens"):
        if features.has(name):
            lists = features.latents.column(name).combine_chunks()
            lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
            hits = pc.match_substring(lists.flatten(), query, ignore_case=True)
            rows = pc.list_parent_indices(lists).filter(hits).unique().to_numpy(zero_copy_only=False)
            found.update(int(features.index[row]) for row in rows)
    return sorted(found)
