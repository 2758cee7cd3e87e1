"""Comparing two models on the same tokens: one streamed pass of both, and every panel looks on.

    found = compare("tiny", ModelSpec("tiny", recipe=read_recipe("[{step: rtn, bits: 4}]")), blocks=blocks)
    found.results["behaviour"].summary["kl_mean"]

Both models must have one vocabulary, so that a token means the same in both. For each batch of blocks either model runs
once; the activations that any panel wants are captured in that forward. A model compared with itself differs by exactly
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import torch
from torch import Tensor

from interp.compression.panel import Pair, Panel, PanelResult, kept_positions
from interp.compression.panels import NEED_DICTIONARY, ON_REQUEST, PANELS
from interp.data import Blocks
from interp.hooks import capture
from interp.models import ModelHandle, ModelSpec, load_model
from interp.models.vocabulary import check_same_vocabulary as check_same_vocabulary
from interp.names import unknown
from interp.runs import Run
from interp.sites import Site

LOGIT_FLOATS = 1 << 23
"""Largest batch of logits of one model, in floats (32 MiB in float32)."""
KIND = "compare"
"""Kind of the run that holds a comparison."""
SUMMARY, VOCABULARY = "summary.json", "vocab.parquet"

Subject = ModelSpec | str | ModelHandle
"""What can be compared: a specification, a name, or a model that is loaded."""


@dataclass(frozen=True)
class Comparison:
    """What the panels found between two models."""

    a: ModelSpec
    """The model that is compared against."""
    b: ModelSpec
    """The other one."""
    results: dict[str, PanelResult]
    """What each panel found, by its name."""
    vocabulary: list[str] | None = field(default=None, repr=False)
    """Text of each token id, None without a tokenizer."""

    def save(self, run: Run) -> None:
        """Write tables, `summary.json` and, where features were compared, `vocab.parquet` into `run`."""
        import pyarrow as pa

        for panel, result in self.results.items():
            for name, table in result.tables.items():
                run.save_table(f"{panel}.{name}.parquet", table)
        if "survival" in self.results and self.vocabulary is not None:
            ids = pa.array(range(len(self.vocabulary)), pa.int32())
            run.save_table(VOCABULARY, pa.table({"token_id": ids, "text": pa.array(self.vocabulary, pa.string())}))
        run.save_json(SUMMARY, {name: result.summary for name, result in self.results.items()})

    def _repr_html_(self) -> str:
        """Return a table of the headline numbers for notebooks."""
        rows = "".join(
            f"<tr><td>{escape(panel)}</td><td>{escape(name)}</td><td>{escape(_shown(value))}</td></tr>"
            for panel, result in self.results.items()
            for name, value in result.summary.items()
        )
        head = f"{escape(self.a.name)} and {escape(self.b.name)}"
        return f"<b>{head}</b><table><tr><th>panel</th><th>what</th><th>value</th></tr>{rows}</table>"


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def load_results(run: Run) -> dict[str, PanelResult]:
    """Return what each panel found, from a finished run of kind "compare".

    Raises:
        ValueError: the run is of another kind or not finished.
    """
    if run.kind != KIND or not run.finished:
        raise ValueError(f"{run.ref} is no finished comparison; make one with `mechscope compare`.")
    summaries = run.json(SUMMARY)
    tables = {panel: {} for panel in summaries}
    for name in run.files:
        panel, dot, rest = name.removesuffix(".parquet").partition(".")
        if dot and panel in tables and name.endswith(".parquet"):
            tables[panel][rest] = run.table(name)
    return {panel: PanelResult(summary, tables[panel]) for panel, summary in summaries.items()}


def build_panels(panels: Sequence[Any] | None = None) -> list[Panel]:
    """Return panels from names and objects; None takes all that need no dictionary, `layers` aside.

    Raises:
        ValueError: an unknown name, a name twice, a panel that needs a dictionary given by name, or an object that is
            no panel.
    """
    if panels is None:
        panels = [name for name in PANELS if name not in (*NEED_DICTIONARY, *ON_REQUEST)]
    built: list[Panel] = []
    for panel in panels:
        if isinstance(panel, str):
            if panel not in PANELS:
                raise ValueError(unknown("panel", panel, PANELS))
            if panel in NEED_DICTIONARY:
                raise ValueError(
                    f"The panel {panel} needs a dictionary: pass {PANELS[panel].__name__}(site, dictionary) in place "
                    "of its name."
                )
            panel = PANELS[panel]()
        if not isinstance(panel, Panel):
            raise ValueError(f"A panel has name, sites, begin, update and finish, got {type(panel).__name__}.")
        built.append(panel)
    names = [panel.name for panel in built]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Panels must be at least one, each once, got {', '.join(names) or 'none'}.")
    return built


def open_pair(a: Subject, b: Subject, device: str | torch.device | None = None) -> tuple[ModelHandle, ModelHandle]:
    """Return both models, loaded where they are not; equal specifications give one and the same model.

    What is loaded goes to `device`; without one, b goes to where a is, so that both compute alike.

    Raises:
        ValueError: the models have different vocabularies.
    """
    spec_a, spec_b = (ModelSpec(one) if isinstance(one, str) else one for one in (a, b))
    first = spec_a if isinstance(spec_a, ModelHandle) else load_model(spec_a, device=device)
    if spec_b == spec_a:
        second = first
    else:
        second = spec_b if isinstance(spec_b, ModelHandle) else load_model(spec_b, device=device or first.device)
    check_same_vocabulary(first, second)
    return first, second


@torch.no_grad()  # not inference_mode: the panel layers differentiates what is captured here
def compare(
    a: Subject,
    b: Subject,
    panels: Sequence[str | Panel] | None = None,
    *,
    blocks: Blocks,
    batch_blocks: int | None = None,
    on_progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Comparison:
    """Return what `panels` find between two models that read `blocks`.

    Args:
        a: the model to compare against.
        b: the other one.
        panels: names and `Panel` objects; None takes all that need no dictionary.
        blocks: the text.
        batch_blocks: blocks in a forward pass; None takes as many as keep the logits small.
        on_progress: hears (done, total, unit) of the blocks that were read, then of the panels that are finished.

    Raises:
        ValueError: different vocabularies, a text that is too long for a model, what a panel refuses.
    """
    chosen = build_panels(panels)
    first, second = open_pair(a, b)
    for model in (first, second):
        if blocks.context > model.n_ctx:
            raise ValueError(
                f"{model.spec.name} reads n_ctx={model.n_ctx} tokens at most, got blocks of {blocks.context}."
            )
    wanted = _wanted_sites(chosen, first, second)
    for panel in chosen:
        panel.begin(first, second, blocks)
    if batch_blocks is None:
        batch_blocks = max(1, min(16, LOGIT_FLOATS // (blocks.context * first.d_vocab)))
    kept = kept_positions(blocks)
    for numbers in torch.arange(len(blocks)).split(batch_blocks):
        pair = read_pair(first, second, blocks, kept, numbers, wanted)
        for panel in chosen:
            panel.update(pair)
        on_progress(int(numbers[-1]) + 1, len(blocks), "blocks")
    results = {}
    for done, panel in enumerate(chosen, 1):
        results[panel.name] = panel.finish()
        on_progress(done, len(chosen), "panels")
    words = first.vocabulary() if first.tokenizer is not None else None
    return Comparison(first.spec, second.spec, results, words)


def _wanted_sites(panels: Sequence[Panel], a: ModelHandle, b: ModelHandle) -> list[Site]:
    """Return the sites that any panel wants, in order; both models must have them."""
    wanted: dict[Site, str] = {}
    for panel in panels:
        for site in panel.sites(a):
            wanted.setdefault(a.check_site(site), panel.name)
    for site, panel in wanted.items():
        if site not in b.sites():
            raise ValueError(
                f"The panel {panel} looks at {site} in both models, and {b.spec.name} does not have it: it has "
                f"{b.n_layers} layers, {a.spec.name} {a.n_layers}. Leave the panel out."
            )
    return sorted(wanted)


def read_pair(
    a: ModelHandle, b: ModelHandle, blocks: Blocks, kept: Tensor, numbers: Tensor, sites: Sequence[Site]
) -> Pair:
    """Return the blocks `numbers` as both models read them, with activations at `sites`."""
    part = blocks.select(numbers)
    first = torch.zeros_like(part.keep)
    first[:, 0] = True
    logits_a, acts_a = _read(a, part.tokens, sites)
    logits_b, acts_b = (logits_a, acts_a) if b is a else _read(b, part.tokens, sites)
    device = logits_a.device
    return Pair(
        tokens=part.tokens.long().to(device),
        real=part.keep.to(device),
        keep=kept[numbers].to(device),
        first=first.to(device),
        numbers=numbers,
        logits_a=logits_a,
        logits_b=logits_b.to(device),
        acts_a=acts_a,
        acts_b={site: value.to(device) for site, value in acts_b.items()},
    )


def _read(model: ModelHandle, tokens: Tensor, sites: Sequence[Site]) -> tuple[Tensor, dict[Site, Tensor]]:
    if not sites:
        return model.logits(tokens), {}
    with capture(model, sites) as taken:
        logits = model.logits(tokens)
    return logits, {site: taken[site].flatten(2) for site in sites}
