"""The trained toy transformers: read from safetensors, with the figures that their authors give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from interp.layers.heads import head_scores
from interp.models import ModelSpec, load_model
from interp.models.compiled import read_trained


def write(path: Path, **changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Write a random model of the study's form: 1 layer, 2 heads of 3, d_model 6, MLP 5, 7 tokens, 4 positions."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "embed.W_E": (6, 7), "pos_embed.W_pos": (4, 6), "unembed.W_U": (6, 7), "blocks.0.attn.W_Q": (2, 3, 6),
        "blocks.0.attn.W_K": (2, 3, 6), "blocks.0.attn.W_V": (2, 3, 6), "blocks.0.attn.W_O": (6, 6),
        "blocks.0.mlp.W_in": (5, 6), "blocks.0.mlp.W_out": (6, 5), "blocks.0.mlp.b_in": (5,),
        "blocks.0.mlp.b_out": (6,),
    }  # fmt: skip
    stored = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | changes
    save_file(stored, path)
    return stored


def by_definition(w: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits of one sequence, head by head and position by position."""
    n = len(tokens)
    x = w["embed.W_E"].T[tokens] + w["pos_embed.W_pos"][:n]
    heads = []
    for h in range(2):
        q, k, v = (x @ w[f"blocks.0.attn.W_{name}"][h].T for name in "QKV")
        scores = (q @ k.T / 3**0.5).masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v)
    x = x + torch.cat(heads, dim=1) @ w["blocks.0.attn.W_O"].T
    act = (x @ w["blocks.0.mlp.W_in"].T + w["blocks.0.mlp.b_in"]).relu()
    x = x + act @ w["blocks.0.mlp.W_out"].T + w["blocks.0.mlp.b_out"]
    return x @ w["unembed.W_U"]


def test_the_module_computes_what_the_tensors_say(tmp_path: Path) -> None:
    stored = write(tmp_path / "model.safetensors")
    handle = load_model(ModelSpec(str(tmp_path / "model.safetensors"), dtype="float64"), device="cpu")
    tokens = torch.tensor([3, 1, 6, 0])
    wanted = by_definition({name: value.double() for name, value in stored.items()}, tokens)
    assert torch.allclose(handle.logits(tokens)[0], wanted, atol=1e-12)
    assert handle.verify() < 1e-12
    assert handle.bos_id is None
    assert handle.d_mlp == 5


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"lacks embed\.W_E, so it is none of the known toy transformers"):
        load_model(str(tmp_path / "other.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(b"12345678")
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_trained(tmp_path / "cut.safetensors")
    write(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no revision and no device_map"):
        load_model(ModelSpec(str(tmp_path / "model.safetensors"), revision="main"))


@pytest.mark.data
@pytest.mark.parametrize(("name", "least"), [("mod_addition_no_wd", 1.0), ("low_precision_mod_addition", 0.999)])
def test_modular_addition_is_solved(data_dir: Path, name: str, least: float) -> None:
    handle = load_model(str(data_dir / "models" / "algorithmic" / f"{name}.safetensors"), device="cpu")
    a, b = torch.meshgrid(torch.arange(113), torch.arange(113), indexing="ij")
    tokens = torch.stack([a.flatten(), b.flatten(), torch.full((113**2,), 113)], dim=1)
    answers = handle.logits(tokens)[:, -1].argmax(-1)
    assert (answers == (a + b).flatten() % 113).float().mean() >= least


@pytest.mark.data
def test_the_induction_heads_are_where_they_are_said_to_be(data_dir: Path) -> None:
    handle = load_model(str(data_dir / "models" / "algorithmic" / "induction_head_infinite.safetensors"), device="cpu")
    scores = head_scores(handle, sequences=16, half=40)
    assert scores.best("previous")[:2] == (0, 2)
    order = scores.induction.flatten().argsort(descending=True)[:3]
    assert {tuple(divmod(int(i), 4)) for i in order} == {(1, 1), (1, 2), (1, 3)}
    first = torch.randint(128, (32, 40), generator=torch.Generator().manual_seed(0))
    tokens = torch.cat([first, first], dim=1)
    right = (handle.logits(tokens)[:, :-1].argmax(-1) == tokens[:, 1:]).float()
    assert right[:, 45:].mean() > 10 * right[:, :39].mean()
    finite = load_model(str(data_dir / "models" / "algorithmic" / "induction_head_finite.safetensors"), device="cpu")
    memorised = (finite.logits(tokens)[:, :-1].argmax(-1) == tokens[:, 1:]).float()
    assert memorised[:, 45:].mean() < right[:, 45:].mean() / 3
