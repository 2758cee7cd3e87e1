"""What is measured of a model's output on a task: one number per prompt, from the logits at its last positions.

    metric = LogitDiff(pairs.correct, pairs.wrong)
    values = measured(metric, logits[:, -metric.reads:], rows)        # [batch]; rows: which prompt each row is

A metric of one's own is any function of (logits [batch read d_vocab], rows [batch]) that returns [batch]; wrap it in
`Custom` to give it a name and say how many of the last positions it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.names import unknown
from interp.tasks.pairs import NOTHING, Pairs


@runtime_checkable
class Metric(Protocol):
    """A number per prompt that says how well the model does, larger for the clean answer."""

    @property
    def name(self) -> str:
        """Name, for tables and figures."""
        ...

    @property
    def reads(self) -> int:
        """Number of last positions whose logits it reads."""
        ...

    def __call__(
        self, logits: Float[Tensor, "batch read d_vocab"], rows: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Return the value of each row; `rows` says which prompt a row belongs to."""
        ...


def measured(metric: Metric, logits: Tensor, rows: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return `metric` of the last positions of `logits` [batch pos d_vocab], refused where it is no number per row.

    Raises:
        ValueError: for another shape, or a value that is not finite.
    """
    half = logits.dtype in (torch.float16, torch.bfloat16)  # whose steps are coarser than most effects
    found = metric(logits[:, -metric.reads :].float() if half else logits[:, -metric.reads :], rows)
    if not isinstance(found, Tensor) or found.shape != rows.shape:
        came = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"The metric {metric.name!r} must return one number per prompt, [{len(rows)}], got {came}.")
    if not bool(torch.isfinite(found).all()):
        bad = int(rows[(~torch.isfinite(found)).nonzero()[0, 0]])
        raise ValueError(
            f"The metric {metric.name!r} is not finite at prompt {bad}: look at that prompt's answers, or at the "
            "model's logits there."
        )
    return found


def _log_sum(log_probabilities: Tensor, ids: Tensor) -> Tensor:
    """Return the log of the summed probability of `ids` [batch alternative], of which `NOTHING` counts nothing."""
    picked = log_probabilities.gather(-1, ids.clamp(min=0))
    return picked.masked_fill(ids == NOTHING, -torch.inf).logsumexp(-1)


@dataclass(frozen=True, eq=False)
class LogitDiff:
    """Logit of the correct token minus that of the wrong one; of several, the mean correct minus the largest wrong.

    It is linear in the last residual stream up to the final norm, and sees components that push the answer down
    (Zhang and Nanda 2024).
    """

    correct: Int[Tensor, "prompt n_correct"]
    """Right token ids."""
    wrong: Int[Tensor, "prompt n_wrong"]
    """Wrong token ids."""
    name: str = "logit_diff"
    """Name, for tables and figures."""
    reads: int = 1
    """The last position."""

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return the value of each row, [batch]."""
        right, wrong = self.correct.to(rows.device)[rows], self.wrong.to(rows.device)[rows]
        last = logits[:, -1]
        kept = right != NOTHING
        mean = (last.gather(-1, right.clamp(min=0)) * kept).sum(-1) / kept.sum(-1)
        largest = last.gather(-1, wrong.clamp(min=0)).masked_fill(wrong == NOTHING, -torch.inf).amax(-1)
        return mean - largest


@dataclass(frozen=True, eq=False)
class Probability:
    """Probability of the correct tokens, all alternatives together. It saturates, and hides what pushes down."""

    correct: Int[Tensor, "prompt n_correct"]
    """Right token ids."""
    name: str = "probability"
    """Name, for tables and figures."""
    reads: int = 1
    """The last position."""

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return the value of each row, [batch]."""
        return _log_sum(logits[:, -1].log_softmax(-1), self.correct.to(rows.device)[rows]).exp()


@dataclass(frozen=True, eq=False)
class ProbabilityDiff:
    """Probability of all correct tokens minus that of all wrong ones (the greater-than task of Hanna et al. 2023)."""

    correct: Int[Tensor, "prompt n_correct"]
    """Right token ids."""
    wrong: Int[Tensor, "prompt n_wrong"]
    """Wrong token ids."""
    name: str = "probability_diff"
    """Name, for tables and figures."""
    reads: int = 1
    """The last position."""

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return the value of each row, [batch]."""
        log_p = logits[:, -1].log_softmax(-1)
        right, wrong = self.correct.to(rows.device)[rows], self.wrong.to(rows.device)[rows]
        return _log_sum(log_p, right).exp() - _log_sum(log_p, wrong).exp()


@dataclass(frozen=True, eq=False)
class SequenceLogProb:
    """Log-probability of an answer of several tokens, in nats.

    The prompts hold the answer but for its last token, so that the last `length` positions predict it.
    """

    answer: Int[Tensor, "prompt length"]
    """Token ids of each prompt's answer, in order."""
    name: str = "sequence_log_prob"
    """Name, for tables and figures."""

    @property
    def reads(self) -> int:
        """As many positions as the answer has tokens."""
        return self.answer.shape[1]

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return the value of each row, [batch]."""
        answer = self.answer.to(rows.device)[rows]
        return logits.log_softmax(-1).gather(-1, answer[..., None])[..., 0].sum(-1)


@dataclass(frozen=True, eq=False)
class Kl:
    """Minus the Kullback-Leibler divergence in nats from the clean run's distribution at the last position.

    Minus, so that larger is better here as everywhere: 0 is the clean output.
    """

    clean: Float[Tensor, "prompt d_vocab"]
    """Logits of the clean prompts at the last position."""
    name: str = "minus_kl"
    """Name, for tables and figures."""
    reads: int = 1
    """The last position."""

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return the value of each row, [batch]."""
        target = self.clean.to(logits)[rows].log_softmax(-1)
        return -(target.exp() * (target - logits[:, -1].log_softmax(-1))).sum(-1)


@dataclass(frozen=True, eq=False)
class Custom:
    """A metric made of a function of (logits [batch read d_vocab], rows [batch])."""

    function: Callable[[Tensor, Tensor], Tensor]
    """Returns one number per row."""
    name: str = "custom"
    """Name, for tables and figures."""
    reads: int = 1
    """Number of last positions whose logits it reads."""

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return the value of each row, [batch]."""
        return self.function(logits, rows)


METRICS = ("logit_diff", "probability", "probability_diff", "minus_kl")
"""Metrics that need nothing but the pairs (and the clean run), by name."""


def metric_for(
    pairs: Pairs, name: str | None = None, clean_logits: Float[Tensor, "prompt d_vocab"] | None = None
) -> Metric:
    """Return the metric `name` (None: the task's own) of `pairs`.

    Raises:
        ValueError: the name is unknown, or `minus_kl` was asked for without the clean run's last logits.
    """
    name = name or pairs.metric
    if name == "minus_kl":
        if clean_logits is None:
            raise ValueError("The metric 'minus_kl' needs clean_logits, the logits of the clean prompts at their end.")
        return Kl(clean_logits)
    if name == "logit_diff":
        return LogitDiff(pairs.correct, pairs.wrong)
    if name == "probability":
        return Probability(pairs.correct)
    if name == "probability_diff":
        return ProbabilityDiff(pairs.correct, pairs.wrong)
    raise ValueError(unknown("metric", name, METRICS))
