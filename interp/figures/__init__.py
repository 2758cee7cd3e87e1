"""Figures: pure functions from tables to Plotly figures, for pages and notebooks alike.

One quiet template (no frame, faint grid, direct labels) and the colours of Okabe and Ito (2008), which stay apart for
colour-blind readers; where colour carries a class, a marker shape carries it too. Text from a model is escaped, for
Plotly reads its labels as markup (it knows &lt; and &amp; but not &quot;).
"""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "HeatTable": "interp.figures.heat_table",
        "METRICS": "interp.figures.scatter",
        "STATES": "interp.figures.comparison",
        "Series": "interp.figures.comparison",
        "TokenStrip": "interp.figures.token_strip",
        "activation_histogram": "interp.figures.histogram",
        "agreement_matrix": "interp.figures.attribution",
        "attribution_map": "interp.figures.attribution",
        "conservation_curve": "interp.figures.attribution",
        "density_scatter": "interp.figures.scatter",
        "estimate_scatter": "interp.figures.attribution",
        "figure": "interp.figures.style",
        "heat_map": "interp.figures.heat",
        "layer_curves": "interp.figures.comparison",
        "pareto": "interp.figures.front",
        "position_labels": "interp.figures.attribution",
        "prompt_values": "interp.figures.attribution",
        "survival_bars": "interp.figures.comparison",
        "survival_scatter": "interp.figures.comparison",
        "ticks": "interp.figures.style",
        "training_curves": "interp.figures.curves",
    },
)
