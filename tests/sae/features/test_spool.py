from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sae.features import spool as module
from sae.features.spool import Spool


def code(tokens: int, d_sae: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(tokens, d_sae)).astype(np.float32) * (rng.random((tokens, d_sae)) < 0.2)
    dense[:, 3] = 0
    return dense


def filled(dense: np.ndarray, step: int, folder: Path | None = None) -> Spool:
    spool = Spool(dense.shape[1], folder)
    for first in range(0, len(dense), step):
        rows, latents = np.nonzero(dense[first : first + step])
        spool.add(latents, first + rows, dense[first + rows, latents])
    return spool


@pytest.mark.parametrize("step", [1, 7, 100])
@pytest.mark.parametrize("slots", [1, 40, 10_000])
def test_chunks_hold_every_latent_once_with_all_its_tokens_in_order(
    step: int, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_SLOTS", slots)
    dense = code(100, 11)
    with filled(dense, step) as spool:
        seen = []
        for chunk in spool.chunks():
            for local, latent in enumerate(range(chunk.first, chunk.last)):
                part = slice(chunk.offsets[local], chunk.offsets[local + 1])
                expected = np.flatnonzero(dense[:, latent])
                assert chunk.tokens[part].tolist() == expected.tolist()
                assert chunk.values[part].tolist() == dense[expected, latent].tolist()
                assert (chunk.latents[part] == local).all()
                seen.append(latent)
            assert len(chunk) == 1 or len(chunk.tokens) <= slots
        assert seen == list(range(11))
        assert spool.counts.tolist() == (dense != 0).sum(0).tolist()


def test_what_outgrows_the_memory_goes_to_an_unnamed_file_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", 100)
    dense = code(200, 5)
    with filled(dense, 20, tmp_path) as spool:
        assert spool._file._rolled
        assert spool.nbytes == 8 * int((dense != 0).sum()) + 10 * 4 * 6
        assert spool.chunk(1, 2).tokens.tolist() == np.flatnonzero(dense[:, 1]).tolist()
    assert list(tmp_path.iterdir()) == []


def test_pieces_are_sorted_by_latent() -> None:
    dense = code(60, 6)
    with filled(dense, 25) as spool:
        pieces = list(spool.pieces())
        assert len(pieces) == 3
        for number, piece in enumerate(pieces):
            part = dense[25 * number : 25 * (number + 1)]
            assert np.diff(piece.offsets).tolist() == (part != 0).sum(0).tolist()
            assert (piece.tokens[piece.offsets[2] : piece.offsets[3]] - 25 * number).tolist() == np.flatnonzero(
                part[:, 2]
            ).tolist()


def test_a_spool_without_slots_has_empty_chunks() -> None:
    with Spool(4) as spool:
        assert [(c.first, c.last, len(c.tokens)) for c in spool.chunks()] == [(0, 4, 0)]
