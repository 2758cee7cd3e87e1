"""Transfer between sets: the diagonal is the ordinary probe, groups stay on one side, what centring does."""

from __future__ import annotations

import numpy as np
import pytest

from probes.ccs import CCS
from probes.logistic import LogisticProbe
from probes.mass_mean import MassMean
from probes.transfer import PROBES, TransferSet, joint_split, transfer

LINEAR = ("mass_mean", "mass_mean_whitened", "lda", "logistic")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """CCS with few starts, and a logistic probe that chooses from three penalties."""
    monkeypatch.setitem(PROBES, "ccs", lambda: CCS(starts=3, steps=200))
    monkeypatch.setitem(PROBES, "logistic", lambda: LogisticProbe(grid=(0.01, 0.1, 1.0)))


def made(name: str, shift: float = 0.0, sign: int = 1, n: int = 240, seed: int = 0) -> TransferSet:
    """Return rows of 60 groups; column 0 tells the label, column 1 the set."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2 == 1
    x = rng.normal(size=(n, 6))
    x[:, 0] += sign * 3.0 * (y - 0.5)
    x[:, 1] += shift
    return TransferSet(name, x, y, [f"city{one}" for one in np.arange(n) // 4])


def cells(sets: list[TransferSet], probes: tuple[str, ...], **settings: object) -> dict[tuple[str, str, str], dict]:
    table = transfer(sets, probes, resamples=60, **settings).tables["transfer"]  # type: ignore[arg-type]
    return {(row["probe"], row["fitted_on"], row["measured_on"]): row for row in table.to_pylist()}


def test_the_diagonal_is_the_ordinary_probe() -> None:
    a, b = made("a"), made("b", seed=1)
    found = cells([a, b], ("mass_mean", "logistic"))
    split = joint_split([a, b])[0]
    for name, probe in (("mass_mean", MassMean()), ("logistic", PROBES["logistic"]())):
        groups = np.array(a.groups)[split.train]
        wanted = probe.fit(a.x[split.train], a.y[split.train], groups).score(a.x[split.test], a.y[split.test])
        row = found[name, "a", "a"]
        assert row["accuracy"] == pytest.approx(wanted)
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert (row["n_train"], row["n_test"]) == (len(split.train), len(split.test))
    assert len(found) == 8


@pytest.mark.parametrize("kind", LINEAR)
def test_a_shared_direction_transfers_and_an_opposite_one_is_wrong(kind: str) -> None:
    a, b, c = made("a"), made("b", seed=1), made("c", sign=-1, seed=2)
    result = transfer([a, b, c], [kind], resamples=60)
    found = {(row["fitted_on"], row["measured_on"]): row for row in result.tables["transfer"].to_pylist()}
    assert found["a", "b"]["accuracy"] > 0.85
    assert found["a", "b"]["auc_low"] > 0.8
    assert found["a", "c"]["accuracy"] < 0.15
    assert found["a", "c"]["auc"] < 0.15
    cosines = {(row["first"], row["second"]): row["cosine"] for row in result.tables["directions"].to_pylist()}
    assert cosines["a", "b"] > 0.8
    assert cosines["a", "c"] < -0.8


@pytest.mark.parametrize("kind", LINEAR)
def test_centring_moves_the_threshold_and_no_area(kind: str) -> None:
    # The other set lies elsewhere along the direction that the probe reads.
    a, b = made("a"), made("b", seed=1)
    b = TransferSet("b", b.x + np.array([4.0, 0, 0, 0, 0, 0]), b.y, b.groups)
    trained, each = cells([a, b], (kind,)), cells([a, b], (kind,), centring="each")
    assert trained[kind, "a", "b"]["accuracy"] < 0.65 < 0.85 < each[kind, "a", "b"]["accuracy"]
    for key, row in trained.items():
        assert each[key]["auc"] == pytest.approx(row["auc"], abs=2e-3)
    assert {row["centring"] for row in each.values()} == {"each"}


def test_by_default_the_test_part_of_another_set_changes_no_score_of_its_other_rows() -> None:
    a, b = made("a"), made("b", seed=1)
    test = joint_split([a, b])[1].test
    moved = b.x.copy()
    moved[test[0]] += 1000.0
    other = TransferSet("b", moved, b.y, b.groups)
    before, after = cells([a, b], ("lda",)), cells([a, other], ("lda",))
    # One row can turn one answer, whatever it is; the mean over the set would turn half of them.
    n = len(test)
    change = abs(before["lda", "a", "b"]["accuracy"] - after["lda", "a", "b"]["accuracy"])
    assert change <= 1 / n + 1e-12
    published = cells([a, other], ("lda",), centring="each")["lda", "a", "b"]["accuracy"]
    assert abs(before["lda", "a", "b"]["accuracy"] - published) > 0.2


def test_a_group_of_two_sets_is_on_one_side() -> None:
    a, b = made("a"), made("b", n=120, seed=1)
    parts = joint_split([a, b], seed=3)
    train, test = ({str(s.groups[r]) for s, p in zip((a, b), parts, strict=True) for r in getattr(p, side)}
                   for side in ("train", "test"))  # fmt: skip
    assert not train & test
    assert train | test == {str(one) for one in a.groups}
    for held, part in zip((a, b), parts, strict=True):
        assert sorted([*part.train, *part.test]) == list(range(len(held.y)))


def paired(name: str, seed: int = 0, shift: float = 0.0) -> TransferSet:
    """Return statements and their opposites, that differ in column 1 by their form."""
    rng = np.random.default_rng(seed)
    n = 120
    true = rng.random(n) < 0.5
    x = rng.normal(size=(n, 2, 5)) * 0.5
    x[:, 0, 0] += 4.0 * (true - 0.5)
    x[:, 1, 0] -= 4.0 * (true - 0.5)
    x[:, 1, 1] += 5.0
    x[:, :, 0] += shift
    rows = x.reshape(-1, 5)
    y = np.stack([true, ~true], 1).ravel()
    pairs = np.arange(2 * n).reshape(n, 2)
    return TransferSet(name, rows, y, [f"{name}{one // 2}" for one in range(2 * n)], pairs)


def test_contrast_pairs_transfer_and_count_as_pairs() -> None:
    a, b = paired("a"), paired("b", 1)
    found = cells([a, b], ("ccs", "lda"))
    assert found["ccs", "a", "b"]["accuracy"] > 0.9
    assert found["ccs", "a", "b"]["n_test"] == found["lda", "a", "b"]["n_test"] / 2
    part = joint_split([a, b])
    assert a.pairs is not None
    assert b.pairs is not None
    fit, test = (s.pairs[np.isin(s.pairs[:, 0], rows)] for s, rows in ((a, part[0].train), (b, part[1].test)))  # type: ignore[index]
    peer = PROBES["ccs"]().fit(a.x[fit], a.y[fit[:, 0]])
    assert found["ccs", "a", "b"]["accuracy"] == pytest.approx((peer.predict(b.x[test]) == b.y[test[:, 0]]).mean())


def test_contrast_pairs_of_a_moved_set_are_put_right_by_its_own_mean() -> None:
    a, b = paired("a"), paired("b", 1, shift=6.0)
    each = cells([a, b], ("ccs",), centring="each")["ccs", "a", "b"]
    assert each["accuracy"] > 0.9


def test_sets_without_pairs_have_no_cell_of_ccs() -> None:
    a = paired("a")
    plain = TransferSet("b", a.x + 0.0, a.y, a.groups)
    found = cells([a, plain], ("ccs",))
    assert set(found) == {("ccs", "a", "a")}
    with pytest.raises(ValueError, match="no set has any; leave it out"):
        transfer([plain], ["ccs"])


def test_what_does_not_fit_is_refused() -> None:
    a = made("a")
    with pytest.raises(ValueError, match="Unknown probe 'logistc'; did you mean 'logistic'"):
        transfer([a], ["logistc"])
    with pytest.raises(ValueError, match="Unknown centring 'test'"):
        transfer([a], centring="test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Each set needs a name of its own, got a, a"):
        transfer([a, a])
    with pytest.raises(ValueError, match="reads rows of d_in=6 numbers, b has 5"):
        transfer([a, TransferSet("b", a.x[:, :5], a.y, a.groups)])
    with pytest.raises(ValueError, match="must be truth values, got int64"):
        TransferSet("a", a.x, a.y.astype(np.int64), a.groups)
    with pytest.raises(ValueError, match="as many rows as labels and groups, got 240, 240 and 3"):
        TransferSet("a", a.x, a.y, [1, 2, 3])
    with pytest.raises(ValueError, match="Pair 0 of 'a' is no statement and its opposite"):
        TransferSet("a", a.x, a.y, a.groups, np.array([[0, 2], [0, 1]]))
    assert {*LINEAR, "ridge", "ccs"} == set(PROBES)
