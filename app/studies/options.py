"""What the studies on labelled texts are asked for on the command line. Light: no numpy, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STUDIES = ("sparse_probing", "scr", "tpp")
"""The studies by name."""


@dataclass(frozen=True)
class LabelledArgs:
    """Labelled texts, for --studies."""

    file: Path | None = None
    """A .jsonl, .csv or .tsv file (also .gz) of texts with labels."""
    text: str = "text"
    """Field that holds the text."""
    label: str = "label"
    """Field that holds the label."""
    spurious: str | None = None
    """Field of two values that goes along with the label by accident; scr needs it."""
    group: str | None = None
    """Field whose equal values are not divided between training and test."""
    names: tuple[str, ...] = ()
    """Names of the columns of a .csv or .tsv file whose first line has none."""
    texts: int = 2000
    """Texts at most, drawn by the seed."""
    context: int = 128
    """Longest text in tokens; the rest is cut off."""
    ks: tuple[int, ...] = (1, 2, 5)
    """Numbers of latents, and of neurons, that sparse_probing takes."""
    seed: int = 0
    """Of all draws."""


def check(studies: tuple[str, ...], labelled: LabelledArgs) -> None:
    """Refuse what can be seen to be wrong before the file is read.

    Raises:
        ValueError: an unknown study, or an option that one needs is missing.
    """
    from interp.names import unknown

    for name in studies:
        if name not in STUDIES:
            raise ValueError(unknown("study", name, STUDIES))
    if not studies:
        raise ValueError(f"--labelled goes with --studies; name some of {', '.join(STUDIES)}.")
    if labelled.file is None:
        raise ValueError("--studies reads labelled texts; name their file with --labelled.file.")
    if "scr" in studies and labelled.spurious is None:
        raise ValueError("scr needs a second label, of two values; name its field with --labelled.spurious.")
    for name in ("texts", "context"):
        if getattr(labelled, name) < 1:
            raise ValueError(f"labelled.{name} must be 1 or more, got {getattr(labelled, name)}.")
