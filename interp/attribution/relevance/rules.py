"""Which relevance rule each kind of operation follows, and the named sets of them.

Relevance is R = a * rho: an activation times a rewritten gradient rho of what is explained (Montavon et al. 2019,
Ali et al. 2022). With no rule at all rho is the gradient. What each rule makes of it:

    linear      y = W x + b        zero      rho_x = W^T rho_y
                                   others    see `interp.attribution.relevance.linear`
    norm        y = (x - mean) / s detached  s is a constant; the mean stays a function of x           (LN-rule)
    activation  y = f(x)           identity  R_x = R_y, so rho_x = rho_y f(x) / x                      (Identity-rule)
    product     y = u * v          half      rho_u = rho_y v / 2,  rho_v = rho_y u / 2                 (Half-rule)
    attention   A = softmax(q k),  frozen    A is a constant: relevance goes to the values alone       (AH-rule)
                o = A v            taylor    both factors of A v and of q k get half, softmax as is    (AttnLRP)
"""

from __future__ import annotations

from dataclasses import dataclass

from interp.names import unknown

LINEAR = ("zero", "epsilon", "gamma", "plain_gamma", "alpha_beta", "z_plus")
CHOICES = {
    "linear": LINEAR,
    "elsewhere": LINEAR,
    "norm": ("detached", "gradient"),
    "activation": ("identity", "gradient"),
    "product": ("half", "gradient"),
    "attention": ("frozen", "taylor", "gradient"),
}
"""Field of `Rules` -> what it can be; `gradient` is the ordinary derivative."""


@dataclass(frozen=True)
class Rules:
    """One rule for each kind of operation."""

    linear: str = "zero"
    """Of linear layers, the unembedding included."""
    epsilon: float = 1e-6
    """Of the rule `epsilon`: added to |y|, in units of the activations."""
    gamma: float = 0.25
    """Of `gamma` and `plain_gamma`: how much more weight a contribution gets that agrees."""
    alpha: float = 2.0
    """Of `alpha_beta`: share of the positive contributions, from 1 on; the negative ones get beta = alpha - 1."""
    norm: str = "detached"
    """Of LayerNorm and RMSNorm."""
    activation: str = "identity"
    """Of elementwise functions. Rounding passes gradients straight through with it."""
    product: str = "half"
    """Of elementwise products of two activations, such as gates."""
    attention: str = "frozen"
    """Of attention patterns."""
    layers: tuple[int, int] | None = None
    """Blocks [first, last) in which `linear` holds; None: everywhere, the unembedding included."""
    elsewhere: str = "zero"
    """Rule of linear layers outside of `layers`."""

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(unknown(f"rule for {name}", str(getattr(self, name)), known))
        for name, least in (("epsilon", 0), ("gamma", 0), ("alpha", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
                raise ValueError(f"{name} must be a number from {least} on, got {value!r}.")
        if self.layers is not None:
            first, last = self.layers
            if not 0 <= first < last:
                raise ValueError(f"layers must be (first, last) with 0 <= first < last, got {self.layers!r}.")

    def linear_at(self, layer: int) -> str:
        """Return the rule of linear layers in block `layer`; what lies past the last block has its number plus one."""
        inside = self.layers is None or self.layers[0] <= layer < self.layers[1]
        return self.linear if inside else self.elsewhere


_GRADIENT = Rules(norm="gradient", activation="gradient", product="gradient", attention="gradient")

PRESETS: dict[str, Rules] = {
    "alpha_beta": Rules(linear="alpha_beta"),
    "attn_lrp": Rules(attention="taylor"),
    "cp_lrp": Rules(),
    "epsilon": Rules(linear="epsilon"),
    "gamma": Rules(linear="gamma"),
    "gradient": _GRADIENT,
    "relp": Rules(),
    "relp_qk": Rules(attention="gradient"),
    "z_plus": Rules(linear="z_plus"),
}
"""Sets of rules by name.

`cp_lrp` (Ali et al. 2022, with the Identity-rule) and `relp` (Jafari et al. 2025) rewrite gradients alike; they differ
in what the gradient is multiplied with. Their linear layers follow rule 0, because an epsilon would leak relevance.
`relp_qk` lets gradients reach queries and keys, as the published code of RelP does unless told otherwise. `attn_lrp` is
Achtibat et al. 2024. The others are `cp_lrp` with another rule for linear layers; `gradient` has no rule at all.
"""


def find_rules(rules: Rules | str) -> Rules:
    """Return `rules`, or the preset of that name.

    Raises:
        ValueError: there is no such preset.
    """
    if isinstance(rules, Rules):
        return rules
    if rules not in PRESETS:
        raise ValueError(unknown("preset of relevance rules", str(rules), PRESETS))
    return PRESETS[rules]
