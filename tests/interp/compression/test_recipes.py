from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.compression import STEPS, describe_recipe, read_recipe, read_spec, recipe_json
from interp.compression.recipes import LIMIT, NAMED, parse_recipe
from interp.compression.steps import Magnitude, Rtn, SkipLayers
from interp.config import digest, from_json, to_json
from interp.models import ModelSpec
from interp.runs.records import slugify

FILES = sorted((Path(__file__).resolve().parents[3] / "recipes").glob("*.yaml"))

patterns = st.lists(st.sampled_from(["*.mlp.*", "lm_head", "*.1.*", "a: b", "[x]"]), max_size=3).map(tuple)
seeds = st.integers(0, 2**31)
shares = st.floats(0, 1)
on_matrices: dict[str, Any] = {
    "include": patterns,
    "exclude": patterns,
    "least_coverage": st.none() | shares,
}
bits = st.none() | st.integers(2, 8)
modes = st.sampled_from(["symmetric", "asymmetric"])
sites = st.lists(st.sampled_from(["resid_post.*", "k.0", "mlp_act.2"]), min_size=1, max_size=3).map(tuple)
FIELDS: dict[str, dict[str, Any]] = {
    "rtn": {"bits": bits, "mode": modes, "group": st.none() | st.integers(1, 512), **on_matrices},
    "magnitude": {"sparsity": shares, "scope": st.sampled_from(["matrix", "row", "global"]), **on_matrices},
    "random_prune": {"sparsity": shares, "seed": seeds, **on_matrices},
    "svd": {"rank": st.none() | st.integers(1, 4096), **on_matrices},
    "weight_noise": {"std": st.floats(0, 10), "seed": seeds, **on_matrices},
    "skip_layers": {"layers": st.sets(st.integers(0, 99), max_size=4).map(tuple)},
    "quantise_activations": {"bits": bits, "sites": sites, "mode": modes},
    "activation_noise": {"std": st.floats(0, 10), "sites": sites, "seed": seeds},
}
any_step = st.one_of([st.tuples(st.just(name), st.fixed_dictionaries(fields)) for name, fields in FIELDS.items()])


def test_every_step_is_drawn() -> None:
    assert FIELDS.keys() == STEPS.keys()
    assert all(STEPS[name].name == name for name in STEPS)


@given(steps=st.lists(any_step, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_recipe_survives_json(steps: list[tuple[str, dict[str, Any]]]) -> None:
    recipe: Any = tuple(STEPS[name](**fields) for name, fields in steps)
    spec = ModelSpec("tiny", dtype="float16", recipe=recipe)
    written = json.loads(json.dumps(to_json(spec)))
    assert written["recipe"] == recipe_json(recipe)
    found = read_spec(written)
    assert found == spec
    assert digest(found) == digest(spec)
    if recipe:
        assert parse_recipe(recipe_json(recipe)) == recipe
        assert read_recipe(json.dumps(recipe_json(recipe))) == recipe
    assert slugify(describe_recipe(recipe))


def test_a_model_without_a_recipe_keeps_its_identity() -> None:
    """Runs made before there were steps hold exactly this."""
    assert to_json(ModelSpec("tiny")) == {"name": "tiny", "revision": None, "dtype": "float32", "recipe": []}
    assert digest(ModelSpec("tiny")) == "e1763bec453d65cf37801f9a76f7dd1b86d9189d6e70288b6fc8967ed61b8f70"
    assert read_spec({"name": "tiny"}) == read_spec(to_json(ModelSpec("tiny"))) == ModelSpec("tiny")
    assert from_json(ModelSpec, to_json(ModelSpec("tiny"))) == ModelSpec("tiny")


def test_the_order_of_skipped_layers_is_not_in_the_identity() -> None:
    assert digest(read_recipe("[{step: skip_layers, layers: [4, 3]}]")) == digest((SkipLayers((3, 4)),))


def test_the_arguments_are_in_the_identity() -> None:
    specs = [ModelSpec("tiny", recipe=(step,)) for step in (Rtn(4), Rtn(8), Rtn(4, group=8), Magnitude(0.4))]
    specs += [ModelSpec("tiny", recipe=(Rtn(4), Magnitude(0.4))), ModelSpec("tiny", recipe=(Magnitude(0.4), Rtn(4)))]
    assert len({digest(spec) for spec in specs}) == len(specs)


@pytest.mark.parametrize(
    "text",
    [
        "[{step: rtn, bits: 4, group: 64}, {step: skip_layers, layers: 3}]",
        "- {step: rtn, bits: 4, group: 64}\n- step: skip_layers\n  layers: [3]\n",
        '[{"step": "rtn", "bits": 4, "group": 64}, {"step": "skip_layers", "layers": [3]}]',
    ],
)
def test_yaml_json_and_files_say_the_same(text: str, tmp_path: Path) -> None:
    expected = (Rtn(4, group=64), SkipLayers((3,)))
    assert read_recipe(text) == expected
    path = tmp_path / "r.yaml"
    path.write_text(text)
    assert read_recipe(path) == read_recipe(str(path)) == expected


def test_numbers_and_single_values_as_people_write_them() -> None:
    (noise,) = read_recipe("[{step: weight_noise, std: 1e-3, include: '*.mlp.*'}]")
    assert to_json(noise)["std"] == 1e-3
    assert to_json(noise)["include"] == ["*.mlp.*"]
    assert read_recipe("[{step: rtn, bits: null}]") == (replace(Rtn(4), bits=None),)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_example_files(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe
    if path.stem in NAMED:
        assert recipe == read_recipe(path.stem)


def test_every_name_has_a_file() -> None:
    assert {path.stem for path in FILES} >= NAMED.keys()


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ((), "as-stored"),
        ((Rtn(4, group=64), Magnitude(0.3)), "rtn-4bit-g64+magnitude-30%"),
        ((Rtn(3, "asymmetric", include=("*.mlp.*",)), SkipLayers((4, 3))), "rtn-3bit-asym@*.mlp.*+skip_layers-3.4"),
    ],
)
def test_descriptions(recipe: tuple, text: str) -> None:
    assert describe_recipe(recipe) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "the recipe is empty; a recipe is a list of steps: [{step: rtn, bits: 4}]"),
        ("{step: rtn}", "the recipe must be a list of steps, such as [{step: rtn, bits: 4}], got {'step': 'rtn'}."),
        ("[rtn]", "step 1 of the recipe must be a mapping with the key 'step'"),
        ("[{bits: 4}]", "step 1 of the recipe must be a mapping with the key 'step'"),
        ("[{step: rtn}, {step: rnt}]", "Unknown step in step 2 of the recipe: 'rnt'; did you mean 'rtn'?"),
        ("[{step: [rtn]}]", "Unknown step in step 1 of the recipe: ['rtn']"),
        ("[{step: rtn, bit: 4}]", "key in step 1 of the recipe (rtn): 'bit'; did you mean 'bits'?"),
        ("[{step: rtn, bits: four}]", "step 1 of the recipe (rtn).bits must be"),
        ("[{step: rtn, bits: 12}]", "step 1 of the recipe (rtn): bits of rtn must lie in 2..8, got 12."),
        ("[{step: rtn, bits: 4, bits: 3}]", "the key 'bits' stands twice in line 1"),
        ("[{step: rtn, mode: symetric}]", "did you mean 'symmetric'?"),
        ("[{step: magnitude, sparsity: 30}]", "sparsity of magnitude must lie in 0..1, got 30"),
        ("[{step: magnitude, sparsity: .nan}]", "sparsity of magnitude must lie in 0..1, got nan"),
        ("[{step: skip_layers, layers: [-1]}]", "layers of skip_layers are whole numbers from 0 on, got -1."),
        ("[{step: skip_layers, layers: [1, 1]}]", "layers of skip_layers must differ, got [1, 1]."),
        ("[{step: rtn", "the recipe is no YAML:"),
        ("[{step: rtn, bits: 2001-99-99}]", "the recipe holds a value that cannot be read: month must be in 1..12."),
        ("[{step: rtn, bits: " + "9" * 5000 + "}]", "the recipe holds a value that cannot be read: Exceeds the limit"),
        ("[" * LIMIT, "the recipe has more than 16 brackets inside one another"),
        ("- " * 5000, "the recipe is nested too deeply"),
        ("[&a {step: rtn}, *a]", "the recipe uses YAML aliases"),
        ("[!!python/object/apply:os.system ['true']]", "the recipe is no YAML:"),
        ("[" + "{step: rtn}," * 1001 + "]", "the recipe has 1,001 steps; a recipe has at most 1,000."),
        ("- " + "x" * LIMIT, "A recipe has at most 65,536 characters, got 65,538."),
        ("int44", "Unknown recipe 'int44'; did you mean 'int4'?"),
        ("nowhere/r.yaml", "There is no such file either."),
        ("", "There is no such file either."),
        ("a\0b", "There is no such file either."),
        ("x" * 5000, "There is no such file either."),
    ],
)
def test_bad_text(text: str, message: str) -> None:
    with pytest.raises(ValueError) as found:
        read_recipe(text)
    assert message in str(found.value)
    assert len(str(found.value)) < 700


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; a recipe is a list of steps"),
        (b"# only a comment\n", "is empty; a recipe is a list of steps"),
        (b"just words", "must be a list of steps, such as [{step: rtn, bits: 4}], got 'just words'."),
        (b"\x93NUMPY\x01\x00\xff\xfe", "is no text (byte 0 is no UTF-8)"),
        (b"\x00\x01\x02", "is no YAML"),
        (b"-" * (LIMIT + 1), "has 65,537 bytes; a recipe has at most 65,536."),
    ],
)
def test_bad_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError) as found:
        read_recipe(path)
    assert message in str(found.value)
    assert str(path) in str(found.value)
    with pytest.raises(ValueError, match="is no file; a recipe is a small YAML or JSON file"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the model must be an object with keys, got []."),
        ({"name": "tiny", "dtpye": "float32"}, "did you mean 'dtype'?"),
        ({"name": "tiny", "recipe": "int4"}, "the recipe of the model must be a list of steps"),
        ({"name": "tiny", "recipe": [{"step": "rtm"}]}, "did you mean 'rtn'?"),
        ({"name": "tiny", "recipe": [{"factor": 2.0}]}, "must be a mapping with the key 'step'"),
    ],
)
def test_bad_specs(data: Any, message: str) -> None:
    with pytest.raises(ValueError) as found:
        read_spec(data)
    assert message in str(found.value)
