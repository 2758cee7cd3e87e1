"""The tuned lens: begins as the logit lens, learns, recovers a map that was planted, resumes to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interp.data import Blocks
from interp.hooks import capture
from interp.layers.lens import Prediction, TrainedLens, lens_logits, stream_site
from interp.layers.lens_config import JacobianLensConfig, TunedLensConfig
from interp.layers.lens_runs import check_lens, lens_run, load_lens
from interp.layers.tuned_lens import lens_gain, train_tuned_lens
from interp.models import ModelHandle, load_model
from interp.models.compiled.blank import blank, write_mlp
from interp.runs import RunDamaged, open_run, start_run


def text(handle: ModelHandle, blocks: int = 24, length: int = 16, seed: int = 0) -> Blocks:
    """Random tokens after BOS."""
    tokens = torch.randint(1, handle.d_vocab, (blocks, length), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = 0
    return Blocks(tokens, torch.ones_like(tokens, dtype=torch.bool), 1, True, 0)


def nothing(handle: ModelHandle) -> TrainedLens:
    """A tuned lens before training."""
    shape = (handle.n_layers, handle.d_model)
    return TrainedLens("tuned", torch.zeros(*shape, handle.d_model), torch.zeros(shape), handle.digest())


def linear_model(change: torch.Tensor) -> ModelHandle:
    """A model whose second block adds `change` times the stream, and whose first does nothing."""
    d = len(change)
    module = blank(
        {"n_layer": 2, "n_head": 1, "n_embd": d, "n_inner": d, "vocab_size": 40, "n_positions": 16,
         "activation_function": "linear", "bos_token_id": 0}
    )  # fmt: skip
    g = torch.Generator().manual_seed(1)
    module.transformer.wte.weight.copy_(torch.randn(40, d, generator=g))
    module.lm_head.weight.copy_(torch.randn(40, d, generator=g))
    write_mlp(module, 1, torch.eye(d, dtype=torch.float64), change.T.double())
    return load_model(module.float())


def test_before_training_it_is_the_logit_lens_and_after_the_last_block_the_model(model: ModelHandle) -> None:
    tokens, lens = text(model).tokens[:3], nothing(model)
    sites = [stream_site(layer) for layer in range(-1, 3)]
    with capture(model, sites) as acts:
        logits = model.logits(tokens)
    for layer, site in enumerate(sites, -1):
        assert torch.equal(lens.logits(model, layer, acts[site]), lens_logits(model, acts[site]))
    random = torch.randn(lens.delta.shape, generator=torch.Generator().manual_seed(4))
    lens = TrainedLens("tuned", random, lens.bias)
    assert torch.allclose(lens.logits(model, 2, acts[sites[-1]]), logits, atol=1e-5)
    assert not torch.allclose(lens.logits(model, 1, acts[sites[2]]), lens_logits(model, acts[sites[2]]), atol=0.1)
    with pytest.raises(ValueError, match=r"layer must lie in -1\.\.2, got 3"):
        lens.translate(3, acts[sites[-1]])


def test_the_first_loss_is_that_of_the_logit_lens(gpt2: ModelHandle, tmp_path: Path) -> None:
    blocks = text(gpt2, 4)
    config = TunedLensConfig(steps=1, blocks=4, positions=4096, heldout=0)
    with lens_run(gpt2, blocks, config, tmp_path) as run:
        train_tuned_lens(gpt2, blocks, config, run)
    row = run.metrics()[0]
    sites = [stream_site(layer) for layer in range(-1, 2)]
    with capture(gpt2, sites) as acts:
        final = Prediction(gpt2.logits(blocks.tokens)[:, 1:].flatten(0, 1))
    for layer, site in enumerate(sites, -1):
        kl = final.kl_to(Prediction(lens_logits(gpt2, acts[site][:, 1:].flatten(0, 1)))).mean()
        assert row[f"loss.{layer}"] == pytest.approx(float(kl), rel=1e-4)


def test_it_is_nearer_to_the_output_on_text_it_has_not_seen(model: ModelHandle) -> None:
    lens = train_tuned_lens(model, text(model), TunedLensConfig(steps=25, blocks=8, lr=3e-3, heldout=0))
    gain = lens_gain(model, text(model, 8, seed=9), lens)
    before, after = gain["kl_logit"].to_numpy(), gain["kl_lens"].to_numpy()
    assert (after < before).all()
    assert (after > 0).all()


def test_a_planted_map_is_recovered() -> None:
    change = 0.5 * torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2))).Q
    handle = linear_model(change)
    config = TunedLensConfig(steps=150, blocks=4, lr=0.06, heldout=0)
    lens = train_tuned_lens(handle, text(handle), config)
    for stream in (0, 1):  # the first block does nothing, so both streams need the same map
        assert torch.allclose(lens.delta[stream], change, atol=0.01)
    gain = lens_gain(handle, text(handle, 4, seed=5), lens)
    assert gain["kl_logit"].to_numpy().min() > 0.1
    assert gain["kl_lens"].to_numpy().max() < 1e-3


def test_a_run_is_resumed_to_the_same_numbers_and_then_found(gpt2: ModelHandle, tmp_path: Path) -> None:
    blocks, config = text(gpt2), TunedLensConfig(steps=8, blocks=4)
    whole = train_tuned_lens(gpt2, blocks, config)

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), lens_run(gpt2, blocks, config, tmp_path) as run:
        train_tuned_lens(gpt2, blocks, config, run, stop)
    seen: list[int] = []
    with lens_run(gpt2, blocks, config, tmp_path) as run:
        assert run.resumed
        resumed = train_tuned_lens(gpt2, blocks, config, run, lambda done, _: seen.append(done))
    assert seen == [6, 7, 8]
    assert torch.equal(resumed.delta, whole.delta)
    assert torch.equal(resumed.bias, whole.bias)
    assert [row["step"] for row in run.metrics()] == list(range(1, 9))
    again = lens_run(gpt2, blocks, config, tmp_path)
    assert again.finished
    found = train_tuned_lens(gpt2, blocks, config, again, lambda *_: pytest.fail("it was trained again"))
    assert torch.equal(found.delta, whole.delta)
    assert found.name == "tuned"
    assert set(open_run(again.ref, tmp_path).files) >= {"lens.safetensors", "layers.parquet"}
    assert "checkpoint.safetensors" not in again.files


def test_another_model_is_refused(gpt2: ModelHandle, llama: ModelHandle, tmp_path: Path) -> None:
    blocks, config = text(gpt2, 4), TunedLensConfig(steps=1, blocks=2)
    with lens_run(gpt2, blocks, config, tmp_path) as run:
        lens = train_tuned_lens(gpt2, blocks, config, run)
    with pytest.raises(ValueError, match="was made with other weights"):
        load_lens(open_run(run.ref, tmp_path), llama)
    with pytest.raises(ValueError, match="is for 2 layers of width 32"):
        check_lens(TrainedLens("tuned", lens.delta[1:], lens.bias[1:]), gpt2)
    assert lens_run(gpt2, text(gpt2, 4, seed=1), config, tmp_path).ref != run.ref


def test_what_is_no_lens_is_refused(gpt2: ModelHandle, tmp_path: Path) -> None:
    with start_run("lens", {"lens": "tuned"}, slug="odd", root=tmp_path) as run:
        run.save_tensors("lens.safetensors", {"delta": torch.zeros(3, 4, 5), "bias": torch.zeros(3, 4)})
        run.finish({})
    with pytest.raises(RunDamaged, match="is no lens"):
        load_lens(run, gpt2)
    with start_run("sae", {}, slug="odd", root=tmp_path) as other:
        other.finish({})
    with pytest.raises(ValueError, match="a lens is in a run of kind 'lens'"):
        load_lens(other)


def test_settings_that_make_no_sense_are_refused(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match="steps must be 1 or more, got 0"):
        TunedLensConfig(steps=0)
    with pytest.raises(ValueError, match="heldout must lie in"):
        TunedLensConfig(heldout=1.0)
    with pytest.raises(ValueError, match="context must be 2 more than skip"):
        JacobianLensConfig(context=17, skip=16)
    with pytest.raises(ValueError, match="no position after the first"):
        train_tuned_lens(gpt2, text(gpt2, 3, 1), TunedLensConfig(steps=1))


@pytest.mark.slow
def test_on_the_embedded_model_every_layer_gains() -> None:
    from interp.data import DataSpec, token_blocks

    handle = load_model("tiny")
    train, held = token_blocks(handle, DataSpec(tokens=120_000)).split(0.1)
    lens = train_tuned_lens(handle, train, TunedLensConfig(steps=60, positions=512, heldout=0))
    gain = lens_gain(handle, held, lens)
    assert (gain["kl_lens"].to_numpy() < 0.7 * gain["kl_logit"].to_numpy()).all()
