"""Tables of a run: Parquet files, written and read through pyarrow, which is imported at the first table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from interp.names import unknown
from interp.runs.errors import RunDamaged, RunError
from interp.runs.files import shown

if TYPE_CHECKING:
    import pyarrow as pa


def write(path: Path, table: pa.Table, row_group_size: int | None) -> None:
    """Write `table` to `path`."""
    import pyarrow.parquet as pq

    pq.write_table(table, path, row_group_size=row_group_size, compression="zstd")


def read(path: Path, columns: Sequence[str] | None, filters: Any) -> pa.Table:
    """Return the table in `path`: the columns asked for, and the rows that `filters` lets through.

    Raises:
        RunError: there is no such column.
        RunDamaged: the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        known = pq.read_schema(path).names
        for column in columns or ():
            if column not in known:
                raise RunError(unknown(f"column in {shown(path)}:", column, known))
        # Without partitioning=None a folder called "a=b" anywhere above would become a column.
        wanted = None if columns is None else list(columns)
        return pq.read_table(path, columns=wanted, filters=filters, partitioning=cast("Any", None))
    except (pa.ArrowException, OSError) as error:
        raise RunDamaged(f"{shown(path)} cannot be read and is probably damaged: {str(error)[:200]}") from error
