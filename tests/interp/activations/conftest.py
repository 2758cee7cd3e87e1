from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from interp.data import Blocks, DataSpec, token_blocks

if TYPE_CHECKING:
    from interp.models import ModelHandle

SENTENCE = "the cat sat on the mat and the dog saw the king and the queen of the sea"


@pytest.fixture(scope="session")
def blocks(gpt2: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    """40 blocks of 16 tokens from short documents, so that BOS also stands inside of blocks."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    words = SENTENCE.split()
    lines = (" ".join(words[(i * j) % len(words)] for j in range(1, 9)) for i in range(200))
    path.write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    return token_blocks(gpt2, DataSpec(str(path), context=16, tokens=640))


@pytest.fixture(scope="session")
def reference(gpt2: ModelHandle, blocks: Blocks) -> torch.Tensor:
    """resid_post.1 of every block, computed one block at a time and without hooks: [block pos d_model]."""
    with torch.no_grad():
        outputs = [gpt2.module(row[None].long(), output_hidden_states=True) for row in blocks.tokens]
    return torch.cat([output.hidden_states[2] for output in outputs])
