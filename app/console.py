"""What the command says: results on stdout, progress and errors on stderr, nothing that a terminal would obey.

Nothing is imported here but the standard library, so that `mechscope --help` stays instant. Progress is one line that
rewrites itself in a terminal, and a plain line every few seconds in a log file.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from interp.runs import Run

_REDRAW_TERMINAL = 0.1  # seconds between two drawings
_REDRAW_LOG = 5.0
_WINDOW = 30  # drawings over which the throughput is averaged

_json_output = False


@contextmanager
def json_output(on: bool = True) -> Iterator[None]:
    """While this lasts, stdout is kept for the one JSON line: `emit` and `table` go to stderr."""
    global _json_output
    before, _json_output = _json_output, on
    try:
        yield
    finally:
        _json_output = before


def plain(text: str) -> str:
    """Return `text` with control characters spelled out (escape sequences too), line ends and tabs kept."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def emit(text: str = "") -> None:
    """Write a line of the result to stdout (to stderr where stdout is kept for JSON)."""
    _write(sys.stderr if _json_output else sys.stdout, plain(text) + "\n")


def note(text: str) -> None:
    """Write a line about the work (not a result) to stderr."""
    _write(sys.stderr, plain(text) + "\n")


def error(text: str) -> None:
    """Write `mechscope: text` to stderr."""
    note(f"mechscope: {text}")


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write aligned columns; numbers are set to the right, `None` is a dash."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    numeric = [
        bool(rows) and all(value is None or isinstance(value, int | float) for value in column)
        for column in (zip(*rows, strict=True) if rows else ((),) * len(headers))
    ]
    for line in ([plain(h) for h in headers], ["-" * w for w in widths], *cells):
        parts = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(line, widths, numeric, strict=True)]
        emit("  ".join(parts).rstrip())


def result(value: Mapping[str, Any] | None, as_json: bool) -> None:
    """Write what a command returned: the run it made as the last line, or everything as one JSON object."""
    if as_json:
        _write(sys.stdout, json.dumps(_jsonable(value or {}), allow_nan=False) + "\n")
    elif value and value.get("run"):
        _write(sys.stdout, plain(str(value["run"])) + "\n")


class Progress:
    """A counter that says how far, how fast and how long still."""

    def __init__(
        self,
        total: float | None,
        unit: str,
        description: str,
        *,
        start: float = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Count to `total` (None: unknown) of `unit`, from `start`; `stream` is stderr unless given."""
        self.total, self.unit, self.description = total, unit, description
        self.done: float = start
        self._start = start
        self._note = ""
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._seen: deque[tuple[float, float]] = deque([(clock(), start)], maxlen=_WINDOW)
        self._begun = self._drawn = self._seen[0][0]
        self._show(f"{description}: started" if total is None else f"{description}: 0 of {_count(total)} {unit}")

    def update(self, n: float = 1, note: str | None = None) -> None:
        """Count `n` more; `note` is shown behind the figures until another one comes."""
        self.to(self.done + n, note)

    def to(self, n: float, note: str | None = None) -> None:
        """Set the count to `n`."""
        self.done, self._note = n, note or self._note
        now = self._clock()
        if now - self._drawn >= (_REDRAW_TERMINAL if self._terminal else _REDRAW_LOG):
            self._seen.append((now, self.done))
            self._drawn = now
            self._show(self.text())

    def text(self) -> str:
        """Return the line as it stands: `train: 1,024/4,096 rows (25%), 512 rows/s, 0:06 left`."""
        now = self._clock()
        then, before = self._seen[0]
        rate = (self.done - before) / (now - then) if now > then else 0.0
        total = self.total or 0
        if total:
            share = min(self.done / total, 1)
            parts = [f"{self.description}: {_count(self.done)}/{_count(total)} {self.unit} ({share:.0%})"]
        else:
            parts = [f"{self.description}: {_count(self.done)} {self.unit}"]
        if rate > 0:
            parts.append(f"{_short(rate)} {self.unit}/s")
            if self.done < total:
                parts.append(f"{_clock_text((total - self.done) / rate)} left")
        return ", ".join([*parts, self._note] if self._note else parts)

    def close(self) -> None:
        """Write the closing line: how much, how long, how fast on the whole."""
        seconds = self._clock() - self._begun
        made = self.done - self._start
        rate = f", {_short(made / seconds)} {self.unit}/s" if seconds > 0 and made > 0 else ""
        tail = f", {self._note}" if self._note else ""
        self._show(f"{self.description}: {_count(self.done)} {self.unit} in {_clock_text(seconds)}{rate}{tail}")
        if self._terminal:
            _write(self._stream, "\n")

    def _show(self, text: str) -> None:
        text = plain(text).replace("\n", " ")
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            _write(self._stream, "\r" + text[:width].ljust(width))
        else:
            _write(self._stream, text + "\n")


@contextmanager
def progress(total: float | None, unit: str, description: str, *, start: float = 0) -> Iterator[Progress]:
    """Show how far a piece of work is, on stderr.

    with progress(config.steps, "steps", "train") as bar:
        bar.update()
    """
    bar = Progress(total, unit, description, start=start)
    try:
        yield bar
    finally:
        bar.close()


@contextmanager
def stages(names: Mapping[str, str], record: Run) -> Iterator[Callable[[int, int, str], None]]:
    """Give what hears (done, total, unit) of work in several stages: a bar for each unit, and the run's own record.

    `names` are the bars' descriptions by unit; a unit without one is called by itself.
    """
    with ExitStack() as stack:
        bars: dict[str, Progress] = {}

        def hear(done: int, total: int, unit: str) -> None:
            if unit not in bars:
                stack.close()  # the bar before has come to its end
                bars[unit] = stack.enter_context(progress(total, unit, names.get(unit, unit)))
            bars[unit].to(done)
            record.progress(done, total, unit)

        yield hear


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return plain(str(value)).replace("\n", "\\n").replace("\t", "\\t")


def _count(n: float) -> str:
    return f"{n:,.0f}"


def _short(rate: float) -> str:
    if rate >= 1000:
        step = min(int(math.log10(rate) // 3), 4)
        return f"{rate / 1000**step:.3g}{' kMGT'[step]}"
    return f"{rate:.3g}"


def _clock_text(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _jsonable(value: Any) -> Any:
    """Return `value` as JSON can hold it: paths as text, numpy scalars as numbers, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "item"):  # a numpy or torch scalar
        return _jsonable(value.item())
    return value
