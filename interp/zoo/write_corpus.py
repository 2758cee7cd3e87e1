"""Let `tiny` write the demo corpus: about 1 MB of its own text, sampled at temperature 1.

    python -m interp.zoo.write_corpus

Nothing of the books that trained it is shipped; what the model makes up stands in for them. The draw is seeded, so the
same weights on the same machine write the same corpus.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "tiny"


@torch.inference_mode()
def sample(model: torch.nn.Module, n: int, length: int, bos: int, generator: torch.Generator) -> Tensor:
    """Return [n length] token ids drawn from `model` at temperature 1, each row begun by BOS (not returned)."""
    tokens = torch.full((n, 1), bos)
    rows, cache = [], None
    for _ in range(length):
        out = model(input_ids=tokens, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        weights = out.logits[:, -1].float().softmax(-1)
        weights[:, bos] = 0  # a document that ended at once would be empty
        tokens = torch.multinomial(weights, 1, generator=generator)
        rows.append(tokens)
    return torch.cat(rows, dim=1)


def main() -> None:
    """Write `corpus.jsonl.gz` beside the weights."""
    from interp.models import load_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--characters", type=int, default=1_000_000, help="how much to write")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    args = parser.parse_args()
    handle = load_model("tiny")
    generator = torch.Generator().manual_seed(args.seed)
    length, written = handle.n_ctx - 1, 0
    # mtime=0 and no name: the same text gives the same file.
    with (FOLDER / "corpus.jsonl.gz").open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        while written < args.characters:
            for ids in sample(handle.module, 128, length, handle.bos_id or 0, generator):
                text = handle.decode(ids)
                file.write((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode())
                written += len(text)
            sys.stderr.write(f"{written:,} characters\n")


if __name__ == "__main__":
    main()
