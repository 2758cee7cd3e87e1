"""A tiny text, tiny dictionaries, and the same quantities worked out densely, straight from the definitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.data import Blocks
from interp.hooks import capture
from interp.models import ModelHandle
from interp.runs import start_run
from sae.code import Code
from sae.config import SaeConfig
from sae.features import Features, FeaturesConfig, describe_features, load_features
from sae.model import Sae
from sae.rules import Rule

SITE = "resid_post.1"
D_IN, D_SAE, CONTEXT = 32, 24, 16


class AbsTopK(Rule):
    """Keep the k largest |pre| of each row with their sign: a code with negative values."""

    def encode(self, x: Any, sae: Sae, ctx: Any) -> Code:
        pre = sae.pre(x)
        indices = pre.abs().topk(3, dim=-1).indices
        return Code(indices, pre.gather(1, indices), sae.d_sae)


class Threshold(Rule):
    """ReLU computed in place, which destroys the pre-activations, and a code in CSR form."""

    def encode(self, x: Any, sae: Sae, ctx: Any) -> Code:
        return Code.from_dense(sae.pre(x).relu_())


def make_sae(rule: str = "topk", d_in: int = D_IN, d_sae: int = D_SAE, seed: int = 0) -> Sae:
    """Return a random dictionary whose last latent is dead."""
    generator = torch.Generator().manual_seed(seed)
    sae = Sae(SaeConfig(d_in, d_sae, "topk", {"k": min(4, d_sae)}))
    if rule != "topk":
        sae.rule = {"abs_topk": AbsTopK, "threshold": Threshold}[rule](d_in, d_sae)
    with torch.no_grad():
        for parameter in (sae.W_enc, sae.W_dec):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / d_in**0.5)
        sae.b_enc.copy_(0.2 * torch.randn(d_sae, generator=generator))
        sae.b_dec.copy_(0.2 * torch.randn(d_in, generator=generator))
        sae.normaliser.scale.fill_(0.7)
        sae.W_enc[-1], sae.b_enc[-1] = 0, -1e-6
        if rule == "topk":
            sae.b_enc[-1] = -50
    return sae.eval()


def make_blocks(n: int = 30, context: int = CONTEXT, padded: bool = True, seed: int = 0) -> Blocks:
    """Return random blocks that start with BOS (id 0); some hold a second BOS, some end in padding."""
    tokens = torch.randint(1, 300, (n, context), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    keep = torch.ones_like(tokens, dtype=torch.bool)
    tokens[:, 0] = 0
    tokens[1::4, context // 2] = 0
    if padded:
        for block in range(2, n, 5):
            keep[block, context - 1 - block % 7 :] = False
            tokens[block, ~keep[block]] = 0
    return Blocks(tokens, keep, n, False, 0)


@dataclass
class Dense:
    """Everything as dense matrices over all tokens, in the order of the blocks."""

    pre: np.ndarray
    code: np.ndarray
    kept: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    context: int

    def active(self, latent: int) -> list[int]:
        """Return the kept tokens on which a latent is active."""
        return [t for t in range(len(self.kept)) if self.kept[t] and self.code[t, latent] != 0]


def make_dense(handle: ModelHandle, sae: Sae, blocks: Blocks) -> Dense:
    """Work the definitions out for every token and every latent."""
    with torch.no_grad(), capture(handle, [SITE]) as taken:
        handle.forward(blocks.tokens.long())
        x = taken[SITE].flatten(0, 1)
        pre = (x / sae.normaliser.scale - sae.b_dec) @ sae.W_enc.t() + sae.b_enc
    code = np.zeros_like(pre.numpy())
    for row, values in enumerate(pre.numpy()):
        if isinstance(sae.rule, AbsTopK):
            for latent in np.argsort(-np.abs(values))[:3]:
                code[row, latent] = values[latent]
        else:
            chosen = range(sae.d_sae) if isinstance(sae.rule, Threshold) else np.argsort(-values)[:4]
            for latent in chosen:
                code[row, latent] = max(values[latent], 0.0)
    kept = (blocks.keep & (blocks.tokens != 0)).flatten().numpy()
    ids = blocks.tokens.flatten().numpy()
    return Dense(pre.numpy(), code, kept, ids, blocks.keep.sum(1).numpy(), blocks.context)


@dataclass
class Bench:
    """What the tests build on."""

    sae: Callable[..., Sae] = make_sae
    blocks: Callable[..., Blocks] = make_blocks
    dense: Callable[[ModelHandle, Sae, Blocks], Dense] = make_dense
    site: str = SITE


@pytest.fixture
def bench() -> Bench:
    """Builders of dictionaries, blocks and dense references."""
    return Bench()


@pytest.fixture
def describe(tmp_path: Path, gpt2: ModelHandle) -> Callable[..., Features]:
    """Return a function that describes a dictionary of the random GPT-2 in a run of its own."""

    def make(sae: Sae, blocks: Blocks, config: FeaturesConfig | None = None, **options: Any) -> Features:
        number = len(list(tmp_path.glob("features/*")))
        run = start_run("features", {"site": SITE, "number": number}, slug="test", root=tmp_path)
        run.finish(describe_features(gpt2, SITE, sae, blocks, run, config=config, **options))
        return load_features(run)

    return make
