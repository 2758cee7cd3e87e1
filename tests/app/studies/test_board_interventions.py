"""Edits of one square: a planted board in a model that only passes it on, and exactness in a real one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from app.studies.board.cases import Cases, draw_cases
from app.studies.board.intervening import Edit, Editor, SquareProbe, edits_of
from app.studies.board.positions import TURN, all_labels, make_positions, read, stream_sites
from interp.hooks import capture
from interp.models import ModelHandle, load_model
from interp.sites import Site
from probes.board import BoardProbe
from tests.othello_models import othello_handle

SIDE = 4
SQUARES = SIDE * SIDE
PRE, POST = Site.parse("resid_pre.0"), Site.parse("resid_post.0")


def planted_boards(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (n, SQUARES))


def one_hot(tiles: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.eye(3)[tiles].reshape(len(tiles), -1)).float()


@pytest.fixture(scope="module")
def mixing() -> torch.Tensor:
    """Directions of squares and states, at right angles and of length 1."""
    return torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(0)))[0]


@pytest.fixture(scope="module")
def passing(mixing: torch.Tensor) -> ModelHandle:
    """A model whose block adds nothing, and whose embedding of token i is board i."""
    from transformers import GPT2Config, GPT2LMHeadModel

    module = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=4, n_embd=48, n_layer=1, n_head=2))
    with torch.no_grad():
        for parameter in module.transformer.h.parameters():
            parameter.zero_()
        module.transformer.wpe.weight.zero_()
        module.transformer.wte.weight.copy_(one_hot(planted_boards(20)) @ mixing)
    return load_model(module)


@pytest.fixture(scope="module")
def planted(mixing: torch.Tensor) -> SquareProbe:
    """The probe that reads the planted directions; margins are 1 and -1."""
    median = torch.ones(2, SQUARES, 3, 3)
    weight = mixing.T.reshape(48, SQUARES, 3).expand(2, -1, -1, -1)
    return SquareProbe([PRE, POST], weight, torch.zeros(2, SQUARES, 3), median)


@pytest.fixture(scope="module")
def cases() -> Cases:
    """Board i after token i; square i of it gets the next state."""
    tiles = planted_boards(20)
    tokens = torch.zeros(12, 3, dtype=torch.long)
    move = np.array([1, 2] * 6)
    tokens[torch.arange(12), torch.from_numpy(move)] = torch.arange(12)
    square = np.arange(12)
    source = tiles[np.arange(12), square]
    legal = np.zeros((12, 20), dtype=bool)
    return Cases(tokens, np.arange(12), move, square, source, (source + 1) % 3, legal, legal)


@pytest.mark.parametrize("mode", ["median", "negate"])
def test_an_edit_of_a_planted_board_changes_that_square_and_nothing_else(
    mode: str, passing: ModelHandle, planted: SquareProbe, cases: Cases, mixing: torch.Tensor
):
    editor = Editor(passing, planted, cases)
    with capture(passing, POST) as cache:
        done = editor.run(Edit(mode, (PRE,)))
    changed = planted_boards(20)[:12]
    changed[np.arange(12), cases.square] = cases.target
    assert torch.allclose(cache[POST][editor.rows, editor.at], one_hot(changed) @ mixing, atol=1e-5)
    before = torch.arange(3)[None] < editor.at[:, None]  # what stands before the last position is left alone
    token_zero = one_hot(planted_boards(1)) @ mixing
    assert torch.allclose(cache[POST][before], token_zero.expand(int(before.sum()), -1), atol=1e-5)
    assert done.lengths[PRE] == pytest.approx(torch.full((12,), 2**0.5))
    assert (planted.probabilities(cache[POST][editor.rows, editor.at][:, None].expand(-1, 2, -1)).argmax(-1)
            == torch.from_numpy(changed)[:, None]).all()  # fmt: skip


def test_where_the_margin_is_reached_a_later_site_adds_nothing(
    passing: ModelHandle, planted: SquareProbe, cases: Cases
):
    editor = Editor(passing, planted, cases)
    done = editor.run(Edit("median", (PRE, POST)))
    assert done.lengths[POST] == pytest.approx(torch.zeros(12), abs=1e-5)
    one = editor.run(Edit("median", (PRE,)))
    assert torch.allclose(done.logits, one.logits, atol=1e-5)


def test_additive_edits_have_their_length_and_random_ones_that_of_the_projection(
    passing: ModelHandle, planted: SquareProbe, cases: Cases, mixing: torch.Tensor
):
    editor = Editor(passing, planted, cases)
    with capture(passing, POST) as cache:
        added = editor.run(Edit("add", (PRE,), scale=2.5))
    assert added.lengths[PRE] == pytest.approx(torch.full((12,), 2.5))
    direction = one_hot(cases.target[:, None] * np.ones((1, SQUARES), dtype=int)).reshape(12, SQUARES, 3)
    direction = torch.where(torch.arange(SQUARES)[None, :, None] == torch.arange(12)[:, None, None], direction, 0.0)
    wanted = editor.clean[PRE] + 2.5 * direction.flatten(1) @ mixing
    assert torch.allclose(cache[POST][editor.rows, editor.at], wanted, atol=1e-5)
    random = [editor.run(Edit("random", (PRE,), seed=seed)) for seed in (0, 0, 1)]
    assert random[0].lengths[PRE] == pytest.approx(torch.full((12,), 2**0.5))
    assert torch.equal(random[0].logits, random[1].logits)
    assert not torch.allclose(random[0].logits, random[2].logits)


@pytest.fixture(scope="module")
def real() -> tuple[ModelHandle, SquareProbe, Cases]:
    """A random model with a probe fitted to it."""
    handle = othello_handle(SIDE)
    positions, test_games = make_positions(80, SIDE, 0)
    X, Y = read(handle, stream_sites(handle), positions), all_labels(positions)
    probe = BoardProbe(epochs=2, batch=128).fit(X, Y)
    square = SquareProbe.of(probe, stream_sites(handle), X, Y, SQUARES)
    return handle, square, draw_cases(positions, test_games[positions.game], "flip", 20, 0)


def test_margins_are_reached_to_rounding_at_every_site(real: tuple[ModelHandle, SquareProbe, Cases]):
    handle, probe, cases = real
    editor = Editor(handle, probe, cases)
    for mode in ("median", "negate"):
        for site, x in _edited(editor, Edit(mode, tuple(probe.sites))).items():
            wanted = editor._median(site) if mode == "median" else editor.margin(site, editor.clean[site]).abs()
            assert torch.allclose(editor.margin(site, x), wanted, atol=1e-3), (mode, site)


def _edited(editor: Editor, edit: Edit) -> dict[Site, torch.Tensor]:
    """Return the activations at each site after the edits up to and with its own."""
    seen = {}
    inner = editor._delta

    def watched(edit: Edit, where: Site, x: torch.Tensor) -> torch.Tensor:
        added = inner(edit, where, x)
        seen[where] = x + added
        return added

    editor._delta = watched  # type: ignore[method-assign]
    try:
        editor.run(edit)
    finally:
        editor._delta = inner  # type: ignore[method-assign]
    return seen


def test_medians_are_those_of_the_rows_in_a_state():
    handle = othello_handle(SIDE)
    positions, _ = make_positions(40, SIDE, 0)
    sites = stream_sites(handle)
    X, Y = read(handle, sites, positions), all_labels(positions)
    probe = BoardProbe(epochs=1, batch=128).fit(X, Y)
    held = SquareProbe.of(probe, sites, X, Y, SQUARES)
    scores = probe.decision_function(X)[:, 1, 3]
    rows = torch.from_numpy(positions.labels(TURN)[:, 3] == 2)
    assert held.median[1, 3, 2, 1] == pytest.approx((scores[rows, 2] - scores[rows, 1]).median().item())
    assert held.probabilities(X).sum(-1) == pytest.approx(torch.ones(len(X), 3, SQUARES))


def test_no_edit_gives_what_the_model_says(real: tuple[ModelHandle, SquareProbe, Cases]):
    handle, probe, cases = real
    editor = Editor(handle, probe, cases)
    for index in (0, 7):
        alone = handle.logits(cases.tokens[index, : cases.move[index] + 1])[0, -1]
        assert torch.allclose(editor.clean_logits[index], alone, atol=1e-4)


def test_the_edits_of_a_study_are_every_site_alone_and_onward():
    found = edits_of([PRE, POST], {"median": (1.0,), "add": (2.0, 3.0)}, 0)
    said = [(reach, edit.mode, edit.scale, len(edit.sites), edit.sites[0]) for reach, edit in found]
    assert said == [
        ("one", "median", 1.0, 1, PRE), ("one", "add", 2.0, 1, PRE), ("one", "add", 3.0, 1, PRE),
        ("onward", "median", 1.0, 2, PRE), ("onward", "add", 2.0, 2, PRE), ("onward", "add", 3.0, 2, PRE),
        ("one", "median", 1.0, 1, POST), ("one", "add", 2.0, 1, POST), ("one", "add", 3.0, 1, POST),
    ]  # fmt: skip


def test_what_cannot_be_done_is_refused(real: tuple[ModelHandle, SquareProbe, Cases]):
    handle, probe, cases = real
    with pytest.raises(ValueError, match="Unknown mode 'swap'"):
        Edit("swap", (PRE,))
    with pytest.raises(ValueError, match="needs a site"):
        Edit("median", ())
    with pytest.raises(ValueError, match=r"Unknown site of the probe 'attn_out.0'"):
        Editor(handle, probe, cases).run(Edit("median", (Site.parse("attn_out.0"),)))
    gone = SquareProbe(probe.sites, probe.weight, probe.bias, torch.full_like(probe.median, torch.nan))
    with pytest.raises(ValueError, match="more games"):
        Editor(handle, gone, cases).run(Edit("median", (PRE,)))
