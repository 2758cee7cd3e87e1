"""Readers of local text formats: pieces of documents, or the file and place of what cannot be read."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from interp.names import unknown

PIECE = 1 << 18
"""Pieces of a long document have between this many and twice this many characters."""
_CHUNK = 1 << 20


class Piece(NamedTuple):
    """A document, or the next part of a long one."""

    text: str
    first: bool
    """Whether a document starts here."""


def pieces(chunks: Iterable[str]) -> Iterator[Piece]:
    """Cut one document, given as consecutive `chunks`, into pieces; nothing at all when it has no visible character."""
    first, held = True, ""
    for chunk in chunks:
        held += chunk
        while len(held) > 2 * PIECE:
            cut = _cut(held)
            yield Piece(held[:cut], first)
            first, held = False, held[cut:]
    if held.strip() or (held and not first):
        yield Piece(held, first)


def _cut(text: str) -> int:
    """Return where to cut: before a newline that follows a letter or digit, else any newline, else a space.

    The common byte-level pre-tokenisers (GPT-2, GPT-4, Llama 3) end a word before such a newline too, so that the
    pieces give the tokens of the whole.
    """
    window = text[PIECE : 2 * PIECE]
    place = window.rfind("\n")
    while place > 0 and not window[place - 1].isalnum():
        place = window.rfind("\n", 0, place)
    for candidate in (place, window.rfind("\n"), window.rfind(" ")):
        if candidate > 0:
            return PIECE + candidate
    return 2 * PIECE


def read_txt(path: Path, field: str) -> Iterator[Piece]:
    """One document: the whole file, with any kind of line end read as a newline. `field` is not used."""
    del field
    yield from pieces(_decoded(path))


def _decoded(path: Path) -> Iterator[str]:
    """Yield the text of a UTF-8 file (a byte order mark is dropped) chunk by chunk."""
    utf8 = codecs.getincrementaldecoder("utf-8-sig")()
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    offset = 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK)
            _refuse_nul(path, chunk, offset)
            pending = len(utf8.getstate()[0])  # bytes of a character that the last chunk cut in two
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset - pending + error.start, error) from error
            if text:
                yield text
            if not chunk:
                return
            offset += len(chunk)


def _refuse_nul(path: Path, data: bytes, offset: int) -> None:
    place = data.find(b"\0")
    if place >= 0:
        raise ValueError(
            f"{path} has a NUL byte at offset {offset + place}: it looks like a binary file or UTF-16 text. "
            "Name a text file in UTF-8 (UTF-16: `iconv -f UTF-16 -t UTF-8 IN > OUT`)."
        )


def _not_utf8(path: Path, offset: int, error: UnicodeDecodeError) -> ValueError:
    return ValueError(
        f"{path} is not UTF-8 at byte {offset} (0x{error.object[error.start]:02x}: {error.reason}). "
        "Convert it first, for example `iconv -f WINDOWS-1252 -t UTF-8 IN > OUT`."
    )


def read_jsonl(path: Path, field: str) -> Iterator[Piece]:
    """One document per line: the text under `field` of a JSON object. A name ending in .gz is unpacked."""
    offset = 0
    with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                _refuse_nul(path, line, offset)
                where = f"line {number} of {path}"
                row = _parse(path, line, offset, where) if line.strip() else None
                offset += len(line)
                if row is not None:
                    yield from pieces([field_of(row, field, where)])
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is a damaged gzip file ({error}); fetch or pack it again.") from error


def _parse(path: Path, line: bytes, offset: int, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _not_utf8(path, offset + error.start, error) from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{where} is not JSON ({error}). Every line of a .jsonl file must be one JSON object."
        ) from error


def read_json(path: Path, field: str) -> Iterator[Piece]:
    """A JSON array whose entries are strings, or objects with the text under `field`; read as a whole."""
    data = path.read_bytes()
    _refuse_nul(path, data, 0)
    rows = _parse(path, data, 0, str(path))
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds a JSON {type(rows).__name__}; wanted an array of texts or of objects.")
    for number, row in enumerate(rows):
        yield from pieces([row if isinstance(row, str) else field_of(row, field, f"entry {number} of {path}")])


def read_parquet(path: Path, field: str) -> Iterator[Piece]:
    """One document per row: the text column `field`, streamed by row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise ValueError(f"{unknown('column', field, names)} ({path})")
            for batch in file.iter_batches(batch_size=1024, columns=[field]):
                for text in batch.column(0).to_pylist():
                    yield from pieces([field_of({field: text}, field, str(path))])
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error


def field_of(row: object, field: str, where: str) -> str:
    """Return the text under `field` of a row; null counts as empty, and half a surrogate pair becomes U+FFFD.

    Raises:
        ValueError: not an object, no such field (nearest match and list), or no text under it.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} holds a {type(row).__name__}; wanted an object with the field {field!r}.")
    if field not in row:
        raise ValueError(f"{unknown('field', field, [str(key) for key in row])} ({where})")
    text = row[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(f"{where}: the field {field!r} holds a {type(text).__name__}; wanted text.")
    # JSON can spell a lone surrogate, which no encoder accepts; one such character must not stop a long capture.
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
