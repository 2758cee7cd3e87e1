"""The panel `probes`: one probe on two models, by hand and through a comparison."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from interp.attribution.randomisation import randomised
from interp.compression.compare import compare
from interp.data import Blocks, Labelled
from interp.models import ModelHandle
from probes.capturing import Captured, capture_texts
from probes.logistic import LogisticProbe
from probes.panels import Probes, ProbesConfig, cosine, transferred
from probes.roc import auroc
from probes.splits import grouped_split
from probes.sweep import Spot, sweep

CONFIG = ProbesConfig(C=1.0, resamples=20)


@pytest.fixture(scope="module")
def labelled() -> Labelled:
    """Eighty texts about one of two animals, in twenty groups of both."""
    ends = ["mat", "log", "sea", "land", "king", "queen", "dog on the mat", "cat in the land", "sea of the king", "log"]
    rows = [
        (f"the {animal} {verb} the {end} {number}", animal, f"{end} {number}")
        for number, end in enumerate(ends)
        for verb in ("sat on", "went to", "and", "of")
        for animal in ("cat", "dog")
    ]
    return Labelled(*zip(*rows, strict=True))


def blocks() -> Blocks:
    tokens = torch.randint(1, 300, (2, 16), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    tokens[:, 0] = 0
    return Blocks(tokens, torch.ones_like(tokens, dtype=torch.bool), 2, True, 0)


def test_a_model_beside_itself_loses_nothing(gpt2: ModelHandle, labelled: Labelled) -> None:
    found = compare(gpt2, gpt2, ["behaviour", Probes(labelled, CONFIG)], blocks=blocks()).results["probes"]
    rows = found.tables["layers"].to_pylist()
    assert [row["site"] for row in rows] == ["resid_post.0", "resid_post.1", "resid_post.2"]
    for row in rows:
        assert row["auc_a"] == row["auc_transfer"] == row["auc_retrained"]
        assert row["drop"] == row["drop_low"] == row["transfer_drop"] == row["transfer_drop_high"] == 0
        assert row["cosine"] == pytest.approx(1)
        assert {"majority", "shuffled_labels", "random_weights", "bag_of_tokens", "position_only"} <= row.keys()
    summary = found.summary
    assert summary["probe_layer_shift"] == summary["probe_drop"] == summary["probe_transfer_drop"] == 0
    for point in ("jump", "converging", "converging_literal", "best_layer"):
        assert summary[f"{point}_a"] == summary[f"{point}_b"]


def test_transfer_is_the_probe_of_a_on_the_test_texts_of_b(gpt2: ModelHandle, labelled: Labelled) -> None:
    other = randomised(gpt2, seed=3)
    panel = Probes(labelled, CONFIG)
    panel.begin(gpt2, other, blocks())
    found = panel.finish()
    y, groups = np.array(labelled.labels), np.array(labelled.groups)
    split = grouped_split(y, groups, test=CONFIG.test)
    places = (["resid_post.1"], ["last"])
    a, b = (capture_texts(one, labelled.texts, *places).rows("resid_post.1", "last") for one in (gpt2, other))
    (row,) = [one for one in found.tables["layers"].to_pylist() if one["site"] == "resid_post.1"]
    fitted = {name: LogisticProbe(1.0).fit(x[split.train], y[split.train]) for name, x in (("a", a), ("b", b))}
    truth = y[split.test] == "dog"
    for column, probe, x in (("a", "a", a), ("transfer", "a", b), ("retrained", "b", b)):
        scores = np.asarray(fitted[probe].decision_function(x[split.test]))
        assert row[f"auc_{column}"] == pytest.approx(auroc(scores[:, None], truth)[0, 0])
        right = fitted[probe].predict(x[split.test]) == y[split.test]
        assert row[f"accuracy_{column}"] == pytest.approx(right.mean())
    assert row["transfer_drop"] == pytest.approx(row["auc_a"] - row["auc_transfer"])
    assert row["drop"] == pytest.approx(row["auc_a"] - row["auc_retrained"])
    assert row["transfer_drop_low"] <= row["transfer_drop"] <= row["transfer_drop_high"]
    assert row["cosine"] == pytest.approx(cosine(fitted["a"], fitted["b"]))


def test_a_rotated_stream_is_misread_but_not_lost() -> None:
    rng = np.random.default_rng(0)
    group = np.arange(240) // 2
    y = group % 2
    x = rng.normal(size=(240, 1, 6)).astype(np.float32)
    x[:, 0, 0] += 4 * y
    tokens = tuple(np.arange(3) for _ in y)

    def of(values: np.ndarray) -> Captured:
        return Captured("m", "d" * 64, ("resid_post.0",), ("last",), {"resid_post.0": values}, tokens, 0)

    spot = Spot("resid_post.0", "last")
    split = grouped_split(y, group, test=0.4)
    options = {"groups": group, "split": split, "probe": LogisticProbe(1.0), "resamples": 5}
    a, b = sweep(of(x), y, **options), sweep(of(x[..., ::-1].copy()), y, **options)
    carried = transferred(a, spot, x[:, 0, ::-1])
    assert carried.drop({"resamples": 100}).low > 0.2
    assert b.reports[spot].auc.value == pytest.approx(a.reports[spot].auc.value, abs=1e-3)
    assert abs(cosine(a.probes[spot], b.probes[spot])) < 0.6


def test_models_of_other_depths_and_widths_are_refused(
    gpt2: ModelHandle, labelled: Labelled, make_model: Callable[..., ModelHandle]
) -> None:
    shallow = make_model("gpt2", gpt2.tokenizer, n_layer=2)
    with pytest.raises(ValueError, match="has 3 layers, GPT2LMHeadModel 2"):
        compare(gpt2, shallow, [Probes(labelled, CONFIG)], blocks=blocks())
    narrow = make_model("gpt2", gpt2.tokenizer, n_embd=16)
    with pytest.raises(ValueError, match="reads rows of d_in=32 numbers, X has 16"):
        compare(gpt2, narrow, [Probes(labelled, CONFIG)], blocks=blocks())
