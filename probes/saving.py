"""A probe as a run of kind "probe": probe.safetensors (what is learned and numeric) and probe.json (the rest).

    run = start_run("probe", probe_config(probe), slug="sentiment", parents=[...])
    save_probe(run, probe, report);  run.finish({...})
    probe = load_probe(open_run("probe/sentiment-1a2b3c4d"))

Nothing in a run is ever executed: the class comes from the table `PROBES`, its arguments and numbers from the files.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator

from interp.names import unknown
from interp.runs import Run, RunDamaged
from probes.board import BoardProbe
from probes.ccs import CCS
from probes.lda import LDA
from probes.leace import Leace
from probes.logistic import LogisticProbe
from probes.mass_mean import MassMean
from probes.mlp import MLPProbe
from probes.ridge import RidgeProbe
from probes.source import Source
from probes.sparse import L1, KSparse

if TYPE_CHECKING:
    from probes.report import ProbeReport

KIND, STUDY_KIND = "probe", "probes"
"""A run of one probe, and one of a study, which holds several by name."""
NAME, REPORT, REPORT_TABLE = "probe", "report.json", "report.parquet"
PROBES: dict[str, type[BaseEstimator]] = {
    "board": BoardProbe,
    "ccs": CCS,
    "k_sparse": KSparse,
    "l1": L1,
    "lda": LDA,
    "leace": Leace,
    "logistic": LogisticProbe,
    "mass_mean": MassMean,
    "mlp": MLPProbe,
    "ridge": RidgeProbe,
}
"""Every kind of probe, and the eraser, by the name that runs and commands use."""


def kind_of(probe: BaseEstimator) -> str:
    """Return the name of a probe's kind in `PROBES`.

    Raises:
        ValueError: it is none of them.
    """
    found = [name for name, made in PROBES.items() if type(probe) is made]
    if not found:
        raise ValueError(unknown("kind of probe", type(probe).__name__, [made.__name__ for made in PROBES.values()]))
    return found[0]


def probe_config(probe: BaseEstimator) -> dict[str, Any]:
    """Return kind, arguments and source as JSON: what identifies the run, together with its data and parents."""
    return {"probe": kind_of(probe), "arguments": {k: _plain(v) for k, v in probe.get_params(deep=False).items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Source):
        return asdict(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def _learned(probe: BaseEstimator) -> dict[str, Any]:
    return {k: v for k, v in vars(probe).items() if k.endswith("_") and not k.startswith("_")}


def save_probe(run: Run, probe: BaseEstimator, report: ProbeReport | None = None, name: str = NAME) -> None:
    """Write a fitted probe, and what it found, into a run that is being made; the caller finishes it.

    Args:
        run: the run.
        probe: the probe.
        report: what it found; only for the one probe of a run of kind "probe".
        name: of its two files; a study has several, such as `probes/resid_post.2@last`.

    Raises:
        ValueError: the probe is not fitted, or is no kind that can be saved.
    """
    about, tensors, rest = probe_config(probe), {}, {}
    for key, value in _learned(probe).items():
        if isinstance(value, torch.Tensor):
            tensors[key] = value.numpy()
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            tensors[key] = value
        else:
            rest[key] = value.tolist() if isinstance(value, np.ndarray) else _plain(value)
    if not tensors:
        raise ValueError(f"This {type(probe).__name__} is not fitted; call fit before it is saved.")
    torches = sorted(name for name, value in vars(probe).items() if isinstance(value, torch.Tensor))
    run.save_tensors(f"{name}.safetensors", tensors)
    run.save_json(f"{name}.json", about | {"learned": rest, "torch": torches})
    if report is not None:
        from probes.report import reports_table

        run.save_json(REPORT, asdict(report))
        run.save_table(REPORT_TABLE, reports_table([report]))


def load_probe(run: Run, name: str = NAME) -> Any:
    """Return a fitted probe that a run of kind "probe" holds, or, by its name, one of a study of kind "probes".

    Raises:
        ValueError: the run is of another kind, or holds an unknown kind of probe.
        RunDamaged: its files do not fit together.
    """
    if run.kind not in (KIND, STUDY_KIND):
        raise ValueError(f"{run.ref} is a run of kind {run.kind!r}; a probe is in a run of kind {KIND!r}.")
    if run.kind == STUDY_KIND and name not in (held := probe_names(run)):
        raise ValueError(unknown(f"probe of {run.ref}:", name, held))
    about = run.json(f"{name}.json")
    if not isinstance(about, dict) or not {"probe", "arguments", "learned", "torch"} <= about.keys():
        raise RunDamaged(f"{name}.json of {run.ref} does not describe a probe. Make the run again.")
    if about["probe"] not in PROBES:
        raise ValueError(unknown("kind of probe", str(about["probe"]), PROBES))
    made = PROBES[about["probe"]]
    try:
        probe = made(**{key: _argument(key, value) for key, value in about["arguments"].items()})
    except TypeError as error:
        raise RunDamaged(
            f"{name}.json of {run.ref} has arguments that {made.__name__} does not take: {error}."
        ) from error
    for key, value in about["learned"].items():
        if key.endswith("_") and not key.startswith("_"):
            setattr(probe, key, np.array(value) if isinstance(value, list) else value)
    for key, value in run.tensors(f"{name}.safetensors").items():
        setattr(probe, key, torch.from_numpy(value) if key in about["torch"] else value)
    _check(run, probe, name)
    return probe


def probe_names(run: Run) -> list[str]:
    """Return the names of the probes in a run, as `load_probe` takes them."""
    files = run.files
    return [stem for file in files if (stem := file.removesuffix(".safetensors")) != file and f"{stem}.json" in files]


def _argument(name: str, value: Any) -> Any:
    if name == "source" and value is not None:
        return Source(**value)
    if name == "sources" and value is not None:
        return [Source(**one) for one in value]
    return tuple(value) if isinstance(value, list) else value


def _check(run: Run, probe: Any, name: str) -> None:
    """Refuse numbers of shapes that do not fit each other."""
    width = getattr(probe, "n_features_in_", None)
    shapes = {key: np.shape(value) for key, value in _learned(probe).items() if key in ("coef_", "mean_", "left_")}
    wide = {"coef_": -1, "mean_": -1, "left_": 0}
    odd = [
        key
        for key, shape in shapes.items()
        if width is not None and not (isinstance(probe, MLPProbe) and key == "coef_") and shape[wide[key]] != width
    ]
    if odd or not shapes:
        what = f"{odd[0]} has shape {list(shapes[odd[0]])} for d_in={width}" if odd else "nothing learned is there"
        raise RunDamaged(f"{name}.safetensors of {run.ref} does not fit {name}.json: {what}. Make the run again.")
