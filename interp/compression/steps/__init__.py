"""The steps of recipes by name. A new step is one file beside these and one line here."""

from __future__ import annotations

from interp.compression.steps.activations import ActivationNoise, QuantiseActivations
from interp.compression.steps.base import MatrixStep, NamedStep
from interp.compression.steps.noise import WeightNoise
from interp.compression.steps.pruning import Magnitude, RandomPrune
from interp.compression.steps.rtn import Rtn
from interp.compression.steps.skip import SkipLayers
from interp.compression.steps.svd import Svd

STEPS: dict[str, type[NamedStep]] = {
    "rtn": Rtn,
    "magnitude": Magnitude,
    "random_prune": RandomPrune,
    "svd": Svd,
    "weight_noise": WeightNoise,
    "skip_layers": SkipLayers,
    "quantise_activations": QuantiseActivations,
    "activation_noise": ActivationNoise,
}

__all__ = [
    "STEPS",
    "ActivationNoise",
    "Magnitude",
    "MatrixStep",
    "NamedStep",
    "QuantiseActivations",
    "RandomPrune",
    "Rtn",
    "SkipLayers",
    "Svd",
    "WeightNoise",
]
