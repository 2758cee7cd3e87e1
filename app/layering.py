"""What `mechscope layers` asks, what that will cost, and how the answer is shown."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from app import console, sources

if TYPE_CHECKING:
    from app.commands.layers import Args
    from interp.data import Blocks, DataSpec
    from interp.layers.family import Family
    from interp.layers.result import Part, Profile
    from interp.models import ModelHandle, ModelSpec
    from interp.runs import Run

CONTEXT = 256
"""Tokens of a prompt, unless another number is given or a model reads less."""
TRAIN = "train"
"""What --tuned-lens says to train one."""
HEADLINES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "stream": (("norm", "mean", "norm"), ("share", "block", "block share")),
    "geometry": (("participation_ratio", "", "dims"), ("anisotropy", "", "anisotropy")),
    "similarity": (("cka", "", "CKA before"),),
    "depth": (("later", "current", "later change"),),
    "importance": (("skip_loss", "", "skip loss"),),
    "lens": (("kl", "logit", "lens KL"),),
    "attention": (("induction", "max head", "induction"),),
    "spectra": (("alpha_windows", "", "alpha"),),
    "coding": (("rate", "", "coding rate"),),
    "gradients": (("nuclear", "", "gradient"),),
    "readout": (("neuron_share", "", "sharp neurons"),),
}
"""Family -> (measure, part, title) of the columns by layer; of a part that is not there the mean of all is shown."""
COSTS: dict[str, tuple[float, int | None, bool]] = {
    "stream": (0.2, None, False), "geometry": (0.4, None, False), "similarity": (1.9, None, False),
    "depth": (8.0, 12, True), "importance": (4.5, 16, True), "lens": (0.5, None, False), "attention": (5.5, 16, False),
    "spectra": (0.5, None, False), "coding": (0.6, None, False), "gradients": (2.5, 16, False),
    "readout": (2.4, 8, False),
}  # fmt: skip
"""Family -> (forward passes of a prompt that it costs, measured on `tiny`; prompts that it takes at most; whether that
is for each layer)."""
USUAL = (2.0, None, False)
"""The same of a family that is not listed."""


@dataclass(frozen=True)
class Question:
    """A loaded model, the text that it reads, and what is measured."""

    handle: ModelHandle
    """The model."""
    blocks: Blocks
    """The text."""
    names: tuple[str, ...]
    """The families."""
    lenient: bool
    """Whether a family that the model does not allow is left out."""
    config: dict[str, Any]
    """What identifies the run."""
    lens: Run | None = None
    """A trained lens to look through beside the logit lens."""

    @property
    def slug(self) -> str:
        """Name of the run."""
        return sources.spec_slug(self.handle.spec)

    @property
    def parents(self) -> tuple[str, ...]:
        """Runs it is made from."""
        return () if self.lens is None else (self.lens.ref,)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the run's record says of model and text."""
        return sources.provenance(self.config, self.config["weights"])

    def families(self) -> list[Family]:
        """Return the families, new ones."""
        from interp.layers.families import family

        found = []
        for name in self.names:
            arguments: dict[str, Any] = {}
            if name == "lens" and self.lens is not None:
                from interp.layers.lens_runs import load_lens

                arguments = {"lenses": [load_lens(self.lens, self.handle)]}
            found.append(family(name, arguments))
        return found


def ask(args: Args) -> list[Question]:
    """Return a question for each model that the command line names, with models loaded and text read.

    Raises:
        ValueError: an unknown family, numbers out of range, a text or a lens that does not fit.
    """
    from interp.data import DataSpec
    from interp.layers.families import FAMILIES, default_families, family
    from interp.names import unknown

    if args.prompts < 1:
        raise ValueError(f"prompts must be 1 or more, got {args.prompts}.")
    for name in args.families:
        if name not in FAMILIES:
            raise ValueError(unknown("family", name, FAMILIES))
    names = tuple(name for name in FAMILIES if name in (args.families or default_families()))
    for name in names:
        family(name)
    handles = [sources.open_model(spec, args.device) for spec in _specs(args)]
    context = min(CONTEXT, *(one.n_ctx for one in handles)) if args.context is None else args.context
    data = DataSpec(sources.local(args.text), context=context, tokens=args.prompts * context, heldout=0.0)
    questions = [_question(args, handle, data, names) for handle in handles]
    if args.tuned_lens is not None and "lens" in names:
        questions = [_with_lens(args, question, data) for question in questions]
    elif args.tuned_lens is not None:
        raise ValueError("--tuned-lens is for the family lens: name it with --families, or name none.")
    return questions


def _specs(args: Args) -> list[ModelSpec]:
    from interp.models import ModelSpec

    first = ModelSpec(sources.local(args.model), args.revision, args.model_dtype, sources.recipe(args.recipe))
    if args.vs is not None:
        other = sources.recipe(args.vs_recipe)
        return [first, ModelSpec(sources.local(args.vs), args.vs_revision, args.model_dtype, other)]
    if args.vs_recipe is not None or args.vs_revision is not None:
        recipe = (*first.recipe, *sources.recipe(args.vs_recipe))
        return [first, replace(first, revision=args.vs_revision or args.revision, recipe=recipe)]
    return [first]


def _question(args: Args, handle: ModelHandle, data: DataSpec, names: tuple[str, ...]) -> Question:
    from interp.config import to_json

    blocks, _ = sources.split_blocks(handle, data)
    config = {
        "model": to_json(handle.spec),
        "weights": handle.digest(),
        "data": to_json(data),
        "tokens": blocks.digest(),
        "families": list(names),
        "lens": None,
    }
    return Question(handle, blocks, names, not args.families, config)


def _with_lens(args: Args, question: Question, data: DataSpec) -> Question:
    """Return the question with a trained lens: the run that is named, or one that is trained now."""
    from interp.layers.lens_runs import KIND
    from interp.runs import open_run

    if args.tuned_lens == TRAIN:
        lens = train_lens(question, data, args)
    else:
        lens = open_run(str(args.tuned_lens), args.runs)
        if lens.kind != KIND or not lens.finished:
            raise ValueError(f"{lens.ref} is no finished lens; --tuned-lens train makes one.")
        digest = (lens.info.get("model") or {}).get("digest")
        if args.vs or args.vs_recipe or args.vs_revision:
            if digest != question.handle.digest():
                console.note(f"{lens.ref} is not of {question.handle.spec.label}, which has the logit lens alone")
                return question
        else:
            question.handle.check_weights(digest, lens.ref)
    return replace(question, config=question.config | {"lens": lens.ref}, lens=lens)


def train_lens(question: Question, data: DataSpec, args: Args) -> Run:
    """Return the run of a tuned lens, trained on the text that follows the prompts.

    Raises:
        ValueError: nothing follows them.
    """
    import torch

    from interp.layers.lens_config import TunedLensConfig
    from interp.layers.lens_runs import lens_run
    from interp.layers.tuned_lens import train_tuned_lens

    config = TunedLensConfig()
    seen = len(question.blocks)
    more = replace(data, tokens=(seen + config.steps * config.blocks) * data.context)
    blocks, _ = sources.split_blocks(question.handle, more)
    rest = blocks.select(torch.arange(seen, len(blocks)))
    if len(rest) < config.blocks:
        raise ValueError(
            f"A tuned lens is trained on the text after the prompts, and there are {len(rest)} blocks of it. Give more "
            "text, or fewer --prompts."
        )
    with lens_run(question.handle, rest, config, root=args.runs) as record:
        if record.finished:
            console.note(f"{record.ref} is finished already")
            return record
        with console.stages({"steps": "train the lens"}, record) as progress:
            train_tuned_lens(
                question.handle, rest, config, record, on_progress=lambda done, total: progress(done, total, "steps")
            )
    return record


def kept(record: Run) -> dict[str, Part]:
    """Return the families that a broken run holds already; none where they cannot be read."""
    from interp.layers.result import SUMMARY, load_profile
    from interp.runs import RunError

    if SUMMARY not in record.files:
        return {}
    try:
        return dict(load_profile(record).parts)
    except RunError as problem:
        console.note(f"{record.ref}: what was kept cannot be read ({problem}); beginning again")
        return {}


def estimate(question: Question, names: Sequence[str]) -> str:
    """Return in words what the families will take: time, memory."""
    from interp.layers.profile import BATCH_FLOATS

    handle, blocks = question.handle, question.blocks
    part = blocks.first(max(blocks.context, 1024)).tokens
    handle.logits(part[:1])
    begun = time.monotonic()
    handle.logits(part)
    forward = (time.monotonic() - begun) * blocks.tokens.numel() / part.numel()
    seconds, prompts = forward, len(blocks)
    for name in names:
        factor, most, by_layer = COSTS.get(name, USUAL)
        seconds += forward / prompts * min(prompts, most or prompts) * factor * (handle.n_layers if by_layer else 1)
    weights = 4 * handle.n_parameters
    floats = max(BATCH_FLOATS, blocks.context * handle.d_vocab)
    return (
        f"{len(names)} families on {blocks.n_tokens:,} tokens, about {math.ceil(seconds)} s; weights "
        f"{weights / 2**20:.0f} MiB, about {(4 * 6 * floats) / 2**20:.0f} MiB more at most"
    )


def headline(found: Profile) -> dict[str, Any]:
    """Return the run's own numbers, flat: `FAMILY.name`."""
    numbers = {
        f"{family}.{name}": value
        for family, result in found.results.items()
        for name, value in result.summary.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    return {"families": len(found.parts), "n_layers": found.n_layers, "model_label": found.model, **numbers}


def show(profiles: Sequence[Profile]) -> list[dict[str, Any]]:
    """Write the headline numbers of each family and of each layer; return the rows by layer."""
    names = ["a", "b"][: len(profiles)] if len(profiles) > 1 else ["value"]
    if len(profiles) > 1:
        console.emit("a: " + profiles[0].model + "\nb: " + profiles[1].model)
    rows = []
    for family in dict.fromkeys(name for one in profiles for name in one.results):
        summaries = [one.results[family].summary if family in one.results else {} for one in profiles]
        for key in dict.fromkeys(key for summary in summaries for key in summary):
            rows.append((family, key, *(summary.get(key) for summary in summaries)))
    console.emit()
    console.table(("family", "what", *names), rows)
    for one in profiles:
        for name, why in one.refused.items():
            console.note(f"{one.model}: {name} is left out: {why}")
    by_layer = []
    for label, one in zip(names, profiles, strict=True):
        table = layer_rows(one)
        by_layer += [{"model": label, **row} for row in table] if len(profiles) > 1 else table
        if table:
            heads = ["layer", *(title for titles in _titles(one).values() for _, _, title in titles)]
            console.emit("" if len(profiles) == 1 else f"\n{label}")
            console.table(heads, [[row.get(key) for key in heads] for row in table])
    return by_layer


def layer_rows(found: Profile) -> list[dict[str, Any]]:
    """Return one row for each layer: a few measures of each family, such as {"layer": 0, "norm": 93.1}."""
    rows: dict[int, dict[str, Any]] = {}
    for family, columns in _titles(found).items():
        table = found.parts[family].result.layers.to_pylist()
        for measure, wanted, title in columns:
            own = [row for row in table if row["measure"] == measure and row["value"] is not None]
            exact = [row for row in own if row["part"] == wanted] or own
            for layer in dict.fromkeys(row["layer"] for row in exact):
                values = [row["value"] for row in exact if row["layer"] == layer]
                rows.setdefault(layer, {"layer": layer})[title] = sum(values) / len(values)
    return [rows[layer] for layer in sorted(rows)]


def _titles(found: Profile) -> dict[str, tuple[tuple[str, str, str], ...]]:
    """Return the columns by layer of each family; of one that `HEADLINES` does not list, its first measure."""
    return {
        family: HEADLINES.get(family) or ((part.measures[0].name, "", f"{family} {part.measures[0].name}"),)
        for family, part in found.parts.items()
    }


def show_families() -> list[dict[str, Any]]:
    """Write the families and their measures; return them."""
    from interp.layers.families import FAMILIES, OPTIONAL, family

    found = []
    for name in FAMILIES:
        one = family(name)
        when = "when named" if name in OPTIONAL else ""
        found += [
            {"family": name, "when": when, "measure": m.name, "what": m.label, "unit": m.unit} for m in one.measures
        ]
    console.table(list(found[0]), [list(row.values()) for row in found])
    return found
