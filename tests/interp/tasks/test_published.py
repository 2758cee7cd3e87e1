"""Published circuits and files of prompts, read from a folder of the user's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interp.models import ModelHandle, load_model
from interp.tasks import pairs_from_file, published_circuit
from interp.tasks.published import Edge, Node


def write_ioi(folder: Path) -> None:
    """Write a small circuit in the form of the IOI file."""
    data = {
        "model": "small",
        "heads": {"early": [[0, 1], [1, 0]], "late": [[1, 2]]},
        "group_connections": [
            {"src": "INPUT", "dst": "early", "inputs": ["q", "k"]},
            {"src": "early", "dst": "late", "inputs": ["v"]},
            {"src": "late", "dst": "OUTPUT", "inputs": []},
        ],
    }
    (folder / "ioi_ground_truth.json").write_text(json.dumps(data), encoding="utf-8")


def test_a_circuit_becomes_nodes_and_edges(tmp_path: Path) -> None:
    write_ioi(tmp_path)
    found = published_circuit("ioi", tmp_path)
    first, second, late = Node("head_out", 0, 1), Node("head_out", 1, 0), Node("head_out", 1, 2)
    assert found.nodes == {first, second, late}
    assert found.roles[late] == "late"
    enter = {Edge(Node("input"), node, way) for node in (first, second) for way in "qk"}
    # 1.0 and 1.2 are in one layer: neither can tell the other anything
    assert found.edges == enter | {Edge(first, late, "v"), Edge(late, Node("output"))}
    truth = found.truth(2, 3).to_pylist()
    assert len(truth) == 6
    assert {(row["layer"], row["head"]) for row in truth if row["in_circuit"]} == {(0, 1), (1, 0), (1, 2)}
    with pytest.raises(ValueError, match="reaches layer 1 and head 2; this model has 2 layers of 2 heads"):
        found.truth(2, 2)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown published circuit 'iou'; did you mean 'ioi'"):
        published_circuit("iou", tmp_path)
    with pytest.raises(ValueError, match=r"There is no docstring_ground_truth\.json"):
        published_circuit("docstring", tmp_path)
    (tmp_path / "ioi_ground_truth.json").write_text('{"model": "x"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"does not have the form of a published circuit: KeyError\('heads'\)"):
        published_circuit("ioi", tmp_path)


@pytest.mark.data
def test_the_published_circuits(data_dir: Path) -> None:
    ioi = published_circuit("ioi", data_dir / "circuits")
    assert len(ioi.nodes) == 26
    assert ioi.roles[Node("head_out", 9, 9)] == "name mover"
    assert Edge(Node("head_out", 7, 3), Node("head_out", 9, 9), "q") in ioi.edges
    greater = published_circuit("greater_than", data_dir / "circuits")
    assert {node.kind for node in greater.nodes} == {"head_out", "mlp_out"}
    assert len(greater.nodes) == 17
    assert Edge(Node("mlp_out", 0), Node("mlp_out", 1)) in greater.edges
    assert Edge(Node("mlp_out", 11), Node("output")) in greater.edges
    assert Edge(Node("mlp_out", 1), Node("mlp_out", 0)) not in greater.edges
    docstring = published_circuit("docstring", data_dir / "circuits")
    assert len(docstring.edges) == 24
    assert Edge(Node("head_out", 1, 4), Node("head_out", 3, 0), "q") in docstring.edges
    ends = {node for edge in docstring.edges for node in (edge.source, edge.target) if node.kind == "head_out"}
    assert ends == docstring.nodes


def prompts(tmp_path: Path, rows: list[tuple[str, str, list[str], list[str]]]) -> Path:
    keys = ("clean", "corrupt", "answers", "wrong_answers")
    path = tmp_path / "some_prompts.json"
    path.write_text(json.dumps({"prompts": [dict(zip(keys, row, strict=True)) for row in rows]}), encoding="utf-8")
    return path


def test_json_prompts_become_pairs(tmp_path: Path, model: ModelHandle) -> None:
    path = prompts(
        tmp_path, [("the cat", "the dog", [" the", " sat"], [" and"]), ("the mat", "the log", [" the"], ["e"])]
    )
    pairs = pairs_from_file(model, path)
    assert pairs.task == "some_prompts"
    assert torch.equal(pairs.clean.cpu(), model.tokens(["the cat", "the mat"]).cpu())
    assert torch.equal(pairs.corrupt.cpu(), model.tokens(["the dog", "the log"]).cpu())
    assert pairs.correct.tolist()[1][1:] == [-1] * (pairs.correct.shape[1] - 1)
    assert len(pairs_from_file(model, path, n=1)) == 1


def test_unequal_lengths_are_refused_with_the_lengths(tmp_path: Path, gpt2: ModelHandle) -> None:
    path = prompts(
        tmp_path, [("xyz", "xyw", ["a"], ["b"]), ("xyzxyz", "xyzxyw", ["a"], ["b"]), ("xy", "x", ["a"], ["b"])]
    )
    with pytest.raises(ValueError, match="has 1 of 2 and 1, 1 of 3, 1 of 6 tokens. Pass length="):
        pairs_from_file(gpt2, path)
    assert pairs_from_file(gpt2, path, length=6).clean.shape == (1, 7)
    with pytest.raises(ValueError, match="has no prompts of 9 tokens"):
        pairs_from_file(gpt2, path, length=9)
    with pytest.raises(ValueError, match="1 of 1 prompts of some_prompts.json have no right or no wrong answer"):
        pairs_from_file(gpt2, prompts(tmp_path, [("xyz", "xyw", ["qqqq"], ["b"])]))
    with pytest.raises(ValueError, match="There is no file of prompts"):
        pairs_from_file(gpt2, tmp_path / "none.json")
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="no file of prompts in auto-circuit's form"):
        pairs_from_file(gpt2, path)


def test_csv_prompts_become_pairs(tmp_path: Path, gpt2: ModelHandle) -> None:
    path = tmp_path / "some.csv"
    path.write_text("clean,corrupted,answer,wrong_answer\nxyz,xyw,a,b\n", encoding="utf-8")
    pairs = pairs_from_file(gpt2, path)
    assert (pairs.correct.item(), pairs.wrong.item()) == tuple(gpt2.tokens("ab", bos=False)[0].tolist())
    own, other = gpt2.tokens("xz", bos=False)[0].tolist()
    path.write_text(f"clean,corrupted,correct_idx,incorrect_idx\nxyz,xyw,{own},{other}\n", encoding="utf-8")
    assert pairs_from_file(gpt2, path).correct.item() == own
    path.write_text(f"clean,corrupted,correct_idx,incorrect_idx\nxyz,xyw,{own},299\n", encoding="utf-8")
    with pytest.raises(ValueError, match="ids of another tokenizer: 299 is no token of its prompt"):
        pairs_from_file(gpt2, path)
    path.write_text("clean,wrong\nx,y\n", encoding="utf-8")
    with pytest.raises(ValueError, match="it has clean, wrong"):
        pairs_from_file(gpt2, path)


@pytest.mark.data
def test_the_published_prompts(data_dir: Path, make_module: Callable[..., torch.nn.Module]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data_dir / "tokenizers" / "gpt2")
    module = make_module("gpt2", vocab_size=50257, n_positions=128, n_layer=1, n_embd=8, n_head=2)
    handle = load_model(module, tokenizer=tokenizer)
    folder = data_dir / "circuits" / "prompts"
    years = pairs_from_file(handle, folder / "greater_than_data.csv", n=20)
    assert years.metric == "probability_diff"
    assert handle.token_strings(years.clean[0])[8] == years_of(handle, years.clean[0])
    docstring = pairs_from_file(handle, folder / "autocircuit_docstring_prompts.json", n=20)
    assert docstring.wrong.shape[1] > 1
    with pytest.raises(ValueError, match="autocircuit_ioi_prompts.json has 255 of 14, 235 of 15"):
        pairs_from_file(handle, folder / "autocircuit_ioi_prompts.json")
    assert len(pairs_from_file(handle, folder / "autocircuit_ioi_prompts.json", length=15)) == 235
    with pytest.raises(ValueError, match="ids of another tokenizer"):
        pairs_from_file(handle, folder / "ioi_eapig_llama.csv")


def years_of(handle: ModelHandle, ids: torch.Tensor) -> str:
    """Return the last two digits of the first year in a prompt."""
    return handle.decode(ids).split("year ")[1][2:4]
