"""What `mechscope compare` asks, what that will cost, and how the answer is shown."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from app import console, sources, targets
from app.probed_texts import probed_texts

if TYPE_CHECKING:
    from app.commands.compare import Args
    from app.probed_texts import ProbedTexts
    from app.sources import Subject
    from interp.compression.panel import Panel, PanelResult
    from interp.data import Blocks, DataSpec
    from interp.models import ModelHandle, ModelSpec
    from interp.runs import Run

HEADLINES = {
    "behaviour": (
        "tokens",
        "loss_a",
        "loss_b",
        "loss_delta",
        "loss_delta_low",
        "loss_delta_high",
        "kl_mean",
        "top1_agreement",
    ),
    "drift": ("relative_error_last", "cosine_min"),
    "cka": ("cka_min",),
    "survival": ("active", "kept_share", "kept", "blurred", "lost", "new", "median_r"),
    "dictionary": ("fvu_a", "fvu_b", "ce_recovered_a", "ce_recovered_b"),
    "heads": ("induction_heads_a", "induction_survived", "previous_heads_a", "previous_survived", "pattern_kl_mean"),
    "lens": ("depth_a", "depth_delta"),
    "probes": ("probe_transfer_drop", "probe_drop", "probe_layer_shift"),
}
"""Panel -> the numbers of its summary that are the run's own."""
BY_LAYER = {"drift": ("relative_error", "cosine", "sqnr_db"), "cka": ("cka",), "lens": ("kl_ab", "top1_agreement"),
            "probes": ("auc_a", "auc_transfer", "auc_retrained")}  # fmt: skip
"""Panel -> columns of its table `layers` that are shown for the residual stream."""
NULL_ROWS = ("kl_mean", "loss_delta", "top1_agreement", "relative_error_last", "cka_min", "kept_share", "median_r")
PROBES = "probes"
"""The panel of labelled texts, which is not in `interp`."""
CONTEXT = 128
"""Length of a block, unless another is given or a model reads less."""
OVERHEAD = 1.5
"""How much longer a comparison takes than its matrix products alone."""


@dataclass(frozen=True)
class Question:
    """Two loaded models, a text, and what is measured."""

    a: ModelHandle
    """The model to compare against."""
    b: ModelHandle
    """The other one."""
    blocks: Blocks
    """The text."""
    panels: Callable[[], list[Panel]]
    """Makes the panels."""
    config: dict[str, Any]
    """What identifies the run."""
    slug: str
    """Name of the run."""
    parents: tuple[str, ...] = ()
    """Runs it is made from."""
    subject: Subject | None = field(default=None)
    """The dictionary."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What the run's record says of model a and the text."""
        config = self.config
        return {
            "model": {**config["a"], "digest": config["weights"]["a"]},
            "data": {**config["data"], "digest": config["tokens"]},
        }


def ask(args: Args) -> Question:
    """Return the question that the command line puts, with models loaded and text read.

    Raises:
        ValueError: it asks for one model only, an unknown panel, models or a dictionary that do not fit.
    """
    from interp.compression.compare import check_same_vocabulary
    from interp.config import to_json

    if args.tokens < 1:
        raise ValueError(f"tokens must be 1 or more, got {args.tokens}.")
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"seed must lie in 0..2^63-1, got {args.seed}.")
    spec_a, spec_b = _specs(args)
    subject = None if args.sae is None else sources.subject(args.sae, args.runs)
    if subject is not None:
        targets.check_own_input(subject, "The panels survival and dictionary read both models through")
    texts = probed_texts(args.probe_data, args.probe_fields, args.probe_texts, args.seed)
    names = panel_names(args.panels, subject is not None, texts is not None)
    a = sources.open_model(spec_a, args.device)
    b = a if spec_b == spec_a else sources.open_model(spec_b, args.device)
    check_same_vocabulary(a, b)
    if subject is None:
        _mention_dictionaries(spec_a, args.runs)
    else:
        _check_subject(subject, a, b)
    arguments = panel_arguments(names, args, subject, texts)
    maker = _maker(arguments, subject, texts, a, b)
    data, blocks = _text(args, a, b)
    config = {
        "a": to_json(spec_a),
        "b": to_json(spec_b),
        "data": to_json(data),
        "tokens": blocks.digest(),
        "weights": {"a": a.digest(), "b": b.digest()},
        "panels": arguments,
        "sae_run": None if subject is None else subject.run.ref,
    }
    parents = () if subject is None else (subject.run.ref,)
    return Question(a, b, blocks, maker, config, _slug(spec_a, spec_b), parents, subject)


def _text(args: Args, a: ModelHandle, b: ModelHandle) -> tuple[DataSpec, Blocks]:
    """Return what both models read, as a specification and as tokens."""
    from interp.data import DataSpec

    context = min(CONTEXT, a.n_ctx, b.n_ctx) if args.context is None else args.context
    data = DataSpec(sources.local(args.text), context=context, tokens=args.tokens, heldout=0.0)
    blocks, _ = sources.split_blocks(a, data)
    if blocks.context > b.n_ctx:
        raise ValueError(f"{b.spec.name} reads n_ctx={b.n_ctx} tokens at most, got --context {blocks.context}.")
    return data, blocks


def null_question(question: Question, null: ModelHandle, ref: str, wanted: Mapping[str, Any]) -> Question:
    """Return the same question about the model `null` in place of b; `ref` is the run that it is a null of."""
    from interp.config import to_json

    weights = {"a": question.config["weights"]["a"], "b": null.digest()}
    config = question.config | {"b": to_json(null.spec), "weights": weights, "null_of": ref, "null": dict(wanted)}
    slug = _slug(question.a.spec, null.spec)
    return replace(question, b=null, config=config, slug=slug, parents=(*question.parents, ref))


def _specs(args: Args) -> tuple[ModelSpec, ModelSpec]:
    from interp.models import ModelSpec

    a = ModelSpec(sources.local(args.a), args.revision, args.model_dtype, sources.recipe(args.recipe_a))
    if args.b is None:
        if args.recipe is None and args.revision_b is None and args.recipe_a is None:
            raise ValueError(
                "Two models are needed: give a second one, or --recipe, such as --recipe int4, for a compressed copy."
            )
        b = replace(a, revision=args.revision_b or args.revision, recipe=sources.recipe(args.recipe))
    else:
        b = ModelSpec(sources.local(args.b), args.revision_b, args.model_dtype, sources.recipe(args.recipe))
    return a, b


def _slug(a: ModelSpec, b: ModelSpec) -> str:
    if a.name == b.name and not a.recipe and b.recipe:
        return sources.spec_slug(b)
    return f"{sources.spec_slug(a)}-vs-{sources.spec_slug(b)}"


def panel_names(asked: tuple[str, ...], with_dictionary: bool, with_texts: bool = False) -> list[str]:
    """Return the panels to measure, in their own order.

    Raises:
        ValueError: an unknown panel, or one that needs a dictionary or labelled texts where there are none.
    """
    from interp.compression.panels import NEED_DICTIONARY, ON_REQUEST, PANELS
    from interp.names import unknown

    for name in asked:
        if name == PROBES and not with_texts:
            raise ValueError("The panel probes needs labelled texts: give --probe-data SET, such as tense, or a file.")
        if name not in (*PANELS, PROBES):
            raise ValueError(unknown("panel", name, (*PANELS, PROBES)))
        if name in NEED_DICTIONARY and not with_dictionary:
            raise ValueError(f"The panel {name} needs a dictionary: give --sae RUN, a run of `mechscope train`.")
    usual = [name for name in PANELS if name not in ON_REQUEST and (with_dictionary or name not in NEED_DICTIONARY)]
    found = [name for name in PANELS if name in (asked or usual)]
    return [*found, PROBES] if with_texts else found


def panel_arguments(
    names: list[str], args: Args, subject: Subject | None, texts: ProbedTexts | None = None
) -> dict[str, dict[str, Any]]:
    """Return {panel: its arguments} as the run's configuration holds them; the dictionary is named once, there."""
    from interp.compression.panels.survival import SurvivalConfig
    from interp.config import to_json

    outlier_norm = None if subject is None else subject.outlier_norm
    survival = SurvivalConfig(args.least, args.kept, args.blurred, outlier_norm)  # refuses wrong thresholds
    own = {
        "behaviour": {"seed": args.seed},
        "survival": to_json(survival),
        "dictionary": {"outlier_norm": outlier_norm},
        "heads": {"threshold": args.threshold, "seed": args.seed},
        PROBES: {} if texts is None else texts.about | {"seed": args.seed},
    }
    return {name: own.get(name, {}) for name in names}


def _maker(
    arguments: dict[str, dict[str, Any]],
    subject: Subject | None,
    texts: ProbedTexts | None,
    a: ModelHandle,
    b: ModelHandle,
) -> Callable[[], list[Panel]]:
    """Return what makes the panels, new ones each time, around one dictionary that is read once."""
    from interp.compression.coding import check_dictionary
    from interp.compression.panels import NEED_DICTIONARY, PANELS, DictionaryFit, Survival
    from interp.compression.panels.survival import SurvivalConfig
    from sae.model import load_sae

    simple = {name: given for name, given in arguments.items() if name not in (*NEED_DICTIONARY, PROBES)}
    sae = None
    if subject is not None:
        sae = load_sae(subject.run, a.device)
        check_dictionary(sae, subject.site, a, b)
    survival = SurvivalConfig(**arguments.get("survival", {}))
    for name, given in simple.items():  # wrong arguments are told before anything is read
        PANELS[name](**given)

    def make() -> list[Panel]:
        made: list[Panel] = []
        for name, given in arguments.items():
            if name in simple:
                made.append(PANELS[name](**given))
            elif name == PROBES and texts is not None:
                made.append(texts.panel(given["seed"]))
            elif subject is not None and sae is not None:
                dictionary: Panel = (
                    Survival(subject.site, sae, survival)
                    if name == "survival"
                    else DictionaryFit(subject.site, sae, **given)
                )
                made.append(dictionary)
        return made

    return make


def _check_subject(subject: Subject, a: ModelHandle, b: ModelHandle) -> None:
    """Refuse a dictionary whose site a model lacks; say so where it was trained on another model than A."""
    from interp.compression import describe_recipe

    for name, model in (("A", a), ("B", b)):
        try:
            model.check_site(subject.site)
        except ValueError as error:
            raise ValueError(
                f"{subject.run.ref} reads {subject.site} of {name} ({model.spec.name}). {error}"
            ) from error

    def is_of(model: ModelHandle) -> bool:
        same = subject.weights in (None, model.digest())
        return same and _running(subject.model) == _running(model.spec)

    if is_of(a):
        return
    if is_of(b):
        where = "B, not A"
    elif subject.weights == a.digest():  # steps that act while the model runs leave no trace in the weights
        where = f"A's weights under another recipe ({describe_recipe(subject.model.recipe)})"
    elif subject.weights == a.base_digest():
        where = "A's weights before its recipe"
    else:
        where = "other weights than either model's"
    console.note(f"{subject.run.ref} was trained on {where}: what it says of A is how it carries over")


def _running(spec: ModelSpec) -> tuple[Any, ...]:
    """Return the steps that act while the model runs, which a hash of its weights does not see."""
    from interp.types import WeightStep

    return tuple(
        step for step in spec.recipe if not isinstance(step, WeightStep) and not getattr(step, "is_nothing", False)
    )


def _mention_dictionaries(spec: ModelSpec, runs: Any) -> None:
    """Say that there is a dictionary of this model, if there is one; which to take is for people to say."""
    from interp.runs import find_runs

    found = [run for run in find_runs(runs, "sae", finished=True) if run.config["model"]["name"] == spec.name]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        console.note(f"features are not compared; --sae {found[0].ref}{more} would read both models")


def estimate(question: Question) -> str:
    """Return in words what the comparison will take: operations, time, memory."""
    a, b, blocks = question.a, question.b, question.blocks
    panels, tokens = question.config["panels"], blocks.tokens.numel()
    forward = 2 * (a.n_parameters + b.n_parameters)
    work = forward * tokens
    if "lens" in panels:
        work += 4 * a.d_model * a.d_vocab * (a.n_layers - 1) * min(tokens, 16_384)
    if "cka" in panels:
        work += 2 * (9 + a.n_layers) * a.n_layers * a.d_model**2 * min(tokens, 16_384) * 2  # float64 counts twice
    if question.subject is not None:
        d_in, d_sae = (question.subject.run.config["sae"][key] for key in ("d_in", "d_sae"))
        work += 4 * d_in * d_sae * tokens + ("dictionary" in panels) * 2 * forward * min(tokens, 32_768)
    part = blocks.first(2048).tokens
    begun = time.monotonic()
    a.logits(part)
    rate = 2 * a.n_parameters * part.numel() / max(time.monotonic() - begun, 1e-6)
    seconds = OVERHEAD * work / rate
    weights = 4 * sum(model.n_parameters for model in {id(m): m for m in (a, b)}.values())
    return (
        f"{tokens:,} tokens, {work:.2g} operations, about {math.ceil(seconds)} s; weights {weights / 2**20:.0f} MiB, "
        f"at most {_memory(question) / 2**20:.0f} MiB more"
    )


def _memory(question: Question) -> float:
    """Return the bytes that batches and kept codes take at most."""
    a, tokens = question.a, question.blocks.tokens.numel()
    batch = min(16 * question.blocks.context * a.d_vocab, 1 << 23)
    held = 2 * 24 * (1 << 23) if "survival" in question.config["panels"] else 0
    return 4 * 6 * batch + 24 * tokens + held


def headline(question: Question, results: Mapping[str, PanelResult]) -> dict[str, Any]:
    """Return the run's own numbers, flat: some of each panel's, and what a recipe makes the model take."""
    found: dict[str, Any] = {"panels": len(results)}
    for name, model in (("a", question.a), ("b", question.b)):
        if model.spec.recipe:
            found |= {
                f"bits_{name}": model.storage.bits_per_parameter,
                f"matrix_bits_{name}": model.storage.matrix_bits,
            }
    for panel, keys in HEADLINES.items():
        if panel in results:
            found |= {key: results[panel].summary[key] for key in keys}
    return found


def show(results: Mapping[str, PanelResult]) -> None:
    """Write a table for each panel, and one by layer."""
    for panel, result in results.items():
        summary = result.summary
        both = [key[:-2] for key in summary if key.endswith("_a") and f"{key[:-2]}_b" in summary]
        single = [
            (key, value) for key, value in summary.items() if key[:-2] not in both or key[-2:] not in ("_a", "_b")
        ]
        console.emit()
        if single:
            console.table((panel, "value"), single)
        if both:
            console.table((panel, "a", "b"), [(key, summary[f"{key}_a"], summary[f"{key}_b"]) for key in both])
    _show_layers(results)


def _show_layers(results: Mapping[str, PanelResult]) -> None:
    columns: dict[str, dict[str, Any]] = {}
    for panel, names in BY_LAYER.items():
        for row in results[panel].tables["layers"].to_pylist() if panel in results else ():
            if row["site"].startswith("resid_post."):
                columns.setdefault(row["site"], {}).update({f"{panel} {name}": row[name] for name in names})
    if columns:
        heads = list(next(iter(columns.values())))
        console.emit()
        console.table(("site", *heads), [(site, *(row.get(head) for head in heads)) for site, row in columns.items()])


def show_nulls(runs: Mapping[str, Run]) -> None:
    """Write B and its nulls side by side: `runs` is {"b": its run, kind of null: run}."""
    rows = [(name, *(run.summary.get(name) for run in runs.values())) for name in NULL_ROWS]
    console.emit()
    console.table(("against A", *runs), [row for row in rows if any(value is not None for value in row[1:])])
