"""The study of an Othello model: what its activations hold of the board, and what it does when they are changed.

    from app.studies.board import board_config, board_study
    from app.studies.board_options import BoardOptions

    options = BoardOptions(games=500)
    with start_run("board", board_config(handle, options), slug="othello6") as run:
        run.finish(board_study(handle, options, run))

`import app.studies.board` loads no torch.
"""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "board_config": "app.studies.board.study",
        "board_study": "app.studies.board.study",
    },
)
