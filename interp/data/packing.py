"""From text to blocks: documents are tokenised in batches and packed until there are enough tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from interp.data.blocks import Blocks
from interp.data.documents import DataSpec, read_pieces
from interp.data.formats import Piece
from interp.models.text import encode

if TYPE_CHECKING:
    from interp.models import ModelHandle

Progress = Callable[[int], object]
"""Called now and then with the number of tokens so far."""

_BATCH_CHARACTERS = 1 << 18


class _Ids(NamedTuple):
    ids: np.ndarray
    first: bool


def token_blocks(
    model: ModelHandle, spec: DataSpec, *, limit: int | None = None, on_progress: Progress | None = None
) -> Blocks:
    """Read `spec.text`, tokenise it, and pack it into blocks of `spec.context` tokens.

    Every block starts with BOS when the model has one. With `spec.across_documents` the documents are joined by the
    end-of-text token, the stream is cut into blocks, what does not fill a block at the end is dropped, and **attention
    crosses document boundaries**: a token may attend to the document before its own. Otherwise a block holds tokens of
    one document; a long one takes several blocks and the last of them is padded at the end (`keep` is False there;
    under causal attention the padding changes nothing before it).

    Special tokens spelled out in the text (`<|endoftext|>`, `<s>`) are ordinary characters here.

    Args:
        model: whose tokenizer, BOS and longest context count.
        spec: text, context and number of tokens.
        limit: at most this many tokens, below `spec.tokens`.
        on_progress: called now and then with the number of tokens so far.

    Raises:
        ValueError: a context the model cannot take, empty or too short text, and all that `read_documents` raises.
    """
    if model.tokenizer is None:
        raise ValueError(
            "This model came without a tokenizer, so text cannot be cut into tokens. "
            "Pass load_model(..., tokenizer=...)."
        )
    _check_context(spec.context, model.n_ctx)
    wanted = min((count for count in (spec.tokens, limit) if count is not None), default=None)
    if wanted is not None and wanted < spec.context:
        raise ValueError(
            f"{wanted} tokens are less than one block of context={spec.context}; "
            "ask for more tokens or a shorter context."
        )
    pack = _joined if spec.across_documents else _separate
    blocks = pack(_tokenised(model, spec), model, spec, wanted, on_progress or (lambda _: None))
    highest = int(blocks.tokens.max())
    if highest >= model.d_vocab:
        raise ValueError(
            f"The tokenizer gave token {highest}, and the model's vocabulary has {model.d_vocab}: "
            "they do not belong together."
        )
    return blocks


def _check_context(context: int, n_ctx: int) -> None:
    if not 2 <= context <= n_ctx:
        raise ValueError(f"context must lie in 2..n_ctx={n_ctx} for this model, got {context}.")


def _tokenised(model: ModelHandle, spec: DataSpec) -> Iterator[_Ids]:
    """Yield the token ids of each piece of text, tokenising some hundred kilobytes at a time."""
    waiting: list[Piece] = []
    size = 0
    for piece in read_pieces(spec):
        waiting.append(piece)
        size += len(piece.text)
        if size >= _BATCH_CHARACTERS:
            yield from _encode(model, waiting)
            waiting, size = [], 0
    if waiting:
        yield from _encode(model, waiting)


def _encode(model: ModelHandle, pieces: list[Piece]) -> Iterator[_Ids]:
    texts = [piece.text for piece in pieces]
    for piece, ids in zip(pieces, encode(model.tokenizer, texts, spell_out=True), strict=True):
        yield _Ids(np.asarray(ids, dtype=np.int32), piece.first)


def _joined(
    stream: Iterator[_Ids], model: ModelHandle, spec: DataSpec, wanted: int | None, progress: Progress
) -> Blocks:
    start = [] if model.bos_id is None else [model.bos_id]
    body = spec.context - len(start)
    enough = None if wanted is None else wanted // spec.context * body
    separator = np.asarray(_end_of_text(model), dtype=np.int32)
    parts: list[np.ndarray] = []
    count = documents = 0
    for ids, first in stream:
        parts += [separator, ids] if first and documents else [ids]
        documents += first
        count += len(ids) + (len(separator) if first and documents > 1 else 0)
        progress(count if enough is None else min(count, enough))
        if enough is not None and count >= enough:
            break
    count = count if enough is None else min(count, enough)
    if count < body:
        raise _too_short(spec, count, len(start))
    rows = np.concatenate(parts)[: count // body * body].reshape(-1, body)
    tokens = np.concatenate([np.broadcast_to(np.asarray(start, np.int32), (len(rows), len(start))), rows], axis=1)
    return Blocks(torch.from_numpy(tokens), torch.ones(tokens.shape, dtype=torch.bool), documents, True, model.bos_id)


def _end_of_text(model: ModelHandle) -> list[int]:
    """Return the token between two documents; some tokenizers have none, and BOS then says the same."""
    end = model.tokenizer.eos_token_id
    end = model.bos_id if end is None else end
    return [] if end is None else [int(end)]


def _too_short(spec: DataSpec, count: int, start: int) -> ValueError:
    if not count:
        return ValueError(
            f"{spec.text!r} is empty: it holds no document with a visible character. Name a text with some words in it."
        )
    have = count + start
    return ValueError(
        f"The text is shorter than one block: {spec.text!r} gave {count} tokens"
        f"{' (and BOS)' if start else ''}, and context={spec.context}. "
        f"Use a longer text; --context {have} makes one block of this one, a smaller context several."
    )


def _separate(
    stream: Iterator[_Ids], model: ModelHandle, spec: DataSpec, wanted: int | None, progress: Progress
) -> Blocks:
    start = [] if model.bos_id is None else [model.bos_id]
    body = spec.context - len(start)
    rows: list[np.ndarray] = []
    count = documents = 0
    for ids, begun in _cut_documents(stream, body):
        if rows and wanted is not None and count + len(start) + len(ids) > wanted:
            break
        documents = begun
        rows.append(ids)
        count += len(start) + len(ids)
        progress(count)
    if not rows:
        raise _too_short(spec, 0, len(start))
    tokens = np.full((len(rows), spec.context), _padding(model), dtype=np.int32)
    keep = np.zeros(tokens.shape, dtype=bool)
    for index, ids in enumerate(rows):
        tokens[index, : len(start)] = start
        tokens[index, len(start) : len(start) + len(ids)] = ids
        keep[index, : len(start) + len(ids)] = True
    return Blocks(torch.from_numpy(tokens), torch.from_numpy(keep), documents, False, model.bos_id)


def _cut_documents(stream: Iterator[_Ids], body: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (at most `body` tokens of one document, documents begun so far)."""
    held, documents = np.zeros(0, np.int32), 0
    for ids, first in stream:
        if first and len(held):
            yield held, documents
            held = held[:0]
        documents += first
        held = np.concatenate([held, ids])
        full = len(held) // body * body
        for begin in range(0, full, body):
            yield held[begin : begin + body], documents
        held = held[full:]
    if len(held):
        yield held, documents


def _padding(model: ModelHandle) -> int:
    ids = (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id, model.bos_id, 0)
    return next(int(token) for token in ids if token is not None)
