"""Train `tiny`, the embedded language model: a small GPT-2 on public-domain English fiction.

    MECHSCOPE_DATA=... python -m interp.zoo.train_tiny --work build/tiny --tokens 40e6

Every batch is a pure function of (seed, step), and the checkpoint holds weights and optimiser state, so a
run that was stopped (Ctrl-C, kill -9) goes on where it was; optimisers and schedule are those of `interp.zoo.training`.

A few per cent of the sequences repeat a span of themselves, because induction heads form late on fiction alone.
"""

from __future__ import annotations

import argparse
import json
import os
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.zoo.training import Pace, build_gpt2, fit

BOS = "<|endoftext|>"


@dataclass(frozen=True)
class TinyConfig:
    """What `tiny` is and how it is trained."""

    n_layer: int = 4
    """Transformer blocks."""
    d_model: int = 192
    """Width of the residual stream."""
    n_head: int = 6
    """Attention heads in each block."""
    context: int = 256
    """Tokens in a training sequence, BOS included."""
    vocab: int = 4096
    """Byte-pair vocabulary, the one special token included."""
    batch: int = 32
    """Sequences in a step."""
    lr: float = 2e-3
    """Peak AdamW rate; Muon takes twice that, matched to AdamW's update size."""
    repeat_share: float = 0.08
    """Share of the sequences in which a span is repeated, once or until the end (half each)."""
    heldout: int = 4
    """Books kept out of training and of the tokenizer's training, spread over the list."""
    seed: int = 0
    """Of the initialisation and of every batch."""


def read_books(data: Path) -> dict[str, str]:
    """Return {file name: text} of every book in `text/books.tar.xz`, in name order."""
    with tarfile.open(data / "text" / "books.tar.xz") as archive:
        members = sorted((m for m in archive if m.isfile()), key=lambda m: m.name)
        return {Path(m.name).name: archive.extractfile(m).read().decode("utf-8") for m in members}  # type: ignore[union-attr]


def split_books(books: dict[str, str], heldout: int) -> tuple[list[str], list[str]]:
    """Return (training names, held-out names): every n-th book is held out."""
    names = sorted(n for n in books if n.endswith(".txt"))
    held = names[len(names) // (2 * heldout) :: len(names) // heldout][:heldout]
    return [n for n in names if n not in held], held


def train_tokenizer(texts: list[str], vocab: int) -> object:
    """Return a byte-level BPE tokenizer (`tokenizers.Tokenizer`) of `vocab` entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def prepare(config: TinyConfig, data: Path, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (training, held-out) token ids [n] uint16; the tokenizer and both arrays are cached in `work`."""
    paths = [work / "train.npy", work / "heldout.npy"]
    if not all(p.exists() for p in paths):
        from tokenizers import Tokenizer

        books = read_books(data)
        train, held = split_books(books, config.heldout)
        tokenizer = train_tokenizer([books[n] for n in train], config.vocab)
        assert isinstance(tokenizer, Tokenizer)
        tokenizer.save(str(work / "tokenizer.json"))
        (work / "split.json").write_text(json.dumps({"train": train, "heldout": held}, indent=1))
        for path, names in zip(paths, (train, held), strict=True):
            ids = [np.array(tokenizer.encode(books[n]).ids, dtype=np.uint16) for n in names]
            np.save(path, np.concatenate(ids))
    train_ids, held_ids = (np.load(p, mmap_mode="r") for p in paths)
    return train_ids, held_ids


def batch_at(ids: np.ndarray, line_starts: np.ndarray, config: TinyConfig, step: int) -> Tensor:
    """Return the token ids [batch context] of one step: BOS, then text from a line start (half) or anywhere."""
    rng = np.random.default_rng([config.seed, step])
    span = config.context - 1
    offsets = rng.integers(0, len(ids) - span, config.batch)
    aligned = line_starts[np.searchsorted(line_starts, offsets).clip(max=len(line_starts) - 1)]
    offsets = np.where(rng.random(config.batch) < 0.5, aligned, offsets).clip(max=len(ids) - span)
    rows = np.zeros((config.batch, config.context), dtype=np.int64)
    for row, offset in zip(rows, offsets, strict=True):
        row[1:] = ids[offset : offset + span]
        if rng.random() < config.repeat_share:
            length = int(rng.integers(8, span // 3))
            first = int(rng.integers(1, config.context - 2 * length))
            second = int(rng.integers(first + length, config.context - length + 1))
            row[second : second + length] = row[first : first + length]
            if rng.random() < 0.5:
                row[second:] = np.resize(row[first : first + length], config.context - second)
    return torch.from_numpy(rows)


def build_model(config: TinyConfig) -> torch.nn.Module:
    """Return a freshly initialised `GPT2LMHeadModel`."""
    return build_gpt2(config.vocab, config.context, config.d_model, config.n_layer, config.n_head, config.seed)


@torch.inference_mode()
def heldout_loss(model: torch.nn.Module, ids: np.ndarray, config: TinyConfig, n: int = 64) -> float:
    """Return nats per token on `n` evenly spaced held-out sequences (BOS first, no repeats)."""
    span = config.context - 1
    offsets = np.linspace(0, len(ids) - span, n).astype(int)
    rows = np.zeros((n, config.context), dtype=np.int64)
    for row, offset in zip(rows, offsets, strict=True):
        row[1:] = ids[offset : offset + span]
    tokens = torch.from_numpy(rows)
    losses = [float(model(input_ids=t, labels=t).loss) for t in tokens.split(16)]
    return float(np.mean(losses))


def train(config: TinyConfig, data: Path, work: Path, tokens: float, minutes: float) -> None:
    """Train until `tokens` have been seen or `minutes` have passed; resume from `work` where it can."""
    work.mkdir(parents=True, exist_ok=True)
    ids, held = prepare(config, data, work)
    newline = json.loads((work / "tokenizer.json").read_text())["model"]["vocab"]["Ċ"]
    line_starts = np.flatnonzero(np.asarray(ids) == newline) + 1
    model: Any = build_model(config)

    def loss_at(step: int) -> Tensor:
        batch = batch_at(ids, line_starts, config, step)
        return model(input_ids=batch, labels=batch).loss

    fit(
        model,
        config.lr,
        loss_at,
        lambda: {"loss": heldout_loss(model, held, config)},
        work,
        Pace(round(tokens / (config.batch * config.context)), minutes),
        per_step=("tokens", config.batch * config.context),
        recipe=asdict(config),
    )


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="checkpoints and cached tokens")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("MECHSCOPE_DATA"), help="the data folder ($MECHSCOPE_DATA)"
    )
    parser.add_argument("--tokens", type=float, default=40e6, help="tokens to train on in all")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop (resumably) after so many minutes")
    args = parser.parse_args()
    if args.data is None:
        parser.error("the books are read from --data or $MECHSCOPE_DATA; neither is set")
    train(TinyConfig(), Path(args.data), args.work, args.tokens, args.minutes)


if __name__ == "__main__":
    main()
