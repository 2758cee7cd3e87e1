"""What a study hands back: tables to save and draw, and a few numbers to print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

Number = float | int | str | None


@dataclass(frozen=True, eq=False)
class StudyResult:
    """The results of one study."""

    tables: Mapping[str, pa.Table]
    """Name of the table (no suffix) -> its rows."""
    summary: Mapping[str, Number]
    """The numbers that a reader sees first; None where something is not defined."""
