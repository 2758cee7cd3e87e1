"""`mechscope models`: what is embedded, the sites of a model, its card, and whether its two views agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from app import console
from app.command import Common
from interp.names import unknown

if TYPE_CHECKING:
    from interp.models import ModelHandle

TOLERANCE = 1e-3
"""Largest difference of a logit between the views in float32 and float64."""
ROUNDINGS = 4
"""Half-precision views may differ by this many times the rounding of their largest logit."""


@dataclass(frozen=True)
class List(Common):
    """List the models that come with the package: trained ones, and those compiled by hand."""


@dataclass(frozen=True)
class Sites(Common):
    """List the sites of a model: name, shape, and what transformer-lens calls it."""

    name: tyro.conf.Positional[str]
    """Embedded model, local Hugging Face folder, or hub id."""
    pattern: tyro.conf.Positional[str] = "*"
    """Shell pattern of the sites to list, such as 'resid_*' or '*.2'."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""


@dataclass(frozen=True)
class Card(Common):
    """Print the card of an embedded or compiled model: what it is, where it comes from, its licence."""

    name: tyro.conf.Positional[str]
    """Embedded or compiled model."""


@dataclass(frozen=True)
class Verify(Common):
    """Compare the logits of a model's two views: plain Hugging Face and the transformer-lens bridge."""

    name: tyro.conf.Positional[str]
    """Embedded model, local Hugging Face folder, or hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    dtype: str = "float32"
    """Number format: float32, bfloat16, float16 or float64."""
    recipe: str | None = None
    """Compress the model first: a recipe's file, name or text, as in `mechscope compress`."""
    device: str | None = None
    """Where to compute; the first GPU, else the CPU, unless given."""
    tolerance: float | None = None
    """Largest difference of a logit that is accepted; unless given 1e-3, and for float16 and bfloat16 what rounding of
    logits of their size explains."""


Args = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Sites, tyro.conf.subcommand("sites")]
    | Annotated[Card, tyro.conf.subcommand("card")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
)


def run(args: List | Sites | Card | Verify) -> dict[str, Any]:
    """Do what `args` ask for and return it as a dictionary."""
    if isinstance(args, List):
        return _list()
    if isinstance(args, Sites):
        return _sites(args)
    if isinstance(args, Card):
        return _card(args)
    return _verify(args)


def _list() -> dict[str, Any]:
    from interp.models.compiled import compiled_models
    from interp.models.embedded import embedded_config, embedded_models, stored_bytes

    found = [_row(name, embedded_config(name), stored_bytes(name)) for name in embedded_models()]
    found += [_row(one.name, one.config, 4 * one.n_parameters) for one in compiled_models().values()]
    headers = ["name", "family", "layers", "d_model", "heads", "vocabulary", "context", "MiB"]
    console.table(headers, [[row[header] for header in headers] for row in found])
    console.emit("A local Hugging Face folder or a hub id is used in the same way.")
    return {"models": found}


def _row(name: str, config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return what the list says of a model of `size` bytes."""
    return {
        "name": name,
        "family": config.get("model_type"),
        "layers": config.get("n_layer", config.get("num_hidden_layers")),
        "d_model": config.get("n_embd", config.get("hidden_size")),
        "heads": config.get("n_head", config.get("num_attention_heads")),
        "vocabulary": config.get("vocab_size"),
        "context": config.get("n_positions", config.get("max_position_embeddings")),
        "MiB": round(size / 2**20, 1),
    }


def _sites(args: Sites) -> dict[str, Any]:
    from interp.models import ModelSpec, load_model

    model = load_model(ModelSpec(args.name, revision=args.revision))
    wild = any(sign in args.pattern for sign in "*?[")
    found = model.sites(args.pattern) if wild else [model.check_site(args.pattern)]
    rows = [(str(site), model.shape(site), site.lens_name) for site in found]
    if rows:
        console.table(["site", "shape", "transformer-lens"], rows)
    else:
        console.emit(f"{args.name} has no site {args.pattern}.")
    names = ("site", "shape", "transformer_lens")
    return {"model": args.name, "sites": [dict(zip(names, row, strict=True)) for row in rows]}


def _card(args: Card) -> dict[str, Any]:
    from interp.models.compiled import compiled_models
    from interp.models.embedded import card, embedded_models

    compiled = compiled_models()
    if args.name not in compiled and args.name not in embedded_models():
        raise ValueError(unknown("model", args.name, [*embedded_models(), *compiled]))
    text = compiled[args.name].card if args.name in compiled else card(args.name)
    console.emit(text.rstrip("\n"))
    return {"model": args.name, "card": text}


def _verify(args: Verify) -> dict[str, Any]:
    from app import sources
    from interp.compression import describe_recipe, recipe_json
    from interp.models import ModelSpec, load_model

    recipe = sources.recipe(args.recipe)
    name = f"{args.name} after {describe_recipe(recipe)}" if recipe else args.name
    model = load_model(ModelSpec(args.name, args.revision, args.dtype, recipe), device=args.device)
    difference = model.verify()
    tolerance = _tolerance(model) if args.tolerance is None else args.tolerance
    ok = difference <= tolerance  # NaN is not
    verdict = "they agree" if ok else "they DIFFER"
    console.emit(
        f"{name}: the logits of the two views differ by at most {difference:.2g} "
        f"(accepted: {tolerance:.4g}); {verdict}."
    )
    if not ok and any(step["step"] == "quantise_activations" for step in recipe_json(recipe)):
        console.emit(
            "Rounding activations turns the least difference into a whole step now and then; try --dtype float64."
        )
    return {"model": args.name, "difference": difference, "tolerance": tolerance, "ok": ok}


def _tolerance(model: ModelHandle) -> float:
    """Return the difference that rounding explains: in half precision it grows with the logits."""
    import torch

    dtype = getattr(torch, model.spec.dtype)
    if dtype.itemsize > 2:
        return TOLERANCE
    tokens = torch.arange(min(model.n_ctx, 32))[None] % model.d_vocab
    rounding = ROUNDINGS * torch.finfo(dtype).eps * float(model.logits(tokens).abs().max())
    return max(TOLERANCE, rounding) if math.isfinite(rounding) else TOLERANCE
