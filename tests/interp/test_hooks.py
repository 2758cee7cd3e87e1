from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from interp.hooks import ablate, capture, patch, splice
from interp.models import ModelHandle
from interp.sites import Site

VIEWS = ["hf", "bridge"]


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(300, (2, 7), generator=torch.Generator().manual_seed(1))


def plain_sites(model: ModelHandle) -> list[Site]:
    return [site for site in model.sites() if site.kind != "pattern"]


def noise_like(value: Tensor) -> Tensor:
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(2))


def count_hooks(model: ModelHandle) -> int:
    """Hooks on the module, and on the hook points of the bridge; those that transformers leaves there are its own."""
    hooks = [h for part in model.module.modules() for h in (part._forward_hooks | part._forward_pre_hooks).values()]
    plain = sum(not getattr(hook, "__module__", "").startswith("transformers") for hook in hooks)
    points = model.bridge.hook_dict.values()
    return plain + sum(len(point.fwd_hooks) + len(point._forward_hooks) for point in points)


class Linear:
    """A dictionary that is any linear map; remembers what it saw."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.seen = matrix, []
        self.d_in, self.d_sae = matrix.shape[0], matrix.shape[1]

    def encode(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return x @ self.matrix

    def decode(self, code: Tensor) -> Tensor:
        return code

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encode(x)
        return self.decode(code), code


# -- the two views are one model


def test_every_site_has_one_value_in_both_views(model: ModelHandle, tokens: Tensor) -> None:
    sites = plain_sites(model)
    with capture(model, sites) as plain:
        model.forward(tokens)
    with capture(model, sites, view="bridge") as bridged:
        model.forward(tokens, view="bridge")
    assert list(plain) == sites
    for site in sites:
        assert plain[site].shape == bridged[site].shape, site
        assert (plain[site] - bridged[site]).abs().max() < 1e-4, site
        sizes = {"batch": 2, "pos": 7}
        assert list(plain[site].shape) == [size or sizes[name] for name, size in model.axes(site)], site
        assert plain[site][0, 0].numel() == model.width(site), site


def test_key_and_value_heads_of_a_llama_are_its_own(llama: ModelHandle, tokens: Tensor) -> None:
    with capture(llama, ["q.1", "k.1", "v.1", "head_out.1"]) as acts:
        llama.forward(tokens)
    assert [list(value.shape) for value in acts.values()] == [[2, 7, 4, 8], [2, 7, 2, 8], [2, 7, 2, 8], [2, 7, 4, 8]]


def test_an_edit_has_one_effect_in_both_views(model: ModelHandle, tokens: Tensor) -> None:
    clean = model.logits(tokens)
    for site in plain_sites(model):
        with patch(model, site, lambda x: x + noise_like(x)):
            plain = model.logits(tokens)
        with patch(model, site, lambda x: x + noise_like(x), view="bridge"):
            bridged = model.logits(tokens, view="bridge")
        assert (plain - bridged).abs().max() < 1e-4, site
        assert (plain - clean).abs().max() > 1e-2, site


def test_the_gradient_is_one_in_both_views(model: ModelHandle, tokens: Tensor) -> None:
    found = {}
    for view in VIEWS:
        with capture(model, plain_sites(model), view=view, grad=True) as acts:
            logits = model.forward(tokens, view=view)
        assert logits is not None
        logits.log_softmax(-1)[:, -1, 5].sum().backward()
        found[view] = {site: value.grad for site, value in acts.items()}
    for site, gradient in found["hf"].items():
        assert gradient is not None, site
        assert (gradient - found["bridge"][site]).abs().max() < 1e-4, site
    assert sum(float(gradient.abs().sum()) > 0 for gradient in found["hf"].values()) > 15


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_resid_mid_is_written_for_both_of_its_readers(
    family: str, view: str, tokens: Tensor, request: pytest.FixtureRequest
) -> None:
    """resid_mid = resid_pre + attn_out, so adding to either is the same: the MLP and the stream both see it."""
    model = request.getfixturevalue(family)
    with patch(model, "resid_mid.1", lambda x: x + noise_like(x), view=view):
        middle = model.logits(tokens, view=view)
    with patch(model, "attn_out.1", lambda x: x + noise_like(x), view=view):
        attention = model.logits(tokens, view=view)
    assert torch.allclose(middle, attention, atol=1e-5)


def test_blocks_in_sequence_have_a_resid_mid(make_model: Callable[..., ModelHandle], tokens: Tensor) -> None:
    model = make_model("neox", use_parallel_residual=False)
    assert Site(1, "resid_mid") in model.sites()
    with capture(model, ["resid_pre.1", "attn_out.1", "resid_mid.1"]) as acts:
        model.forward(tokens)
    assert torch.allclose(acts["resid_mid.1"], acts["resid_pre.1"] + acts["attn_out.1"], atol=1e-5)
    with patch(model, "resid_mid.1", noise_like):
        plain = model.logits(tokens)
    with patch(model, "resid_mid.1", noise_like, view="bridge"):
        assert torch.allclose(plain, model.logits(tokens, view="bridge"), atol=1e-4)


def test_padding_on_the_left_is_masked_in_both_views(model: ModelHandle, tokens: Tensor) -> None:
    padded = torch.cat([torch.full((2, 3), 9), tokens], 1)
    mask = torch.arange(10).expand(2, -1) >= 3
    for view in VIEWS:
        found = model.forward(padded, view=view, mask=mask)
        assert found is not None
        assert torch.allclose(found[:, 3:], model.logits(tokens), atol=1e-4)
    with pytest.raises(ValueError, match="mask must have the shape of tokens"):
        model.forward(tokens, mask=mask)


# -- which sites there are


def test_the_pattern_lives_in_the_bridge_only(model: ModelHandle, tokens: Tensor) -> None:
    with capture(model, "pattern.1", view="bridge") as acts:
        model.forward(tokens, view="bridge")
    assert acts["pattern.1"].shape == (2, 4, 7, 7)
    assert torch.allclose(acts["pattern.1"].sum(-1), torch.ones(2, 4, 7))
    assert acts["pattern.1"].triu(1).abs().max() == 0
    with pytest.raises(ValueError, match="view='bridge'"), capture(model, "pattern.1"):
        pass


def test_parallel_blocks_have_no_resid_mid(neox: ModelHandle) -> None:
    assert all(site.kind != "resid_mid" for site in neox.sites())
    for view in VIEWS:
        with pytest.raises(ValueError, match="This model has no resid_mid"), capture(neox, "resid_mid.0", view=view):
            pass


def test_unknown_places_are_refused(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match=r"resid_post.3 lies beyond this model: its layers are 0..2"):
        gpt2.check_site("resid_post.3")
    with (
        pytest.raises(ValueError, match="Unknown view 'bridg'; did you mean 'bridge'"),
        capture(gpt2, "q.0", view="bridg"),
    ):
        pass
    assert count_hooks(gpt2) == 0


# -- always undone


@pytest.mark.parametrize("view", VIEWS)
def test_hooks_are_removed_at_the_end(model: ModelHandle, view: str, tokens: Tensor) -> None:
    before, hooks = model.logits(tokens, view=view), count_hooks(model)
    with (
        capture(model, plain_sites(model), view=view),
        ablate(model, "attn_out.1", view=view),
        patch(model, "q.2", torch.zeros_like, view=view),
    ):
        assert not torch.equal(model.logits(tokens, view=view), before)
    assert count_hooks(model) == hooks
    assert torch.equal(model.logits(tokens, view=view), before)


@pytest.mark.parametrize("view", VIEWS)
def test_hooks_are_removed_after_an_exception(gpt2: ModelHandle, view: str, tokens: Tensor) -> None:
    before, hooks = gpt2.logits(tokens, view=view), count_hooks(gpt2)

    def fail(value: Tensor) -> Tensor:
        raise KeyError("inside the hook")

    with pytest.raises(ZeroDivisionError), patch(gpt2, "mlp_out.0", torch.zeros_like, view=view):
        raise ZeroDivisionError
    with (
        pytest.raises(KeyError, match="inside the hook"),
        capture(gpt2, "resid_mid.1", view=view, stop=True),
        patch(gpt2, "mlp_out.0", fail, view=view),
    ):
        gpt2.forward(tokens, view=view)
    with pytest.raises(ValueError), capture(gpt2, ["q.0", "pattern.0" if view == "hf" else "q.9"], view=view):
        pass
    assert count_hooks(gpt2) == hooks
    assert torch.equal(gpt2.logits(tokens, view=view), before)
    assert gpt2.lock.acquire(blocking=False)
    gpt2.lock.release()


def test_only_our_own_hooks_are_removed(gpt2: ModelHandle, tokens: Tensor) -> None:
    calls = []
    theirs = gpt2.hook_point(Site(1, "resid_post")).add_hook(lambda value, hook: calls.append(1))
    try:
        with patch(gpt2, "resid_post.1", torch.zeros_like, view="bridge"):
            pass
        gpt2.forward(tokens, view="bridge")
    finally:
        theirs.hook.remove()
        gpt2.hook_point(Site(1, "resid_post")).fwd_hooks.clear()
    assert calls == [1]


# -- order


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("site", ["resid_post.1", "q.1", "resid_mid.1", "mlp_act.1"])
def test_the_inner_sees_what_the_outer_made(gpt2: ModelHandle, site: str, view: str, tokens: Tensor) -> None:
    with (
        capture(gpt2, site, view=view) as original,
        patch(gpt2, site, lambda x: x + 1, view=view),
        capture(gpt2, site, view=view) as between,
        patch(gpt2, site, lambda x: 3 * x, view=view),
        capture(gpt2, site, view=view) as last,
    ):
        gpt2.forward(tokens, view=view)
    assert torch.equal(between[site], original[site] + 1)
    assert torch.equal(last[site], 3 * (original[site] + 1))


def test_an_edit_may_work_in_place(model: ModelHandle, tokens: Tensor) -> None:
    def zero_third(value: Tensor) -> Tensor:
        value[:, 3] = 0
        return value

    for site in plain_sites(model)[:11]:
        with capture(model, site) as before, patch(model, site, zero_third), capture(model, site) as after:
            model.forward(tokens)
        assert before[site][:, 3].abs().max() > 0, site
        assert after[site][:, 3].abs().max() == 0, site
        assert torch.equal(after[site][:, 4:], before[site][:, 4:]), site


@pytest.mark.parametrize(("bad", "what"), [(lambda x: x[:1], r"\[1, 7, 32\]"), (lambda x: None, "NoneType")])
def test_an_edit_that_does_not_fit_is_refused(
    gpt2: ModelHandle, tokens: Tensor, bad: Callable[[Tensor], Tensor], what: str
) -> None:
    with (
        pytest.raises(ValueError, match=rf"The edit at resid_post.1 must return a tensor \[2, 7, 32\], got {what}"),
        patch(gpt2, "resid_post.1", bad),
    ):
        gpt2.forward(tokens)


# -- capture


@pytest.mark.parametrize("view", VIEWS)
def test_stop_ends_the_forward_after_the_last_wanted_site(model: ModelHandle, view: str, tokens: Tensor) -> None:
    ran = []
    blocks = (
        model.bridge.blocks
        if view == "bridge"
        else model.module.base_model.get_submodule("h" if model.family == "gpt2" else "layers")
    )
    counters = [
        block.register_forward_pre_hook(lambda *_, index=index: ran.append(index)) for index, block in enumerate(blocks)
    ]
    try:
        with capture(model, ["mlp_out.1", "resid_post.0"], stop=True, view=view) as stopped:
            assert model.forward(tokens, view=view) is None
            assert ran == [0, 1]
            assert model.forward(tokens, view=view) is None  # a second pass wants them again
            with pytest.raises(RuntimeError, match="ended the pass before the logits"):
                model.logits(tokens, view=view)
        assert ran == [0, 1] * 3
    finally:
        for counter in counters:
            counter.remove()
    with capture(model, ["mlp_out.1", "resid_post.0"], view=view) as whole:
        assert model.forward(tokens, view=view) is not None
    assert all(torch.equal(stopped[site], whole[site]) for site in whole)


def test_nested_captures_stop_when_all_have_what_they_want(gpt2: ModelHandle, tokens: Tensor) -> None:
    with capture(gpt2, "resid_post.0", stop=True) as outer, capture(gpt2, "resid_post.1", stop=True) as inner:
        assert gpt2.forward(tokens) is None
    assert set(outer) | set(inner) == {Site(0, "resid_post"), Site(1, "resid_post")}
    with capture(gpt2, "resid_post.0", stop=True), capture(gpt2, "resid_post.1"):
        assert gpt2.forward(tokens) is not None


def test_captured_activations_are_plain_tensors_that_can_be_trained_on(gpt2: ModelHandle, tokens: Tensor) -> None:
    with capture(gpt2, "resid_post.1", stop=True) as acts:
        gpt2.forward(tokens)
    x = acts["resid_post.1"]
    assert not x.requires_grad
    layer = nn.Linear(32, 4)
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None


def test_what_was_not_captured_is_named(gpt2: ModelHandle, tokens: Tensor) -> None:
    with capture(gpt2, "resid_post.1") as acts:
        with pytest.raises(KeyError, match=r"nothing yet: call model.forward\(tokens\)"):
            acts["resid_post.1"]
        gpt2.forward(tokens)
    assert acts["blocks.1.hook_resid_post"] is acts[Site(1, "resid_post")]
    with pytest.raises(KeyError, match=r"q.0 was not captured; captured: resid_post.1"):
        acts["q.0"]


def test_the_gradient_is_that_of_the_logits(gpt2: ModelHandle, tokens: Tensor) -> None:
    """After the last block only the norm and the unembedding remain, which autograd can do by itself."""
    with capture(gpt2, "resid_post.2", grad=True) as acts:
        logits = gpt2.forward(tokens)
    assert logits is not None
    logits[0, -1, 5].backward()
    x = acts["resid_post.2"].detach().requires_grad_()
    (gpt2.final_norm(x) @ gpt2.unembed().T)[0, -1, 5].backward()
    assert torch.allclose(acts["resid_post.2"].grad, x.grad, atol=1e-6)  # type: ignore[arg-type]
    assert not gpt2.logits(tokens).requires_grad
    assert all(parameter.grad is None for parameter in gpt2.module.parameters())


# -- ablate


@pytest.mark.parametrize("view", VIEWS)
def test_ablate_puts_what_it_says(model: ModelHandle, view: str, tokens: Tensor) -> None:
    for site in ("resid_post.1", "k.1", "mlp_act.0"):
        with (
            capture(model, site, view=view) as before,
            ablate(model, site, view=view),
            capture(model, site, view=view) as zero,
        ):
            model.forward(tokens, view=view)
        assert zero[site].abs().max() == 0
        with ablate(model, site, "mean", view=view), capture(model, site, view=view) as mean:
            model.forward(tokens, view=view)
        expected = before[site].mean((0, 1))
        assert torch.allclose(mean[site], expected.expand_as(mean[site]), atol=1e-6)


def test_ablate_by_a_reference(gpt2: ModelHandle, tokens: Tensor) -> None:
    reference = torch.randn(3, 5, 32)
    with ablate(gpt2, "resid_post.1", "mean", reference=reference), capture(gpt2, "resid_post.1") as acts:
        gpt2.forward(tokens)
    assert torch.allclose(acts["resid_post.1"][1, 4], reference.mean((0, 1)), atol=1e-6)
    with ablate(gpt2, "resid_post.1", "mean", reference=reference[0, 0]), capture(gpt2, "resid_post.1") as acts:
        gpt2.forward(tokens)
    assert torch.equal(acts["resid_post.1"][1, 4], reference[0, 0])
    with (
        pytest.raises(ValueError, match=r"must end in the axes \[4, 8\], got \[3, 5, 32\]"),
        ablate(gpt2, "q.1", "mean", reference=reference),
    ):
        pass


def test_resample_draws_whole_rows_and_is_seeded(gpt2: ModelHandle, tokens: Tensor) -> None:
    reference = torch.arange(6.0)[:, None].expand(6, 32)

    def drawn(seed: int) -> Tensor:
        with (
            ablate(gpt2, "resid_post.1", "resample", reference=reference, seed=seed),
            capture(gpt2, "resid_post.1") as acts,
        ):
            gpt2.forward(tokens)
        return acts["resid_post.1"]

    first = drawn(0)
    assert torch.equal(first, first[..., :1].expand_as(first))  # whole rows
    assert set(first.flatten().tolist()) <= set(range(6))
    assert torch.equal(first, drawn(0))
    assert not torch.equal(first, drawn(1))


@pytest.mark.parametrize("view", VIEWS)
def test_ablate_at_some_positions(gpt2: ModelHandle, view: str, tokens: Tensor) -> None:
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, 2] = mask[1, 5] = True
    for positions, chosen in (([0, -1], torch.arange(7).expand(2, -1) % 6 == 0), (mask, mask), ([], mask & False)):
        with (
            capture(gpt2, "q.1", view=view) as before,
            ablate(gpt2, "q.1", positions=positions, view=view),
            capture(gpt2, "q.1", view=view) as after,
        ):
            gpt2.forward(tokens, view=view)
        assert torch.equal(after["q.1"][~chosen], before["q.1"][~chosen])
        assert (after["q.1"][chosen] == 0).all()


def test_a_pattern_is_ablated_by_query(gpt2: ModelHandle, tokens: Tensor) -> None:
    with ablate(gpt2, "pattern.1", positions=[2], view="bridge"), capture(gpt2, "pattern.1", view="bridge") as acts:
        gpt2.forward(tokens, view="bridge")
    assert acts["pattern.1"][:, :, 2].abs().max() == 0
    assert acts["pattern.1"][:, :, 3].min() >= 0
    assert acts["pattern.1"][:, :, 3].sum() > 0
    with pytest.raises(ValueError, match="by zero only"), ablate(gpt2, "pattern.1", "mean", view="bridge"):
        pass


def test_bad_ablations(gpt2: ModelHandle, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match="Unknown ablation 'maen'; did you mean 'mean'"), ablate(gpt2, "q.1", "maen"):
        pass
    with pytest.raises(ValueError, match=r"positions must lie in 0..6, got 7"), ablate(gpt2, "q.1", positions=[7]):
        gpt2.forward(tokens)
    with (
        pytest.raises(ValueError, match=r"positions must be a boolean tensor \[batch pos\] \[2, 7\]"),
        ablate(gpt2, "q.1", positions=torch.ones(2, 6, dtype=torch.bool)),
    ):
        gpt2.forward(tokens)


# -- splice


@pytest.mark.parametrize("view", VIEWS)
def test_an_identity_and_a_kept_error_change_nothing(model: ModelHandle, view: str, tokens: Tensor) -> None:
    clean = model.logits(tokens, view=view)
    for site in ("resid_post.1", "head_out.1", "v.0", "mlp_out.2"):
        width = model.width(site)
        poor = Linear(torch.randn(width, width))
        with splice(model, site, Linear(torch.eye(width)), view=view):
            assert torch.equal(model.logits(tokens, view=view), clean), site
        with splice(model, site, poor, error=True, view=view):
            assert torch.equal(model.logits(tokens, view=view), clean), site
        with splice(model, site, poor, view=view):
            assert not torch.allclose(model.logits(tokens, view=view), clean, atol=1e-3), site


@pytest.mark.parametrize("view", VIEWS)
def test_excluded_positions_pass_through(gpt2: ModelHandle, view: str, tokens: Tensor) -> None:
    keep = torch.ones(2, 7, dtype=torch.bool)
    keep[:, 0] = keep[1, 4] = False
    double = Linear(2 * torch.eye(32))
    with (
        capture(gpt2, "resid_post.1", view=view) as before,
        splice(gpt2, "resid_post.1", double, keep=keep, view=view),
        capture(gpt2, "resid_post.1", view=view) as after,
    ):
        gpt2.forward(tokens, view=view)
    x, spliced = before["resid_post.1"], after["resid_post.1"]
    assert torch.equal(spliced[~keep], x[~keep])
    assert torch.equal(spliced[keep], 2 * x[keep])
    assert torch.equal(double.seen[0], x[keep])  # the dictionary never saw the others
    clean = gpt2.logits(tokens, view=view)
    with splice(gpt2, "resid_post.1", double, keep=keep & False, view=view):
        assert torch.equal(gpt2.logits(tokens, view=view), clean)
    with (
        pytest.raises(ValueError, match=r"keep must be a boolean tensor \[batch pos\] \[2, 7\]"),
        splice(gpt2, "resid_post.1", double, keep=keep[:, :6], view=view),
    ):
        gpt2.forward(tokens, view=view)


def test_with_the_error_kept_the_gradient_runs_through_the_dictionary(gpt2: ModelHandle, tokens: Tensor) -> None:
    matrix = torch.randn(32, 32)
    with (
        capture(gpt2, "resid_post.1", grad=True) as before,
        splice(gpt2, "resid_post.1", Linear(matrix), error=True),
        capture(gpt2, "resid_post.1", grad=True) as after,
    ):
        logits = gpt2.forward(tokens)
    assert logits is not None
    logits[0, -1, 3].backward()
    x, spliced = before["resid_post.1"].grad, after["resid_post.1"].grad
    assert x is not None
    assert spliced is not None
    assert torch.allclose(x, spliced @ matrix.T, atol=1e-5)


def test_a_dictionary_of_another_width_is_refused(gpt2: ModelHandle) -> None:
    with (
        pytest.raises(ValueError, match=r"reads d_in=31 numbers, but q.1 has 32"),
        splice(gpt2, "q.1", Linear(torch.ones(31, 31))),
    ):
        pass


# -- two users


@pytest.mark.parametrize("view", VIEWS)
def test_two_threads_never_see_each_others_hooks(gpt2: ModelHandle, view: str, tokens: Tensor) -> None:
    clean = gpt2.logits(tokens, view=view)
    started, finished = threading.Event(), threading.Event()
    found = []

    def other() -> None:
        started.set()
        found.append(gpt2.logits(tokens, view=view))
        with capture(gpt2, "resid_post.2", view=view) as acts:
            gpt2.forward(tokens, view=view)
        found.append(acts["resid_post.2"])
        finished.set()

    thread = threading.Thread(target=other)
    with patch(gpt2, "resid_post.0", torch.zeros_like, view=view):
        thread.start()
        started.wait()
        edited = [gpt2.logits(tokens, view=view) for _ in range(5)]
        assert not finished.is_set()
    thread.join()
    with capture(gpt2, "resid_post.2", view=view) as acts:
        gpt2.forward(tokens, view=view)
    assert torch.equal(found[0], clean)
    assert torch.equal(found[1], acts["resid_post.2"])
    assert all(torch.equal(one, edited[0]) and not torch.equal(one, clean) for one in edited)


# -- edits for good


def test_attached_edits_act_in_both_views_also_in_a_bridge_built_later(
    make_model: Callable[..., ModelHandle], tokens: Tensor
) -> None:
    early, late = make_model("gpt2"), make_model("gpt2")
    _ = early.bridge
    for model in (early, late):
        model.attach("mlp_out.1", torch.zeros_like)
        assert torch.equal(model.logits(tokens), early.logits(tokens))
        assert model.verify() < 1e-4
        with capture(model, "mlp_out.1", view="bridge") as acts:
            model.forward(tokens, view="bridge")
        assert acts["mlp_out.1"].abs().max() == 0


def test_a_bridge_built_inside_a_context_does_not_inherit_its_hooks(
    make_model: Callable[..., ModelHandle], tokens: Tensor
) -> None:
    model = make_model("gpt2")
    clean = model.logits(tokens)
    with patch(model, "resid_post.1", torch.zeros_like):
        inside = model.logits(tokens, view="bridge")
    assert torch.allclose(inside, clean, atol=1e-4)
    assert torch.allclose(model.logits(tokens, view="bridge"), clean, atol=1e-4)
