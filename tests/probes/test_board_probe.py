"""The board probe: each layer and task as if it were alone, the closed form, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probes.board import IGNORED, BoardProbe
from probes.source import Source


def boards(n: int = 600, layers: int = 3, d: int = 10, tasks: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (x, y): layer l holds the classes of the tasks beside noise that falls with l."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, (n, tasks))
    planes = np.random.default_rng(9).normal(size=(tasks, 3, d))
    clean = planes[np.arange(tasks), y].sum(1)
    noise = np.array([6.0, 2.0, 0.1][:layers])
    x = clean[:, None] + noise[:, None] * rng.normal(size=(n, layers, d)) + 3.0
    return x.astype(np.float32), y


@pytest.mark.parametrize("method", ["adamw", "ridge"])
def test_accuracy_rises_with_the_signal(method: str) -> None:
    x, y = boards()
    other, wanted = boards(seed=1)
    found = BoardProbe(method, epochs=10, batch=64, lr=3e-2).fit(x, y).accuracy(other, wanted).mean(1)
    assert found[0] < found[1] < found[2]
    assert found[0] < 0.55
    assert found[2] > 0.9


@pytest.mark.parametrize("method", ["adamw", "ridge"])
def test_a_layer_is_what_it_would_be_alone(method: str) -> None:
    x, y = boards()
    whole = BoardProbe(method, epochs=2, batch=100).fit(x, y)
    for layer in range(3):
        alone = BoardProbe(method, epochs=2, batch=100).fit(x[:, layer : layer + 1], y)
        torch.testing.assert_close(alone.coef_[0], whole.coef_[layer], rtol=1e-4, atol=1e-5)


def test_a_task_is_what_it_would_be_alone_and_gradients_are_those_of_the_definition() -> None:
    x, y = boards(200)
    whole = BoardProbe(epochs=1, batch=200, lr=1e-2, weight_decay=0.0).fit(x, y)
    alone = BoardProbe(epochs=1, batch=200, lr=1e-2, weight_decay=0.0).fit(x, y[:, 1:2])
    torch.testing.assert_close(alone.coef_[:, :, 0], whole.coef_[:, :, 1], rtol=1e-4, atol=1e-6)
    # One step from 0 moves each weight by lr against the sign of sum_i z_i (1/3 - [y_i = c]).
    z = (x[:, 2].astype(float) - x[:, 2].mean(0)) / x[:, 2].std(0)
    slope = z.T @ (1 / 3 - np.eye(3)[y[:, 1]])
    step = alone.coef_[2, :, 0].numpy() * x[:, 2].std(0)[:, None]
    np.testing.assert_allclose(step, -1e-2 * np.sign(slope), rtol=1e-3)


def test_ridge_solves_the_normal_equations() -> None:
    x, y = boards(300)
    found = BoardProbe("ridge", alpha=0.01).fit(x, y)
    z = x[:, 1].astype(float)
    z = (z - z.mean(0)) / z.std(0)
    wanted = np.eye(3)[y[:, 2]]
    w = np.linalg.solve(z.T @ z + 0.01 * 300 * np.eye(10), z.T @ (wanted - wanted.mean(0)))
    scores = found.decision_function(torch.from_numpy(x))[:, 1, 2].numpy()
    np.testing.assert_allclose(scores, z @ w + wanted.mean(0), atol=1e-4)
    assert found.link_ == "identity"


def test_ridge_of_wide_layers_on_two_threads_is_that_of_each_layer_alone() -> None:
    x, y = boards(400, d=160)
    alone = [BoardProbe("ridge").fit(x[:, layer : layer + 1], y).coef_[0] for layer in range(3)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = BoardProbe("ridge").fit(x, y).coef_
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_pieces_of_a_mapped_file_are_the_whole(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = boards(500)
    wanted = BoardProbe("ridge").fit(torch.from_numpy(x), y)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr("probes.board.PIECE", 64)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    found = BoardProbe("ridge").fit(mapped, y)
    torch.testing.assert_close(found.coef_, wanted.coef_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.accuracy(mapped, y), wanted.accuracy(torch.from_numpy(x), y))
    assert BoardProbe(epochs=1, batch=50).fit(mapped, y).coef_.shape == (3, 10, 4, 3)


def test_rows_without_a_label_are_as_if_not_there() -> None:
    x, y = boards(400)
    some = y.copy()
    some[200:, 0] = IGNORED
    x[200:] = x[:200]  # the standardisation is that of the first half
    y[200:] = y[:200]
    some[200:, 1:] = y[:200, 1:]
    probe = BoardProbe(epochs=1, batch=400, weight_decay=0.0).fit(x, some)
    accuracy = probe.accuracy(x, some)
    np.testing.assert_allclose(accuracy[:, 0], probe.accuracy(x[:200], y[:200])[:, 0])
    assert np.isnan(probe.accuracy(x, np.full_like(some, IGNORED))).all()


def test_a_class_can_be_left_out_of_the_accuracy() -> None:
    x, y = boards()
    probe = BoardProbe("ridge").fit(x, y)
    guess = probe.predict(x)[:, 1, 0].numpy()
    counted = y[:, 0] != 2
    assert probe.accuracy(x, y, without=2)[1, 0] == pytest.approx((guess == y[:, 0])[counted].mean())


def test_bad_input_is_named() -> None:
    x, y = boards(50)
    with pytest.raises(ValueError, match=r"an array \[row, layer, d_in\], got shape \[50, 10\]"):
        BoardProbe().fit(x[:, 0], y)
    with pytest.raises(ValueError, match=r"whole numbers \[row=50, task\]"):
        BoardProbe().fit(x, y / 2)
    with pytest.raises(ValueError, match="two classes or more"):
        BoardProbe().fit(x, y * 0)
    with pytest.raises(ValueError, match="from 0 on, or -100 for none, got -1"):
        BoardProbe().fit(x, y - 1)
    with pytest.raises(ValueError, match="ridge needs a label for every row and task"):
        BoardProbe("ridge").fit(x, np.where(y == 2, IGNORED, y))
    with pytest.raises(ValueError, match="Unknown method"):
        BoardProbe("sgd").fit(x, y)
    broken = x.copy()
    broken[13, 1, 4] = np.inf
    with pytest.raises(ValueError, match="Row 13 of X holds NaN or infinity"):
        BoardProbe().fit(broken, y)
    probe = BoardProbe("ridge").fit(x, y)
    with pytest.raises(ValueError, match=r"reads rows \[layer, d_in\] = \[3, 10\], got \[2, 10\]"):
        probe.predict(x[:, :2])
    with pytest.raises(ValueError, match="not fitted"):
        BoardProbe().predict(x)
    with pytest.raises(ValueError, match="1 sources for 3 layers"):
        BoardProbe(sources=[Source("resid_post.0", "m", "0")]).fit(x, y)


def test_each_layer_knows_its_source() -> None:
    x, y = boards(50)
    sources = [Source(f"resid_post.{layer}", "m", "0") for layer in range(3)]
    probe = BoardProbe("ridge", sources=sources).fit(x, y)
    probe.check_source(1, sources[1])
    with pytest.raises(ValueError, match="fitted at resid_post.1 of m; these activations are from resid_post.2"):
        probe.check_source(1, sources[2])
