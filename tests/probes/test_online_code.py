"""Online coding: uniform labels, labels that a line tells, the definition, groups."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from probes.lda import LDA
from probes.mdl import PORTIONS, online_code
from probes.ridge import RidgeProbe


def test_uniform_labels_have_no_shorter_code() -> None:
    rng = np.random.default_rng(0)
    found = online_code(rng.normal(size=(6000, 2)), rng.integers(0, 4, 6000))
    assert 0.97 < found.compression < 1.005
    assert found.uniform_bits == 12000


def test_labels_that_a_line_tells_are_short() -> None:
    x = np.random.default_rng(1).normal(size=(8000, 3))
    x = x[np.abs(x[:, 0]) > 0.5]
    assert online_code(x, x[:, 0] > 0).compression > 10


def test_more_noise_is_a_longer_code() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2000, 3))
    lengths = [online_code(x, x[:, 0] + noise * rng.normal(size=2000) > 0).bits for noise in (0.1, 0.7, 3.0)]
    assert lengths == sorted(lengths)


def test_it_is_the_sum_of_the_definition() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(64, 2))
    y = np.where(x[:, 0] + 0.3 * rng.normal(size=64) > 0, "b", "a")
    found = online_code(x, y, portions=(0.25, 0.5, 1.0), seed=5)
    order = np.argsort(np.random.default_rng(5).permutation(64))
    x, y, bits = x[order], y[order], 16.0
    for begin, end in ((16, 32), (32, 64)):
        mean, scale = x[:begin].mean(0), x[:begin].std(0)
        peer = LogisticRegression(C=1.0).fit((x[:begin] - mean) / scale, y[:begin])
        for row, label in zip(peer.predict_proba((x[begin:end] - mean) / scale), y[begin:end], strict=True):
            bits -= np.log2((begin * row[int(label == "b")] + 1) / (begin + 2))
    assert found.bits == pytest.approx(bits, rel=1e-4)
    assert [end for end, _ in found.portions] == [16, 32, 64]


def test_a_class_that_comes_late_costs_finitely_many_bits() -> None:
    x = np.random.default_rng(4).normal(size=(200, 2))
    y = np.zeros(200, dtype=int)
    y[::50] = 1
    found = online_code(x, y)
    assert np.isfinite(found.bits)


def test_portions_end_where_groups_end() -> None:
    groups = np.repeat(np.arange(20), 10)
    x = np.random.default_rng(5).normal(size=(200, 2))
    found = online_code(x, np.arange(200) % 2, groups=groups)
    assert all(end % 10 == 0 for end, _ in found.portions)
    assert found.portions[-1][0] == 200
    assert len(found.portions) < len(PORTIONS)


def test_any_probe_with_probabilities_will_do() -> None:
    x = np.random.default_rng(6).normal(size=(400, 3))
    y = x[:, 0] > 0
    assert online_code(x, y, LDA(), portions=PORTIONS[6:]).compression > 1.5
    with pytest.raises(ValueError, match="no log-odds"):
        online_code(x, y, RidgeProbe(alpha=1.0))
    with pytest.raises(ValueError, match="shares that rise to 1"):
        online_code(x, y, portions=(0.5, 0.2, 1.0))
