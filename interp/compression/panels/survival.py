"""Survival: which features of a dictionary mean the same in both models.

One frozen dictionary reads the activations of a and of b on the same tokens. For each latent, r is the Pearson
correlation of its two activations z_a and z_b over all counted tokens, silent ones included. A latent that fires at
least `least` times in a is active, and

    kept  r >= 0.9        blurred  0.5 <= r < 0.9        lost  r < 0.5

(the thresholds are parameters). Others: `new` fires at least `least` times in b, but not in a; `rare` fires, but that
often in neither; `silent` never fires. A latent that fires in one of the models only has r = 0. r is null where it is
not defined. Latents that fire rarely and weakly tend to go first; `spearman_density` and `spearman_peak` say whether
they do here (rank correlation of r with density and with the largest |activation| in a, over active latents).

Correlations come from streamed sums in float64. For examples the codes of the first tokens are kept, up to
`example_slots` active latents for each model, 12 bytes each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.compression.coding import Slots, check_dictionary, encode_pair, longest_row
from interp.compression.panel import Pair, PanelResult
from interp.compression.side_by_side import Spool, examples_table
from interp.sites import Site
from interp.types import Dictionary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interp.data import Blocks
    from interp.models import ModelHandle

STATES = ("kept", "blurred", "lost", "new", "rare", "silent")
"""What became of a latent."""


@dataclass(frozen=True)
class SurvivalConfig:
    """What counts as surviving, and how many examples are kept."""

    least: int = 10
    """Tokens on which a latent must fire to be active."""
    kept: float = 0.9
    """Correlation from which a latent is kept."""
    blurred: float = 0.5
    """Correlation from which it is blurred, and below which it is lost."""
    outlier_norm: float | None = None
    """Leave out rows longer than this many times the median norm in a; None keeps them."""
    examples: int = 5
    """Examples of each latent and model: its largest activations, one from a block."""
    window: int = 12
    """Tokens shown on either side of an example."""
    example_latents: int = 8192
    """Latents with examples, at most; those that changed most come first."""
    example_slots: int = 1 << 23
    """Active latents kept for examples, for each model (12 bytes each)."""

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ValueError(f"least must be 1 token or more, got {self.least}.")
        if not -1 <= self.blurred <= self.kept <= 1:
            raise ValueError(f"-1 <= blurred <= kept <= 1 must hold, got blurred={self.blurred}, kept={self.kept}.")
        if min(self.examples, self.window, self.example_latents, self.example_slots) < 0:
            raise ValueError("examples, window, example_latents and example_slots must be 0 or more.")


class Survival:
    """Correlation of each latent between the two models."""

    name = "survival"

    def __init__(self, site: Site | str, dictionary: Dictionary, config: SurvivalConfig | None = None) -> None:
        """Read `site` of both models through `dictionary`."""
        self.site, self.dictionary, self.config = Site.parse(site), dictionary, config or SurvivalConfig()

    def sites(self, a: ModelHandle) -> tuple[Site, ...]:
        """Return the dictionary's site."""
        return (a.check_site(self.site),)

    def begin(self, a: ModelHandle, b: ModelHandle, blocks: Blocks) -> None:
        """Begin; the dictionary must fit both models."""
        check_dictionary(self.dictionary, self.site, a, b)
        self._longest = longest_row(a, self.site, blocks, self.config.outlier_norm)
        self._text, self._tokens = blocks, 0
        d_sae = self.dictionary.d_sae
        self._moments = torch.zeros(6, d_sae, dtype=torch.float64)  # sums of a, a^2, b, b^2, a b, and both active
        self._counts = torch.zeros(2, d_sae, dtype=torch.long)
        self._peaks = torch.zeros(2, d_sae)
        self._spool = Spool(self.config.example_slots if self.config.examples else 0)

    def update(self, pair: Pair) -> None:
        """Add one batch."""
        coded = encode_pair(pair, self.site, self.dictionary, self._longest)
        d_sae = self.dictionary.d_sae
        for side, slots in enumerate(coded.codes):
            self._counts[side] += torch.bincount(slots.latents, minlength=d_sae).cpu()
            wide = slots.values.double()
            self._moments[2 * side] += _by_latent(slots, wide, d_sae)
            self._moments[2 * side + 1] += _by_latent(slots, wide * wide, d_sae)
            largest = torch.zeros(d_sae, device=wide.device)
            largest.scatter_reduce_(0, slots.latents, slots.values.abs().float(), "amax")
            self._peaks[side] = torch.maximum(self._peaks[side], largest.cpu())
        there, other = _values_in(coded.codes[1], coded.codes[0], d_sae)
        self._moments[4] += _by_latent(coded.codes[0], coded.codes[0].values.double() * other.double(), d_sae)
        self._moments[5] += _by_latent(coded.codes[0], there.double(), d_sae)
        self._tokens += int(coded.kept.sum())
        places = coded.kept.nonzero()
        tokens = pair.numbers.to(places.device)[places[:, 0]] * pair.tokens.shape[1] + places[:, 1]
        self._spool.add([(s.latents, tokens[s.rows], s.values) for s in coded.codes], int(pair.numbers[-1]) + 1)

    def finish(self) -> PanelResult:
        """Return the counts of each state, and the tables `latents` and `examples`."""
        import pyarrow as pa

        if self._tokens == 0:
            raise ValueError("No position can be counted: all are BOS, padding, outliers or not finite.")
        columns = self._columns()
        state = columns["state"]
        table = pa.table(
            {
                name: pa.array(values, pa.float64() if values.dtype.kind == "f" else None, from_pandas=True)
                for name, values in columns.items()
            }
        )
        order = np.lexsort((-columns["density_a"], np.nan_to_num(columns["r"], nan=2.0)))
        order = order[np.isin(state[order], STATES[:4])][: self.config.example_latents]
        examples = examples_table(self._spool, order, self._text, self.config.examples, self.config.window)
        return PanelResult(self._summary(columns), {"latents": table, "examples": examples})

    def _columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns of the table `latents`."""
        n, (sum_a, square_a, sum_b, square_b, product, both) = self._tokens, self._moments.numpy()
        count_a, count_b = self._counts.numpy()
        r = correlation(n, sum_a, square_a, sum_b, square_b, product)
        r[(count_a > 0) != (count_b > 0)] = 0.0
        r[(count_a == 0) & (count_b == 0)] = np.nan
        with np.errstate(invalid="ignore", divide="ignore"):
            means = sum_a / count_a, sum_b / count_b
            jaccard = both / (count_a + count_b - both)
        peaks = [
            np.where(count > 0, peak, np.nan)
            for count, peak in zip((count_a, count_b), self._peaks.numpy(), strict=True)
        ]
        return {
            "latent": np.arange(len(r), dtype=np.int32),
            "density_a": count_a / n,
            "density_b": count_b / n,
            "peak_a": peaks[0],
            "peak_b": peaks[1],
            "mean_a": means[0],
            "mean_b": means[1],
            "r": r,
            "jaccard": jaccard,
            "state": states(r, count_a, count_b, self.config),
        }

    def _summary(self, columns: dict[str, NDArray[Any]]) -> dict[str, int | float | str | None]:
        config, state = self.config, columns["state"]
        active = np.isin(state, STATES[:3])
        r = np.nan_to_num(columns["r"][active])
        count_a, count_b = self._counts.sum(1).tolist()
        both = float(self._moments[5].sum())
        union = count_a + count_b - both
        counts = {name: int((state == name).sum()) for name in STATES}
        return {
            "site": str(self.site),
            "tokens": self._tokens,
            "active": int(active.sum()),
            **counts,
            "kept_share": counts["kept"] / int(active.sum()) if active.any() else math.nan,
            "median_r": float(np.median(r)) if active.any() else math.nan,
            "spearman_density": spearman(columns["density_a"][active], r),
            "spearman_peak": spearman(columns["peak_a"][active], r),
            "l0_a": count_a / self._tokens,
            "l0_b": count_b / self._tokens,
            "jaccard": both / union if union else math.nan,
            "least": config.least,
            "threshold_kept": config.kept,
            "threshold_blurred": config.blurred,
            "example_tokens": self._spool.blocks * self._text.context,
        }


def _by_latent(slots: Slots, weights: Tensor, d_sae: int) -> Tensor:
    return torch.bincount(slots.latents, weights, d_sae).cpu()


def _values_in(slots: Slots, wanted: Slots, d_sae: int) -> tuple[Tensor, Tensor]:
    """Return (whether it is active in `slots`, its value there, 0 if not) for each slot of `wanted`."""
    if len(slots.rows) == 0 or len(wanted.rows) == 0:
        return torch.zeros_like(wanted.rows, dtype=torch.bool), torch.zeros_like(wanted.values)
    keys, order = (slots.rows * d_sae + slots.latents).sort()
    asked = wanted.rows * d_sae + wanted.latents
    places = torch.searchsorted(keys, asked).clamp_(max=len(keys) - 1)
    there = keys[places] == asked
    return there, torch.where(there, slots.values[order[places]], 0)


def correlation(
    n: int, sum_a: NDArray, square_a: NDArray, sum_b: NDArray, square_b: NDArray, product: NDArray
) -> NDArray[np.float64]:
    """Return Pearson's r from sums over n tokens: NaN where one side does not vary, 1 where both are one constant."""
    variance_a, variance_b = n * square_a - sum_a * sum_a, n * square_b - sum_b * sum_b
    covariance = n * product - sum_a * sum_b
    varies = (variance_a > 0) & (variance_b > 0)
    same = ~varies & (square_a == square_b) & (square_a == product)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.clip(covariance / np.sqrt(variance_a * variance_b), -1, 1)
    return np.where(varies, r, np.where(same, 1.0, np.nan))


def states(r: NDArray, count_a: NDArray, count_b: NDArray, config: SurvivalConfig) -> NDArray[np.str_]:
    """Return what became of each latent."""
    active = count_a >= config.least
    cases = [
        (count_a == 0) & (count_b == 0),
        ~active & (count_b >= config.least),
        ~active,
        r >= config.kept,
        r >= config.blurred,
    ]
    return np.select(cases, ["silent", "new", "rare", "kept", "blurred"], "lost")


def spearman(x: NDArray, y: NDArray) -> float:
    """Return the rank correlation, ties at their mean rank; NaN where one side does not vary."""
    from scipy.stats import rankdata

    if len(x) < 2:
        return math.nan
    ranks = np.stack([rankdata(x), rankdata(y)])
    ranks -= ranks.mean(1, keepdims=True)
    size = np.sqrt((ranks**2).sum(1)).prod()
    return float((ranks[0] * ranks[1]).sum() / size) if size > 0 else math.nan
