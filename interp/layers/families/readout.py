"""Family `readout`: what weights say in terms of tokens, and what each layer adds to the true next token's logit.

Neurons against random rotations (`interp.layers.neurons`), direct logit attribution (`direct`), spectra of the heads'
OV and QK (`head_svd`), neurons of the confidence (`confidence`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.layers.confidence import Confidence, WriteGeometry
from interp.layers.direct import Part, direct_sites, from_activations
from interp.layers.family import Batch, FamilyResult, Measure, layer_table
from interp.layers.head_svd import head_rows, singular_tokens
from interp.layers.neurons import RotationNull, neuron_directions, sharpness
from interp.layers.vocabulary import Vocabulary
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

LEVEL = 0.01
"""A neuron beats the null where its p-value is at most this: one in a hundred does by chance."""
TAIL = 0.1
"""Share of all neurons that counts as large (norm) or as small (logit variance)."""
TOLERANCE = 0.05
"""Largest mean error of the sum, against the mean size of the logit: rounding stays far below."""
SHOWN = 10
"""Neurons of a layer in the table."""
CURVES = {"embed": ("embed", "pos"), "attn": ("head", "attn_bias"), "mlp": ("mlp", "mlp_bias")}
"""Curves of direct contributions, and the kinds of parts in each."""
EFFECT_ROWS = 128
"""Tokens over which effects of neurons are measured."""


class ReadoutFamily:
    """Neurons, heads and direct contributions in terms of tokens."""

    name = "readout"
    measures = (
        Measure("dla", "direct contribution to the true token", "logits", "Above the mean token, final scale held."),
        Measure("dla_share", "the same, of the whole", "share", "Adds up to 1 over layers, embeddings and biases."),
        Measure("neuron_share", "neurons sharper than random", "share", "p of 0.01 by kurtosis: 0.01 by chance."),
        Measure("ov_rank", "effective rank of OV", "dimensions", "Mean over heads; at most d_head."),
        Measure("qk_rank", "effective rank of QK", "dimensions", "Mean over heads; at most d_head."),
        Measure("confidence", "loud neurons that tokens hardly see", "share", "Top tenth by norm, lowest by variance."),
        Measure("frequency", "neurons along token frequency", "cosine", "Mean size, with log frequency."),
    )  # fmt: skip

    def __init__(self, texts: int = 8, neurons: int = 512, draws: int = 1000, effects: int = 4) -> None:
        """Attribute the logits of the first `texts` sequences; decode `neurons` neurons of each block.

        `draws` random directions are the null; effects are measured for twice `effects` neurons of the last block.

        Raises:
            ValueError: a number below 1.
        """
        for name, value in (("texts", texts), ("neurons", neurons), ("draws", draws), ("effects", effects)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        self.texts, self.neurons, self.draws, self.effects = texts, neurons, draws, effects

    def sites(self, handle: ModelHandle) -> tuple[Site, ...]:
        """Return what direct attribution reads, and the last MLP's activations."""
        return (*direct_sites(handle), Site(handle.n_layers - 1, "mlp_act"))

    def begin(self, handle: ModelHandle, blocks: Blocks) -> None:  # noqa: ARG002
        """Fold the final norm into the unembedding.

        Raises:
            ValueError: the norm cannot be taken apart.
        """
        self._handle, self._vocabulary = handle, Vocabulary(handle)
        self._counts = torch.zeros(handle.d_vocab, dtype=torch.long)
        self._parts: tuple[Part, ...] = ()
        self._direct: list[Tensor] = []
        self._checks: list[tuple[Tensor, Tensor]] = []
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, batch: Batch) -> None:
        """Attribute the true next tokens of the batch's first texts, while some are wanted; count all tokens."""
        self._counts += torch.bincount(batch.tokens[batch.real].cpu(), minlength=len(self._counts))
        where = batch.predicts & batch.keep
        last = self._handle.n_layers - 1
        for i in range(len(batch.tokens)):
            rows = where[i : i + 1]
            if len(self._direct) == self.texts or not rows.any():
                continue
            acts = {site: batch.acts[site][i : i + 1] for site in self.sites(self._handle)}
            targets = batch.targets[i : i + 1][rows]
            mean = torch.full_like(targets, -1)
            logits, tokens = batch.logits[i : i + 1], batch.tokens[i : i + 1]
            found = from_activations(self._handle, acts, tokens, logits, targets, against=mean, where=rows)
            self._parts = found.parts
            self._direct.append(found.values.mean(0).cpu())
            self._checks.append((found.logits.cpu(), found.error.cpu()))
            if sum(len(held[2]) for held in self._rows) < EFFECT_ROWS:
                kept = [acts[Site(last, kind)][rows] for kind in ("mlp_act", "resid_post")]
                self._rows.append((*kept, targets))  # type: ignore[arg-type]

    def finish(self) -> FamilyResult:
        """Return the curves and the tables `neurons`, `heads` and `confidence`.

        Raises:
            ValueError: no text to attribute, or parts that do not add up to the logits.
        """
        import pyarrow as pa

        summary, rows, of_heads = self._attributed()
        decoded, neurons = self._decoded()
        heads = self._heads(of_heads)
        for which in ("ov_rank", "qk_rank"):
            for layer in range(self._handle.n_layers):
                ranks = torch.tensor([row[which] for row in heads if row["layer"] == layer])
                rows.append((layer, which, "", float(ranks.nanmean())))  # a silent head has none
        confident, effects = self._confident()
        summary |= {"neurons_decoded": sum(share[1] for share in decoded)}
        summary["neuron_share"] = sum(share[0] * share[1] for share in decoded) / max(1, sum(n for _, n in decoded))
        for layer, (share, n) in enumerate(decoded):
            half = 1.96 * math.sqrt(share * (1 - share) / n)
            rows.append((layer, "neuron_share", "", share, share - half, share + half))
        tables = {"neurons": neurons, "heads": heads, "confidence": effects}
        found = {name: pa.Table.from_pylist(table) for name, table in tables.items()}
        return FamilyResult(summary, layer_table(rows + confident), found)

    # -- direct attribution

    def _attributed(self) -> tuple[dict[str, Any], list[tuple], dict[tuple[int, int | None], float]]:
        """Return (headline numbers, curves, mean contribution of each head)."""
        if not self._direct:
            raise ValueError("Direct attribution needs a text with a next token to attribute, got none.")
        logits, errors = (torch.cat(found) for found in zip(*self._checks, strict=True))
        missed, size = float(errors.abs().mean()), float(logits.abs().mean())
        if not missed <= TOLERANCE * size:
            raise ValueError(
                f"Parts must add up to the logits, {size:.3g} on average; they miss by {missed:.3g}. The model does "
                "more than add to the stream (a recipe that changes it, a norm after the sum, an overflow); leave this "
                "family out."
            )
        each = torch.stack(self._direct)
        whole, rows = each.sum(1), []
        for (layer, name), places in self._groups().items():
            values = each[:, places].sum(1)
            mean, half = float(values.mean()), _half(values)
            rows.append((layer, "dla", name, mean, mean - half, mean + half))
            rows.append((layer, "dla_share", name, mean / float(whole.mean())))
        constants = [i for i, part in enumerate(self._parts) if part.kind in ("norm_bias", "unembed_bias")]
        summary = {
            "logit": float(whole.mean()),
            "tokens": len(logits),
            "dla_error": float(errors.abs().max()),
            "constant_share": float(each[:, constants].sum(1).mean() / whole.mean()),
        }
        mean = each.mean(0).tolist()
        heads = {(p.layer, p.index): mean[i] for i, p in enumerate(self._parts) if p.kind == "head"}
        return summary, rows, heads

    def _groups(self) -> dict[tuple[int, str], list[int]]:
        """Return {(layer, name of a curve): places of its parts}; the embeddings are layer -1."""
        found: dict[tuple[int, str], list[int]] = {}
        for name, kinds in CURVES.items():
            for i, part in enumerate(self._parts):
                if part.kind in kinds:
                    found.setdefault((part.layer, name), []).append(i)
        return found

    # -- weights

    def _decoded(self) -> tuple[list[tuple[float, int]], list[dict[str, Any]]]:
        """Return ((share that beats the null, neurons) of each layer, rows of the sharpest)."""
        null, shares, rows = RotationNull(self._vocabulary, self.draws), [], []
        for layer in range(self._handle.n_layers):
            directions = neuron_directions(self._handle, layer)
            count = min(self.neurons, len(directions))
            places = torch.arange(count) * len(directions) // count
            found = sharpness(self._vocabulary, directions[places])
            p = null.p_values(found)
            shares.append((float((p <= LEVEL).double().mean()), count))
            order = found.kurtosis.nan_to_num(0.0).argsort(descending=True)[:SHOWN].tolist()
            rows += [
                {
                    "layer": layer,
                    "neuron": int(places[i]),
                    "kurtosis": float(found.kurtosis[i]),
                    "p": float(p[i]),
                    "top": float(found.top[i]),
                    "tokens": self._vocabulary.names(found.best[i].tolist()),
                }
                for i in order
            ]
        return shares, rows

    def _heads(self, direct: dict[tuple[int, int | None], float]) -> list[dict[str, Any]]:
        rows = []
        for layer in range(self._handle.n_layers):
            for row in head_rows(self._handle, layer):
                head = int(row["head"])
                (first,) = singular_tokens(self._vocabulary, layer, head, n=1, k=5)
                rows.append(row | {"dla": direct[layer, head], "reads": first["reads"], "writes": first["writes"]})
        return rows

    def _confident(self) -> tuple[list[tuple], list[dict[str, Any]]]:
        """Return (curves, effects of neurons of the last block)."""
        confidence = Confidence(self._handle, self._counts)
        shapes = [confidence.geometry(layer) for layer in range(self._handle.n_layers)]
        loud = torch.cat([shape.norm for shape in shapes]).quantile(1 - TAIL)
        unseen = torch.cat([shape.logit_var for shape in shapes]).quantile(TAIL)
        rows = []
        for layer, shape in enumerate(shapes):
            both = (shape.norm >= loud) & (shape.logit_var <= unseen)
            rows.append((layer, "confidence", "", float(both.double().mean())))
            rows.append((layer, "frequency", "", float(shape.frequency.abs().mean())))
        acts, stream, targets = (torch.cat(part)[:EFFECT_ROWS] for part in zip(*self._rows, strict=True))
        last = shapes[-1]
        found = confidence.effects(_candidates(last, self.effects), acts, stream, targets)
        for row in found:
            row |= {name: float(values[int(row["neuron"])]) for name, values in vars(last).items()}
        return rows, found


def _candidates(shape: WriteGeometry, n: int) -> list[int]:
    """Return the n neurons that write most where the unembedding is blind, and the n most along token frequency."""
    blind = (shape.norm.square() * shape.null_share).argsort(descending=True)[:n].tolist()
    frequent = shape.frequency.abs().argsort(descending=True)[:n].tolist()
    return list(dict.fromkeys(blind + frequent))


def _half(values: Tensor) -> float:
    """Return half the width of a 95 % interval of a mean, by the spread of the values."""
    return 1.96 * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
