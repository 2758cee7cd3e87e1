"""Properties that every rule has, and for each rule a slow reference straight from its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae.code import Code
from sae.config import SaeConfig, TrainConfig
from sae.initialise import initialise
from sae.model import Sae
from sae.rules import RULES, Context, build_rule
from sae.rules.batch_topk import BatchTopK
from sae.training import Training

D_IN, D_SAE = 16, 40

ATOMS = ["unit", "free"]


def rows(n: int = 300, seed: int = 1) -> Tensor:
    """Return rows of a planted dictionary; its seed is never the one of an initialisation (0)."""
    g = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(32, D_IN, generator=g), dim=1)
    on = torch.rand(n, 32, generator=g) < 0.1
    return (on * torch.rand(n, 32, generator=g)) @ atoms + 0.3


def built(rule: str, normalise: str = "scalar", atoms: str = "unit", **args: float) -> Sae:
    sae = Sae(SaeConfig(D_IN, D_SAE, rule, args, normalise, atoms))  # type: ignore[arg-type]
    initialise(sae, rows(), seed=0)
    return sae


def preactivations(sae: Sae, x: Tensor) -> list[list[float]]:
    """Return the pre-activations of raw rows, one number at a time, in units of an atom of length 1."""
    length = [float(atom.norm()) for atom in sae.W_dec]
    return [
        [
            length[i] * float((row / sae.normaliser.scale - sae.b_dec) @ sae.W_enc[i] + sae.b_enc[i])
            for i in range(sae.d_sae)
        ]
        for row in x
    ]


def topk_reference(sae: Sae, x: Tensor) -> Tensor:
    """Return the dense code, one row and one latent at a time."""
    out = torch.zeros(len(x), sae.d_sae)
    for n, pre in enumerate(preactivations(sae, x)):
        for i in sorted(range(sae.d_sae), key=lambda i: -pre[i])[: sae.rule.k]:  # type: ignore[arg-type]
            out[n, i] = max(pre[i], 0.0)
    return out


def relu_reference(sae: Sae, x: Tensor) -> Tensor:
    return torch.tensor([[max(0.0, value) for value in pre] for pre in preactivations(sae, x)])


def batch_topk_reference(sae: Sae, x: Tensor) -> Tensor:
    """Return the code of training (over all rows) or of evaluation (by the threshold), as the paper states them."""
    pre, out = preactivations(sae, x), torch.zeros(len(x), sae.d_sae)
    everywhere = [(n, i) for n in range(len(x)) for i in range(sae.d_sae)]
    if sae.training:
        chosen = sorted(everywhere, key=lambda place: -pre[place[0]][place[1]])[: sae.rule.k * len(x)]  # type: ignore[operator]
    else:
        chosen = [(n, i) for n, i in everywhere if pre[n][i] > float(sae.rule.threshold)]  # type: ignore[arg-type]
    for n, i in chosen:
        out[n, i] = max(pre[n][i], 0.0)
    return out


REFERENCES = {"topk": topk_reference, "relu": relu_reference, "batch_topk": batch_topk_reference}


def test_every_rule_has_a_reference() -> None:
    assert REFERENCES.keys() == RULES.keys()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("atoms", ATOMS)
@pytest.mark.parametrize("training", [False, True])
def test_code_equals_the_slow_reference(rule: str, atoms: str, training: bool) -> None:
    sae = built(rule, atoms=atoms).train(training)
    g = torch.Generator().manual_seed(2)
    sae.b_enc.data.normal_(std=0.1, generator=g)
    sae.W_dec.data *= 100 * torch.rand(D_SAE, 1, generator=g) + 50 if atoms == "free" else 1.0
    for name, buffer in sae.rule.named_buffers():
        buffer.fill_(0.05 if name == "threshold" else 0.0)
    x = rows(20, seed=3)
    with torch.no_grad():
        code = sae.encode(x)
        assert torch.allclose(code.dense(), REFERENCES[rule](sae, x), atol=1e-5)
        assert code.fired().any()
        assert not (code.dense() != 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_evaluation_does_not_look_across_the_batch(rule: str) -> None:
    sae, x = built(rule).eval(), rows(50, seed=4)
    with torch.no_grad():
        together = sae.encode(x).dense()
        alone = torch.cat([sae.encode(row[None]).dense() for row in x])
        turned = sae.encode(x.flip(0)).dense().flip(0)
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together, turned, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("normalise", "atoms"), [("scalar", "unit"), ("layer", "unit"), ("none", "unit"), ("scalar", "free")]
)
def test_training_lowers_fvu_and_ends_with_atoms_of_unit_length(rule: str, normalise: str, atoms: str) -> None:
    sae = built(rule, normalise, atoms, **({"l1": 0.02} if rule == "relu" else {"k": 4}))
    training = Training(sae.train(), TrainConfig(tokens=150 * 128, batch=128, lr=5e-3 if atoms == "unit" else 2e-3))
    data = rows(4096, seed=5)
    g = torch.Generator().manual_seed(6)
    fvu = [float(training.advance(data[torch.randint(4096, (128,), generator=g)])["fvu"]) for _ in range(150)]
    assert sum(fvu[-20:]) < 0.7 * sum(fvu[:20])
    held = torch.allclose(sae.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-5)
    assert held == (atoms == "unit")
    sae.finalise()
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_free_atoms_are_the_same_dictionary_once_their_length_is_folded_in(rule: str) -> None:
    sae, x = built(rule, atoms="free").eval(), rows(50, seed=9)
    g = torch.Generator().manual_seed(10)
    sae.b_enc.data.normal_(std=0.1, generator=g)
    sae.W_dec.data *= 3 * torch.rand(D_SAE, 1, generator=g) + 0.1
    with torch.no_grad():
        recon, code = sae(x)
        sae.finalise()
        folded, same = sae(x)
    assert torch.allclose(code.dense(), same.dense(), atol=1e-4)
    assert torch.allclose(recon, folded, atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("atoms", ATOMS)
def test_gradients_equal_dense_autograd_on_the_support(rule: str, atoms: str) -> None:
    sae = built(rule, "none", atoms).double().train()
    sae.b_enc.data.normal_(std=0.1, generator=torch.Generator().manual_seed(11))
    x = rows(30, seed=12).double()
    ctx = Context()
    code = sae.encode_normalised(x, ctx)
    recon = sae.decode_normalised(code)
    loss = (x - recon).square().mean() + sum(sae.rule.penalties(x, code, recon, sae, ctx).values())
    found = torch.autograd.grad(loss, [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec])
    # The reconstruction does not know of lengths: they cancel. Values and penalties count in units of them.
    z = ((x - sae.b_dec) @ sae.W_enc.t() + sae.b_enc).relu() * (code.dense() != 0)
    dense = (x - z @ sae.W_dec - sae.b_dec).square().mean()
    if rule == "relu":
        dense = dense + sae.rule.l1 / D_IN**0.5 * (z * sae.W_dec.norm(dim=1)).sum(1).mean()  # type: ignore[operator]
    wanted = torch.autograd.grad(dense, [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec])
    assert torch.allclose(loss, dense)
    for name, ours, theirs in zip(("W_enc", "b_enc", "W_dec", "b_dec"), found, wanted, strict=True):
        if name == "W_dec" and atoms == "unit":  # held at length 1, where only the direction counts
            ours, theirs = (g - (g * sae.W_dec).sum(1, keepdim=True) * sae.W_dec for g in (ours, theirs))
        assert (ours - theirs).norm() <= 1e-7 * theirs.norm(), name


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_zero_off_the_support(rule: str) -> None:
    sae = built(rule).train()
    with torch.no_grad():
        sae.b_enc[::4] = -100.0
    x, _ = sae.normaliser.into(rows(3, seed=7))
    code = sae.encode_normalised(x, Context())
    (sae.decode_normalised(code) - x).square().sum().backward()
    off = ~code.fired()
    assert off.any()
    for gradient in (sae.W_enc.grad, sae.W_dec.grad, sae.b_enc.grad):
        assert gradient is not None
        assert torch.count_nonzero(gradient[off]) == 0
        assert torch.count_nonzero(gradient[~off]) > 0


@pytest.mark.parametrize("rule", RULES)
def test_a_row_that_nothing_fires_on_is_the_bias(rule: str) -> None:
    sae = built(rule)
    sae.b_enc.data.fill_(-100.0)
    x = rows(5, seed=13)
    for training in (True, False):
        sae.train(training)
        recon, code = sae(x)
        assert not code.fired().any()
        assert torch.allclose(recon, (sae.b_dec * sae.normaliser.scale).expand(5, -1))
        recon.sum().backward()
        assert sae.b_dec.grad is not None
        assert sae.W_enc.grad is None or torch.count_nonzero(sae.W_enc.grad) == 0


def test_l1_is_risen_by_the_warmup_and_weighs_values_by_their_sum() -> None:
    sae = built("relu", l1=0.5, warmup=0.1)
    x, _ = sae.normaliser.into(rows(8, seed=14))
    code = sae.encode_normalised(x)
    full = 0.5 / 4 * float(code.values.detach().sum()) / 8
    for step, share in ((0, 0.1), (4, 0.5), (9, 1.0), (50, 1.0)):
        charged = sae.rule.penalties(x, code, x, sae, Context(step, 100))["l1"]
        assert float(charged.detach()) == pytest.approx(share * full, rel=1e-5)


def test_a_larger_l1_leaves_fewer_latents_on() -> None:
    counts = []
    for l1 in (0.0, 0.2, 0.6):
        training = Training(built("relu", l1=l1).train(), TrainConfig(tokens=100 * 128, batch=128, lr=5e-3, aux=0.0))
        data = rows(128 * 20, seed=15).split(128)
        counts.append([float(training.advance(data[i % 20])["l0"]) for i in range(100)][-1])
    assert counts[0] > 1.5 * counts[1] > 1.5 * 1.5 * counts[2]


@pytest.mark.parametrize(("name", "value"), [("l1", -0.1), ("l1", float("inf")), ("warmup", 1.5)])
def test_relu_arguments_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} .*must|{name} must"):
        built("relu", **{name: value})


def test_batch_topk_keeps_k_per_row_on_average_and_as_many_as_a_row_needs() -> None:
    sae = built("batch_topk", k=3).train()
    x = rows(64, seed=16) * torch.linspace(0.2, 3, 64).unsqueeze(1)
    code = sae.encode(x)
    assert int(code.l0().sum()) == 3 * 64
    assert int(code.l0().min()) < 3 < int(code.l0().max())


@pytest.mark.parametrize("batch", [16, 512])
def test_threshold_makes_the_l0_of_evaluation_k_whatever_the_batch(batch: int) -> None:
    sae = built("batch_topk", k=4)
    rule, steps = sae.rule, 600
    assert isinstance(rule, BatchTopK)
    data = rows(batch * 50 + 4000, seed=17)
    train, test = data[:-4000].split(batch), data[-4000:]
    with torch.no_grad():
        for step in range(steps):
            rule.observe(sae.train().encode(train[step % 50]), Context(step, 20 * steps))
        l0 = sae.eval().encode(test).l0().double().mean()
    assert float(l0) == pytest.approx(4, rel=0.04)


def test_threshold_is_the_mean_of_the_smallest_kept_value_at_first_and_forgets_later() -> None:
    rule = build_rule("batch_topk", D_IN, D_SAE, {})
    assert isinstance(rule, BatchTopK)
    values = [3.0, 1.0, 2.0]
    for step, value in enumerate(values):
        rule.observe(Code(torch.tensor([[1, 2]]), torch.tensor([[value, 9.0]]), D_SAE), Context(step, 10_000))
    assert float(rule.threshold) == pytest.approx(2.0)
    for step in range(3, 1500):
        rule.observe(Code(torch.tensor([[1, 2]]), torch.tensor([[7.0, 9.0]]), D_SAE), Context(step, 2000))
    assert float(rule.threshold) == pytest.approx(7.0, abs=1e-3)


def test_a_step_that_fails_leaves_the_threshold_alone() -> None:
    sae = built("batch_topk", k=3)
    training = Training(sae.train(), TrainConfig(tokens=6400, batch=64, lr=1e-3))
    training.advance(rows(64, seed=19))
    before = {name: value.clone() for name, value in training.tensors().items()}
    assert float(before["sae.rule.threshold"]) > 0
    x = rows(64, seed=20)
    x[3, 4] = torch.nan
    with pytest.raises(ValueError, match="The loss became nan at step 1"):
        training.advance(x)
    assert all(torch.equal(before[name], value) for name, value in training.tensors().items())


def test_topk_keeps_at_most_k_and_never_a_negative_value() -> None:
    sae = built("topk", k=5).eval()
    with torch.no_grad():
        code = sae.encode(rows(100, seed=8))
    assert int(code.l0().max()) <= 5
    assert (code.values >= 0).all()


def test_unknown_rule_and_argument_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="Unknown rule 'topkk'; did you mean 'topk'"):
        build_rule("topkk", 4, 8, {})
    with pytest.raises(ValueError, match="argument of rule 'topk': 'kk'"):
        build_rule("topk", 4, 8, {"kk": 3})


@pytest.mark.parametrize("k", [0, -1, 41])
def test_k_outside_the_dictionary_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k must lie in 1\.\.d_sae=40, got {k}\."):
        Sae(SaeConfig(D_IN, D_SAE, "topk", {"k": k}))
