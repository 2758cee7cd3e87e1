"""The sparsity rules by name. A new rule is one file beside these and one line here."""

from __future__ import annotations

import inspect
from typing import get_args, get_origin, get_type_hints

from interp.names import unknown
from sae.config import Scalar
from sae.rules.abs_topk import AbsTopK
from sae.rules.base import Context, Rule
from sae.rules.batch_topk import BatchTopK
from sae.rules.discrete import Discrete
from sae.rules.feature_choice import FeatureChoice
from sae.rules.gated import Gated
from sae.rules.gradient import Gradient
from sae.rules.group_max import GroupMax
from sae.rules.jump_relu import JumpRelu
from sae.rules.matching_pursuit import MatchingPursuit
from sae.rules.matryoshka import Matryoshka
from sae.rules.mutual_choice import MutualChoice
from sae.rules.p_anneal import PAnneal
from sae.rules.relu import Relu
from sae.rules.switch import Switch
from sae.rules.top_afa import TopAFA
from sae.rules.topk import TopK
from sae.rules.variational import Variational

RULES: dict[str, type[Rule]] = {
    "topk": TopK,
    "batch_topk": BatchTopK,
    "mutual_choice": MutualChoice,
    "feature_choice": FeatureChoice,
    "abs_topk": AbsTopK,
    "matryoshka": Matryoshka,
    "switch": Switch,
    "group_max": GroupMax,
    "top_afa": TopAFA,
    "discrete": Discrete,
    "gradient": Gradient,
    "variational": Variational,
    "matching_pursuit": MatchingPursuit,
    "jump_relu": JumpRelu,
    "gated": Gated,
    "relu": Relu,
    "p_anneal": PAnneal,
}

__all__ = ["RULES", "Context", "Rule", "build_rule", "check_rule"]


def check_rule(name: str, args: dict[str, Scalar]) -> None:
    """Refuse an unknown rule, an argument it does not take (with the nearest match), or one of another type."""
    if name not in RULES:
        raise ValueError(unknown("rule", name, sorted(RULES)))
    hints = get_type_hints(RULES[name].__init__)
    known = [p.name for p in inspect.signature(RULES[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for key, value in args.items():
        if key not in known:
            raise ValueError(unknown(f"argument of rule {name!r}:", key, known))
        wanted = get_args(hints[key]) or (hints[key],)
        allowed = (*wanted, int) if float in wanted else wanted
        if type(value) not in allowed and not any(get_origin(one) for one in wanted):
            kinds = " or ".join(one.__name__ for one in wanted if one is not type(None))
            raise ValueError(f"{key} of rule {name!r} must be {kinds}, got {value!r}.")


def build_rule(name: str, d_in: int, d_sae: int, args: dict[str, Scalar]) -> Rule:
    """Return the rule `name` built for these widths."""
    check_rule(name, args)
    return RULES[name](d_in, d_sae, **args)
