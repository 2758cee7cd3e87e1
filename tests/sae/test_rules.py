"""Properties that every rule has. Each rule's slow reference and its own properties are in `rules/test_<rule>.py`.

A new rule is asked for them as soon as `RULES` names it. What it then adds is one line to `CASES`: the arguments that
suit 40 latents, and the same loss worked out densely, which its gradients are compared with.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp.config import to_json
from interp.runs import start_run
from sae.config import Scalar, TrainConfig
from sae.model import Sae, load_sae
from sae.rules import RULES, Context, build_rule
from sae.training import Training
from tests.sae.rules.lines import lines_of_code

D_IN, D_SAE = 16, 40

ATOMS = ["unit", "free"]


def dense_pre(sae: Sae, x: Tensor) -> Tensor:
    """Return the pre-activations of normalised rows, with gradients, in the atoms' own units."""
    return (x - sae.b_dec) @ sae.W_enc.t() + sae.b_enc


def relu_loss(sae: Sae, x: Tensor, support: Tensor, ctx: Context) -> Tensor:
    """Return the loss of a rule whose values are the ReLU of the kept pre-activations, and that charges nothing."""
    z = dense_pre(sae, x).relu() * support
    return (x - z @ sae.W_dec - sae.b_dec).square().mean()


def l1_loss(sae: Sae, x: Tensor, support: Tensor, ctx: Context) -> Tensor:
    """Return the loss with an L1 penalty on values in units of a unit atom."""
    z = dense_pre(sae, x).relu() * support
    l1 = sae.rule.l1 / D_IN**0.5 * (z * sae.W_dec.norm(dim=1)).sum(1).mean()  # type: ignore[operator]
    return relu_loss(sae, x, support, ctx) + l1


def signed_loss(sae: Sae, x: Tensor, support: Tensor, ctx: Context) -> Tensor:
    """Return the loss of a rule that keeps pre-activations as they are."""
    z = dense_pre(sae, x) * support
    return (x - z @ sae.W_dec - sae.b_dec).square().mean()


def prefix_loss(sae: Sae, x: Tensor, support: Tensor, ctx: Context) -> Tensor:
    """Return the sum of the losses of the nested prefixes."""
    z = dense_pre(sae, x).relu() * support
    sizes = sae.rule.sizes
    losses = [(x - z[:, :size] @ sae.W_dec[:size] - sae.b_dec).square().mean() for size in sizes]  # type: ignore[union-attr]
    return torch.stack(losses).sum()


def switch_loss(sae: Sae, x: Tensor, support: Tensor, ctx: Context) -> Tensor:
    """Return the loss with values weighed by the router, and its penalty for uneven use."""
    rule = sae.rule
    share = ((x - sae.b_dec).detach() @ rule.W_route.t() + rule.b_route).softmax(1)  # type: ignore[operator, union-attr]
    expert = share.argmax(1)
    z = dense_pre(sae, x).relu() * support * share.max(1).values.unsqueeze(1)
    sent = torch.nn.functional.one_hot(expert, rule.experts).double().mean(0)  # type: ignore[arg-type]
    balance = 0.01 * rule.experts * (sent * share.mean(0)).sum()  # type: ignore[operator]
    return (x - z @ sae.W_dec - sae.b_dec).square().mean() + balance


def afa_loss(sae: Sae, x: Tensor, support: Tensor, ctx: Context) -> Tensor:
    """Return the loss with a penalty on the code's length, in units of a unit atom."""
    z = dense_pre(sae, x).relu() * support * sae.W_dec.norm(dim=1)
    wanted = (x - sae.b_dec).detach().norm(dim=1)
    return relu_loss(sae, x, support, ctx) + 12 / D_IN * (z.norm(dim=1) - wanted).square().mean()


def discrete_loss(sae: Sae, x: Tensor, support: Tensor, ctx: Context) -> Tensor:
    """Return the loss of a rule whose encoder rows, like its atoms, count at length 1."""
    length = sae.W_dec.norm(dim=1)
    rows = sae.W_enc / sae.W_enc.norm(dim=1, keepdim=True)
    z = ((x - sae.b_dec) @ rows.t() + sae.b_enc * length).relu() * support
    mse = (x - z @ (sae.W_dec / length.unsqueeze(1)) - sae.b_dec).square().mean()
    return mse + sae.rule.l1 / D_IN**0.5 * z.sum(1).mean()  # type: ignore[operator]


def jump_loss(sae: Sae, x: Tensor, support: Tensor, ctx: Context) -> Tensor:
    """Return the loss with the straight-through kernel of the thresholds, in every entry."""
    rule, length = sae.rule, sae.W_dec.norm(dim=1)
    pre, at = dense_pre(sae, x) * length, rule.threshold.detach()  # type: ignore[operator]
    on, near = pre > at, (pre - at).abs() < rule.bandwidth / 2  # type: ignore[operator]
    moved = near / rule.bandwidth * (rule.threshold - at)  # type: ignore[operator]
    z = (pre * on - at * moved) / length
    charge = rule.l0 * (on.sum(1) - moved.sum(1)).mean()  # type: ignore[operator]
    return (x - z @ sae.W_dec - sae.b_dec).square().mean() + charge


def gated_loss(sae: Sae, x: Tensor, support: Tensor, ctx: Context) -> Tensor:
    """Return the loss of both paths, and the L1 of the gates."""
    rule, length = sae.rule, sae.W_dec.norm(dim=1)
    gate = (dense_pre(sae, x) * length).relu()
    linear = (x - sae.b_dec) @ sae.W_enc.t() * length
    z = (rule.r.exp() * linear + rule.b_mag).relu() * support / length  # type: ignore[operator, union-attr]
    alone = gate @ (sae.W_dec / length.unsqueeze(1)).detach() + sae.b_dec.detach()
    charge = rule.l1 / D_IN**0.5 * gate.sum(1).mean()  # type: ignore[operator]
    return (x - z @ sae.W_dec - sae.b_dec).square().mean() + (x - alone).square().mean() + charge


def power_loss(sae: Sae, x: Tensor, support: Tensor, ctx: Context) -> Tensor:
    """Return the loss with a power of the values charged, in units of a unit atom."""
    rule, z = sae.rule, dense_pre(sae, x).relu() * support * sae.W_dec.norm(dim=1)
    p = rule.power(rule.updates(ctx))  # type: ignore[operator]
    charge = rule.l1 / D_IN**0.5 * ((z + 0.01) ** p - 0.01**p).sum(1).mean()  # type: ignore[operator]
    return relu_loss(sae, x, support, ctx) + charge


def noisy_loss(sae: Sae, x: Tensor, support: Tensor, ctx: Context) -> Tensor:
    """Return the loss with noise of size 0.1 on the values, and the divergence of the kept latents."""
    length = sae.W_dec.norm(dim=1)
    noise = torch.randn(support.shape, generator=plain(x).generator, dtype=x.dtype)
    mu = dense_pre(sae, x).relu() * length
    each = (mu.square() + 0.01 - 1 - math.log(0.01)) / 2
    charge = 0.01 / D_IN * (each * support).sum(1).mean()
    z = (mu + 0.1 * noise) * support / length
    return (x - z @ sae.W_dec - sae.b_dec).square().mean() + charge


def late(x: Tensor) -> Context:
    """Return the context of a step in the middle of a training."""
    return Context(50, 100, torch.Generator().manual_seed(5))


def plain(x: Tensor) -> Context:
    """Return a context with a generator and nothing else."""
    return Context(generator=torch.Generator().manual_seed(5))


def sloped(x: Tensor) -> Context:
    """Return a context with a gradient of the model's loss."""
    return Context(gradient=x.roll(1, 1))


@dataclass(frozen=True)
class Case:
    """How the properties below are asked of one rule."""

    args: dict[str, Scalar] = field(default_factory=lambda: {"k": 4})
    """Arguments for rows of about three active atoms out of 32."""
    loss: Callable[[Sae, Tensor, Tensor, Context], Tensor] | None = relu_loss
    """(sae, normalised rows, support, context) -> the loss by dense arithmetic; None where no support is fixed."""
    context: Callable[[Tensor], Context] = plain
    """Normalised rows -> the context of a training step on them."""
    draws: bool = False
    """Whether a training code holds noise, so that a row's code depends on where it stands."""
    falls: float = 0.7
    """Share of the first FVU that 150 steps leave at most."""
    reached: tuple[str, ...] = ("W_enc", "W_dec", "b_enc")
    """What the gradient of the reconstruction reaches."""


CASES = {
    "topk": Case(),
    "batch_topk": Case(),
    "mutual_choice": Case(),
    "feature_choice": Case(context=late),
    "abs_topk": Case(loss=signed_loss),
    "matryoshka": Case(loss=prefix_loss),
    "switch": Case({"k": 4, "experts": 4}, switch_loss),
    "group_max": Case(),
    "top_afa": Case({}, afa_loss),
    "discrete": Case({"l1": 0.02}, discrete_loss),
    "gradient": Case(context=sloped),
    "variational": Case({"k": 4, "sigma": 0.1}, noisy_loss, draws=True),
    "matching_pursuit": Case(loss=None),  # the gradient of the loop: rules/test_matching_pursuit.py
    "jump_relu": Case({"l0": 0.002, "threshold": 0.1, "bandwidth": 0.2}, jump_loss),
    "gated": Case({"l1": 0.05}, gated_loss, reached=("W_enc", "W_dec")),
    "relu": Case({"l1": 0.02}, l1_loss),
    "p_anneal": Case({"l1": 0.02}, power_loss, late),
}
KNOWN = frozenset(CASES)
CASES |= {
    rule: Case({"k": 4} if "k" in inspect.signature(RULES[rule]).parameters else {}, loss=None)
    for rule in RULES
    if rule not in KNOWN
}


@pytest.fixture
def settled(built: Callable[..., Sae], rows: Callable[..., Tensor]) -> Callable[..., Sae]:
    """Return what builds a dictionary whose running thresholds and the like have seen a few batches."""

    def settle(rule: str, normalise: str = "scalar", atoms: str = "unit") -> Sae:
        sae = built(rule, normalise, atoms, **CASES[rule].args).train()
        with torch.no_grad():
            for step in range(5):
                x, _ = sae.normaliser.into(rows(64, seed=30 + step))
                seen = CASES[rule].context(x)
                ctx = Context(step, 10, seen.generator, seen.dead, seen.gradient)
                sae.rule.observe(sae.encode_normalised(x, ctx), ctx)
        return sae

    return settle


def test_every_rule_has_a_case_and_a_slow_reference() -> None:
    assert RULES.keys() == KNOWN, "one line in CASES for each rule"
    for rule in RULES:
        path = Path(__file__).parent / "rules" / f"test_{rule}.py"
        assert path.is_file(), f"{path.name} is missing: a slow reference of the rule, and what is true of it alone."
        assert f"def {rule}_reference" in path.read_text(encoding="utf-8"), f"{path.name} has no slow reference."


@pytest.mark.parametrize("rule", RULES)
def test_the_file_of_a_rule_stays_short(rule: str) -> None:
    path = Path(inspect.getfile(RULES[rule]))
    lines = lines_of_code(path.read_text(encoding="utf-8"))
    assert lines < 60, f"{path.name} has {lines} lines of code; move what other rules could use out of it."


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("training", [False, True])
def test_a_code_names_each_latent_once_and_only_signed_rules_give_negative_values(
    rule: str, training: bool, settled: Callable, rows: Callable
) -> None:
    sae = settled(rule).train(training)
    x, _ = sae.normaliser.into(rows(50, seed=3))
    with torch.no_grad():
        code = sae.encode_normalised(x, CASES[rule].context(x))
    flat = code.indices.flatten()
    assert len(code) == 50
    assert (code.rows * D_SAE + flat).unique().numel() == flat.numel()
    assert 0 <= int(flat.min()) <= int(flat.max()) < D_SAE
    assert torch.isfinite(code.values).all()
    negative = bool((code.values < 0).any())
    assert negative == RULES[rule].signed or (negative and training and CASES[rule].draws)
    assert code.fired().any()
    assert not (code.dense() != 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_evaluation_does_not_look_across_the_batch(rule: str, settled: Callable, rows: Callable) -> None:
    sae, x = settled(rule).eval(), rows(50, seed=4)
    with torch.no_grad():
        together = sae.encode(x).dense()
        alone = torch.cat([sae.encode(row[None]).dense() for row in x])
        turned = sae.encode(x.flip(0)).dense().flip(0)
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together, turned, atol=1e-5)


@pytest.mark.parametrize("rule", [rule for rule in RULES if not CASES[rule].draws])
def test_training_treats_rows_alike(rule: str, settled: Callable, rows: Callable) -> None:
    sae = settled(rule).train()
    x, _ = sae.normaliser.into(rows(50, seed=21))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(22))
    with torch.no_grad():
        code = sae.encode_normalised(x, CASES[rule].context(x)).dense()
        moved = sae.encode_normalised(x[order], CASES[rule].context(x[order])).dense()
    assert torch.allclose(code[order], moved, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("normalise", "atoms"),
    [
        ("scalar", "unit"),
        pytest.param("layer", "unit", marks=pytest.mark.slow),
        pytest.param("none", "unit", marks=pytest.mark.slow),
        pytest.param("scalar", "free", marks=pytest.mark.slow),
    ],
)
def test_training_lowers_fvu_and_ends_with_atoms_of_unit_length(
    rule: str, normalise: str, atoms: str, built: Callable, rows: Callable
) -> None:
    case, sae = CASES[rule], built(rule, normalise, atoms, **CASES[rule].args)
    training = Training(sae.train(), TrainConfig(tokens=150 * 128, batch=128, lr=5e-3 if atoms == "unit" else 2e-3))
    data = rows(4096, seed=5)
    g = torch.Generator().manual_seed(6)
    fvu = [float(training.advance(data[torch.randint(4096, (128,), generator=g)])["fvu"]) for _ in range(150)]
    assert sum(fvu[-20:]) < case.falls * sum(fvu[:20])
    held = torch.allclose(sae.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-5)
    assert held == (atoms == "unit")
    sae.finalise()
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_free_atoms_are_the_same_dictionary_once_their_length_is_folded_in(
    rule: str, settled: Callable, rows: Callable
) -> None:
    sae, x = settled(rule, atoms="free").eval(), rows(50, seed=9)
    g = torch.Generator().manual_seed(10)
    sae.b_enc.data.normal_(std=0.1, generator=g)
    sae.W_dec.data *= 3 * torch.rand(D_SAE, 1, generator=g) + 0.1
    with torch.no_grad():
        recon, code = sae(x)
        sae.finalise()
        folded, same = sae(x)
    assert torch.allclose(code.dense(), same.dense(), atol=1e-4)
    assert torch.allclose(recon, folded, atol=1e-4)


@pytest.mark.parametrize("rule", [rule for rule in RULES if CASES[rule].loss])
@pytest.mark.parametrize("atoms", ATOMS)
def test_gradients_equal_dense_autograd_on_the_support(rule: str, atoms: str, built: Callable, rows: Callable) -> None:
    sae = built(rule, "none", atoms, **CASES[rule].args).double().train()
    sae.W_dec.data /= sae.W_dec.norm(dim=1, keepdim=True) if atoms == "unit" else 1.0  # 1 in float64, too
    sae.b_enc.data.normal_(std=0.1, generator=torch.Generator().manual_seed(11))
    x = rows(30, seed=12).double()
    ctx = CASES[rule].context(x)
    code = sae.encode_normalised(x, ctx)
    recon = sae.decode_normalised(code)
    loss = (x - recon).square().mean() + sum(sae.rule.penalties(x, code, recon, sae, ctx).values())
    parameters = dict(sae.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    # The reconstruction does not know of lengths: they cancel. Values and penalties count in units of them.
    exact = CASES[rule].loss
    assert exact is not None
    dense = exact(sae, x, code.dense() != 0, ctx)
    wanted = torch.autograd.grad(dense, list(parameters.values()), allow_unused=True)
    assert torch.allclose(loss, dense)
    for name, ours, theirs in zip(parameters, found, wanted, strict=True):
        if ours is None or theirs is None:
            assert ours is theirs, name
            continue
        if name == "W_dec" and atoms == "unit":  # held at length 1, where only the direction counts
            ours, theirs = (g - (g * sae.W_dec).sum(1, keepdim=True) * sae.W_dec for g in (ours, theirs))
        assert (ours - theirs).norm() <= 1e-7 * theirs.norm(), name


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_zero_off_the_support(rule: str, built: Callable, rows: Callable) -> None:
    sae = built(rule, **CASES[rule].args).train()
    with torch.no_grad():
        sae.b_enc[::4] = 0.0 if RULES[rule].signed else -100.0
    x, _ = sae.normaliser.into(rows(3, seed=7))
    code = sae.encode_normalised(x, CASES[rule].context(x))
    (sae.decode_normalised(code) - x).square().sum().backward()
    off = ~code.fired()
    assert off.any()
    for name in ("W_dec",) if RULES[rule].tied else CASES[rule].reached:
        gradient = sae.get_parameter(name).grad
        assert gradient is not None
        assert torch.count_nonzero(gradient[off]) == 0, name
        assert torch.count_nonzero(gradient[~off]) > 0, name


@pytest.mark.parametrize("rule", [rule for rule in RULES if not (RULES[rule].signed or RULES[rule].tied)])
def test_a_row_that_nothing_fires_on_is_the_bias(rule: str, built: Callable, rows: Callable) -> None:
    sae = built(rule, **CASES[rule].args)
    sae.b_enc.data.fill_(-100.0)
    x = rows(5, seed=13)
    for training in (False,) if CASES[rule].draws else (True, False):  # noise fires by itself
        sae.train(training)
        rest, scale = sae.normaliser.into(x)
        code = sae.encode_normalised(rest, CASES[rule].context(rest))
        recon = sae.decode(code, scale)
        assert not code.fired().any()
        assert torch.allclose(recon, (sae.b_dec * sae.normaliser.scale).expand(5, -1))
        recon.sum().backward()
        assert sae.b_dec.grad is not None
        assert sae.W_enc.grad is None or torch.count_nonzero(sae.W_enc.grad) == 0


@pytest.mark.parametrize("rule", RULES)
def test_a_saved_dictionary_comes_back_with_all_that_its_rule_learned(
    rule: str, settled: Callable, rows: Callable, tmp_path: Path
) -> None:
    sae, x = settled(rule).eval(), rows(40, seed=23)
    sae.finalise()
    run = start_run("sae", {"sae": to_json(sae.config)}, slug=rule.replace("_", "-"), root=tmp_path)
    sae.save(run)
    again = load_sae(run)
    with torch.no_grad():
        assert torch.equal(sae.encode(x).dense(), again.encode(x).dense())
    states = sae.rule.state_dict(), again.rule.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("rule", RULES)
def test_a_step_that_fails_teaches_the_rule_nothing(rule: str, built: Callable, rows: Callable) -> None:
    training = Training(built(rule, **CASES[rule].args).train(), TrainConfig(tokens=6400, batch=64, lr=1e-3))
    training.advance(rows(64, seed=19))
    before = {name: value.clone() for name, value in training.tensors().items()}
    x = rows(64, seed=20)
    x[3, 4] = torch.nan
    with pytest.raises(ValueError, match="became nan at step 1"):
        training.advance(x)
    assert all(torch.equal(before[name], value) for name, value in training.tensors().items())


def test_unknown_rule_and_argument_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="Unknown rule 'topkk'; did you mean 'topk'"):
        build_rule("topkk", 4, 8, {})
    with pytest.raises(ValueError, match="argument of rule 'topk': 'kk'"):
        build_rule("topk", 4, 8, {"kk": 3})


@pytest.mark.parametrize("rule", [rule for rule in RULES if "k" in CASES[rule].args])
@pytest.mark.parametrize("k", [0, -1, D_SAE + 1])
def test_k_outside_the_dictionary_is_refused(rule: str, k: int) -> None:
    with pytest.raises(ValueError, match=rf"k must lie in 1\.\.d_sae=40, got {k}\."):
        build_rule(rule, D_IN, D_SAE, {"k": k})
