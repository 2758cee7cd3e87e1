"""The labelled texts of `mechscope compare --probe-data`, and the panel that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.labelled_texts import Fields, about, read_texts

if TYPE_CHECKING:
    from interp.compression.panel import Panel
    from interp.data import Labelled


@dataclass(frozen=True)
class ProbedTexts:
    """Texts that both models are asked about."""

    labelled: Labelled
    """The texts."""
    about: dict[str, Any]
    """What identifies them in a run's configuration."""

    def panel(self, seed: int) -> Panel:
        """Return the panel, which takes scikit-learn to import."""
        from probes.panels import Probes, ProbesConfig

        return Probes(self.labelled, ProbesConfig(seed=seed))


def probed_texts(name: str | None, fields: tuple[str, ...], texts: int, seed: int) -> ProbedTexts | None:
    """Return the texts that --probe-data names, `texts` of them at most; None without it.

    Raises:
        ValueError: fields without a name or not two or three of them, or what `read_texts` refuses.
    """
    if name is None:
        if fields:
            raise ValueError("--probe-fields says how to read --probe-data; give that too, or leave it out.")
        return None
    if len(fields) not in (0, 2, 3):
        raise ValueError(f"--probe-fields names text, label and, if there is one, group; got {list(fields)}.")
    if texts < 2:
        raise ValueError(f"probe_texts must be 2 or more, got {texts}.")
    usual = Fields()
    text, label, group = (*fields, None)[:3] if fields else (usual.text, usual.label, usual.group)
    read = Fields(str(text), str(label), group)
    labelled = read_texts(name, read).sample(texts, seed)
    return ProbedTexts(labelled, {"data": about(name, read, labelled)})
