"""Random pairs, and the slow reference: patching as it is defined, one hooked forward for each cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from interp.hooks import capture, patch
from interp.models import ModelHandle
from interp.tasks import LogitDiff, Pairs

Put = Callable[[Tensor, Tensor], None]


def random_pairs(prompts: int = 2, n_pos: int = 5, same: int = 1, seed: int = 0) -> Pairs:
    """Return pairs of random ids that agree at the first `same` positions."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(300, (prompts, n_pos), generator=generator)
    corrupt = (clean + torch.randint(1, 300, (prompts, n_pos), generator=generator)) % 300
    corrupt[:, :same] = clean[:, :same]
    correct, wrong = torch.randint(300, (2, prompts, 1), generator=generator)
    return Pairs("random", clean, corrupt, correct, (wrong + (wrong == correct)) % 300)


def run_by_definition(
    model: ModelHandle, base: Tensor, source: Tensor, cells: Sequence[tuple[str, Put]], view: str = "hf"
) -> Tensor:
    """Return the logits of `base` while, at each (site, put), `put(value, value of the source run)` changes it."""
    from contextlib import ExitStack

    with capture(model, [site for site, _ in cells], view=view) as acts:
        model.logits(source, view=view)
        kept = {site: acts[site].clone() for site, _ in cells}
    with ExitStack() as opened:
        for site, put in cells:

            def edit(value: Tensor, site: str = site, put: Put = put) -> Tensor:
                put(value, kept[site])
                return value

            opened.enter_context(patch(model, site, edit, view=view))
        return model.logits(base, view=view)


def effect_by_definition(
    model: ModelHandle, pairs: Pairs, cells: Sequence[tuple[str, Put]], direction: str = "denoising", view: str = "hf"
) -> Tensor:
    """Return the effect on the logit difference of each prompt, by `run_by_definition`."""
    base, source = (pairs.corrupt, pairs.clean) if direction == "denoising" else (pairs.clean, pairs.corrupt)
    metric, rows = LogitDiff(pairs.correct, pairs.wrong), torch.arange(len(pairs))
    change = metric(run_by_definition(model, base, source, cells, view), rows) - metric(
        model.logits(base, view=view), rows
    )
    return change if direction == "denoising" else -change


def hooks_on(model: ModelHandle) -> int:
    """Return the number of hooks on the module that are not transformers' own."""
    hooks = [h for part in model.module.modules() for h in (part._forward_hooks | part._forward_pre_hooks).values()]
    return sum(not getattr(hook, "__module__", "").startswith("transformers") for hook in hooks)


@pytest.fixture
def pairs() -> Pairs:
    """Two pairs of five tokens, the first of them the same in both."""
    return random_pairs()


@pytest.fixture(scope="session")
def make_pairs() -> Callable[..., Pairs]:
    """`make_pairs(prompts, n_pos, same, seed)` returns random pairs."""
    return random_pairs


@pytest.fixture(scope="session")
def by_definition() -> Callable[..., Tensor]:
    """`by_definition(model, pairs, [(site, put)], direction, view)` returns the effect on each prompt."""
    return effect_by_definition


@pytest.fixture(scope="session")
def logits_by_definition() -> Callable[..., Tensor]:
    """`logits_by_definition(model, base, source, [(site, put)], view)` returns the logits."""
    return run_by_definition


@pytest.fixture(scope="session")
def count_hooks() -> Callable[[ModelHandle], int]:
    """`count_hooks(model)` returns the number of hooks that are not transformers' own."""
    return hooks_on
