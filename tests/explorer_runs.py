"""A small folder of runs as the pipeline leaves it, for the tests of the explorer: 320 latents over an invented text.

Every 23rd latent is dead, a few are dense, and the vocabulary holds tokens that a careless page would obey.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from interp.runs import Run, start_run

HOSTILE = [
    "<script>alert(1)</script>",
    "![x](http://evil.example/x.png)",
    "<img src=http://evil.example/y.png onerror=alert(2)>",
    "$x$",
    ":red[x]",
    "</style>",
    "</div></body>",
    "\u202eevil\u202c",
    "שלום",
    "zero\u200bwidth\u200d",
    "\x00\x1b[31m\x07",
    "x" * 10_000,
    "🦉👩🏽\u200d🔬",
    "\n",
    "\t\t",
    "   ",
    "&amp;&lt;",
    "=SUM(A1)",
    '" onmouseover="alert(3)',
]
TEXT = """""
he old harbour lay quiet under a thin fog, and the gulls had not yet begun their quarrel. Mira counted the
boats twice, because her brother had promised to be home by morning and she did not trust the first count. Two
were missing. The lantern at the end of the pier still burned, pale and useless in the daylight. "He will
come," said the keeper, who said so every day of anybody, and was right about half of the time. She walked up
to the market, where the bread was still warm, and bought a loaf that she did not want. By noon the wind had
turned to the north. The water went grey, then black, and the women on the wall stopped talking. In the year
1887 such a wind had taken eleven men from this street alone; their names stood on a stone that nobody read.
When the first sail came round the point, it was red, and red was the wrong colour. She did not run. She put
down the bread, folded the cloth, and went slowly to the steps, because those who hurry to bad news only have
it for longer. But the boy in the bow was waving with both arms, and he was laughing. On the other side of the
island the schoolmaster explained to nine children why the sea is salt. He had explained it in the spring and
they had forgotten it, as he had forgotten the reason, so that each of them heard it as if it were new. A
river, he said, carries a little salt from the mountains, and the sun carries away the water but not the salt.
"Then the mountains must be getting sweeter," said the smallest girl. He looked at her for a long time. He
wrote on the board: the mountains are getting sweeter. It was the best sentence of that year, and he had not
made it himself.
"""
LATENTS, TOKENS_READ, CONTEXT, WINDOW, BINS = 320, 200_000, 64, 12, 40


@dataclass
class Written:
    """The runs that `write_runs` made."""

    root: Path
    activations: Run
    sae: Run
    evaluation: Run
    features: Run
    hostile: int
    """A latent whose examples are full of hostile tokens."""
    dead: int
    """A latent that never fired."""


def write_runs(
    root: Path,
    model: str = "tiny",
    site: str = "resid_post.2",
    d_sae: int = LATENTS,
    d_in: int = 192,
    save: Callable[[Run], None] | None = None,
) -> Written:
    """Write activations, dictionary, evaluation and features below `root`; `save` writes the dictionary's weights."""
    activations = start_run(
        "activations", {"model": {"name": model}, "sites": [site]}, slug=f"{Path(model).name}-{site}", root=root,
        model={"name": model, "revision": None, "recipe": []}, data={"text": "demo"},
    )  # fmt: skip
    activations.finish({"rows": TOKENS_READ})
    sae = _sae(root, model, site, d_sae, d_in, activations, save)
    evaluation = start_run("evaluation", {"tokens": 65_536}, slug=sae.name[:-9], parents=[sae.ref], root=root)
    measured = {
        "tokens": 65_536,
        "excluded_share": 0.0156,
        "nonfinite": 0,
        "fvu": 0.1312,
        "l0": 31.8,
        "dead_share": 0.041,
    }
    losses = {"ce_clean": 3.412, "ce_spliced": 3.561, "ce_zero": 9.87, "ce_mean": 7.94, "ce_delta": 0.149, "kl": 0.131}
    recovered = {"ce_recovered_zero": 0.9769, "ce_recovered_mean": 0.9671, "bias": 0.021}
    evaluation.save_json("metrics.json", measured | losses | recovered)
    evaluation.finish(measured)
    features = start_run(
        "features",
        {"sae_run": sae.ref, "model": {"name": model}, "site": site, "data": {"text": "demo"}, "tokens": "a digest"},
        slug=sae.name[:-9], parents=[sae.ref], root=root, model={"name": model, "revision": None, "recipe": []},
    )  # fmt: skip
    tables = _Tables(d_sae)
    tables.save(features)
    features.finish({"latents": d_sae, "tokens": TOKENS_READ, "dead": int(tables.dead.sum()), "median_density": 0.004})
    return Written(root, activations, sae, evaluation, features, hostile=7, dead=23)


def _sae(
    root: Path, model: str, site: str, d_sae: int, d_in: int, activations: Run, save: Callable[[Run], None] | None
) -> Run:
    config = {
        "model": {"name": model, "revision": None, "dtype": "float32", "recipe": []},
        "site": site, "data": {"text": "demo"},
        "sae": {"d_in": d_in, "d_sae": d_sae, "rule": "topk", "rule_args": {"k": min(32, d_sae // 4)}},
    }  # fmt: skip
    sae = start_run(
        "sae", config, slug=f"{Path(model).name}-{site}-topk", parents=[activations.ref], root=root,
        model={"name": model, "revision": None, "recipe": []},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for step in range(0, 1000, 10):
        fvu = 0.13 + 0.9 * np.exp(-step / 110) + 0.006 * rng.standard_normal()
        l0, dead = 32 + 8 * np.exp(-step / 90), 0.04 + 0.3 * (step / 250) * np.exp(1 - step / 250) / 3
        sae.log(step, tokens=step * 2048, fvu=float(fvu), loss=float(fvu) + 0.01, l0=float(l0), dead_share=float(dead))
    if save is None:
        sae.save_tensors("dictionary.safetensors", {"W_dec": np.zeros((4, 2), np.float32)})
    else:
        save(sae)
    sae.finish({"fvu": 0.1312, "l0": 32.0, "dead_share": 0.041, "steps": 1000, "tokens": 2_048_000, "seconds": 61.0})
    return sae


def random_dictionary(run: Run) -> None:
    """Save a random dictionary of the run's configuration into it: the `save` of `write_runs` for live pages."""
    import torch

    from interp.config import from_json
    from sae.config import SaeConfig
    from sae.model import Sae

    torch.manual_seed(0)
    sae = Sae(from_json(SaeConfig, run.config["sae"]))
    torch.nn.init.normal_(sae.W_enc)
    sae.save(run)


class _Tables:
    """The tables of a features run over a text of which a third of the blocks is hostile."""

    def __init__(self, n: int) -> None:
        self.n, self.rng = n, np.random.default_rng(1)
        pieces = re.findall(r" ?\w+| ?[^\w\s]|\n", TEXT.strip())
        self.vocab = ["<|endoftext|>", *dict.fromkeys(pieces), *HOSTILE]
        ids = {text: i for i, text in enumerate(self.vocab)}
        story = [ids[p] for p in pieces]
        bad = [ids[t] for t in HOSTILE]
        mixed = [i for pair in zip(story, bad * 9, strict=False) for i in pair][: CONTEXT * 2]
        stream = (story * 3)[: CONTEXT * 16] + mixed
        self.blocks = np.array(stream[: len(stream) // CONTEXT * CONTEXT]).reshape(-1, CONTEXT)
        self.bad_blocks = range(len(self.blocks) - 2, len(self.blocks))
        self.dead = np.arange(n) % 23 == 0
        self.dense = np.isin(np.arange(n), (5, 101, 202))
        logs = self.rng.normal(-5.4, 1.1, n)
        self.density = np.where(
            self.dead, 0.0, np.where(self.dense, self.rng.uniform(0.12, 0.6, n), np.exp(logs).clip(2e-5, 0.08))
        )
        self.top = np.where(self.dead, 0.0, self.rng.gamma(6, 1.1, n) + 1.0).astype(np.float32)
        self.examples: list[dict[str, Any]] = []
        self.tokens_of: list[list[str]] = [self._examples(latent) for latent in range(n)]

    def save(self, run: Run) -> None:
        run.save_table("latents.parquet", self.latents())
        run.save_table("examples.parquet", pa.Table.from_pylist(self.examples, _EXAMPLES), row_group_size=512)
        run.save_table("logits.parquet", self.logits())
        run.save_table("neighbours.parquet", self.neighbours())
        vocab = pa.table({"token_id": pa.array(range(len(self.vocab)), pa.int32()), "text": self.vocab})
        run.save_table("vocab.parquet", vocab)
        edges = np.geomspace(0.05, 20, BINS + 1).astype(np.float32)
        run.save_tensors("histograms.safetensors", {"counts": self.histograms(edges), "edges": edges})

    def histograms(self, edges: np.ndarray) -> np.ndarray:
        counts = np.zeros((self.n, BINS), np.int64)
        for i in np.flatnonzero(~self.dead):
            values = self.rng.lognormal(np.log(self.top[i] / 5), 0.55, max(3, int(self.density[i] * TOKENS_READ)))
            counts[i] = np.histogram(np.minimum(values, self.top[i]), edges)[0]
        return counts

    def latents(self) -> pa.Table:
        rng, n, on = self.rng, self.n, ~self.dead
        mean = np.where(on, self.top / 4, np.nan)
        none = np.where(on, 0.0, np.nan)
        cosine = rng.beta(2, 3, n).astype(np.float32)
        entropy = np.where(np.arange(n) % 6 == 1, rng.uniform(0, 0.3, n), rng.uniform(0.4, 3.0, n)) + none
        columns: dict[str, Any] = {
            "latent": pa.array(range(n), pa.int32()),
            "count": pa.array((self.density * TOKENS_READ).round().astype(np.int64)),
            "density": self.density,
            "mean": mean,
            "second_moment": self.density * self.top.astype(np.float64) ** 2 / 10,
            "skew": rng.normal(2, 0.4, n) + none,
            "kurtosis": rng.normal(6, 2, n) + none,
            "max": self.top,
            "min": (0.05 * self.top).astype(np.float32),
            "enc_dec_cosine": rng.uniform(0.4, 0.95, n).astype(np.float32),
            "decoder_norm": np.ones(n, np.float32),
            "encoder_norm": rng.uniform(0.5, 2, n).astype(np.float32),
            "bias": rng.normal(-0.3, 0.1, n).astype(np.float32),
            "top_tokens": pa.array(self.tokens_of, pa.list_(pa.string())),
            "token_entropy": entropy.astype(np.float32),
            "nearest": pa.array((np.arange(n) * 7 + 3) % n, pa.int32()),
            "nearest_cosine": cosine,
        }
        for name in ("mean", "skew", "kurtosis", "max", "min", "token_entropy"):  # what a dead latent lacks is null
            columns[name] = pa.array(columns[name], mask=self.dead)
        return pa.table(columns)

    def _examples(self, latent: int) -> list[str]:
        """Append the examples of `latent`; return its top tokens."""
        if self.dead[latent]:
            return []
        where = list(self.bad_blocks) if latent % 8 == 7 else list(range(len(self.blocks) - 2))
        block = where[latent % len(where)]
        wanted = int(self.blocks[block][(latent * 13) % CONTEXT])
        spots = [(b, int(p)) for b in where for p in np.flatnonzero(self.blocks[b] == wanted)]
        spots += [
            (int(self.rng.choice(where)), int(self.rng.integers(CONTEXT))) for _ in range(44 - min(20, len(spots)))
        ]
        sizes = np.sort(self.rng.beta(1.3, 3, len(spots)).astype(np.float32))[::-1] * self.top[latent]
        sizes[0] = self.top[latent]
        for rank, (spot, size) in enumerate(zip(spots[:40], sizes[:40], strict=True)):
            group = "top" if rank < 24 else "quantile" if rank < 34 else "random"
            quantile = 9 - (rank - 24) if group == "quantile" else -1
            self._add(latent, group, rank if rank < 24 else rank - 24, quantile, float(size), *spot)
        for rank, spot in enumerate(spots[-4:]):
            self._add(latent, "near_miss", rank, -1, 0.3 - 0.05 * rank, *spot)
        return [self.vocab[int(self.blocks[b][p])] for b, p in spots[:5]]

    def _add(self, latent: int, group: str, rank: int, quantile: int, value: float, block: int, position: int) -> None:
        start, stop = max(0, position - WINDOW), min(CONTEXT, position + WINDOW + 1)
        values = np.zeros(stop - start, np.float32)
        if group != "near_miss":
            values[self.rng.random(stop - start) < min(0.9, 0.08 + self.density[latent])] = 0.3 * value
            values[position - start] = value
        self.examples.append(
            {
                "latent": latent, "group": group, "rank": rank, "quantile": quantile, "value": value, "block": block,
                "position": position, "start": start, "token_ids": self.blocks[block][start:stop].tolist(),
                "values": values.tolist(),
            }
        )  # fmt: skip

    def logits(self) -> pa.Table:
        rows = []
        for latent in range(self.n):
            for side, sign in (("+", 1.0), ("-", -1.0)):
                chosen = self.rng.choice(len(self.vocab), 10, replace=False)
                sizes = np.sort(self.rng.gamma(4, 0.2, 10))[::-1] * sign
                rows += [
                    {"latent": latent, "side": side, "rank": r, "token_id": int(t), "value": float(v)}
                    for r, (t, v) in enumerate(zip(chosen, sizes, strict=True))
                ]
        kinds = {
            "latent": pa.int32(),
            "side": pa.string(),
            "rank": pa.int16(),
            "token_id": pa.int32(),
            "value": pa.float32(),
        }
        return pa.Table.from_pylist(rows, pa.schema(kinds))

    def neighbours(self) -> pa.Table:
        rows = []
        for latent in range(self.n):
            for kind in ("decoder", "encoder", "coactivation"):
                others = self.rng.choice(np.delete(np.arange(self.n), latent), 6, replace=False)
                sizes = np.sort(self.rng.beta(2, 3, 6))[::-1]
                if kind == "encoder":
                    sizes[-1] = -0.21
                rows += [
                    {"latent": latent, "kind": kind, "rank": r, "other": int(o), "value": float(v)}
                    for r, (o, v) in enumerate(zip(others, sizes, strict=True))
                ]
        kinds = {
            "latent": pa.int32(),
            "kind": pa.string(),
            "rank": pa.int16(),
            "other": pa.int32(),
            "value": pa.float32(),
        }
        return pa.Table.from_pylist(rows, pa.schema(kinds))


_EXAMPLES = pa.schema(
    {
        "latent": pa.int32(), "group": pa.string(), "rank": pa.int16(), "quantile": pa.int8(), "value": pa.float32(),
        "block": pa.int32(), "position": pa.int32(), "start": pa.int32(), "token_ids": pa.list_(pa.int32()),
        "values": pa.list_(pa.float32()),
    }
)  # fmt: skip
