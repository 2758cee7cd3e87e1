"""What is written can be read back, here and by the plain formulas of the other library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae.config import SaeConfig, TargetConfig
from sae.model import Sae
from sae.readers import read_dictionary, to_sae, write_dictionary
from sae.readers.export import ACTIVATION, ARCHITECTURE, Origin
from tests.sae.readers import layouts
from tests.sae.readers.layouts import D_IN, D_SAE, rows

ORIGIN = Origin("openai-community/gpt2", "resid_post.2")
K_RULES = ("topk", "gradient", "variational", "abs_topk", "batch_topk", "mutual_choice", "feature_choice", "matryoshka")
ARGS = {"group_max": {"k": 5}} | {rule: {"k": 4} for rule in K_RULES}


def dictionary(rule: str, normalise: str = "scalar", target: TargetConfig | None = None) -> Sae:
    """Return a dictionary with every tensor drawn, in evaluation mode."""
    config = SaeConfig(D_IN, D_SAE, rule, ARGS.get(rule, {}), normalise, target=target or TargetConfig())  # type: ignore[arg-type]
    sae = Sae(config)
    g = torch.Generator().manual_seed(31)
    with torch.no_grad():
        for name, value in sae.state_dict(keep_vars=True).items():
            if value.is_floating_point() and "normaliser" not in name:
                value.data.copy_(0.3 * torch.randn(value.shape, generator=g))
            if "threshold" in name:
                value.data.abs_().add_(0.1)
        sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
        if normalise == "scalar":
            sae.normaliser.scale.fill_(1.7)
            if config.target.kind == "transcoder":
                sae.target.get_buffer("normaliser.scale").fill_(0.6)
        if "kept" in dict(sae.rule.named_buffers()):
            sae.rule.get_buffer("kept")[::2] = 5
    return sae.eval()


def same(sae: Sae, again: Sae, x: Tensor, factor: float) -> None:
    with torch.no_grad():
        (recon, code), (found, other) = sae(x), again(x)
    assert 0.01 < float((code.dense() != 0).float().mean()) < 0.95
    assert torch.equal(code.dense() != 0, other.dense() != 0)
    assert torch.allclose(factor * code.dense(), other.dense(), atol=1e-3)
    assert torch.allclose(recon, found, atol=1e-3)


@pytest.mark.parametrize("rule", ARCHITECTURE)
@pytest.mark.parametrize("normalise", ["scalar", "none", "layer"])
def test_to_sae_lens_and_back(rule: str, normalise: str, tmp_path: Path) -> None:
    sae = dictionary(rule, normalise)
    paths = write_dictionary(sae, ORIGIN, tmp_path / "d", "sae-lens")
    assert [path.name for path in paths] == ["cfg.json", "sae_weights.safetensors"]
    format, foreign = read_dictionary(tmp_path / "d")
    assert (format, foreign.model, foreign.site) == ("sae-lens", "openai-community/gpt2", "resid_post.2")
    again = to_sae(foreign)
    same(sae, again, rows(), 1.7 if normalise == "scalar" else 1.0)
    assert torch.allclose(again.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-5)


@pytest.mark.parametrize("rule", ACTIVATION)
def test_to_sparsify_and_back(rule: str, tmp_path: Path) -> None:
    sae = dictionary(rule)
    write_dictionary(sae, ORIGIN, tmp_path / "layers.2", "sparsify")
    format, foreign = read_dictionary(tmp_path / "layers.2")
    assert (format, foreign.site) == ("sparsify", "resid_post.2")
    same(sae, to_sae(foreign), rows(), 1.7)


def test_the_formula_of_sae_lens_gives_our_code_in_raw_units(tmp_path: Path) -> None:
    sae = dictionary("topk")
    write_dictionary(sae, ORIGIN, tmp_path / "d", "sae-lens")
    from safetensors.torch import load_file

    tensors, config = (
        load_file(tmp_path / "d" / "sae_weights.safetensors"),
        json.loads((tmp_path / "d" / "cfg.json").read_text()),
    )
    assert config["apply_b_dec_to_input"] is True
    assert tensors["W_enc"].shape == (D_IN, D_SAE)
    x = rows()
    z = layouts.largest(layouts.lens_pre(tensors, x), config["k"]).relu()
    with torch.no_grad():
        recon, code = sae(x)
    assert torch.allclose(z, 1.7 * code.dense(), atol=1e-4)
    assert torch.allclose(layouts.lens_decode(tensors, z, x), recon, atol=1e-4)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("rule", "format"), [("relu", "sae-lens"), ("topk", "sparsify")])
def test_transcoders_with_a_scale_at_both_ends(rule: str, format: str, skip: bool, tmp_path: Path) -> None:
    sae = dictionary(rule, target=TargetConfig("transcoder", d_out=8, skip=skip))
    write_dictionary(sae, Origin("gpt2", "resid_mid.1", "mlp_out.1"), tmp_path / "d", format)
    _, foreign = read_dictionary(tmp_path / "d")
    assert foreign.target == TargetConfig("transcoder", d_out=8, skip=skip)
    same(sae, to_sae(foreign), rows(), 0.6)


def test_heads_are_written_side_by_side(tmp_path: Path) -> None:
    write_dictionary(dictionary("relu"), Origin("gpt2", "head_out.5"), tmp_path / "d", "sae-lens")
    config = json.loads((tmp_path / "d" / "cfg.json").read_text())
    assert config["reshape_activations"] == "hook_z"
    assert config["metadata"]["hook_name"] == "blocks.5.attn.hook_z"


def test_what_a_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="sparsify has no input dictionary that does what rule 'relu' does; known: topk, "
    ):
        write_dictionary(dictionary("relu"), ORIGIN, tmp_path / "a", "sparsify")
    with pytest.raises(ValueError, match="sparsify has no layer normalisation"):
        write_dictionary(dictionary("topk", "layer"), ORIGIN, tmp_path / "a", "sparsify")
    with pytest.raises(ValueError, match="sae-lens has no dictionary that does what rule 'group_max' does"):
        write_dictionary(dictionary("group_max"), ORIGIN, tmp_path / "a", "sae-lens")
    with pytest.raises(ValueError, match="Unknown format to write 'gemma-scope'"):
        write_dictionary(dictionary("relu"), ORIGIN, tmp_path / "a", "gemma-scope")
    assert not (tmp_path / "a").exists()


def test_nothing_is_replaced(tmp_path: Path) -> None:
    write_dictionary(dictionary("relu"), ORIGIN, tmp_path, "sae-lens")
    before = (tmp_path / "cfg.json").read_bytes()
    with pytest.raises(ValueError, match=r"cfg\.json is there already"):
        write_dictionary(dictionary("topk"), ORIGIN, tmp_path, "sae-lens")
    assert (tmp_path / "cfg.json").read_bytes() == before
