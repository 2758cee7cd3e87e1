"""Where activations come from: a probe fitted at one site of one model means nothing at another.

The published code that fits probes on the input of a block and applies them to its output runs without any error. Here
a probe carries its source, and whoever applies it to activations of a known source is refused if that is another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.sites import Site

if TYPE_CHECKING:
    from interp.models import ModelHandle


@dataclass(frozen=True)
class Source:
    """A site of a model."""

    site: str
    """The site, such as `resid_post.3`."""
    model: str
    """Name of the model, for people."""
    digest: str
    """SHA-256 of its weights (`ModelHandle.digest`)."""
    positions: str = "all"
    """Which positions of a text the rows are: `all`, `last`, `mean`, ... as whoever made them calls it."""

    def __post_init__(self) -> None:
        """Refuse what is no site."""
        Site.parse(self.site)

    @classmethod
    def of(cls, handle: ModelHandle, site: Site | str, positions: str = "all") -> Source:
        """Return the source of activations that are captured at `site` of this model.

        Raises:
            ValueError: the model has no such site.
        """
        return cls(str(handle.check_site(site)), handle.spec.name, handle.digest(), positions)

    def check(self, other: Source, *, same_weights: bool = True) -> None:
        """Refuse `other` where it is another source.

        Args:
            other: of the activations that are to be read.
            same_weights: False where the same site of another model is meant, as in a comparison of two models.

        Raises:
            ValueError: another site, other positions or, with `same_weights`, other weights.
        """
        what = f"The probe was fitted at {self.site} of {self.model}"
        if other.site != self.site:
            raise ValueError(f"{what}; these activations are from {other.site}. Fit one there, or capture {self.site}.")
        if other.positions != self.positions:
            raise ValueError(f"{what} on positions {self.positions!r}; these rows are {other.positions!r}.")
        if same_weights and other.digest != self.digest:
            raise ValueError(
                f"{what} ({self.digest[:8]}); these activations are from {other.model} with other weights "
                f"({other.digest[:8]}). Fit one for this model, or say same_weights=False to compare the two."
            )
