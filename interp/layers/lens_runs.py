"""Trained lenses as runs of kind "lens": lens.safetensors, and a table of what training gained.

with lens_run(handle, blocks, TunedLensConfig()) as run:
    lens = train_tuned_lens(handle, blocks, TunedLensConfig(), run)
lens = load_lens(open_run("lens/tiny-tuned-1a2b3c4d"), handle)
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp.layers.lens import TrainedLens
from interp.layers.lens_config import JacobianLensConfig, TunedLensConfig
from interp.runs import Run, RunDamaged, start_run

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

KIND = "lens"
WEIGHTS = "lens.safetensors"
NAMES = {TunedLensConfig: "tuned", JacobianLensConfig: "jacobian"}


def lens_run(
    handle: ModelHandle,
    blocks: Blocks,
    config: TunedLensConfig | JacobianLensConfig,
    root: str | Path | None = None,
    data: dict[str, Any] | None = None,
) -> Run:
    """Return the run of this lens: the finished one, the broken one to go on with, or a new one.

    Args:
        handle: the model.
        blocks: the text to learn from.
        config: which lens, and how.
        root: folder of the runs (None: as `interp.runs.runs_root`).
        data: for the record, what the text is.
    """
    name = NAMES[type(config)]
    request = {
        "lens": name, "settings": asdict(config), "model": handle.spec.name, "weights": handle.digest(),
        "text": blocks.digest(),
    }  # fmt: skip
    model = {"name": handle.spec.name, "digest": handle.digest()}
    slug = f"{Path(handle.spec.name).name}-{name}"
    return start_run(KIND, request, slug=slug, root=root, model=model, data=(data or {}) | {"digest": blocks.digest()})


def save_lens(run: Run, lens: TrainedLens) -> None:
    """Write a lens into a run that is being made; the caller finishes it."""
    run.save_tensors(WEIGHTS, {"delta": lens.delta, "bias": lens.bias})


def load_lens(run: Run, handle: ModelHandle | None = None) -> TrainedLens:
    """Return the lens that a run of kind "lens" holds.

    Args:
        run: the run.
        handle: the model it is wanted for; None: not checked.

    Raises:
        ValueError: the run is of another kind, or the lens belongs to another model.
        RunDamaged: its tensors do not fit together.
    """
    if run.kind != KIND:
        raise ValueError(f"{run.ref} is a run of kind {run.kind!r}; a lens is in a run of kind {KIND!r}.")
    tensors = {name: torch.from_numpy(value) for name, value in run.tensors(WEIGHTS).items()}
    delta, bias = tensors.get("delta"), tensors.get("bias")
    if (
        delta is None or bias is None or delta.ndim != 3 or delta.shape[1] != delta.shape[2]
        or delta.shape[:2] != bias.shape
    ):  # fmt: skip
        shapes = {name: list(value.shape) for name, value in tensors.items()}
        raise RunDamaged(f"{WEIGHTS} of {run.ref} is no lens: it holds {shapes}. Make the run again.")
    lens = TrainedLens(str(run.config.get("lens")), delta, bias, (run.info.get("model") or {}).get("digest"))
    if handle is not None:
        check_lens(lens, handle, run.ref)
    return lens


def check_lens(lens: TrainedLens, handle: ModelHandle, who: str = "The lens") -> None:
    """Refuse a lens that belongs to another model.

    Raises:
        ValueError: it was made with other weights, or does not fit the sizes of this model.
    """
    handle.check_weights(lens.digest, who)
    if lens.bias.shape != (handle.n_layers, handle.d_model):
        raise ValueError(
            f"{who} is for {lens.bias.shape[0]} layers of width {lens.bias.shape[1]}, but {handle.spec.name} has "
            f"{handle.n_layers} of width {handle.d_model}."
        )
