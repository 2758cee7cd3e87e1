"""Messages about names that nobody knows: the nearest match first, then the list."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

LISTED = 30
"""Names that a message lists at most; the rest is counted."""


def nearest(got: object, known: Iterable[str]) -> str | None:
    """Return the known name that `got` was most likely meant to be, or None when nothing is close."""
    by_lower = {name.lower(): name for name in sorted(known)}
    wanted = str(got).lower()[:200]
    close = difflib.get_close_matches(wanted, by_lower, n=1, cutoff=0.6)
    if not close and len(wanted) >= 3:
        close = [name for name in by_lower if wanted in name or (len(name) >= 3 and name in wanted)][:1]
    return by_lower[close[0]] if close else None


def shorten(got: object, limit: int = 80) -> str:
    """Return `repr(got)`, cut to `limit` characters: messages quote what came, and it may be anything."""
    text = repr(got)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def unknown(what: str, got: object, known: Iterable[str], also: Mapping[str, str] | None = None) -> str:
    """Return the message for a name that is not among `known`; `also`: other names, and which known one each means.

    >>> unknown("rule", "topkk", ["topk", "batch_topk"])
    "Unknown rule 'topkk'; did you mean 'topk'? Known: batch_topk, topk."
    """
    names = sorted(set(known))
    meant = dict(also or {}) | {name: name for name in names}
    close = nearest(got, meant)
    match = meant[close] if close else None
    listed = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
    return (
        f"Unknown {what} {shorten(got)}"
        + (f"; did you mean '{match}'? " if match else ". ")
        + f"Known: {listed or 'none'}."
    )
