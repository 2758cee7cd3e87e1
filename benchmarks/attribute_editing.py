"""What editing the sentiment of texts inside a model does, by method and strength, and what it costs.

    MECHSCOPE_DATA=DATA python benchmarks/attribute_editing.py [--models tiny] [--sets sst2 sentiment] [--texts 960]

Texts are divided by groups into three: one part fits the probe, the vectors and CASAL, one fits a reader (a logistic
probe of the last block's output that has seen none of the others' texts), one is measured on. The negative texts of the
last part are moved to `positive` at resid_post of the middle block, at their last token, and the model goes on:

    probe       mean probability of `positive` that the editing probe itself gives at the edited site
    reader      share of the texts that the reader calls positive, at the last block
    words       change of the log-odds of positive against negative words as the next token, in nats, with
                its standard error over texts
    KL          of the next token, before || after, nats
    loss, KL n  the change of the loss and KL on neutral text, every token edited (hooks) or the trained module in place

Random directions of the difference's norm are what pushing alone does. Before the table stand what these numbers mean
for this model: accuracy of both probes, and the AUROC of the words' log-odds for the label without any edit. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from interp.data import Blocks, DataSpec, Labelled, read_labelled, token_blocks
from interp.data.sets import labelled_set
from interp.models import ModelHandle, load_model
from interp.sites import Site
from probes import LogisticProbe, auroc
from probes.capturing import Captured, capture_texts
from probes.casal import CasalConfig, casal
from probes.editing import change_rows, edit
from probes.effects import cost, preference, text_batches, texts_effect, word_ids
from probes.steering_vectors import Shift, leace_swap, mean_difference, random_like

GOOD = "good happy beautiful kind great fine lovely sweet wonderful pleasant glad brave nice wise best bright"
BAD = "bad sad ugly cruel terrible poor horrible bitter dreadful sorry mean dull stupid worst dark wicked angry"
TEMPLATE = "{} It was"
"""What the model reads: the sentiment has to be carried to the last token, and an adjective can follow."""
TARGET = "positive"
RANDOM = 8
"""Random directions at each strength; the cost is measured for the first."""


@dataclass(frozen=True)
class Setting:
    """A model, a set of texts in three parts, and what is fitted on them."""

    handle: ModelHandle
    site: Site
    last: Site
    parts: tuple[Labelled, Labelled, Labelled]
    captured: Captured
    probe: LogisticProbe
    reader: LogisticProbe
    words: tuple[list[int], list[int]]
    kept: Blocks
    neutral: Blocks


@dataclass(frozen=True)
class Edit:
    """One row of the table."""

    method: str
    strength: str
    open: Callable[[torch.Tensor], AbstractContextManager[Any]]
    model: ModelHandle | None = None


def texts_of(name: str, n: int) -> Labelled:
    """Return the texts in the template, labelled negative and positive."""
    if name == "sentiment":
        found = labelled_set("sentiment", n)
    else:
        path = Path(os.environ["MECHSCOPE_DATA"]) / "probes" / "sst2" / "train.tsv"
        raw = read_labelled(path, "text", "label", names=["text", "label"]).sample(n, 0)
        found = Labelled(raw.texts, tuple({"0": "negative", "1": TARGET}[one] for one in raw.labels), raw.groups)
    return Labelled(tuple(TEMPLATE.replace("{}", text) for text in found.texts), found.labels, found.groups)


def three(found: Labelled) -> tuple[Labelled, Labelled, Labelled]:
    """Return disjoint parts, whole groups each: for the edit, for the reader, to be measured on."""
    first = found.split(0.5, 0)
    rest = select(found, ~first)
    second = rest.split(0.5, 1)
    return select(found, first), select(rest, second), select(rest, ~second)


def select(found: Labelled, chosen: np.ndarray) -> Labelled:
    """Return the texts that are chosen."""
    parts = (found.texts, found.labels, found.groups)
    return Labelled(*(tuple(one for one, here in zip(part, chosen, strict=True) if here) for part in parts))


def fitted(found: Captured, site: Site, part: Labelled) -> LogisticProbe:
    """Return a logistic probe of the texts' last tokens."""
    probe = LogisticProbe(source=found.source(str(site), "last"))
    return probe.fit(found.rows(str(site), "last"), part.labels, part.groups)


def setting(model: str, name: str, n: int, neutral_tokens: int) -> Setting:
    """Load and fit everything that a table needs."""
    folder = Path(os.environ.get("MECHSCOPE_DATA", ".")) / "models" / model
    handle = load_model(str(folder) if model != "tiny" else model, device="cpu")
    site, last = Site((handle.n_layers - 1) // 2, "resid_post"), Site(handle.n_layers - 1, "resid_post")
    parts = three(texts_of(name, n))
    captured = capture_texts(handle, parts[0].texts, [str(site)])
    other = capture_texts(handle, parts[1].texts, [str(last)])
    words = tuple(listed(handle, text) for text in (GOOD, BAD))
    blocks = token_blocks(handle, DataSpec(context=128, tokens=2 * neutral_tokens))
    kept, neutral = blocks.split(0.5)
    probe, reader = fitted(captured, site, parts[0]), fitted(other, last, parts[1])
    return Setting(handle, site, last, parts, captured, probe, reader, (words[0], words[1]), kept, neutral)


def listed(handle: ModelHandle, text: str) -> list[int]:
    """Return the ids of the words that are one token; none, where none is."""
    try:
        return word_ids(handle, [f" {word}" for word in text.split()])
    except ValueError:
        return []


def edits(s: Setting, steps: int) -> Iterator[Edit]:
    """Yield every method at every strength."""
    x, y = s.captured.rows(str(s.site), "last"), s.parts[0].labels
    v = mean_difference(x, y, TARGET).vector
    for p in (0.5, 0.9, 0.99):
        yield Edit("hyperplane", f"p = {p}", lambda where, p=p: edit(s.handle, s.probe, TARGET, p, positions=where))
    for strength in (-2.0, 1.0, 2.0, 4.0):
        yield Edit("mean difference", f"{strength:g}", shift(s, strength * v))
    for strength in (1.0, 2.0):
        swap = leace_swap(x, y, TARGET, strength=strength)
        yield Edit("LEACE swap", f"{strength:g}", lambda where, swap=swap: change_rows(s.handle, s.site, swap, where))
    for strength in (1.0, 2.0, 4.0):
        for draw, one in enumerate(random_like(v, RANDOM, seed=1)):
            yield Edit("random", f"{strength:g}#{draw}", shift(s, strength * one))
    for strength in (1.0, 4.0):
        config = CasalConfig("flip", strength, steps=steps)
        made = casal(s.handle, s.parts[0].texts, y, TARGET, s.site.layer, config, keep=s.kept)
        yield Edit("CASAL", f"{strength:g}", lambda _: nullcontext(), made.handle)


def shift(s: Setting, vector: np.ndarray) -> Callable[[torch.Tensor], AbstractContextManager[Any]]:
    """Return what opens the addition of a vector."""
    return lambda where: change_rows(s.handle, s.site, Shift(vector), where)


def measured(s: Setting, one: Edit, texts: list[str], plain: np.ndarray) -> dict[str, Any]:
    """Return a row of the table."""
    words = s.words if s.words[0] else None
    found = texts_effect(s.handle, texts, one.open, other=one.model, words=words, sites=[s.site, s.last])
    x, shift_ = found.rows[s.site], found.preference
    price = {} if "#" in one.strength and not one.strength.endswith("#0") else cost(
        s.handle, s.neutral, one.open, other=one.model
    )  # fmt: skip
    number = list(s.probe.classes_).index(TARGET)
    return {
        "method": one.method,
        "strength": one.strength,
        "size": float((np.linalg.norm(x - plain, axis=1) / np.linalg.norm(plain, axis=1)).mean()),
        "probe": float(s.probe.predict_proba(x)[:, number].mean()),
        "reader": float((s.reader.predict(found.rows[s.last]) == TARGET).mean()),
        "words": float(shift_.mean()),
        "words_se": float(shift_.std(ddof=1) / np.sqrt(len(shift_))),
        "kl": float(found.kl.mean()),
        "loss": price.get("loss_delta", np.nan),
        "loss_low": price.get("loss_delta_low", np.nan),
        "loss_high": price.get("loss_delta_high", np.nan),
        "kl_neutral": price.get("kl_mean", np.nan),
    }


def pooled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with the draws of each random strength as one: means, and the largest |words| of a draw."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["method"], row["strength"].partition("#")[0]), []).append(row)
    merged = []
    for (method, strength), group in found.items():
        numbers = {k: float(np.nanmean([row[k] for row in group])) for k in group[0] if k not in ("method", "strength")}
        if len(group) > 1:
            numbers["words_se"] = float(np.max([abs(row["words"]) for row in group]))
        merged.append({"method": method, "strength": strength} | numbers)
    return merged


def baselines(s: Setting, texts: list[str]) -> dict[str, float]:
    """Return what the numbers mean without an edit."""
    test, handle = s.parts[2], s.handle
    y = np.array(test.labels) == TARGET
    found = capture_texts(handle, test.texts, [str(s.site), str(s.last)])
    shown = np.zeros(len(test))
    for part in text_batches(handle, test.texts):
        logits = handle.logits(part.tokens)[torch.arange(len(part.last)), part.last]
        if s.words[0]:
            shown[part.numbers] = preference(logits, s.words).numpy()
    plain = texts_effect(handle, texts, lambda _: nullcontext(), sites=[s.last]).rows[s.last]
    return {
        "probe_accuracy": float(s.probe.score(found.rows(str(s.site), "last"), test.labels)),
        "reader_accuracy": float(s.reader.score(found.rows(str(s.last), "last"), test.labels)),
        "words_auc": float(auroc(shown[:, None], y)[0, 0]),
        "reader_before": float((s.reader.predict(plain) == TARGET).mean()),
        "words_for": len(s.words[0]),
        "words_against": len(s.words[1]),
    }


def table(model: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Print and return one table."""
    s = setting(model, name, arguments.texts, arguments.neutral_tokens)
    texts = [text for text, label in zip(s.parts[2].texts, s.parts[2].labels, strict=True) if label != TARGET]
    about = baselines(s, texts)
    plain = texts_effect(s.handle, texts, lambda _: nullcontext(), sites=[s.site]).rows[s.site]
    sizes = [len(part) for part in s.parts]
    print(f"\n### {model}, {name}: edited at {s.site}, read at {s.last}\n")
    print(f"Texts {sizes[0]} + {sizes[1]} + {sizes[2]}, of which {len(texts)} are edited. " + ", ".join(
        f"{key.replace('_', ' ')} {value:.3g}" for key, value in about.items()
    ))  # fmt: skip
    print("\n| method | strength | size | probe | reader | words | KL | loss | KL n |\n|" + "---|" * 9)
    rows = pooled([measured(s, one, texts, plain) for one in edits(s, arguments.steps)])
    for row in rows:
        sign = "max" if row["method"] == "random" else "±"
        print(
            f"| {row['method']} | {row['strength']} | {row['size']:.3f} | {row['probe']:.2f} | {row['reader']:.2f} | "
            f"{row['words']:+.3f} ({sign} {row['words_se']:.3f}) | {row['kl']:.4f} | "
            f"{row['loss']:+.4f} [{row['loss_low']:+.4f}, {row['loss_high']:+.4f}] | {row['kl_neutral']:.4f} |"
        )
    return {"model": model, "set": name, "site": str(s.site), **about, "rows": rows}


def main() -> None:
    """Print the tables and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny"], help="tiny, or folders of $MECHSCOPE_DATA/models")
    parser.add_argument("--sets", nargs="+", default=["sst2", "sentiment"])
    parser.add_argument("--texts", type=int, default=960)
    parser.add_argument("--steps", type=int, default=600, help="of CASAL")
    parser.add_argument("--neutral-tokens", type=int, default=4096)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    outside = "MECHSCOPE_DATA" in os.environ
    found = [
        table(model, name, arguments)
        for model in arguments.models
        for name in arguments.sets
        if outside or (model == "tiny" and name == "sentiment")
    ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
