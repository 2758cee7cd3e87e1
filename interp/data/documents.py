"""Documents from a text source, one at a time and never more than a piece of one in memory.

Sources: a .txt file (one document), .jsonl or .jsonl.gz (one object per line), .json (an array), .parquet (one row
per document, by row groups), a folder of these, a file of any other name (plain text in UTF-8, one document), "demo"
(text shipped with the embedded model), and anything else as the name of a hub data set, streamed. Local sources never
touch the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from interp.data import formats
from interp.data.formats import Piece, pieces

DEMO = Path(__file__).resolve().parent.parent / "zoo" / "tiny" / "corpus.jsonl.gz"

READERS: dict[str, Callable[[Path, str], Iterator[Piece]]] = {
    ".txt": formats.read_txt,
    ".jsonl": formats.read_jsonl,
    ".jsonl.gz": formats.read_jsonl,
    ".json": formats.read_json,
    ".parquet": formats.read_parquet,
}

# In a folder .json is usually about the texts (titles, licences), so it counts only where nothing else is there.
_IN_FOLDER = (".txt", ".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True)
class DataSpec:
    """Which text, and how it is cut into blocks."""

    text: str = "demo"
    """A .txt, .jsonl(.gz), .json or .parquet file, a folder of them, `demo`, or a hub data set (`name[:config]`).
    A file with another extension is read as plain text in UTF-8; in a folder it is left out."""
    split: str = "train"
    """Split of a hub data set; local files ignore it."""
    field: str = "text"
    """Key (jsonl, json) or column (parquet, hub) that holds the text."""
    context: int = 128
    """Length of a block in tokens, BOS included."""
    tokens: int | None = None
    """Stop after this many tokens; None takes everything."""
    across_documents: bool = True
    """Documents are joined by the end-of-text token and attention crosses their boundaries; otherwise each block holds
    one document, padded."""
    heldout: float = 0.05
    """Share of the blocks that is kept for evaluation and never trained on; 0 uses the whole text for both."""

    def __post_init__(self) -> None:
        if not 0 <= self.heldout < 1:
            raise ValueError(f"heldout is a share and must lie in [0, 1), got {self.heldout}.")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens must be 1 or more, got {self.tokens}; leave it out to take the whole text.")


def read_documents(spec: DataSpec) -> Iterator[str]:
    """Yield the documents of `spec.text` in order; those without any visible character are skipped.

    Raises:
        ValueError: a missing source, an unknown field, a folder without text, bytes that are not UTF-8
            text, a damaged file.
    """
    parts: list[str] = []
    for piece in read_pieces(spec):
        if piece.first and parts:
            yield "".join(parts)
            parts = []
        parts.append(piece.text)
    if parts:
        yield "".join(parts)


def read_pieces(spec: DataSpec) -> Iterator[Piece]:
    """Yield the documents as pieces of at most about half a million characters; `piece.first` starts a document.

    Long documents are cut at the end of a line, so that a reader who wants a thousand tokens of a large file reads
    only its beginning.
    """
    if spec.text == "demo":
        yield from _demo()
        return
    path = Path(spec.text).expanduser()
    if path.is_dir():
        for file in _folder(path):
            yield from READERS[_extension(file)](file, spec.field)
    elif path.exists():
        yield from READERS.get(_extension(path), formats.read_txt)(path, spec.field)
    elif _looks_local(spec.text):
        raise ValueError(
            f"There is no file or folder {spec.text!r}. Check the path; hub data sets have names like 'owner/name'."
        )
    else:
        yield from _hub(spec)


def _demo() -> Iterator[Piece]:
    if not DEMO.is_file():
        raise ValueError("The demo text is not part of this installation; name a file or folder with --text.")
    yield from formats.read_jsonl(DEMO, "text")


def _extension(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def _folder(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    chosen = [path for path in files if _extension(path) in _IN_FOLDER] or [
        p for p in files if _extension(p) in READERS
    ]
    if not chosen:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"The folder {folder} holds no {', '.join(READERS)} file (found {found}). Folders inside are not searched."
        )
    return chosen


def _looks_local(text: str) -> bool:
    return text.startswith(("/", ".", "~")) or text.count("/") > 1 or "\\" in text or _extension(Path(text)) in READERS


def _hub(spec: DataSpec) -> Iterator[Piece]:
    """Stream a hub data set; the only reader that uses the network."""
    # Slow to import, and only this source needs it.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name, _, config = spec.text.partition(":")
    try:
        rows = load_dataset(name, config or None, split=spec.split, streaming=True)
        for number, row in enumerate(rows):
            text = formats.field_of(row, spec.field, f"row {number} of {spec.text}")
            yield from pieces([text])
    except (OSError, DatasetsError) as error:
        # Unreachable, offline and "no such data set" all arrive as one of these.
        raise ValueError(
            f"{spec.text!r} is neither a file nor a folder here, and as a hub data set it cannot be read: "
            f"{str(error).rstrip('.')}. "
            "Check the spelling and the network, or save the text to a local file and name that."
        ) from error
