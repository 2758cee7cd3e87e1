"""Several dictionaries of one pass over the activations: what each differs in, as text on the command line."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from interp.config import from_json, to_json
from sae.config import Scalar, TrainConfig

SHARED = ("batch", "seed")
"""Settings of the training that make up the batches, and so are the same for all."""


@dataclass(frozen=True)
class Variant:
    """What may differ between dictionaries that see the same batches."""

    rule: str
    """Sparsity rule."""
    rule_args: dict[str, Scalar]
    """Its arguments."""
    d_sae: int | None
    """Number of latents."""
    normalise: Literal["scalar", "layer", "none"]
    """How activations are scaled."""
    atoms: Literal["unit", "free"]
    """Whether atoms keep length 1."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The optimisation."""


def variants(texts: Sequence[str], first: Variant) -> list[Variant]:
    """Return what each of `texts` asks for, such as "rule=batch_topk d_sae=4096 rule_args.k=64 train.lr=1e-3".

    What a text does not name is as in `first`; arguments of a rule are kept where the other rule takes them too.

    Raises:
        ValueError: no NAME=VALUE, an unknown name or a value of another type, a setting that all share, or the same
            dictionary twice.
    """
    from sae.rules import RULES, check_rule

    found = [first]
    for text in texts:
        data: dict[str, Any] = to_json(first)
        for part in text.replace(",", " ").split():
            name, equals, value = part.partition("=")
            group, dot, inner = name.partition(".")
            if not equals or not name or (dot and group not in ("rule_args", "train")):
                raise ValueError(f"--also takes NAME=VALUE, such as rule=batch_topk or rule_args.k=64, got {part!r}.")
            if group == "train" and inner in SHARED:
                raise ValueError(f"Dictionaries of one pass share its batches, so train.{inner} cannot differ.")
            if name == "rule":
                check_rule(value, {})
                known = inspect.signature(RULES[value]).parameters
                data["rule_args"] = {key: held for key, held in data["rule_args"].items() if key in known}
            target, key = (data[group], inner) if dot else (data, name)
            target[key] = _value(value)
        one = from_json(Variant, data, f"--also {text!r}")
        check_rule(one.rule, one.rule_args)
        if one in found:
            raise ValueError(f"--also {text!r} asks for a dictionary that is trained already; change something.")
        found.append(one)
    return found[1:]


def _value(text: str) -> Any:
    """Return a number, true, false or null as such, and anything else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
