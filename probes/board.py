"""The board probe: many tasks of several classes each, at many layers, from one pass over the rows.

    s[row, layer, task, class] = sum_d z[row, layer, d] W[layer, d, task, class] + b[layer, task, class]

with z standardised by layer. `adamw` minimises the sum over layers and tasks of the mean cross-entropy (linear decay of
the rate; Nanda et al. 2023, arXiv 2309.00941, without the standardisation); each layer's solution is what it would be
alone. `ridge` solves least squares on the centred one-hot labels from streamed moments. For OthelloGPT a task is a
square, its classes are mine, theirs and empty.

Most of the accuracy on a board is the class that is commonest: say `accuracy(..., without=code)` beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator
from torch import Tensor
from torch.nn.functional import cross_entropy

from interp.names import unknown
from probes.rows import array, check_finite
from probes.source import Source

IGNORED = -100
"""The label of a row that has none for a task."""
METHODS = ("adamw", "ridge")
PIECE = 4096
"""Rows read at a time where their order does not matter."""


class BoardProbe(BaseEstimator):
    """Linear probes of all tasks at all layers.

    Args:
        method: `adamw` or `ridge`.
        epochs: passes over the rows (adamw).
        batch: rows in a step (adamw).
        lr: rate of the first step, falling linearly to 0 (adamw).
        weight_decay: of AdamW.
        alpha: penalty for each row on standardised columns (ridge).
        seed: of the order of the rows.
        sources: what each layer's rows are.

    Attributes:
        coef_, intercept_: [layer, d_in, task, class] and [layer, task, class], in raw units.
        mean_, scale_: the standardisation, [layer, d_in].
        n_classes_: classes of each task, numbered from 0.
        link_: `softmax` (adamw) or `identity` (ridge).
    """

    def __init__(
        self,
        method: str = "adamw",
        *,
        epochs: int = 4,
        batch: int = 1024,
        lr: float = 1e-2,
        weight_decay: float = 1e-2,
        alpha: float = 1e-3,
        seed: int = 0,
        sources: Sequence[Source] | None = None,
    ) -> None:
        self.method = method
        self.epochs = epochs
        self.batch = batch
        self.lr = lr
        self.weight_decay = weight_decay
        self.alpha = alpha
        self.seed = seed
        self.sources = sources

    def fit(self, X: Any, Y: Any) -> BoardProbe:
        """Fit and return the probe.

        Args:
            X: [row, layer, d_in], a tensor, an array or a memory-mapped file; it is read in pieces.
            Y: class of each row for each task, whole numbers from 0 on, [row, task]; -100 where there is none.

        Raises:
            ValueError: shapes that do not fit, labels that are no class numbers, a single class, or a row with NaN.
        """
        if self.method not in METHODS:
            raise ValueError(unknown("method", str(self.method), METHODS))
        if self.method == "adamw" and (self.epochs < 1 or self.batch < 1):
            raise ValueError(f"epochs and batch must be 1 or more, got {self.epochs} and {self.batch}.")
        labels = self._check(X, Y)
        self.n_classes_ = int(labels.max()) + 1
        if len(labels.unique()) - int((labels == IGNORED).any()) < 2:
            raise ValueError(f"A probe needs rows of two classes or more, got only {self.n_classes_ - 1}.")
        self.mean_, self.scale_ = _moments(X)
        self.link_ = "softmax" if self.method == "adamw" else "identity"
        w, b = self._descend(X, labels) if self.method == "adamw" else self._solve(X, labels)
        shape = (*X.shape[1:], labels.shape[1], self.n_classes_)
        w = w / self.scale_[..., None]
        self.coef_ = w.reshape(shape)
        b = b - torch.einsum("ld,ldk->lk", self.mean_, w)
        self.intercept_ = b.reshape(shape[0], *shape[2:])
        return self

    def _check(self, X: Any, Y: Any) -> Int[Tensor, "row task"]:
        labels = array(Y, "Y")
        if not hasattr(X, "shape") or len(X.shape) != 3 or 0 in X.shape:
            what = f"shape {list(X.shape)}" if hasattr(X, "shape") else type(X).__name__
            raise ValueError(f"X must be a tensor or an array [row, layer, d_in], got {what}.")
        if labels.ndim != 2 or len(labels) != len(X) or labels.dtype.kind not in "iu":
            raise ValueError(f"Y must be whole numbers [row={len(X)}, task], got {labels.dtype} {list(labels.shape)}.")
        if self.sources is not None and len(self.sources) != X.shape[1]:
            raise ValueError(f"There are {len(self.sources)} sources for {X.shape[1]} layers; name one for each.")
        held = torch.from_numpy(labels.astype(np.int64))
        if ((held < 0) & (held != IGNORED)).any():
            raise ValueError(f"Labels are class numbers from 0 on, or {IGNORED} for none, got {int(held.min())}.")
        return held

    def _rows(self, x: Any) -> Float[Tensor, "row layer d_in"]:
        """Return rows standardised by layer."""
        return (_tensor(x) - self.mean_) / self.scale_

    def _descend(self, X: Any, labels: Int[Tensor, "row task"]) -> tuple[Tensor, Tensor]:
        n, layers, width = X.shape
        w = torch.zeros(layers, width, labels.shape[1] * self.n_classes_, requires_grad=True)
        b = torch.zeros(layers, 1, w.shape[2], requires_grad=True)
        optimiser = torch.optim.AdamW([w, b], self.lr, betas=(0.9, 0.99), weight_decay=self.weight_decay)
        steps = self.epochs * -(-n // self.batch)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            for chosen in torch.randperm(n, generator=generator).split(self.batch):
                chosen = chosen.sort().values  # a mapped file is read forwards
                scores = torch.baddbmm(b, self._rows(X[_index(X, chosen)]).transpose(0, 1), w)
                wanted = labels[chosen].flatten().repeat(layers)
                loss = cross_entropy(scores.reshape(-1, self.n_classes_), wanted, ignore_index=IGNORED, reduction="sum")
                optimiser.zero_grad()
                (loss / len(chosen)).backward()
                optimiser.step()
                schedule.step()
        return w.detach(), b.detach()[:, 0]

    def _solve(self, X: Any, labels: Int[Tensor, "row task"]) -> tuple[Tensor, Tensor]:
        if (labels == IGNORED).any():
            raise ValueError(f"ridge needs a label for every row and task, got {IGNORED}; take method='adamw'.")
        n, layers, width = X.shape
        outputs = labels.shape[1] * self.n_classes_
        centre = torch.stack([(labels == c).double().mean(0) for c in range(self.n_classes_)], -1).flatten()
        gram = torch.zeros(layers, width, width, dtype=torch.float64)
        inner = torch.zeros(layers, width, outputs, dtype=torch.float64)
        for start, part in _pieces(X):
            rows = self._rows(part).double().transpose(0, 1)  # near-copies of a column cancel in float32
            wanted = torch.nn.functional.one_hot(labels[start : start + len(part)], self.n_classes_)
            gram += rows.transpose(1, 2) @ rows
            inner += rows.transpose(1, 2) @ (wanted.flatten(1) - centre)
        gram += self.alpha * n * torch.eye(width, dtype=torch.float64)
        # Not linalg.solve: with two threads torch's LU of a batch of large matrices is silently wrong (pytorch issue
        # 142815).
        weight = torch.cholesky_solve(inner, torch.linalg.cholesky(gram))
        return weight.float(), centre.float().expand(layers, -1)

    def decision_function(self, X: Any) -> Float[Tensor, "row layer task class"]:
        """Return the scores of all classes.

        Raises:
            ValueError: rows of other layers or another width, or not fitted.
        """
        if not hasattr(self, "coef_"):
            raise ValueError("This BoardProbe is not fitted; call fit(X, Y) first.")
        wanted = tuple(self.mean_.shape)
        if tuple(X.shape[1:]) != wanted:
            raise ValueError(f"The probe reads rows [layer, d_in] = {list(wanted)}, got {list(X.shape[1:])}.")
        scores = torch.einsum("nld,ldk->nlk", _tensor(X), self.coef_.flatten(2)) + self.intercept_.flatten(1)
        return scores.reshape(len(X), *self.intercept_.shape)

    def predict(self, X: Any) -> Int[Tensor, "row layer task"]:
        """Return the class of each task as each layer has it."""
        return torch.cat([self.decision_function(part).argmax(-1) for _, part in _pieces(X)])

    def accuracy(self, X: Any, Y: Any, *, without: int | None = None) -> Float[np.ndarray, "layer task"]:
        """Return the share of rows that each layer tells right, NaN where a task has none.

        Args:
            X: [row, layer, d_in].
            Y: [row, task], as in `fit`.
            without: rows of this class are not counted (the empty squares of a board).
        """
        labels = self._check(X, Y)
        hits = np.zeros((X.shape[1], labels.shape[1]))
        counts = np.zeros(labels.shape[1])
        for start, part in _pieces(X):
            here = labels[start : start + len(part)]
            counted = (here != IGNORED) & (here != (IGNORED if without is None else without))
            right = (self.decision_function(part).argmax(-1) == here[:, None]) & counted[:, None]
            hits += right.sum(0).numpy()
            counts += counted.sum(0).numpy()
        with np.errstate(invalid="ignore"):
            return hits / counts

    def check_source(self, layer: int, source: Source, *, same_weights: bool = True) -> BoardProbe:
        """Return the probe, if activations of `source` are what its `layer` was fitted on.

        Raises:
            ValueError: they are not, or the probe does not know.
        """
        if self.sources is None:
            raise ValueError("This BoardProbe does not know what it was fitted on; make it with sources=[...].")
        self.sources[layer].check(source, same_weights=same_weights)
        return self


def _tensor(x: Any) -> Float[Tensor, "row layer d_in"]:
    return (x.cpu() if isinstance(x, Tensor) else torch.from_numpy(np.array(x))).float()


def _index(X: Any, chosen: Int[Tensor, " chosen"]) -> Any:
    return chosen if isinstance(X, Tensor) else chosen.numpy()


def _pieces(X: Any) -> Iterator[tuple[int, Any]]:
    for start in range(0, len(X), PIECE):
        yield start, X[start : start + PIECE]


def _moments(X: Any) -> tuple[Float[Tensor, "layer d_in"], Float[Tensor, "layer d_in"]]:
    """Return (mean, standard deviation) by layer, in one pass; sums are taken from near the mean."""
    total = square = near = torch.zeros(X.shape[1:], dtype=torch.float64)
    for start, part in _pieces(X):
        rows = _tensor(part).double()
        if not torch.isfinite(rows).all():
            check_finite(np.concatenate([np.zeros((start, 1)), rows.flatten(1).numpy().sum(1, keepdims=True)]), "X")
        near = rows.mean(0) if start == 0 else near
        total = total + (rows - near).sum(0)
        square = square + (rows - near).square().sum(0)
    shift = total / len(X)
    spread = (square / len(X) - shift.square()).clamp_min(0).sqrt()
    mean = near + shift
    spread = torch.where(spread > 1e-6 * mean.abs().clamp_min(1.0), spread, 1.0)
    return mean.float(), spread.float()
