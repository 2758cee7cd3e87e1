from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.config import canonical, digest, from_json, to_json


class Mode(enum.Enum):
    FAST = "fast"
    EXACT = "exact"


@dataclass(frozen=True)
class Inner:
    k: int = 32
    rate: float = 0.1
    name: str | None = None


@dataclass(frozen=True)
class Other:
    path: Path


@dataclass(frozen=True)
class Outer:
    inner: Inner
    width: int
    kind: Literal["topk", "relu"] = "topk"
    flags: tuple[bool, ...] = ()
    pair: tuple[int, str] = (1, "a")
    args: dict[str, bool | int | float | str] = field(default_factory=dict)
    rows: list[Inner] = field(default_factory=list)
    choice: Inner | Other | None = None
    mode: Mode = Mode.FAST
    derived: int = field(default=7, init=False)


finite = st.floats(allow_nan=False, allow_infinity=False)
inners = st.builds(Inner, k=st.integers(), rate=finite, name=st.none() | st.text())
outers = st.builds(
    Outer,
    inner=inners,
    width=st.integers(),
    kind=st.sampled_from(["topk", "relu"]),
    flags=st.lists(st.booleans()).map(tuple),
    pair=st.tuples(st.integers(), st.text()),
    args=st.dictionaries(st.text(), st.booleans() | st.integers() | finite | st.text()),
    rows=st.lists(inners, max_size=3),
    choice=st.none() | inners | st.builds(Other, path=st.sampled_from([Path("a/b"), Path("/x")])),
    mode=st.sampled_from(Mode),
)


@given(config=outers)
def test_round_trip_through_a_file(config: Outer) -> None:
    back = from_json(Outer, json.loads(json.dumps(to_json(config))))
    assert back == config
    assert {k: type(v) for k, v in back.args.items()} == {k: type(v) for k, v in config.args.items()}
    assert digest(back) == digest(config) == digest(to_json(config))


def test_integers_become_floats_where_a_float_is_wanted() -> None:
    rate = from_json(Inner, {"rate": 1}).rate
    assert rate == 1.0
    assert type(rate) is float


def test_unknown_key_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"Unknown key in run\.inner: 'kk'; did you mean 'k'\? Known: k, name, rate\."):
        from_json(Outer, {"inner": {"kk": 3}, "width": 1}, where="run")
    with pytest.raises(ValueError, match="Unknown key in configuration: 'derived'"):
        from_json(Outer, {"inner": {}, "width": 1, "derived": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": "x"}, r"configuration\.width must be an integer, got 'x'\."),
        ({"width": True}, r"configuration\.width must be an integer, got True\."),
        ({"width": 1.5}, r"configuration\.width must be an integer, got 1\.5\."),
        ({"inner": {"k": None}}, r"configuration\.inner\.k must be an integer, got None\."),
        ({"inner": {"name": 3}}, r"configuration\.inner\.name must be text or null, got 3\."),
        ({"inner": 3}, r"configuration\.inner must be an object with keys, got 3\."),
        ({"kind": "topkk"}, r"Unknown value of configuration\.kind: 'topkk'; did you mean 'topk'\?"),
        ({"mode": "fats"}, r"Unknown value of configuration\.mode: 'fats'; did you mean 'fast'\?"),
        ({"flags": [True, 0]}, r"configuration\.flags\[1\] must be true or false, got 0\."),
        ({"flags": True}, r"configuration\.flags must be a list, got True\."),
        ({"pair": [1]}, r"configuration\.pair must have 2 entries, got 1\."),
        ({"args": [1]}, r"configuration\.args must be an object with keys, got \[1\]\."),
        (
            {"args": {"k": None}},
            r"configuration\.args\.k must be true or false or an integer or a number or text, got None",
        ),
        ({"rows": [{"rate": "x"}]}, r"configuration\.rows\[0\]\.rate must be a number, got 'x'\."),
        ({"choice": {"pat": "x"}}, r"Unknown key in configuration\.choice: 'pat'"),
        ({"choice": {"path": 3}}, r"Unknown key in configuration\.choice: 'path'|must be text"),
    ],
)
def test_wrong_types_are_refused_with_the_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Outer, {"inner": {}, "width": 1} | change)


def test_missing_key_and_no_object() -> None:
    with pytest.raises(ValueError, match="configuration lacks the key 'width', which has no default; add it"):
        from_json(Outer, {"inner": {}})
    with pytest.raises(ValueError, match="run must be an object with keys, got"):
        from_json(Outer, [1, 2], where="run")


def test_a_refusal_of_the_class_itself_says_where() -> None:
    @dataclass(frozen=True)
    class Positive:
        k: int

        def __post_init__(self) -> None:
            if self.k < 1:
                raise ValueError(f"k must be at least 1, got {self.k}.")

    Positive.__module__ = __name__
    with pytest.raises(ValueError, match=r"configuration: k must be at least 1, got 0\."):
        from_json(Positive, {"k": 0})


def test_classes_may_say_how_they_are_written() -> None:
    back = from_json(Holder, to_json(Holder(Point(2, "z"))))
    assert to_json(Holder(Point(2, "z"))) == {"point": "z.2"}
    assert back == Holder(Point(2, "z"))


@dataclass(frozen=True)
class Point:
    layer: int
    kind: str

    def __to_json__(self) -> str:
        return f"{self.kind}.{self.layer}"

    @classmethod
    def __from_json__(cls, data: str) -> Point:
        kind, layer = data.split(".")
        return cls(int(layer), kind)


@dataclass(frozen=True)
class Holder:
    point: Point


def test_equal_values_have_one_canonical_form() -> None:
    assert canonical({"b": 1.0, "a": (1, None, "é")}) == '{"a":[1,null,"\\u00e9"],"b":1}'
    assert digest({"a": 1, "b": 2.0}) == digest({"b": 2, "a": 1.0})
    assert digest({"a": 1e300}) != digest({"a": 1e301})
    assert digest({"a": True}) != digest({"a": 1})
    assert digest({"a": -0.0}) == digest({"a": 0})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_have_no_hash(value: float) -> None:
    with pytest.raises(ValueError, match=r"sae\.rate\[1\] is .*; a configuration holds finite numbers only"):
        digest({"sae": {"rate": [1, value]}})


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", {"f": print}])
def test_what_is_no_configuration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="A configuration holds dataclasses"):
        to_json(value)


def test_keys_must_be_text() -> None:
    with pytest.raises(ValueError, match="Keys of a configuration must be text, got 1"):
        to_json({1: "a"})
