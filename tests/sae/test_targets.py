"""What is reconstructed: each target against its definition, every rule with every target, and known ground truth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from interp.activations import ActivationStore
from interp.config import to_json
from interp.data import Blocks, DataSpec, token_blocks
from interp.models import ModelHandle
from interp.runs import start_run
from sae.batches import AtSite, Batch, Pairs, SideBySide
from sae.config import SaeConfig, Scalar, TargetConfig, TrainConfig
from sae.end_to_end import TextBatches
from sae.initialise import initialise
from sae.model import Sae, load_sae
from sae.rules import RULES, Context
from sae.targets import TARGETS, block_norms, exclusive, relative_norms
from sae.training import Training, begin, train

D_IN, D_OUT, D_SAE = 12, 10, 24
ATOMS = ["unit", "free"]
TRANSCODER = TargetConfig("transcoder", d_out=D_OUT)
SKIP = TargetConfig("transcoder", d_out=D_OUT, skip=True)
CROSSCODER = TargetConfig("crosscoder", blocks=(5, 7))
CONFIG = TrainConfig(tokens=40 * 64, batch=64, lr=3e-3, dead_after=300)


class Mapped:
    """Sparse x, and y a rectified map of it: pairs that a transcoder can learn. Pure functions of the step."""

    d_in, d_out = D_IN, D_OUT
    gives = ("y", "gradient")

    def __init__(self, noise: float = 0.0) -> None:
        g = torch.Generator().manual_seed(99)
        self.atoms = normalize(torch.randn(20, D_IN, generator=g), dim=1)
        self.map = torch.randn(D_IN, D_OUT, generator=g)

    def batch(self, step: int) -> Tensor:
        g = torch.Generator().manual_seed(step)
        on = torch.rand(64, 20, generator=g) < 0.15
        return (on * torch.rand(64, 20, generator=g)) @ self.atoms + 1.0

    def target(self, step: int) -> Tensor:
        return (self.batch(step) @ self.map).relu() + 3.0

    def gradient(self, step: int) -> Tensor:
        return torch.cos(self.target(step))


class Plain(Mapped):
    """x alone, and a gradient of its own width."""

    gives = ("gradient",)

    def gradient(self, step: int) -> Tensor:
        return torch.cos(self.batch(step))


def built(
    target: TargetConfig, rule: str = "topk", atoms: str = "unit", normalise: str = "scalar", **args: Scalar
) -> Sae:
    if rule == "topk" and not args:
        args = {"k": 4}
    return Sae(SaeConfig(D_IN, D_SAE, rule, args, normalise, atoms, target))  # type: ignore[arg-type]


def started(target: TargetConfig, rule: str = "topk", atoms: str = "unit", normalise: str = "scalar") -> Sae:
    sae, source = built(target, rule, atoms, normalise), Mapped()
    steps = range(8)
    y = torch.cat([source.target(s) for s in steps]) if target.kind == "transcoder" else None
    initialise(sae, torch.cat([source.batch(s) for s in steps]), 0, y)
    return sae


def test_a_transcoder_is_what_its_definition_says() -> None:
    sae, x = started(SKIP).requires_grad_(False), Mapped().batch(50)[:6]
    sae.target.W_skip.data.normal_(generator=torch.Generator().manual_seed(1))  # type: ignore[operator,union-attr]
    found, code = sae(x)
    assert found.shape == (6, D_OUT)
    for n, row in enumerate(x):
        x_n = row / sae.normaliser.scale
        pre = [float(x_n @ sae.W_enc[i] + sae.b_enc[i]) for i in range(D_SAE)]
        y = sae.b_dec + sae.target.W_skip @ x_n  # type: ignore[operator]
        for i in sorted(range(D_SAE), key=lambda i: -pre[i])[:4]:
            y = y + max(pre[i], 0.0) * sae.W_dec[i]
        torch.testing.assert_close(found[n], y * sae.target.normaliser.scale, rtol=1e-4, atol=1e-4)  # type: ignore[union-attr,operator]
    assert int(code.l0().max()) <= 4


@pytest.mark.parametrize("atoms", ATOMS)
@pytest.mark.parametrize("target", [TRANSCODER, SKIP], ids=["transcoder", "skip"])
def test_gradients_of_a_transcoder_equal_dense_autograd(target: TargetConfig, atoms: str) -> None:
    sae = started(target, atoms=atoms, normalise="none").double().train()
    x, y = Mapped().batch(50).double(), Mapped().target(50).double()
    code = sae.encode_normalised(x, Context())
    names = ["W_enc", "b_enc", "W_dec", "b_dec"] + (["target.W_skip"] if target.skip else [])
    wanted = [dict(sae.named_parameters())[name] for name in names]
    ours = (y - sae.decode_normalised(code, x)).square().mean()
    found = torch.autograd.grad(ours, wanted)
    z = (x @ sae.W_enc.t() + sae.b_enc).relu() * (code.dense() != 0)
    straight = x @ sae.target.W_skip.t() if target.skip else 0.0  # type: ignore[operator,union-attr]
    theirs = (y - z @ sae.W_dec - sae.b_dec - straight).square().mean()
    torch.testing.assert_close(ours, theirs)
    for name, a, b in zip(names, found, torch.autograd.grad(theirs, wanted), strict=True):
        if name == "W_dec" and atoms == "unit":  # only its direction is free
            a, b = (g - (g * sae.W_dec).sum(1, keepdim=True) * sae.W_dec for g in (a, b))
        assert (a - b).norm() <= 1e-7 * b.norm() + 1e-12, name


@pytest.mark.parametrize("atoms", ATOMS)
def test_a_transcoder_onto_its_input_starts_as_the_tied_dictionary(atoms: str) -> None:
    x = torch.randn(4000, D_IN, generator=torch.Generator().manual_seed(2)) + 1.0
    plain = Sae(SaeConfig(D_IN, D_SAE, "topk", {"k": 4}, atoms=atoms))  # type: ignore[arg-type]
    onto = Sae(SaeConfig(D_IN, D_SAE, "topk", {"k": 4}, atoms=atoms, target=TargetConfig("transcoder")))  # type: ignore[arg-type]
    initialise(plain, x, seed=3)
    initialise(onto, x, 3, x)
    torch.testing.assert_close(onto(x[:50])[0], plain(x[:50])[0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(onto.b_enc, -(onto.W_enc @ onto.b_dec), rtol=1e-4, atol=1e-4)


def test_a_skip_alone_recovers_an_affine_map() -> None:
    class Affine(Mapped):
        def batch(self, step: int) -> Tensor:
            return torch.randn(64, D_IN, generator=torch.Generator().manual_seed(step)) + 1.0

        def target(self, step: int) -> Tensor:
            return self.batch(step) @ self.map - 2.0

    config = TrainConfig(tokens=300 * 64, batch=64, lr=2e-2, aux=0.0)
    training = begin(built(SKIP), Affine(), config)
    training.sae.b_enc.data.fill_(-1e4)
    last = 1.0
    for step in range(config.steps):
        last = float(training.advance(Batch(Affine().batch(step), Affine().target(step)))["fvu"])
    assert last < 1e-3
    recon, code = training.sae.eval()(Affine().batch(5000))
    assert not code.fired().any()
    torch.testing.assert_close(recon, Affine().target(5000), rtol=0.05, atol=0.1)
    # x / s W_skip^T s_y = x A
    slope = training.sae.target.W_skip.T * training.sae.target.normaliser.scale / training.sae.normaliser.scale  # type: ignore[operator,union-attr]
    torch.testing.assert_close(slope, Affine().map, rtol=0.05, atol=0.1)


def test_a_skip_decodes_with_its_rows_only_and_a_transcoder_does_not_need_them() -> None:
    x = Mapped().batch(7)
    sae = started(TRANSCODER, normalise="layer")
    torch.testing.assert_close(sae.decode(sae.encode(x)), sae(x)[0])
    skip = started(SKIP)
    with pytest.raises(ValueError, match="a skip decodes only with the rows that it reads"):
        skip.decode(skip.encode(x))


def test_a_transcoder_without_its_other_side_is_refused() -> None:
    with pytest.raises(ValueError, match="The target 'transcoder' needs the activations that are to be reconstructed"):
        begin(built(TRANSCODER), Plain(), CONFIG)
    with pytest.raises(ValueError, match=r"trained on pairs; give Batch\(x, y\)"):
        Training(started(TRANSCODER).train(), CONFIG).advance(Mapped().batch(0))
    with pytest.raises(ValueError, match=r"starts from both sides; give initialise\(\.\.\., y=\.\.\.\)"):
        initialise(built(TRANSCODER), Mapped().batch(0))


@pytest.mark.parametrize("rule", ["topk", "batch_topk", "relu"])
@pytest.mark.parametrize("atoms", ATOMS)
def test_a_crosscoder_of_one_block_is_the_plain_dictionary_bit_for_bit(rule: str, atoms: str) -> None:
    args: dict[str, Scalar] = {"l1": 0.1} if rule == "relu" else {"k": 4}
    pair = [
        begin(Sae(SaeConfig(D_IN, D_SAE, rule, args, "scalar", atoms, target)), Plain(), CONFIG)  # type: ignore[arg-type]
        for target in (TargetConfig(), TargetConfig("crosscoder", blocks=(D_IN,)))
    ]
    for step in range(20):
        fvu = [float(training.advance(Plain().batch(step))["fvu"]) for training in pair]
        assert fvu[0] == pytest.approx(fvu[1], rel=1e-4)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        torch.testing.assert_close(getattr(pair[0].sae, name), getattr(pair[1].sae, name), rtol=1e-3, atol=1e-4)


def test_a_crosscoder_charges_the_sum_of_the_block_norms() -> None:
    sae = Sae(SaeConfig(D_IN, D_SAE, "relu", {"l1": 0.7, "warmup": 0.0}, "none", "free", CROSSCODER))
    initialise(sae, Mapped().batch(0))
    sae.W_dec.data *= 20 * torch.rand(D_SAE, D_IN, generator=torch.Generator().manual_seed(3))
    x = Mapped().batch(1)
    code = sae.encode_normalised(x)
    charged = sae.rule.penalties(x, code, x, sae, Context(5, 10))["l1"]
    f = ((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc).relu()
    norms = sae.W_dec[:, :5].norm(dim=1) + sae.W_dec[:, 5:].norm(dim=1)
    torch.testing.assert_close(charged, 0.7 / D_IN**0.5 * (f * norms).sum(1).mean())
    recon = sae.decode_normalised(code)
    torch.testing.assert_close(recon, f @ sae.W_dec + sae.b_dec, rtol=1e-4, atol=1e-4)


def test_atoms_of_a_crosscoder_keep_length_one_and_start_as_projections() -> None:
    training = begin(built(CROSSCODER), Plain(), CONFIG)
    sae = training.sae
    along = (sae.W_enc * sae.W_dec).sum(1)
    torch.testing.assert_close(along, torch.ones(D_SAE), msg="x = atom has the value 1")
    for step in range(5):
        training.advance(Plain().batch(step))
        torch.testing.assert_close(block_norms(sae).sum(1), torch.ones(D_SAE))
    assert float(sae.W_dec.detach().norm(dim=1).min()) < 0.9


def test_each_block_of_a_crosscoder_has_its_own_scale() -> None:
    class Loud(Plain):
        def batch(self, step: int) -> Tensor:
            x = super().batch(step)
            x[:, :5] *= 100
            return x

    quiet, loud = (begin(built(CROSSCODER), source, CONFIG) for source in (Plain(), Loud()))
    torch.testing.assert_close(loud.sae.normaliser.scale, quiet.sae.normaliser.scale * torch.tensor([100.0, 1.0]))
    for step in range(10):
        fvu = [float(t.advance(s.batch(step))["fvu"]) for t, s in ((quiet, Plain()), (loud, Loud()))]
        assert fvu[0] == pytest.approx(fvu[1], rel=1e-3)
    x = Plain().batch(77)
    a, b = quiet.sae.eval()(x)[0], loud.sae.eval()(Loud().batch(77))[0]
    torch.testing.assert_close(b[:, :5] / 100, a[:, :5], rtol=1e-2, atol=1e-2)
    with torch.no_grad():
        layer = started(CROSSCODER, normalise="layer")
        parts, scale = layer.normaliser.into(x)
        assert float(parts[:, :5].mean(1).abs().max()) < 1e-5
        torch.testing.assert_close(layer.normaliser.back(parts, scale), x)


def test_a_crosscoder_of_two_models_finds_what_only_one_of_them_has() -> None:
    g = torch.Generator().manual_seed(5)
    first, second = (normalize(torch.randn(24, 16, generator=g), dim=1) for _ in range(2))
    second[:6] = 0  # the first model's own
    first[6:12] = 0  # the second's

    class Two:
        d_in = 32

        def batch(self, step: int) -> Tensor:
            draw = torch.Generator().manual_seed(step)
            on = (torch.rand(256, 24, generator=draw) < 0.08) * (0.5 + torch.rand(256, 24, generator=draw))
            return torch.cat([on @ first, on @ second], dim=1)

    target = TargetConfig("crosscoder", blocks=(16, 16), models=2)
    sae = Sae(SaeConfig(32, 32, "batch_topk", {"k": 2}, target=target))
    train(begin(sae, Two(), TrainConfig(tokens=700 * 256, batch=256, lr=6e-3)), Two())
    relative, both = relative_norms(sae), torch.cat([first, second], dim=1)
    likeness = normalize(both, dim=1) @ normalize(sae.W_dec.detach() * sae.normaliser.factor, dim=1).T
    best, match = likeness.max(1)
    assert float(best.min()) > 0.8
    assert (relative[match[:6]] > 0.9).all()
    assert (relative[match[6:12]] < 0.1).all()
    assert ((relative[match[12:]] > 0.2) & (relative[match[12:]] < 0.8)).all()
    own = exclusive(sae)
    assert own[0][match[:6]].all()
    assert own[1][match[6:12]].all()
    assert not (own[0] | own[1])[match[12:]].any()
    with pytest.raises(ValueError, match="share must lie above 0.5 and at most at 1, got 0.5"):
        exclusive(sae, 0.5)
    with pytest.raises(ValueError, match="crosscoder of two models"):
        relative_norms(built(CROSSCODER))
    with pytest.raises(ValueError, match="Only a crosscoder has blocks; this dictionary's target is 'input'"):
        block_norms(built(TargetConfig()))


REFUSED = {
    ("transcoder", "matching_pursuit"): "has the atoms for its encoder",
    ("transcoder", "top_afa"): "chooses by the length of the input",
    ("crosscoder", "top_afa"): "chooses by the length of the input",
    ("end_to_end", "gated"): "compares a reconstruction of its own",
    ("end_to_end", "matryoshka"): "compares a reconstruction of its own",
    ("end_to_end", "top_afa"): "compares a reconstruction of its own",
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("target", [TRANSCODER, SKIP, CROSSCODER], ids=["transcoder", "skip", "crosscoder"])
def test_every_rule_trains_with_every_target_or_is_refused(rule: str, target: TargetConfig) -> None:
    if reason := REFUSED.get((target.kind, rule)):
        with pytest.raises(ValueError, match=f"The rule '{rule}' {reason}"):
            built(target, rule)
        return
    source = Plain() if target.kind == "crosscoder" else Mapped()
    args: dict[str, Scalar] = {"sigma": 0.05} if rule == "variational" else {}  # one is as much as these rows vary
    training = begin(built(target, rule, **args), source, TrainConfig(tokens=120 * 64, batch=64, lr=5e-3))
    needs = training.needs
    fvu = []
    for step in range(120):
        more = {"y": source.target(step)} if "y" in needs else {}
        more |= {"gradient": source.gradient(step)} if "gradient" in needs else {}
        fvu.append(float(training.advance(Batch(source.batch(step), **more))["fvu"]))
    assert sum(fvu[-10:]) < 0.9 * sum(fvu[:10])


@pytest.mark.parametrize("rule", [rule for kind, rule in REFUSED if kind == "end_to_end"])
def test_rules_with_local_losses_are_refused_end_to_end(rule: str) -> None:
    if rule in RULES:
        with pytest.raises(ValueError, match=f"The rule '{rule}' compares a reconstruction of its own"):
            built(TargetConfig("end_to_end"), rule)


@pytest.mark.parametrize("target", [SKIP, CROSSCODER, TargetConfig("end_to_end")], ids=lambda target: target.kind)
@pytest.mark.parametrize("atoms", ATOMS)
def test_a_saved_dictionary_of_any_target_gives_the_same(target: TargetConfig, atoms: str, tmp_path: Path) -> None:
    sae, x = started(target, atoms=atoms).eval(), Mapped().batch(3)
    if target.skip:
        sae.target.W_skip.data.normal_()  # type: ignore[operator,union-attr]
    with start_run("sae", {"sae": to_json(sae.config)}, slug="t", root=tmp_path) as record:
        sae.save(record)
        record.finish({})
    again = load_sae(record)
    assert again.config == sae.config
    assert type(again.target) is TARGETS[target.kind]
    torch.testing.assert_close(again(x)[0], sae(x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", [SKIP, CROSSCODER], ids=lambda target: target.kind)
def test_a_training_of_any_target_resumes_bit_for_bit(target: TargetConfig) -> None:
    source = Mapped() if target.kind == "transcoder" else Plain()
    whole = begin(built(target), source, CONFIG)
    train(whole, source)
    broken = begin(built(target), source, TrainConfig(tokens=40 * 64, batch=64, lr=3e-3, dead_after=300))
    for step in range(13):
        broken.sae.train()
        broken.advance(Batch(source.batch(step), source.target(step) if target.kind == "transcoder" else None))
    resumed = Training(built(target), CONFIG)
    resumed.restore(broken.tensors(), {"step": 13})
    train(resumed, source)
    first, second = whole.tensors(), resumed.tensors()
    assert all(torch.equal(first[name], second[name]) for name in first)


# -- with a model


@pytest.fixture(scope="module")
def blocks(gpt2: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"the cat {i} sat on the mat and the dog sat on log {i}.\n" for i in range(60)))
    return token_blocks(gpt2, DataSpec(str(path), context=16, tokens=640))


def test_pairs_and_blocks_come_from_one_pass_and_are_of_the_same_tokens(gpt2: ModelHandle, blocks: Blocks) -> None:
    store = ActivationStore(gpt2, blocks, ["resid_mid.1", "mlp_out.1"], batch=32, gradient=True)
    pairs = Pairs(AtSite(store, "resid_mid.1"), AtSite(store, "mlp_out.1"))
    assert pairs.gives == ("y", "gradient")
    block = gpt2.module.transformer.h[1]
    with torch.no_grad():
        wanted = block.mlp(block.ln_2(pairs.batch(2)))
    torch.testing.assert_close(pairs.target(2), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(pairs.gradient(2), store.gradient(2, "mlp_out.1"))
    side = SideBySide([AtSite(store, "mlp_out.1"), AtSite(store, "resid_mid.1")])
    assert side.blocks == (32, 32)
    assert torch.equal(side.batch(2), torch.cat([pairs.target(2), pairs.batch(2)], dim=1))
    assert side.report == store.report


def test_sources_whose_rows_are_of_different_tokens_are_refused(gpt2: ModelHandle, blocks: Blocks) -> None:
    one, other = (ActivationStore(gpt2, blocks, "resid_post.1", batch=32, seed=seed) for seed in (0, 1))
    with pytest.raises(ValueError, match=r"\d+ rows of step 0 are of different tokens"):
        SideBySide([one, other]).batch(0)


def test_a_transcoder_of_an_mlp_learns(gpt2: ModelHandle, blocks: Blocks) -> None:
    store = ActivationStore(gpt2, blocks, ["resid_mid.1", "mlp_out.1"], batch=64)
    pairs = Pairs(AtSite(store, "resid_mid.1"), AtSite(store, "mlp_out.1"))
    target = TargetConfig("transcoder", d_out=pairs.d_out, skip=True)
    training = begin(
        Sae(SaeConfig(pairs.d_in, 128, "topk", {"k": 8}, "layer", target=target)),
        pairs,
        TrainConfig(tokens=200 * 64, batch=64, lr=5e-3),
    )
    fvu = [float(training.advance(Batch(pairs.batch(s), pairs.target(s)))["fvu"]) for s in range(200)]
    assert sum(fvu[-10:]) < 0.3 * sum(fvu[:10])


def test_end_to_end_learns_what_the_model_needs(gpt2: ModelHandle, blocks: Blocks) -> None:
    source = TextBatches(gpt2, blocks, "resid_post.1", batch=128, downstream=["resid_post.2"])
    target = TargetConfig("end_to_end", downstream=0.5)
    training = begin(
        Sae(SaeConfig(source.d_in, 96, "topk", {"k": 6}, target=target)),
        source,
        TrainConfig(tokens=60 * 128, batch=128, lr=5e-3, aux=0.0),
    )
    seen = [training.advance(Batch(source.batch(s), model=source.model(s))) for s in range(60)]
    assert sum(float(m["kl"]) for m in seen[-8:]) < 0.6 * sum(float(m["kl"]) for m in seen[:8])
    assert float(seen[0]["loss"]) == pytest.approx(float(seen[0]["kl"]) + float(seen[0]["downstream"]), rel=1e-5)
    assert "mse" not in seen[0]
    plain = TextBatches(gpt2, blocks, "resid_post.1", batch=128)
    batch = Batch(plain.batch(0), model=plain.model(0))
    with pytest.raises(ValueError, match="The source measures no later site"):
        training.advance(batch)
