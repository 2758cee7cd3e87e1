"""Figures of probes: what is drawn is what was given, baselines are told apart, labels do not lie on each other."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from interp.figures import ProbeCurve, probe_curves, strength_curves


def test_a_curve_has_its_band_and_a_baseline_none() -> None:
    probe = ProbeCurve("probe", [0, 1], [0.6, 0.9], [0.5, 0.8], [0.7, 1.0])
    fig = probe_curves([probe, ProbeCurve("majority", [0, 1], [0.5, 0.5], beside=True)])
    filled = [trace for trace in fig.data if trace.fill == "toself"]
    assert [list(trace.y) for trace in filled] == [[0.7, 1.0, 0.8, 0.5]]
    lines = {trace.name: trace for trace in fig.data if trace.name}
    assert list(lines["probe"].y) == [0.6, 0.9]
    assert lines["probe"].line.color != lines["majority"].line.color
    assert [list(one) for one in lines["probe"].customdata] == [[0], [1]]


def test_labels_at_the_end_keep_their_distance() -> None:
    curves = [ProbeCurve(f"line {i}", [0, 1], [0.5, 0.5 + i * 1e-4]) for i in range(5)]
    fig = probe_curves(curves)
    heights = sorted(note.y for note in fig.layout.annotations)
    low, high = fig.layout.yaxis.range
    assert min(b - a for a, b in pairwise(heights)) > 10 / 200 * (high - low)


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="no number to draw"):
        probe_curves([ProbeCurve("probe", [0], [math.nan])])


def test_random_directions_are_a_band_from_lowest_to_highest() -> None:
    rows = [{"direction": "probe", "strength": s, "kl": 2.0 * s} for s in (0.0, 1.0)]
    rows += [{"direction": "random", "strength": s, "kl": k * s} for s in (0.0, 1.0) for k in (0.1, 0.5)]
    fig = strength_curves(rows, "kl", "change")
    band = next(trace for trace in fig.data if trace.fill == "toself")
    assert list(band.y) == [0.0, 0.5, 0.1, 0.0]
    assert next(list(trace.y) for trace in fig.data if trace.name == "along the probe") == [0.0, 2.0]
    with pytest.raises(ValueError, match="no log_odds"):
        strength_curves(rows, "log_odds", "preference")
