"""Turn a checkpoint of `train_tiny` into the embedded model: float16 shards, tokenizer, and a card of measurements.

MECHSCOPE_DATA=... python -m interp.zoo.export_tiny --work build/tiny
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.layers.heads import HeadScores, head_scores
from interp.models import load_model
from interp.zoo.export import save_half, save_tokenizer
from interp.zoo.train_tiny import BOS, TinyConfig, build_model, heldout_loss
from interp.zoo.training import CHECKPOINT, load_weights
from interp.zoo.write_corpus import FOLDER, sample

CARD = """# tiny

A GPT-2-architecture language model of {parameters:,} parameters ({n_layer} layers, d_model {d_model}, {n_head}
heads, context {context}, byte-pair vocabulary {vocab:,}), made for mechscope: small enough for
a laptop, trained on enough real English to have features and circuits. It is no use as a writer.

## Data
{books} books of English fiction from Standard Ebooks (CC0 editions of texts believed to be in the public
domain in the United States), {train_tokens:,} tokens. Held out, from the tokenizer too: {heldout}.
No text of the books is shipped; the demo corpus is what the model wrote itself at temperature 1
(`python -m interp.zoo.write_corpus`).

## Recipe
{tokens:,} training tokens ({epochs:.1f} passes) in {steps:,} steps of {batch} sequences, {hours:.1f} hours on CPU
cores, float32. Muon on the blocks' matrices, AdamW on the rest, peak rate {lr:g}, flat, then linearly to 0 over the
last 35%.
Every sequence begins with `{bos}`; half of them at the start of a paragraph. In {repeat:.0%} of the sequences a span is
repeated, so that induction heads form. `python -m interp.zoo.train_tiny` repeats it.

{verdict}

## Measured
| what | value |
|---|---|
| held-out loss per token | {loss:.3f} nats |
| held-out loss per character | {loss_char:.3f} nats ({bits_char:.2f} bits) |
| perplexity per token | {perplexity:.1f} |
| loss after float16 rounding | {loss_half:.3f} nats |
| loss on random tokens, first time / repeated | {first:.2f} / {second:.2f} nats |
| best induction head | {induction} |
| best previous-token head | {previous} |

Loss: 256 evenly spaced held-out sequences. Head scores: mean attention from a token of the second half of twice 100
random tokens to the token after its first occurrence (induction), and from a token to the one before it (previous
token), over 32 sequences.

## Samples (temperature 1)
{samples}

Licence: MIT, like the rest of mechscope.
"""


def best_head(scores: HeadScores, kind: str) -> str:
    """Return "layer 2 head 5: 0.61" for the largest of one kind of score."""
    layer, head, value = scores.best(kind)
    return f"layer {layer} head {head}: {value:.2f}"


def main() -> None:
    """Write interp/zoo/tiny from the checkpoint in --work."""
    from tokenizers import Tokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="folder of train_tiny")
    parser.add_argument("--verdict", default="", help="a sentence on how far training went")
    args = parser.parse_args()
    config = TinyConfig()
    model: Any = build_model(config).eval()
    meta = load_weights(model, args.work / CHECKPOINT)
    held = np.load(args.work / "heldout.npy", mmap_mode="r")
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    split = json.loads((args.work / "split.json").read_text())
    loss = heldout_loss(model, held, config, n=256)
    save_half(model, FOLDER)
    save_tokenizer(tokenizer, FOLDER, config.context, **dict.fromkeys(("bos_token", "eos_token", "unk_token"), BOS))
    loss_half = heldout_loss(model.float(), held, config, n=256)
    scores = head_scores(load_model(model))
    characters = len(tokenizer.decode(held[:200_000].tolist())) / 200_000
    drawn = sample(model, 3, 120, 0, torch.Generator().manual_seed(1))
    texts = ["> " + tokenizer.decode(ids.tolist()).strip().replace("\n", "\n> ") for ids in drawn]
    tokens = meta["step"] * config.batch * config.context
    train_tokens = len(np.load(args.work / "train.npy", mmap_mode="r"))
    facts = {
        **asdict(config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "books": len(split["train"]),
        "train_tokens": train_tokens,
        "heldout": ", ".join(Path(name).stem for name in split["heldout"]),
        "tokens": tokens,
        "epochs": tokens / train_tokens,
        "steps": meta["step"],
        "hours": meta["seconds"] / 3600,
        "bos": BOS,
        "repeat": config.repeat_share,
        "verdict": args.verdict,
        "loss": loss,
        "loss_char": loss / characters,
        "bits_char": loss / characters / np.log(2),
        "perplexity": np.exp(loss),
        "loss_half": loss_half,
        "first": scores.loss_first,
        "second": scores.loss_second,
        "induction": best_head(scores, "induction"),
        "previous": best_head(scores, "previous"),
        "samples": "\n\n".join(texts),
    }
    card = CARD.format(**facts)
    (FOLDER / "README.md").write_text(card)


if __name__ == "__main__":
    main()
