"""A random model of Othello, as small as a board allows."""

from __future__ import annotations

from interp.data.othello_tokens import GAME
from interp.models import ModelHandle, load_model
from interp.zoo.export_othello import square_tokenizer
from interp.zoo.train_othello import OthelloConfig, build_model


def othello_handle(side: int = 4, seed: int = 0, *, tokenizer: bool = True) -> ModelHandle:
    """Return a random model of 2 layers and width 16 that reads games on a board of this side."""
    from transformers import PreTrainedTokenizerFast

    module = build_model(OthelloConfig(side, n_layer=2, d_model=16, n_head=2, seed=seed))
    marks = {"bos_token": GAME, "eos_token": GAME, "pad_token": GAME}
    squares = PreTrainedTokenizerFast(tokenizer_object=square_tokenizer(side), **marks) if tokenizer else None
    return load_model(module, tokenizer=squares)
