"""Finished runs of kind compare over invented numbers, for the tests of the explorer: fewer bits, more harm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from interp.runs import Run, start_run
from tests.explorer_runs import LATENTS, Written

LAYERS, HEADS, TOKENS = 6, 4, 100_000
STRENGTH = {8: 0.02, 6: 0.08, 4: 0.3, 3: 0.7}
"""Bits -> harm, 0 (none) to 1."""
STATES = ("kept", "blurred", "lost", "new", "rare", "silent")
EXAMPLES = 6  # for each latent and side


@dataclass
class Compared:
    """The folder of `write_runs` with comparisons in it."""

    root: Path
    written: Written
    four: Run
    """tiny against its 4-bit copy, all panels, with two nulls."""
    others: list[Run]
    """The same with 8 and 3 bits."""
    nulls: list[Run]
    bare: Run
    """tiny against itself, without a dictionary."""


def write_comparisons(written: Written) -> Compared:
    """Write comparisons of the model of `written` into its folder."""
    others = [write_comparison(written, bits=bits) for bits in (8, 3)]
    four = write_comparison(written, bits=4)
    nulls = [
        write_comparison(written, bits=4, null=null, null_of=four, strength=0.18)
        for null in ("weight_noise", "random_prune")
    ]
    bare = write_comparison(written, bits=16, strength=0.0, dictionary=False)
    return Compared(written.root, written, four, others, nulls, bare)


def write_comparison(
    written: Written,
    *,
    bits: int = 4,
    strength: float | None = None,
    dictionary: bool = True,
    null: str = "",
    null_of: Run | None = None,
    hostile: str = "",
) -> Run:
    """Write one finished comparison; `null` names a step that stands for the recipe of a null run."""
    harm = STRENGTH[bits] if strength is None else strength
    model = {"name": "tiny", "revision": None, "dtype": "float32", "recipe": []}
    step = (
        {"step": null, "sparsity" if null == "random_prune" else "std": 0.0123, "seed": 0}
        if null
        else {
            "step": hostile or "rtn",
            "bits": bits,
            "mode": "symmetric",
            "group": 64,
            "include": [],
            "exclude": [],
        }
    )
    config: dict[str, Any] = {
        "a": model, "b": model | {"recipe": [step] if harm else []}, "data": {"text": "demo"}, "tokens": TOKENS,
        "panels": {}, "sae_run": written.sae.ref if dictionary else None,
    }  # fmt: skip
    if null_of is not None:
        config |= {"null_of": null_of.ref, "null": {"kind": null, "seed": 0}}
    parents = [written.sae.ref] if dictionary else []
    run = start_run("compare", config, slug=f"tiny-{null or f'rtn-{bits}bit'}", parents=parents, root=written.root)
    fill(run, np.random.default_rng(bits + len(null)), harm, dictionary, blur=0.4 if null else 1.0)
    run.finish({"loss_delta": harm, "kl_mean": harm, "bits_b": None if null else bits + 0.25, "matrix_bits_b": None})
    return run


def fill(run: Run, rng: np.random.Generator, harm: float, dictionary: bool, blur: float = 1.0) -> None:
    """Write every table of a comparison into `run`; `blur` scales what the features suffer."""
    summary = _behaviour(run, rng, harm)
    summary |= {"drift": _drift(run, rng, harm), "cka": _cka(run, harm), "lens": _lens(run, harm)}
    summary["heads"] = _heads(run, rng, harm)
    if dictionary:
        summary["survival"] = _survival(run, rng, harm * blur)
        summary["dictionary"] = _dictionary(harm)
    run.save_json("summary.json", summary)


def _behaviour(run: Run, rng: np.random.Generator, harm: float) -> dict[str, Any]:
    n = 40
    loss = rng.normal(3.1, 0.4, n)
    kl = harm * 0.4 * rng.gamma(2, 0.5, n)
    tokens = np.full(n, 128)
    table = {"block": np.arange(n), "tokens": tokens, "loss_a": loss, "loss_b": loss + kl, "kl": kl}
    run.save_table("behaviour.blocks.parquet", pa.table(table))
    q = np.array([0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0])
    run.save_table("behaviour.quantiles.parquet", pa.table({"quantile": q, "kl": harm * q**4}))
    return {
        "behaviour": {
            "tokens": TOKENS, "loss_a": 3.1, "loss_b": 3.1 + 0.4 * harm, "loss_delta": 0.4 * harm,
            "loss_delta_low": 0.38 * harm, "loss_delta_high": 0.42 * harm, "kl_mean": 0.35 * harm,
            "kl_median": 0.1 * harm, "kl_q95": harm, "kl_q99": 2 * harm, "kl_max": 9 * harm,
            "top1_agreement": 1 - 0.4 * harm,
        }
    }  # fmt: skip


def _sites() -> dict[str, Any]:
    kinds = [(kind, layer) for kind in ("resid_post", "mlp_out") for layer in range(LAYERS)]
    return {
        "site": [f"{kind}.{layer}" for kind, layer in kinds],
        "layer": [layer for _, layer in kinds],
        "kind": [kind for kind, _ in kinds],
    }


def _drift(run: Run, rng: np.random.Generator, harm: float) -> dict[str, Any]:
    sites = _sites()
    depth = np.array(sites["layer"]) + 1
    error = harm * 0.25 * np.sqrt(depth) * rng.uniform(0.9, 1.1, len(depth))
    with np.errstate(divide="ignore"):
        sqnr = -20 * np.log10(error)
    columns = {
        "relative_error": error, "cosine": 1 - error**2 / 2, "cosine_p5": 1 - error**2,
        "sqnr_db": pa.array(sqnr, mask=~np.isfinite(sqnr)), "norm_ratio": 1 - error / 10,
        "first_relative_error": error / 3, "first_cosine": 1 - error**2 / 9,
    }  # fmt: skip
    run.save_table("drift.layers.parquet", pa.table(sites | columns))
    return {"relative_error_last": float(error[LAYERS - 1])}


def _cka(run: Run, harm: float) -> dict[str, Any]:
    sites = _sites()
    cka = 1 - 0.3 * harm * (np.array(sites["layer"]) + 1) / LAYERS
    run.save_table("cka.layers.parquet", pa.table(sites | {"cka": cka, "rows": np.full(len(cka), 4096)}))
    layers = np.arange(LAYERS)
    down, across = (grid.ravel() for grid in np.meshgrid(layers, layers, indexing="ij"))
    cross = {
        "site_a": [f"resid_post.{i}" for i in down],
        "site_b": [f"resid_post.{i}" for i in across],
        "cka": 1 - 0.1 * abs(down - across) - 0.2 * harm,
    }
    run.save_table("cka.cross.parquet", pa.table(cross))
    return {"rows": 4096}


def _lens(run: Run, harm: float) -> dict[str, Any]:
    layer = np.arange(LAYERS)
    share = (layer + 1) / LAYERS
    columns = {
        "site": [f"resid_post.{i}" for i in layer], "layer": layer, "kl_ab": 0.5 * harm * share,
        "kl_final_a": 3 * (1 - share), "kl_final_b": 3 * (1 - share) + 0.2 * harm, "top1_agreement": 1 - 0.4 * harm,
        "top1_final_a": share, "top1_final_b": share * (1 - 0.2 * harm), "loss_a": 6 - 3 * share,
        "loss_b": 6 - 3 * share + harm, "entropy_a": 4 - 2 * share, "entropy_b": 4 - 2 * share + harm,
    }  # fmt: skip
    columns["top1_agreement"] = np.full(LAYERS, 1 - 0.4 * harm)
    run.save_table("lens.layers.parquet", pa.table(columns))
    return {"depth_a": 3.2, "depth_b": 3.2 + 0.6 * harm, "depth_delta": 0.6 * harm}


def _heads(run: Run, rng: np.random.Generator, harm: float) -> dict[str, Any]:
    n = LAYERS * HEADS
    induction = np.where(np.arange(n) % 7 == 3, 0.75, rng.uniform(0, 0.15, n))
    previous = np.where(np.arange(n) % 9 == 2, 0.85, rng.uniform(0, 0.2, n))
    left = 1 - harm * rng.uniform(0.5, 1, n)
    columns = {
        "layer": np.repeat(np.arange(LAYERS), HEADS), "head": np.tile(np.arange(HEADS), LAYERS),
        "induction_a": induction, "induction_b": induction * left, "previous_a": previous,
        "previous_b": previous * left, "duplicate_a": induction / 3, "duplicate_b": induction * left / 3,
        "pattern_kl": harm * rng.uniform(0, 1, n),
    }  # fmt: skip
    run.save_table("heads.heads.parquet", pa.table(columns))
    found_a, found_b = induction >= 0.4, induction * left >= 0.4
    return {
        "threshold": 0.4, "induction_heads_a": int(found_a.sum()), "induction_heads_b": int(found_b.sum()),
        "induction_survived": int((found_a & found_b).sum()), "previous_heads_a": int((previous >= 0.4).sum()),
        "previous_heads_b": int((previous * left >= 0.4).sum()),
    }  # fmt: skip


def _survival(run: Run, rng: np.random.Generator, harm: float) -> dict[str, Any]:
    features = next(iter(_features(run)))
    latents, examples = features.table("latents.parquet"), features.table("examples.parquet")
    density = latents["density"].to_numpy()
    peak = np.nan_to_num(latents["max"].to_numpy(zero_copy_only=False).astype(np.float64))
    silent, rare = density == 0, (density > 0) & (density < 5e-5)
    new = np.arange(LATENTS) % 46 == 0  # some of the dead wake up
    r = np.clip(1 - harm * rng.beta(1.2, 2.5, LATENTS) * 1.6, -0.2, 1)
    state = np.where(r >= 0.9, "kept", np.where(r >= 0.5, "blurred", "lost")).astype(object)
    state[rare], state[silent] = "rare", "silent"
    state[new & silent] = "new" if harm else "silent"
    scale = np.where(state == "lost", 0.2, 1 - 0.3 * harm)
    density_b = np.where(state == "new", 2e-3, density * rng.uniform(1 - 0.5 * harm, 1 + 0.3 * harm, LATENTS))
    peak_b = np.where(state == "new", 1.5, peak * scale)
    defined = ~silent & ~rare
    columns = {
        "latent": pa.array(range(LATENTS), pa.int32()), "density_a": density, "density_b": density_b, "peak_a": peak,
        "peak_b": peak_b, "mean_a": peak / 4, "mean_b": peak_b / 4, "r": pa.array(r, mask=~defined),
        "jaccard": pa.array(np.clip(r, 0, 1) ** 2, mask=~defined), "state": pa.array(state.tolist(), pa.string()),
    }  # fmt: skip
    run.save_table("survival.latents.parquet", pa.table(columns))
    run.save_table("survival.examples.parquet", _examples(examples.to_pylist(), scale), row_group_size=512)
    run.save_table("vocab.parquet", features.table("vocab.parquet"))
    counts = {name: int((state == name).sum()) for name in STATES}
    active = counts["kept"] + counts["blurred"] + counts["lost"]
    return {
        "site": "resid_post.2", "active": active, **{name: counts[name] for name in STATES[:4]},
        "kept_share": counts["kept"] / active, "median_r": float(np.median(r[defined])), "spearman_density": 0.31,
        "spearman_peak": 0.22, "threshold_kept": 0.9, "threshold_blurred": 0.5,
        "l0_a": 31.8, "l0_b": 31.8 - 4 * harm, "jaccard": 1 - 0.5 * harm,
    }  # fmt: skip


def _features(run: Run) -> list[Run]:
    from interp.runs import find_runs

    return [f for f in find_runs(run.root, kind="features", finished=True) if run.config["sae_run"] in f.parents]


def _examples(rows: list[dict[str, Any]], scale: np.ndarray) -> pa.Table:
    made = []
    for row in rows:
        if row["group"] != "top" or row["rank"] >= EXAMPLES:
            continue
        values = np.array(row["values"], np.float32)
        changed = values * np.float32(scale[row["latent"]])
        for side in "ab":
            kept = {k: row[k] for k in ("latent", "rank", "block", "position", "start", "token_ids")}
            made.append(kept | {"side": side, "values_a": values.tolist(), "values_b": changed.tolist()})
    return pa.Table.from_pylist(made, _EXAMPLES)


_EXAMPLES = pa.schema(
    {
        "latent": pa.int32(), "side": pa.string(), "rank": pa.int16(), "block": pa.int32(), "position": pa.int32(),
        "start": pa.int32(), "token_ids": pa.list_(pa.int32()), "values_a": pa.list_(pa.float32()),
        "values_b": pa.list_(pa.float32()),
    }
)  # fmt: skip


def _dictionary(harm: float) -> dict[str, Any]:
    return {
        "site": "resid_post.2", "fvu_a": 0.131, "fvu_b": 0.131 + 0.4 * harm, "l0_a": 31.8, "l0_b": 31.8 - 4 * harm,
        "dead_a": 0.044, "dead_b": 0.044 + 0.06 * harm, "ce_clean_a": 3.1, "ce_clean_b": 3.1 + 0.4 * harm,
        "ce_spliced_a": 3.25, "ce_spliced_b": 3.25 + 0.7 * harm, "ce_mean_a": 7.9, "ce_mean_b": 7.9,
        "ce_recovered_a": 0.967, "ce_recovered_b": 0.967 - 0.2 * harm, "ce_delta_a": 0.15,
        "ce_delta_b": 0.15 + 0.3 * harm, "excluded_share": 0.0156,
    }  # fmt: skip
