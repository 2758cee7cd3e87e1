"""Dictionaries of other libraries compute here what they compute there: codes and reconstructions, from files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp.config import to_json
from interp.runs import start_run
from sae.model import load_sae
from sae.readers import Foreign, read_dictionary, to_sae
from tests.sae.readers import layouts
from tests.sae.readers.layouts import D_IN, D_SAE, Case, K, rows


def check(foreign: Foreign, case: Case, tmp_path: Path) -> None:
    """Compare code and reconstruction with the plain formulas, also after saving and loading as a run."""
    sae = to_sae(foreign)
    assert sae.config.rule == case.rule
    x = rows()
    wanted = case.encode(case.tensors, x)
    recon = case.decode(case.tensors, wanted, x)
    assert 0.02 < float((wanted != 0).float().mean()) < 0.9
    with start_run("sae", {"sae": to_json(sae.config)}, slug="t", root=tmp_path / "runs") as run:
        sae.save(run)
        run.finish({})
    for one in (sae, load_sae(run)):
        with torch.no_grad():
            found, code = one(x)
        assert torch.allclose(code.dense(), wanted * case.unit(case.tensors), atol=2e-4, rtol=1e-3)
        assert torch.equal(code.dense() != 0, wanted != 0)
        assert torch.allclose(found, recon, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", layouts.LENS)
def test_sae_lens(name: str, tmp_path: Path) -> None:
    case = layouts.LENS[name]
    format, foreign = read_dictionary(layouts.write_lens(tmp_path / "d", case))
    assert format == "sae-lens"
    assert (foreign.model, foreign.site) == ("openai-community/gpt2", "resid_post.2")
    check(foreign, case, tmp_path)


def test_sae_lens_before_version_6(tmp_path: Path) -> None:
    case = layouts.LENS["topk"]
    old = Case(case.rule, case.tensors, layouts.OLD, case.encode, case.decode, case.unit)
    _, foreign = read_dictionary(layouts.write_lens(tmp_path / "d", old))
    assert (foreign.rule, foreign.args, foreign.site) == ("topk", {"k": K}, "resid_pre.2")
    check(foreign, old, tmp_path)


def test_gemma_scope_on_its_path(tmp_path: Path) -> None:
    case = layouts.gemma_case()
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71"
    format, foreign = read_dictionary(layouts.write_gemma(folder, case.tensors))
    assert format == "gemma-scope"
    assert (foreign.model, foreign.site) == ("google/gemma-2-2b", "resid_post.20")
    check(foreign, case, tmp_path)


@pytest.mark.parametrize("name", layouts.SPARSIFY)
def test_sparsify(name: str, tmp_path: Path) -> None:
    case = layouts.SPARSIFY[name]
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m", "hookpoints": []}))
    format, foreign = read_dictionary(layouts.write_sparsify(tmp_path / "layers.6.mlp", case))
    assert format == "sparsify"
    transcodes = case.config["transcode"]
    assert (foreign.site, foreign.site_out) == ((None, "mlp_out.6") if transcodes else ("mlp_out.6", None))
    assert foreign.model == "EleutherAI/pythia-160m"
    check(foreign, case, tmp_path)


@pytest.mark.parametrize("name", layouts.LEARNING)
def test_dictionary_learning(name: str, tmp_path: Path) -> None:
    format, foreign = read_dictionary(layouts.write_learning(tmp_path / "d", name))
    assert format == "dictionary-learning"
    assert (foreign.model, foreign.site) == ("EleutherAI/pythia-70m-deduped", "resid_post.3")
    check(foreign, layouts.LEARNING[name], tmp_path)


@pytest.mark.parametrize("name", layouts.LENS)
def test_atoms_have_length_one_unless_a_topk_would_pick_others(name: str, tmp_path: Path) -> None:
    _, foreign = read_dictionary(layouts.write_lens(tmp_path / "d", layouts.LENS[name]))
    length = to_sae(foreign).W_dec.detach().norm(dim=1)
    assert torch.allclose(length, torch.ones(D_SAE), atol=1e-5) == (name != "topk")


def test_equal_lengths_are_folded_into_a_topk_too(tmp_path: Path) -> None:
    case = layouts.LENS["topk"]
    tensors = case.tensors | {"W_dec": 0.1 * torch.nn.functional.normalize(case.tensors["W_dec"], dim=1)}
    _, foreign = read_dictionary(
        layouts.write_lens(tmp_path / "d", Case("topk", tensors, case.config, case.encode, case.decode))
    )
    check(foreign, Case("topk", tensors, case.config, case.encode, case.decode), tmp_path)
    assert torch.allclose(to_sae(foreign).W_dec.detach().norm(dim=1), torch.ones(D_SAE), atol=1e-5)


def test_what_training_was_told_is_kept(tmp_path: Path) -> None:
    _, batch = read_dictionary(layouts.write_lens(tmp_path / "a", layouts.LENS["jumprelu of batchtopk"]))
    assert batch.args == {"k": 4}
    _, nested = read_dictionary(layouts.write_lens(tmp_path / "b", layouts.LENS["matryoshka in training"]))
    assert nested.args == {"k": 4, "sizes": "5 15"}


def test_one_threshold_becomes_many_where_atoms_have_lengths_of_their_own(tmp_path: Path) -> None:
    case = layouts.LENS["jumprelu of batchtopk"]
    tensors = case.tensors | {"W_dec": case.tensors["W_dec"] * torch.linspace(0.5, 2, D_SAE)[:, None]}
    changed = Case("jump_relu", tensors, case.config, case.encode, case.decode)
    _, foreign = read_dictionary(layouts.write_lens(tmp_path / "d", changed))
    check(foreign, changed, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_number_formats_are_read_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    case = layouts.LENS["standard"]
    half = {name: value.to(dtype) for name, value in case.tensors.items()}
    _, foreign = read_dictionary(
        layouts.write_lens(tmp_path / "d", Case("relu", half, case.config, case.encode, case.decode))
    )
    assert foreign.W_enc.dtype == torch.float32
    assert torch.equal(foreign.W_enc, half["W_enc"].float().T)


def test_heads_side_by_side_are_head_out(tmp_path: Path) -> None:
    case = layouts.LENS["standard"]
    config = layouts.lens_config(
        "standard", reshape_activations="hook_z", metadata={"hook_name": "blocks.5.attn.hook_z"}
    )
    _, foreign = read_dictionary(
        layouts.write_lens(tmp_path / "d", Case("relu", case.tensors, config, case.encode, case.decode))
    )
    assert foreign.site == "head_out.5"
    assert foreign.W_enc.shape == (D_SAE, D_IN)


def test_a_rule_that_this_version_lacks_is_named(tmp_path: Path) -> None:
    _, foreign = read_dictionary(layouts.write_lens(tmp_path / "d", layouts.LENS["standard"]))
    with pytest.raises(ValueError, match="Unknown rule 'temporal'.*The dictionary needs it; upgrade mechscope"):
        to_sae(replace(foreign, rule="temporal"))
