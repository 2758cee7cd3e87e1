"""What a capture to disk is asked for, and what its store says of itself (`store.json`)."""

from __future__ import annotations

from dataclasses import dataclass

from interp.names import unknown
from interp.sites import Site, parse_sites

DTYPES = ("float16", "float32")
"""Number formats of a store; values that float16 cannot hold are refused, never made infinite."""

STORE = "store.json"
ORIGIN = ("token", "block", "position")
"""Tensors beside those of the sites: where each row is from."""


@dataclass(frozen=True)
class CaptureConfig:
    """What a store holds and how it is laid out."""

    sites: tuple[str, ...]
    """Sites, captured in one pass."""
    dtype: str = "float16"
    """`float16` (half the disk) or `float32`."""
    shard_rows: int = 65_536
    """Rows per shard before outliers are left out; a shard is shuffled in memory."""
    shuffle: bool = True
    """True: blocks in random order, and rows in random order within a shard. False: in the order of the text."""
    seed: int = 0
    """Of the shuffling."""
    drop_bos: bool = True
    """Leave out BOS."""
    outlier_norm: float | None = None
    """Leave out rows whose norm is above this multiple of their shard's median norm; None keeps them."""

    def __post_init__(self) -> None:
        parse_sites(self.sites)
        if self.dtype not in DTYPES:
            raise ValueError(unknown("dtype of a store", self.dtype, DTYPES))
        if self.shard_rows < 1:
            raise ValueError(f"shard_rows must be 1 or more, got {self.shard_rows}.")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}.")
        check_outlier_norm(self.outlier_norm)

    def parsed(self) -> list[Site]:
        """Return the sites in the order of computation."""
        return sorted(parse_sites(self.sites))


@dataclass(frozen=True)
class ShardInfo:
    """One shard of a store."""

    name: str
    """File name."""
    rows: int
    """Rows in it."""
    sha256: dict[str, str]
    """Hash of the bytes of each tensor."""


@dataclass(frozen=True)
class StoreInfo:
    """A finished store, as `store.json` has it."""

    key: str
    """Hash of weights, tokens and configuration; every shard carries it."""
    weights: str
    """Hash of the model's weights."""
    tokens: str
    """Hash of the token blocks."""
    context: int
    """Length of a block in tokens."""
    dtype: str
    """Number format."""
    shuffled: bool
    """Whether the rows on disk are in random order."""
    widths: dict[str, int]
    """Site -> width of its rows."""
    shards: tuple[ShardInfo, ...]
    """The files, in order."""
    counts: dict[str, int]
    """Positions by what became of them: `rows`, `padding`, `bos`, `nonfinite`, `outliers`."""
    mean_norm: dict[str, float]
    """Site -> mean norm of its rows."""

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(shard.rows for shard in self.shards)


def check_outlier_norm(value: float | None) -> None:
    """Refuse a multiple of the median norm that would leave out ordinary rows.

    Raises:
        ValueError: the value is not above 1.
    """
    if value is not None and not value > 1:
        raise ValueError(
            f"outlier_norm is a multiple of the median norm and must be above 1, got {value}; None keeps all rows."
        )


def shard_name(index: int) -> str:
    """Return the file name of shard `index`."""
    return f"rows-{index:05d}.safetensors"
