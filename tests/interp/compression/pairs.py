"""Two random models that differ a little, a text with padding, and a dictionary: what the panels are tested on."""

from __future__ import annotations

import torch
from torch import Tensor

from interp.compression.compare import read_pair
from interp.compression.panel import Pair, Panel, PanelResult, kept_positions
from interp.data import Blocks
from interp.hooks import capture
from interp.models import ModelHandle, load_model
from interp.sites import Site
from sae.config import SaeConfig
from sae.initialise import initialise
from sae.model import Sae
from tests.conftest import build_module, build_tokenizer

SITE = Site(1, "resid_post")


def copy_of(family: str = "gpt2", noise: float = 0.0) -> ModelHandle:
    """Return the random model of `family`, built anew, with noise of relative size `noise` on its matrices."""
    module = build_module(family)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in module.parameters():
            if noise and weight.ndim == 2:
                weight.add_(noise * weight.std() * torch.randn(weight.shape, generator=generator))
    return load_model(module, tokenizer=build_tokenizer())


def some_blocks(n: int = 7, context: int = 12, seed: int = 5) -> Blocks:
    """Return blocks of random tokens with BOS (0) first; the first is padded from position 8 on, BOS in the second."""
    tokens = torch.randint(1, 300, (n, context), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    tokens[:, 0] = 0
    keep = torch.ones(n, context, dtype=torch.bool)
    keep[0, 8:] = False
    if n > 1:
        tokens[1, 6] = 0
    return Blocks(tokens, keep, documents=n, across_documents=False, bos_id=0)


def kept_rows(model: ModelHandle, blocks: Blocks, site: Site = SITE) -> Tensor:
    """Return the activations of the positions that count, block by block: [rows d]."""
    rows = []
    for block in range(len(blocks)):
        with capture(model, [site]) as acts:
            model.logits(blocks.tokens[block : block + 1].long())
        for position in range(1, blocks.context):
            if blocks.keep[block, position] and blocks.tokens[block, position] != blocks.bos_id:
                rows.append(acts[site][0, position].flatten())
    return torch.stack(rows)


def fitted(model: ModelHandle, d_sae: int = 48, k: int = 6) -> Sae:
    """Return a dictionary of the model's activations at SITE."""
    sae = Sae(SaeConfig(model.width(SITE), d_sae, "topk", {"k": k})).eval()
    initialise(sae, kept_rows(model, some_blocks(30, seed=8)), seed=9)
    return sae


@torch.inference_mode()
def measured(panel: Panel, a: ModelHandle, b: ModelHandle, blocks: Blocks, batch: int = 3) -> PanelResult:
    """Return what one panel finds, reading the blocks in batches, without `compare`."""
    panel.begin(a, b, blocks)
    for numbers in torch.arange(len(blocks)).split(batch):
        panel.update(pair_of(a, b, blocks, numbers, panel.sites(a)))
    return panel.finish()


def pair_of(a: ModelHandle, b: ModelHandle, blocks: Blocks, numbers: Tensor, sites: tuple[Site, ...]) -> Pair:
    """Return the blocks `numbers` as both models read them."""
    return read_pair(a, b, blocks, kept_positions(blocks), numbers, sites)
