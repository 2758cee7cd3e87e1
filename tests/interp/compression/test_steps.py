from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp.compression.steps import STEPS, Magnitude, MatrixStep, RandomPrune, Rtn, Svd, WeightNoise
from interp.compression.steps.pruning import lowest
from interp.models import ModelHandle, ModelSpec, load_model

Make = Callable[..., Any]
NOTHING = {
    "rtn": {"bits": None},
    "magnitude": {"sparsity": 0.0},
    "random_prune": {"sparsity": 0},
    "svd": {"share": 1.0},
    "weight_noise": {"std": 0.0},
    "skip_layers": {"layers": ()},
    "quantise_activations": {"bits": None},
    "activation_noise": {"std": 0},
}
SOMETHING: list[MatrixStep] = [
    Rtn(4), Rtn(3, "asymmetric", 8), Magnitude(0.4), Magnitude(0.4, "row"), Magnitude(0.4, "global"),
    RandomPrune(0.4), Svd(share=0.5), Svd(rank=3), WeightNoise(0.1),
]  # fmt: skip
IDS = [step.describe() for step in SOMETHING]
PATH = {"gpt2": "transformer.h.", "neox": "gpt_neox.layers.", "llama": "model.layers."}


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_every_step_has_a_case_of_no_strength() -> None:
    assert NOTHING.keys() == STEPS.keys()


@pytest.mark.parametrize("name", STEPS)
def test_no_strength_changes_no_bit(name: str, model_folder: Path) -> None:
    plain = load_model(str(model_folder), device="cpu")
    step = STEPS[name](**NOTHING[name])  # type: ignore[arg-type]
    assert step.is_nothing
    same = load_model(ModelSpec(str(model_folder), recipe=(step,)), device="cpu")  # type: ignore[arg-type]
    assert same.digest() == plain.digest() == same.base_digest()
    ids = torch.arange(12)[None]
    assert torch.equal(same.logits(ids), plain.logits(ids))
    assert same.reports[0].changes == ()
    assert same.storage == plain.storage
    assert not same._attached


@pytest.mark.parametrize("step", SOMETHING, ids=IDS)
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_a_weight_step_changes_the_blocks_matrices_and_nothing_else(
    family: str, step: MatrixStep, make_module: Make
) -> None:
    module = make_module(family)
    before = weights(module)
    report = step.apply(module)
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{change.module}.weight" for change in report.changes}
    assert all(name.startswith(PATH[family]) and before[name].ndim == 2 for name in changed)
    assert report.coverage == 1.0
    for change in report.changes:
        after, old = module.state_dict()[f"{change.module}.weight"], before[f"{change.module}.weight"]
        assert change.parameters == old.numel()
        assert change.error == pytest.approx(float((after - old).norm() / old.norm()), rel=1e-5)
        assert change.error > 0


@pytest.mark.parametrize("step", SOMETHING, ids=IDS)
def test_conv1d_is_the_transposed_linear(step: MatrixStep, make_module: Make) -> None:
    """GPT-2 stores [in out]: a step must do to it what it does to the nn.Linear of the same map."""
    conv = make_module("gpt2")
    linear = copy.deepcopy(conv)
    for name, leaf in list(linear.named_modules()):
        if type(leaf).__name__ == "Conv1D":
            inputs, outputs = leaf.weight.shape
            twin = nn.Linear(inputs, outputs)
            with torch.no_grad():
                twin.weight.copy_(leaf.weight.T)
                twin.bias.copy_(leaf.bias)
            linear.set_submodule(name, twin)
    ours, theirs = step.apply(conv), step.apply(linear)
    assert [change.module for change in ours.changes] == [change.module for change in theirs.changes]
    assert len(ours.changes) == 3 * 4
    for change, twin in zip(ours.changes, theirs.changes, strict=True):
        assert (change.module, change.stored, change.bits) == (twin.module, twin.stored, twin.bits)
        assert change.error == pytest.approx(twin.error, rel=1e-5)
        assert torch.equal(conv.get_submodule(change.module).weight.T, linear.get_submodule(change.module).weight)


@pytest.mark.parametrize("step", SOMETHING, ids=IDS)
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_both_views_compute_the_compressed_model(family: str, step: MatrixStep, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue({"gpt2": "model_folder"}.get(family, f"{family}_folder"))
    handle = load_model(ModelSpec(str(folder), recipe=(step,)), device="cpu")
    assert handle.verify() < 1e-4
    plain = load_model(str(folder), device="cpu")
    assert handle.base_digest() == plain.digest() != handle.digest()
    ids = torch.arange(12)[None]
    assert not torch.allclose(handle.logits(ids), plain.logits(ids), atol=1e-3)


@pytest.mark.parametrize("scope", ["matrix", "row", "global"])
def test_magnitude_prunes_the_smallest(scope: Any, make_module: Make) -> None:
    module = make_module("llama")
    before = weights(module)
    report = Magnitude(0.3, scope).apply(module)
    pairs = [(module.get_submodule(c.module).weight, before[f"{c.module}.weight"].abs()) for c in report.changes]
    total = sum(old.numel() for _, old in pairs)
    assert sum(int((new == 0).sum()) for new, _ in pairs) == pytest.approx(0.3 * total, abs=len(pairs) * 64)
    if scope == "global":
        kept = min(float(old[new != 0].min()) for new, old in pairs)
        assert kept >= max(float(old[new == 0].max()) for new, old in pairs if (new == 0).any())
        assert len({round(float((new == 0).double().mean()), 3) for new, _ in pairs}) > 1
        return
    for new, old in pairs:
        if scope == "matrix":
            assert int((new == 0).sum()) == round(0.3 * old.numel())
            assert old[new == 0].max() <= old[new != 0].min()
        else:
            assert ((new == 0).sum(1) == round(0.3 * old.shape[1])).all()
            for row, was in zip(new, old, strict=True):
                assert was[row == 0].max() <= was[row != 0].min()


def test_lowest_takes_the_first_of_equals() -> None:
    scores = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    expected = torch.tensor([[False, True, False, True, False], [True, True, False, False, False]])
    assert torch.equal(lowest(scores, 0.4), expected)
    assert lowest(scores, 1.0).all()
    assert not lowest(scores, 0.0).any()


def test_pruning_twice_is_pruning_once(make_module: Make) -> None:
    once, twice = make_module("gpt2"), make_module("gpt2")
    Magnitude(0.5).apply(once)
    Magnitude(0.2).apply(twice)
    Magnitude(0.5).apply(twice)
    assert all(torch.equal(a, b) for a, b in zip(weights(once).values(), weights(twice).values(), strict=True))


def test_rounding_keeps_what_was_pruned(make_module: Make) -> None:
    module = make_module("llama")
    Magnitude(0.5).apply(module)
    zeros = {name: tensor == 0 for name, tensor in weights(module).items() if tensor.ndim == 2 and "layers" in name}
    Rtn(3, "asymmetric").apply(module)
    after = weights(module)
    assert all((after[name][mask] == 0).all() for name, mask in zeros.items())


def test_random_pruning_depends_on_the_seed_and_the_module_alone(make_module: Make) -> None:
    a, b, c, part = (make_module("llama") for _ in range(4))
    RandomPrune(0.3, 1).apply(a)
    RandomPrune(0.3, 1).apply(b)
    RandomPrune(0.3, 2).apply(c)
    RandomPrune(0.3, 1, include=("*.mlp.*",)).apply(part)
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(weights(a)[name], weights(b)[name])
    assert torch.equal(weights(a)[name], weights(part)[name])
    assert not torch.equal(weights(a)[name], weights(c)[name])
    assert int((weights(a)[name] == 0).sum()) == round(0.3 * weights(a)[name].numel())


@pytest.mark.parametrize("step", [Svd(rank=5), Svd(share=0.25)], ids=["rank", "share"])
def test_svd_is_the_best_of_its_rank(step: Svd, make_module: Make) -> None:
    module = make_module("llama").requires_grad_(False)
    before = weights(module)
    for change in step.apply(module).changes:
        old, new = before[f"{change.module}.weight"], module.get_submodule(change.module).weight
        rank = step.kept(*old.shape)
        values = torch.linalg.svdvals(old.double())
        assert int(torch.linalg.matrix_rank(new.double(), tol=1e-4)) == rank
        # Eckart and Young: the error is what the dropped singular values hold
        assert float((old - new).norm()) == pytest.approx(float(values[rank:].norm()), rel=1e-4)
        assert change.stored == rank * sum(old.shape)


def test_svd_leaves_matrices_of_no_larger_rank(make_module: Make) -> None:
    module = make_module("llama")  # k and v: [16 32], all others of rank 32
    before = weights(module)
    report = Svd(rank=20).apply(module)
    whole = [c for c in report.changes if c.module.endswith(("k_proj", "v_proj"))]
    assert len(whole) == 6
    assert all(c.error == 0 and c.stored == c.parameters for c in whole)
    assert all(torch.equal(module.get_submodule(c.module).weight, before[f"{c.module}.weight"]) for c in whole)
    assert Svd(rank=10_000).apply(make_module("llama")).coverage == 1.0


@pytest.mark.parametrize("rank", [3, 5])
def test_svd_leaves_factors_of_no_larger_rank_as_they_were_rounded(rank: int, make_module: Make) -> None:
    module = make_module("gpt2")
    Svd(rank=3).apply(module)
    rounded = {change.module: change.bits for change in Rtn(4).apply(module).changes}
    before = weights(module)
    report = Svd(rank=rank).apply(module)
    assert {change.module: change.bits for change in report.changes} == rounded
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(module).items())


def test_weight_noise_has_the_size_it_says(make_module: Make) -> None:
    module = make_module("neox")
    for change in WeightNoise(0.2, seed=3).apply(module).changes:
        assert change.error == pytest.approx(0.2, rel=0.1)


def test_half_precision_weights(make_module: Make) -> None:
    module = make_module("llama").to(torch.bfloat16)
    single = make_module("llama").to(torch.bfloat16).float()
    report = Rtn(8).apply(module)
    Rtn(8).apply(single)
    for change in report.changes:
        weight = module.get_submodule(change.module).weight
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, single.get_submodule(change.module).weight.bfloat16())


def test_weights_that_are_not_finite_are_refused(make_module: Make) -> None:
    module = make_module("llama")
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.up_proj holds weights that are not finite"):
        Rtn(4).apply(module)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rtn(1), "bits of rtn must lie in 2..8, got 1."),
        (lambda: Rtn(9), "bits of rtn must lie in 2..8, got 9."),
        (lambda: Rtn(4, group=0), "group of rtn must be a whole number from 1 on, got 0."),
        (lambda: Magnitude(1.5), "sparsity of magnitude must lie in 0..1, got 1.5."),
        (lambda: Magnitude(float("nan")), "sparsity of magnitude must lie in 0..1, got nan."),
        (lambda: RandomPrune(-0.1), "sparsity of random_prune must lie in 0..1, got -0.1."),
        (lambda: RandomPrune(0.1, -1), "seed of random_prune must be a whole number from 0 on, got -1."),
        (lambda: Svd(rank=0), "rank of svd must be a whole number from 1 on, got 0."),
        (lambda: Svd(share=0.0), "share of svd must be larger than 0"),
        (lambda: Svd(rank=2, share=0.5), "svd takes rank or share, not both, got rank=2 and share=0.5."),
        (lambda: WeightNoise(float("inf")), "std of weight_noise must be a finite number from 0 on, got inf."),
        (lambda: Rtn(4, least_coverage=2.0), "least_coverage must lie in 0..1, got 2.0."),
    ],
)
def test_impossible_strengths(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as found:
        make()
    assert message in str(found.value)


def test_a_group_that_does_not_fit_changes_nothing(make_module: Make) -> None:
    module = make_module("llama")
    before = weights(module)
    with pytest.raises(ValueError, match=r"mlp.down_proj has 48, got group 32. Groups that fit .*: 2, 4, 8, 16\."):
        Rtn(4, group=32).apply(module)
    assert all(torch.equal(a, b) for a, b in zip(weights(module).values(), before.values(), strict=True))


def test_gpt2_fixture_is_untouched(gpt2: ModelHandle) -> None:
    assert gpt2.reports == ()
    assert gpt2.base_digest() == gpt2.digest()
