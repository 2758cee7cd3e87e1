"""What each layer holds and does: lens, stream, geometry, similarity, spectra, coding rates, heads; merging."""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Alignment": "interp.layers.alignment",
        "CodingRates": "interp.layers.coding",
        "Contributions": "interp.layers.stream",
        "Farms": "interp.layers.spectra",
        "Geometry": "interp.layers.geometry",
        "HeadScores": "interp.layers.heads",
        "Hsic": "interp.layers.similarity",
        "Moments": "interp.layers.moments",
        "PairGeometry": "interp.layers.similarity",
        "Sparsity": "interp.layers.coding",
        "alpha_ratios": "interp.layers.pruning_ratios",
        "block_alphas": "interp.layers.pruning_ratios",
        "block_matrices": "interp.layers.weights",
        "coding_rate": "interp.layers.coding",
        "fit_map": "interp.layers.ridge_map",
        "head_scores": "interp.layers.heads",
        "is_parallel": "interp.layers.stream",
        "lens_logits": "interp.layers.lens",
        "linear_cka": "interp.layers.similarity",
        "merged_weights": "interp.layers.merging",
        "moments_of": "interp.layers.moments",
        "mutual_knn": "interp.layers.similarity",
        "procrustes_of": "interp.layers.similarity",
        "repeated_tokens": "interp.layers.heads",
        "spectra_rows": "interp.layers.spectra",
        "spectrum": "interp.layers.spectra",
    },
)
