"""Parameters as text, numbers and objects become options; every form that wandb's agent passes is read alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils as agent

from app.sweeps.options import convert, nested, read_arguments
from app.sweeps.programs import open_program
from app.sweeps.schema import MACROS, parse_sweep
from app.sweeps.training import Cell
from interp.config import from_json

TABLE = open_program("train").table()
ROOT = Path(__file__).resolve().parents[2]


def test_every_option_of_training_and_evaluation_is_there_and_none_that_the_sweep_sets() -> None:
    assert {"model", "site", "store", "text", "context", "tokens", "d_sae", "rule", "rule_args"} <= set(TABLE)
    assert {"train.lr", "train.tokens", "train.seed", "evaluate.tokens", "evaluate.keep_bos"} <= set(TABLE)
    assert not {"runs", "json", "wandb", "evaluate.sae", "evaluate.runs"} & set(TABLE)


def test_values_get_the_type_of_their_option() -> None:
    given = {"train.lr": "1e-3", "train.tokens": 4096.0, "d_sae": "1024", "site": "None", "revision": 12,
             "across-documents": "False", "rule_args.k": "8", "text": "7"}  # fmt: skip
    values = convert(given, TABLE)
    assert values == {"train.lr": 0.001, "train.tokens": 4096, "d_sae": 1024, "site": None, "revision": "12",
                      "across_documents": False, "rule_args.k": 8, "text": "7"}  # fmt: skip
    assert type(values["train.tokens"]) is int
    assert convert(values, TABLE) == values, "once more changes nothing"
    cell = from_json(Cell, nested(values, TABLE))
    assert cell.train.train.lr == 0.001
    assert cell.train.rule_args == {"k": 8}
    assert cell.train.data.across_documents is False
    assert cell.train.data.text == "7"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trian.lr": 1}, "Unknown option in parameters: 'trian.lr'; did you mean 'train.lr'?"),
        ({"wandb": "online"}, "Unknown option in parameters: 'wandb'"),
        ({"train.lr": "fast"}, "parameters.train.lr must be a number or null, got 'fast'"),
        ({"train.tokens": 0.5}, "parameters.train.tokens must be an integer, got 0.5"),
        ({"normalise": "scaler"}, "did you mean 'scalar'?"),
        ({"rule_args.k": 1, "rule_args": {"k": 2}}, "'rule_args.k' is given twice"),
        ({"d_sae": [1, 2]}, "parameters.d_sae must be"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        convert(given, TABLE)
    assert message in str(caught.value)


# What an agent is sent for one run. wandb sends nested parameters as objects.
SENT = {
    "model": "tiny",
    "site": None,
    "train.lr": 0.001,
    "d_sae": 1024,
    "rule_args": {"k": 16},
    "evaluate.keep_bos": True,
    "text": "a folder/with space",
}


def stand_in_agent(command: list[str], program: str, values: dict[str, Any], folder: Path) -> list[str]:
    """Return the words that wandb's agent would start: its own expansion, without its server."""
    sent = {"args": {name: {"value": value} for name, value in values.items()}}
    macros = agent.create_sweep_command_args(sent)
    file = folder / "config.json"
    file.write_text(macros["args_json"][0])
    macros |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [program], "args_json_file": [str(file)]}
    words: list[str] = []
    for word in map(str, agent.create_sweep_command(list(command))):
        words += macros[word[2:-1]] if word.startswith("${") else [word]
    return words


ARGUMENTS = [name for name in MACROS if name.startswith("args")]


@pytest.mark.parametrize("macro", ARGUMENTS)
def test_every_form_of_the_agents_arguments_is_read(macro: str, tmp_path: Path) -> None:
    words = stand_in_agent(["--cell", "${program}", f"${{{macro}}}"], "train", SENT, tmp_path)
    assert words[:2] == ["--cell", "train"]
    expected = {"model": "tiny", "site": None, "train.lr": 0.001, "d_sae": 1024, "rule_args.k": 16,
                "evaluate.keep_bos": True, "text": "a folder/with space"}  # fmt: skip
    assert convert(read_arguments(words[2:]), TABLE) == expected


def test_a_false_flag_is_what_the_agent_leaves_out(tmp_path: Path) -> None:
    words = stand_in_agent(["${args_no_boolean_flags}"], "train", {"evaluate.keep_bos": False, "d_sae": 8}, tmp_path)
    assert convert(read_arguments(words), TABLE) == {"d_sae": 8}
    words = stand_in_agent(["${args}"], "train", {"evaluate.keep_bos": False}, tmp_path)
    assert convert(read_arguments(words), TABLE) == {"evaluate.keep_bos": False}


@pytest.mark.parametrize("file", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.name)
def test_the_agent_and_the_local_runner_see_the_same_cells_in_a_shipped_file(file: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(file.read_text())
    sweep = parse_sweep(data)
    table = open_program(sweep.program).table()
    cells = sweep.cells(count=None if sweep.method == "grid" else 5)
    assert cells
    for cell in cells:
        words = stand_in_agent(data["command"], data["program"], cell, tmp_path)
        assert words[:4] == ["/usr/bin/env", "mechscope", "sweep", "--cell"]
        assert words[4] == sweep.program
        assert convert(read_arguments(words[5:]), table) == convert(cell, table)


def test_words_that_are_no_parameters_are_refused() -> None:
    for words, message in (
        (["--d_sae=1", "--d_sae=2"], "'d_sae' is given twice"),
        (["word"], "given as --key=value or as one JSON object"),
        (["{1: 2}"], "must be an object with names"),
        (["{oops"], "must be a JSON object"),
    ):
        with pytest.raises(ValueError, match=message):
            read_arguments(words)
    assert read_arguments([json.dumps({"a": [1]})]) == {"a": [1]}
