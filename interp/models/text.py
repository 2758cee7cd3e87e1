"""Text of single tokens: what each id stands for, exactly, whatever bytes it holds.

Decoding ids one at a time loses leading spaces (sentencepiece) and shows half a character as U+FFFD (byte-level), so
pieces are taken from the vocabulary: the byte-level alphabet of GPT-2 (Radford et al. 2019) or sentencepiece's
U+2581 and `<0xNN>`. Bytes that are no UTF-8 by themselves are shown as escapes (backslash x NN).
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from interp.names import shorten

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def encode(tokenizer: Any, texts: list[str], *, spell_out: bool = False) -> list[list[int]]:
    """Return the ids of each text, nothing added; with `spell_out` special tokens in it are ordinary characters.

    Raises:
        ValueError: a text has words that the tokenizer lacks, and it has no token for the unknown.
    """
    options = {"split_special_tokens": True} if spell_out else {}
    try:
        # verbose: texts may be longer than the model's context; that is checked where they are read or cut.
        return tokenizer(texts, add_special_tokens=False, verbose=False, **options)["input_ids"]
    except Exception as error:  # the Rust side raises bare Exception
        known = tokenizer.convert_ids_to_tokens(list(range(1, min(5, len(tokenizer)))))
        raise ValueError(
            f"The text {shorten(' '.join(texts))} holds words that this model's vocabulary lacks ({error}). "
            f"Its words are {', '.join(map(str, known))}, ..."
        ) from error


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """Return {character: byte} of GPT-2's byte-level alphabet: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def token_texts(tokenizer: Any, size: int) -> list[str]:
    """Return the text of the ids 0..size-1; ids that the tokenizer lacks (a padded embedding) are `<unused N>`."""
    pieces: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    pieces += [None] * (size - len(pieces))
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    scheme = _scheme(tokenizer)
    return [_text(tokenizer, i, piece, scheme, added) for i, piece in enumerate(pieces)]


def _text(tokenizer: Any, index: int, piece: str | None, scheme: str, added: set[str]) -> str:
    if piece is None:
        return f"<unused {index}>"
    if piece in added:
        return piece
    if scheme == "bytes" and all(char in byte_alphabet() for char in piece):
        return bytes(byte_alphabet()[char] for char in piece).decode("utf-8", errors="backslashreplace")
    if scheme == "sentencepiece":
        if match := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(match[1], 16)]).decode("utf-8", errors="backslashreplace")
        return piece.replace("\u2581", " ")
    return tokenizer.decode([index], clean_up_tokenization_spaces=False)


def _scheme(tokenizer: Any) -> str:
    """Return how the pieces of `tokenizer` are written: `bytes`, `sentencepiece`, or `other`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "other"
    decoder = json.dumps(json.loads(backend.to_str()).get("decoder"), ensure_ascii=False)
    if '"ByteLevel"' in decoder:
        return "bytes"
    return "sentencepiece" if "\u2581" in decoder or '"ByteFallback"' in decoder else "other"
