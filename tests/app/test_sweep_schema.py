"""A sweep's file: what its keys mean, which cells it stands for, and what is refused."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sweeps.distributions import DISTRIBUTIONS, parameter
from app.sweeps.schema import parse_sweep, read_sweep


def sweep(parameters: Any, method: str = "grid", **more: Any) -> Any:
    return parse_sweep({"method": method, "parameters": parameters, **more})


def test_a_grid_is_every_combination_the_last_parameter_fastest() -> None:
    cells = sweep({"a": {"values": [1, 2]}, "b": {"value": "x"}, "c": {"min": 3, "max": 5}}).cells()
    assert [(cell["a"], cell["c"]) for cell in cells] == [(1, 3), (1, 4), (1, 5), (2, 3), (2, 4), (2, 5)]
    assert {cell["b"] for cell in cells} == {"x"}


def test_nested_parameters_have_dotted_names() -> None:
    nested = {"rule_args": {"parameters": {"k": {"values": [4, 8]}}}, "train": {"parameters": {"lr": {"value": 0.1}}}}
    assert sweep(nested).cells() == [{"rule_args.k": 4, "train.lr": 0.1}, {"rule_args.k": 8, "train.lr": 0.1}]


def test_a_quantised_range_is_a_grid_that_ends_below_its_maximum() -> None:
    quantised = {"a": {"distribution": "q_uniform", "min": 0.1, "max": 0.5, "q": 0.1}}
    assert [cell["a"] for cell in sweep(quantised).cells()] == [0.1, 0.2, 0.3, 0.4]


def test_a_grid_over_a_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'lr' is uniform; give it values, or use method: random"):
        sweep({"lr": {"min": 0.1, "max": 0.2}}).cells()


def test_count_and_run_cap_limit_a_sweep() -> None:
    values = {"a": {"values": list(range(9))}}
    assert len(sweep(values).cells(count=4)) == 4
    assert len(sweep(values, run_cap=3).cells(count=4)) == 3
    with pytest.raises(ValueError, match="give --count, or run_cap"):
        sweep(values, "random").cells()


def test_a_random_sweep_is_seeded_and_grows_at_its_end() -> None:
    space = {"a": {"min": 0.0, "max": 1.0}, "b": {"values": ["x", "y"]}}
    few, many = sweep(space, "random").cells(5, seed=3), sweep(space, "random").cells(9, seed=3)
    assert many[:5] == few
    assert sweep(space, "random").cells(5, seed=4) != few
    wider = sweep({"c": {"min": 0.0, "max": 1.0}} | space, "random").cells(5, seed=3)
    assert [cell["a"] for cell in wider] == [cell["a"] for cell in few]


def test_a_small_random_space_is_exhausted_without_repeats() -> None:
    cells = sweep({"a": {"values": [1, 2]}, "b": {"values": [True, False]}}, "random").cells(50)
    assert len(cells) == 4
    assert len({repr(cell) for cell in cells}) == 4


BOUNDED = ["uniform", "log_uniform_values", "inv_log_uniform_values", "q_uniform", "q_log_uniform_values"]


@given(st.sampled_from(BOUNDED), st.floats(1e-6, 1e3), st.floats(1.5, 1e4), st.integers(0, 2**32))
def test_bounded_draws_stay_within_their_bounds(kind: str, low: float, ratio: float, seed: int) -> None:
    high = low * ratio
    given_ = {"distribution": kind, "min": low, "max": high} | ({"q": low / 7} if kind.startswith("q_") else {})
    value = parameter("a", given_, "a").draw(random.Random(seed))
    assert low * (1 - 1e-9) <= value <= high * (1 + 1e-9)
    if kind.startswith("q_"):
        multiple = value / (low / 7)
        assert abs(multiple - round(multiple)) < 1e-5 * multiple


@given(st.integers(-50, 50), st.integers(0, 100), st.integers(0, 2**32))
def test_whole_numbers_come_from_the_whole_range(low: int, width: int, seed: int) -> None:
    value = parameter("a", {"min": low, "max": low + width}, "a").draw(random.Random(seed))
    assert isinstance(value, int)
    assert low <= value <= low + width


def draws(given_: dict[str, Any], n: int = 4000) -> list[Any]:
    one = parameter("a", given_, "a")
    return [one.draw(random.Random(i)) for i in range(n)]


def test_draws_have_the_distribution_they_name() -> None:
    def mean(values: Any) -> float:
        found = list(values)
        return sum(found) / len(found)

    lows = draws({"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2})
    assert abs(mean(v < 1e-3 for v in lows) - 0.5) < 0.04, "half of them in each decade"
    exponents = draws({"distribution": "log_uniform", "min": 0, "max": 2})
    assert abs(mean(math.log(v) for v in exponents) - 1) < 0.05
    inverse = draws({"distribution": "inv_log_uniform", "min": 0, "max": 2})
    assert abs(mean(math.log(v) for v in inverse) + 1) < 0.05
    normal = draws({"distribution": "normal", "mu": 3, "sigma": 2})
    assert abs(mean(normal) - 3) < 0.15
    assert abs(mean((v - 3) ** 2 for v in normal) - 4) < 0.4
    weighted = draws({"values": ["a", "b"], "probabilities": [0.9, 0.1]})
    assert abs(mean(v == "a" for v in weighted) - 0.9) < 0.03
    assert set(draws({"distribution": "q_normal", "q": 1}, 200)) <= set(range(-6, 7))
    assert all(0 <= v <= 1 for v in draws({"distribution": "beta", "a": 2, "b": 2}, 200))


def test_every_distribution_can_be_drawn() -> None:
    settings = {"value": 1, "values": [1, 2], "probabilities": [1, 1], "min": 1, "max": 3, "q": 1}
    for kind, keys in DISTRIBUTIONS.items():
        given_ = {"distribution": kind} | {key: settings[key] for key, default in keys.items() if default is None}
        assert math.isfinite(parameter("a", given_, "a").draw(random.Random(1))), kind


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"vales": [1]}, "Unknown key in p: 'vales'; did you mean 'values'?"),
        ({"values": [1], "q": 2}, "Unknown key of categorical in p: 'q'. Known: values."),
        ({"values": []}, "must be a list with at least one entry"),
        ({"distribution": "log_uniform_value", "min": 1, "max": 2}, "did you mean 'log_uniform_values'?"),
        ({"distribution": "q_uniform", "min": 1}, "is q_uniform and lacks max; add it"),
        ({"min": "1e-3", "max": 1}, "min must be a number, got '1e-3'; in YAML a power of ten needs a point: 1.0e-3"),
        ({"min": 2, "max": 1}, "min must not be above max, got 2 and 1"),
        ({"distribution": "int_uniform", "min": 0.5, "max": 2}, "needs whole numbers, got 0.5 and 2"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 2}, "min must be above 0"),
        ({"distribution": "q_uniform", "min": 0.1, "max": 0.9, "q": 1}, "no multiple of q=1 lies between 0.1 and 0.9"),
        ({"values": [1, 2], "probabilities": [1]}, "must be one number of 0 or more for each value"),
        ({"distribution": "uniform"}, "is uniform and lacks min, max"),
        ({"q": 2}, "needs value, values, min and max, or a distribution"),
        (7, "must be an object such as"),
    ],
)
def test_a_wrong_parameter_is_refused(given_: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parameter("p", given_, "p")
    assert message in str(caught.value)


GOOD = {"method": "grid", "parameters": {"a": {"value": 1}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methd": "grid"}, "Unknown key in sweep: 'methd'; did you mean 'method'?"),
        ({"method": "bayes"}, "method bayes needs wandb's server: `wandb sweep FILE` and `wandb agent ID` run it"),
        ({"method": "gird"}, "Unknown method 'gird'; did you mean 'grid'?"),
        ({"parameters": {}}, "must name at least one parameter"),
        ({"parameters": {"a b": {"value": 1}}}, "named by letters, digits"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}, "value": 2}}}, "can hold nothing else"),
        ({"metric": {"name": "fvu", "gaol": "minimize"}}, "did you mean 'goal'?"),
        ({"metric": {"name": "fvu", "goal": "min"}}, "did you mean 'minimize'?"),
        ({"run_cap": 0}, "run_cap must be a whole number of 1 or more, got 0"),
        ({"command": ["${env}", "${arg}"]}, "Unknown macro in sweep: command: 'arg'; did you mean 'args'?"),
        ({"command": "mechscope"}, "command must be a list of words"),
        ({"scheduler": {"engine": "optuna"}}, "scheduler cannot be run here"),
        ({"name": 3}, "name must be text, got 3"),
    ],
)
def test_a_wrong_file_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_sweep(GOOD | change)
    assert message in str(caught.value)


def test_early_termination_is_left_to_wandb_and_said() -> None:
    assert "every cell runs to its end" in parse_sweep(GOOD | {"early_terminate": {"type": "hyperband"}}).notes[0]


def test_no_yaml_is_told(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    for text, message in (("a: [1", "is no YAML file"), ("- 1", "must be an object with keys"), ("", "must be an obj")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_sweep(path)
    path.write_text("!!python/object/apply:os.system [true]")
    with pytest.raises(ValueError, match="is no YAML file"):
        read_sweep(path)
