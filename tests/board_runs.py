"""A small board study as the command leaves it, on a random model of the 4x4 board that can be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.studies.board import board_config, board_study
from app.studies.board_options import BoardOptions
from interp.data.othello_tokens import GAME
from interp.models import ModelHandle, load_model
from interp.runs import Run, open_run, start_run
from tests.othello_models import othello_handle

OPTIONS = BoardOptions(games=40, epochs=1, latents=16, active=3, edits=4, scales=(1.0,))


def save_othello_folder(folder: Path) -> Path:
    """Write the random model and its tokenizer as a Hugging Face folder; return it."""
    handle = othello_handle(4)
    handle.module.save_pretrained(folder)  # type: ignore[operator]
    handle.tokenizer.save_pretrained(folder)
    assert handle.tokenizer.bos_token == GAME
    return folder


def write_board_run(root: Path, folder: Path, options: BoardOptions = OPTIONS) -> tuple[Run, ModelHandle]:
    """Write a study of the model in `folder` into the runs of `root`; return the run and the model."""
    handle = load_model(str(folder), device="cpu")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("app.studies.board.latents.STEPS", 10)
        patched.setattr("app.studies.board.latents.DRAWS", 2)
        for module in ("accuracy", "moves", "study"):
            patched.setattr(f"app.studies.board.{module}.RESAMPLES", 10)
        with start_run("board", board_config(handle, options), slug="othello4", root=root) as run:
            run.finish(board_study(handle, options, run))
    return open_run(run.ref, root), handle
