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
        "LayerLine": "interp.figures.small_multiples",
        "METRICS": "interp.figures.scatter",
        "Multiple": "interp.figures.small_multiples",
        "ProbeCurve": "interp.figures.probing",
        "STATES": "interp.figures.comparison",
        "Series": "interp.figures.comparison",
        "TokenStrip": "interp.figures.token_strip",
        "activation_histogram": "interp.figures.histogram",
        "agreement_matrix": "interp.figures.attribution",
        "attribution_map": "interp.figures.attribution",
        "board_figure": "interp.figures.boards",
        "conservation_curve": "interp.figures.attribution",
        "density_scatter": "interp.figures.scatter",
        "estimate_scatter": "interp.figures.attribution",
        "figure": "interp.figures.style",
        "heat_map": "interp.figures.heat",
        "in_dark": "interp.figures.style",
        "layer_curves": "interp.figures.comparison",
        "layer_multiples": "interp.figures.small_multiples",
        "pareto": "interp.figures.front",
        "position_labels": "interp.figures.attribution",
        "probe_curves": "interp.figures.probing",
        "prompt_values": "interp.figures.attribution",
        "strength_curves": "interp.figures.probing",
        "survival_bars": "interp.figures.comparison",
        "survival_scatter": "interp.figures.comparison",
        "ticks": "interp.figures.style",
        "training_curves": "interp.figures.curves",
    },
)
