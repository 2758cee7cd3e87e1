"""The codes of the pass, kept by latent: an external sort that makes every choice of examples exact.

A token's code comes with all its latents, and examples are chosen latent by latent from all of its tokens. So each
piece of the pass (about a million active slots) is sorted by latent and appended to a temporary file, and afterwards
the slots of a few latents at a time are read back, complete and in token order. With all activations of a latent at
hand its quantiles are exact, draws are uniform, and the codes around an example are looked up, not computed again.

8 bytes for each active slot (token, value): 32 MB for 4M slots, 2.6 GB for 10M tokens at L0 32. Up to IN_MEMORY bytes
stay in memory; more goes to an unnamed file in the run's folder, which vanishes with the process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae.features.groups import order_by, ragged

IN_MEMORY = 1 << 28
"""Bytes of codes that stay in memory."""
CHUNK_SLOTS = 1 << 21
"""Slots that are read back together, unless a single latent has more."""
CHUNK_LATENTS = 1024
"""Latents that are read back together at most."""


class Piece(NamedTuple):
    """Some of the codes, sorted by latent and then by token (the columns of a CSC matrix)."""

    offsets: NDArray[np.int32]
    """Where each latent's slots begin: [d_sae + 1]."""
    tokens: NDArray[np.int32]
    """Token of each slot: block * context + position."""
    values: NDArray[np.float32]
    """Activation of each slot."""


@dataclass(frozen=True)
class Chunk:
    """All active slots of the latents first..last-1, by latent and then by token."""

    first: int
    """First latent."""
    last: int
    """One past the last latent."""
    offsets: NDArray[np.int64]
    """Where each latent's slots begin: [last - first + 1]."""
    tokens: NDArray[np.int64]
    """Token of each slot."""
    values: NDArray[np.float32]
    """Activation of each slot, never 0."""

    def __len__(self) -> int:
        """Return the number of latents."""
        return self.last - self.first

    @property
    def latents(self) -> NDArray[np.int64]:
        """The latent of each slot, counted from `first`."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))


class Spool:
    """Active slots, added in the order of tokens and read back in the order of latents."""

    def __init__(self, d_sae: int, folder: Path | str | None = None) -> None:
        """Begin without any slot; `folder` takes what outgrows the memory."""
        self.d_sae = d_sae
        self.counts = np.zeros(d_sae, np.int64)
        where = None if folder is None else str(folder)
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY, dir=where)  # noqa: SIM115 - close() does
        self._starts: list[tuple[int, int]] = []

    def __enter__(self) -> Spool:
        """Return the spool itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Let go of the memory or the file."""
        self._file.close()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(self._size(slots) for _, slots in self._starts)

    def add(self, latents: NDArray[np.int64], tokens: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Append active slots; tokens ascend within a latent, from call to call as well."""
        order = order_by(latents, np.zeros(1, np.int64), 0)
        counts = np.bincount(latents, minlength=self.d_sae)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        self._starts.append((self._file.seek(0, 2), len(order)))
        for part in (offsets, tokens[order].astype(np.int32), values[order].astype(np.float32)):
            self._file.write(part.data.cast("B"))
        self.counts += counts

    def pieces(self) -> Iterator[Piece]:
        """Yield what was added, one piece for each call of `add`."""
        for start, slots in self._starts:
            offsets = self._read(start, np.int32, self.d_sae + 1)
            tokens = self._read(start + offsets.nbytes, np.int32, slots)
            yield Piece(offsets, tokens, self._read(start + offsets.nbytes + tokens.nbytes, np.float32, slots))

    def chunks(self) -> Iterator[Chunk]:
        """Yield all slots, a few latents at a time; latents that were never active are there too, with none."""
        ends = np.cumsum(self.counts)
        first = 0
        while first < self.d_sae:
            before = int(ends[first - 1]) if first else 0
            fitting = int(np.searchsorted(ends, before + CHUNK_SLOTS, side="right"))
            last = min(max(fitting, first + 1), first + CHUNK_LATENTS, self.d_sae)
            yield self.chunk(first, last)
            first = last

    def chunk(self, first: int, last: int) -> Chunk:
        """Return the slots of the latents first..last-1."""
        offsets = np.concatenate([[0], np.cumsum(self.counts[first:last])])
        tokens, values = np.empty(offsets[-1], np.int64), np.empty(offsets[-1], np.float32)
        filled = offsets[:-1].copy()
        for start, slots in self._starts:
            part = self._read(start + 4 * first, np.int32, last - first + 1).astype(np.int64)
            lengths, total = np.diff(part), int(part[-1] - part[0])
            places = ragged(filled, lengths)
            begin = start + 4 * (self.d_sae + 1 + int(part[0]))
            tokens[places] = self._read(begin, np.int32, total)
            values[places] = self._read(begin + 4 * slots, np.float32, total)
            filled += lengths
        return Chunk(first, last, offsets, tokens, values)

    def _size(self, slots: int) -> int:
        return 4 * (self.d_sae + 1) + 8 * slots

    def _read(self, start: int, dtype: type, count: int) -> NDArray:
        self._file.seek(start)
        return np.frombuffer(self._file.read(4 * count), dtype)
