"""A dictionary under another encoder: its codes, in the model, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from interp.data import Blocks
from interp.hooks import capture
from interp.models import ModelHandle
from interp.sites import Site
from interp.types import Dictionary
from sae.config import SaeConfig
from sae.evaluation import evaluate
from sae.initialise import initialise
from sae.model import Sae
from sae.reencode import ENCODERS, Reencoded

SITE = Site(1, "resid_post")


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("normalise", ["scalar", "layer", "none"])
def test_codes_reconstruct_and_keep_to_k(encoder: str, normalise: str, built: Callable, rows: Callable) -> None:
    sae, x = built("topk", normalise, k=5).eval(), rows(60, seed=3)
    found = Reencoded(sae, encoder, k=5)
    recon, code = found(x)
    assert int(code.l0().max()) <= 5
    assert (code.values > 0).all()
    scale = sae.normaliser.into(x)[1]
    assert torch.allclose(sae.decode(code, scale), recon)
    own = sae(x)[0].detach()
    assert (x - recon).square().sum() < (x - own).square().sum()
    assert isinstance(found, Dictionary)


def test_without_k_each_row_takes_as_many_as_its_own_code(built: Callable, rows: Callable) -> None:
    sae, x = built("relu").eval(), rows(60, seed=4)
    with torch.no_grad():
        own = sae.encode(x).l0()
    l0 = Reencoded(sae, "omp").encode(x).l0()
    assert (l0 <= own).all()
    assert len(l0.unique()) > 3


def test_signed_codes_leave_less(built: Callable, rows: Callable) -> None:
    sae, x = built("topk", k=5).eval(), rows(100, seed=5)
    left = {}
    for nonnegative in (True, False):
        recon, code = Reencoded(sae, "omp", k=5, nonnegative=nonnegative)(x)
        left[nonnegative] = float((x - recon.detach()).square().sum())
        assert bool((code.values < 0).any()) != nonnegative
    assert left[False] < left[True]


def test_it_is_evaluated_in_the_model_like_any_dictionary(model: ModelHandle) -> None:
    tokens = torch.randint(1, 300, (40, 12), generator=torch.Generator().manual_seed(5), dtype=torch.int32)
    tokens[:, 0] = model.bos_id
    blocks = Blocks(
        tokens, torch.ones(40, 12, dtype=torch.bool), documents=40, across_documents=False, bos_id=model.bos_id
    )
    with capture(model, [SITE]) as taken:
        model.logits(tokens.long())
    sae = Sae(SaeConfig(model.width(SITE), 64, "topk", {"k": 8})).eval()
    initialise(sae, taken[SITE][:, 1:].flatten(0, 1), seed=9)
    own, _ = evaluate(model, SITE, sae, blocks)
    sought, density = evaluate(model, SITE, Reencoded(sae, "omp", k=8), blocks)
    assert sought.fvu < 0.9 * own.fvu
    assert sought.l0 <= 8
    assert density.shape == (64,)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"encoder": "opm", "k": 3}, "Unknown encoder 'opm'; did you mean 'omp'"),
        ({"k": 0}, r"k must lie in 1\.\.d_sae=40, got 0"),
        ({"residual": -0.5}, r"residual .* got -0\.5"),
        ({"residual": float("nan")}, "residual .* got nan"),
        ({"encoder": "matching_pursuit"}, "matching_pursuit takes k"),
        ({"encoder": "matching_pursuit", "k": 3, "nonnegative": False}, "gives no negative"),
    ],
)
def test_arguments_out_of_range_are_refused(args: dict, message: str, built: Callable) -> None:
    with pytest.raises(ValueError, match=message):
        Reencoded(built("topk"), **args)


def test_a_dictionary_of_another_site_is_refused() -> None:
    from sae.config import TargetConfig

    sae = Sae(SaeConfig(8, 16, target=TargetConfig("transcoder", d_out=8)))
    with pytest.raises(ValueError, match=r"\(transcoder\) reconstruct something else"):
        Reencoded(sae, "omp", k=3)
    sae = Sae(SaeConfig(8, 16, target=TargetConfig("crosscoder", blocks=(4, 4))))
    with pytest.raises(ValueError, match="a crosscoder's have length 1 summed over blocks"):
        Reencoded(sae, "omp", k=3)
