"""Compare: two models from the inside: what changed in behaviour, layer by layer, in features, heads and depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from app.widgets import frame, headline, state, survival
from app.widgets.carried_probes import carried_probes
from app.widgets.comparisons import Comparison, comparisons, labels, nulls_of, same_start
from app.widgets.head_maps import head_maps
from app.widgets.layer_lines import cross_layers, depth, layers
from app.widgets.layer_panel import layer_panel
from app.widgets.predictions import predictions
from app.widgets.text import count, number, safe, share
from interp.runs import Run, RunError, damaged_runs, open_run, runs_root

PARTS = ["Layers", "Features", "Heads", "Depth", "Probes", "Predictions"]
BESIDE = 7  # comparisons beside the chosen one
DEFAULTS = {"part": PARTS[0], "sites": "resid_post", "log": False, "score": "induction"} | survival.DEFAULTS


def show() -> None:
    """Draw the page."""
    root = runs_root()
    with frame.section():
        found = comparisons(root)
        if not found:
            empty(root)
            return
        names = labels(found)
        comparison, beside = choose(found, names)
        nulls = nulls_of(comparison, found)
        overview(comparison, nulls, beside, names)
        for text in state.stray(["part"], lambda _, value: value in PARTS):
            frame.note(text)
        # Only the open part is drawn: a browser takes seconds for the figures of all of them.
        for tab, part in zip(st.tabs(PARTS, key="part", bind="query-params", on_change="rerun"), PARTS, strict=True):
            if tab.open:
                with tab, frame.section():
                    draw(part, comparison, beside, nulls, names)
        state.keep_compare(DEFAULTS)
        frame.python(python(comparison))
        footer(comparison)


def draw(
    part: str,
    comparison: Comparison,
    beside: Sequence[Comparison],
    nulls: Sequence[Comparison],
    names: dict[str, str],
) -> None:
    """Draw one of `PARTS`."""
    shown = [comparison, *beside, *nulls]
    if part == "Layers":
        frame.note("What differs in each layer. Grey: the nulls, noise that changes the predictions as much.")
        layers(shown, names)
        with frame.section():
            cross_layers(comparison)
        with frame.section():
            layer_panel(comparison)
    elif part == "Features":
        frame.note(f"What became of the features{_of_dictionary(comparison)}.")
        survival.survival(comparison, [*beside, *nulls], names)
        with frame.section():
            dictionary(shown, names)
    elif part == "Heads":
        frame.note("Scores of the attention heads on repeated random tokens, 0 to 1.")
        head_maps(comparison)
    elif part == "Depth":
        depth(comparison, beside)
    elif part == "Probes":
        carried_probes(comparison, beside)
    else:
        predictions(comparison, shown, names)


def empty(root: Path) -> None:
    """Say that there is no comparison, and which command makes one."""
    frame.heading("No comparison here yet")
    st.html(
        f'<p class="ms-text">This page shows what changed between two models: in what they say, in each layer, in the '
        f"features of a dictionary, in the heads. The folder <code>{safe(root)}</code> holds no finished comparison. "
        "This compares the embedded model with its 4-bit copy, and with noise that does as much:</p>"
    )
    st.code("mechscope compare tiny --recipe int4 --nulls weight-noise", language="bash")
    broken(root)


def broken(root: Path) -> None:
    """Write the comparisons that cannot be opened, with the reason."""
    for path, reason in damaged_runs(root):
        if path.parent.name == "compare":
            frame.problem(f"compare/{path.name}: {reason}")


def choose(found: Sequence[Comparison], names: dict[str, str]) -> tuple[Comparison, list[Comparison]]:
    """Draw the two selectors; return the comparison of the address and those beside it."""
    by_name = {one.run.name: one for one in found}

    def read(text: str) -> str | None:
        fits = [n for n in by_name if n == text or (len(text) == 8 and n.endswith(text))]
        return fits[0] if len(fits) == 1 else None

    first = next((one for one in found if one.sae_ref and one.sae_ref == _dictionary_of_bar()), found[0])
    name, strange = state.settle("vs", read, first.run.name, "a finished comparison in this folder")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="choose"):
        st.session_state["vs-widget"] = name
        st.selectbox(
            "Comparison", list(by_name), key="vs-widget", on_change=state.take, args=("vs", "vs-widget"), width=440,
            format_func=lambda n: _title(by_name[n], found, names),
        )  # fmt: skip
        options = {one.run.id: one for one in same_start(by_name[name], found)}
        wanted = str(st.query_params.get("beside", st.session_state.get("_beside", "")))
        ids = [i for i in dict.fromkeys(wanted.split(",")) if i in options][:BESIDE]
        st.session_state["beside-widget"] = ids
        if options:
            st.multiselect(
                "Beside it", list(options), key="beside-widget", max_selections=BESIDE, on_change=_beside, width=560,
                format_func=lambda i: names[options[i].ref], placeholder=f"{len(options)} more of {by_name[name].a}",
                help="Other comparisons of the same first model, drawn into the same figures.",
            )  # fmt: skip
    unknown = [i for i in wanted.split(",") if i and i not in {one.run.id for one in found}]
    st.session_state["_beside"] = wanted if not unknown else ",".join(ids)
    if "beside" in st.query_params or ids:
        st.query_params["beside"] = ",".join(ids)
    if strange or unknown:
        frame.note(strange or f"The address asked for beside={unknown[0][:40]}, which is no comparison here.")
        broken(runs_root())
    return by_name[name], [options[i] for i in ids]


def _title(one: Comparison, found: Sequence[Comparison], names: dict[str, str]) -> str:
    of = next((names[other.ref] for other in found if other.ref == one.null_of), "another")
    return f"{one.a}  →  {names[one.ref]}{f' (null of {of})' if one.null_of else ''}"


def _beside() -> None:
    ids = ",".join(st.session_state["beside-widget"])
    st.session_state["_beside"] = ids
    state.put("beside", ids) if ids else st.query_params.pop("beside", None)


def _dictionary_of_bar() -> str:
    name = st.session_state.get("_run")
    try:
        run = open_run(f"features/{name}", runs_root()) if name else None
    except RunError:
        return ""
    return str(run.config.get("sae_run") or next(iter(run.parents), "")) if run else ""


def overview(
    comparison: Comparison, nulls: Sequence[Comparison], beside: Sequence[Comparison], names: dict[str, str]
) -> None:
    """Write the sentence and the numbers; with nulls or others beside it, one table of all."""
    with frame.section():
        st.html(f'<p class="ms-sentence">{headline.sentence(comparison, nulls)}</p>')
        if not beside and not nulls:
            headline.numbers(comparison)
            return
        rows = sorted([comparison, *beside], key=lambda one: one.number("behaviour", "kl_mean") or 0.0)
        headline.table(comparison, [*rows, *nulls], names)


def _of_dictionary(comparison: Comparison) -> str:
    site = comparison.summaries.get("survival", {}).get("site")
    return f" of {comparison.sae_ref}{f' at {site}' if site else ''}" if comparison.sae_ref else ""


def dictionary(shown: Sequence[Comparison], names: dict[str, str]) -> None:
    """Write how well the dictionary serves each second model."""
    rows = [one for one in shown if one.summaries.get("dictionary")]
    if not rows:
        return
    measured = (
        ("fvu", "FVU", "what the dictionary leaves unexplained", number),
        ("l0", "L0", "features that fire on a token, mean", number),
        ("dead", "dead", "share of features that never fire", share),
        ("ce_recovered", "CE recovered", "share of the loss that the mean in the site's place costs, which it saves",
         share),
        ("ce_delta", "CE delta", "loss that the dictionary in the site's place adds, nats", number),
    )  # fmt: skip
    head = "".join(f'<th class="n" title="{safe(why)}">{title}</th>' for _, title, why, _ in measured)

    def line(one: Comparison, side: str, label: str) -> str:
        cells = "".join(
            f'<td class="n">{write(one.number("dictionary", f"{key}_{side}"))}</td>' for key, _, _, write in measured
        )
        return f'<tr class="{"null" if one.null_of else ""}"><td>{safe(label)}</td>{cells}</tr>'

    lines = line(rows[0], "a", f"a: {rows[0].a}") + "".join(line(one, "b", names[one.ref]) for one in rows)
    frame.heading("The dictionary of a on each model", "trained on a, never again")
    table = f'<table class="ms-table ms-wide ms-narrow"><tr><th></th>{head}</tr>{lines}</table>'
    st.html(f'<div class="ms-scroll">{table}</div>')


def python(comparison: Comparison) -> list[str]:
    """Return the lines that open the comparison in Python."""
    lines = [
        "from interp.runs import open_run",
        "",
        f"run = open_run({comparison.ref!r}, root={str(comparison.run.root)!r})",
        'summary = run.json("summary.json")',
    ]
    if comparison.has("drift", "layers"):
        lines.append('layers = run.table("drift.layers.parquet").to_pandas()')
    if comparison.has("survival", "latents"):
        lines.append('latents = run.table("survival.latents.parquet").to_pandas()')
    return lines


def footer(comparison: Comparison) -> None:
    """Write where the numbers come from."""
    run: Run = comparison.run
    info, code = run.info, run.info.get("code") or {}
    frame.facts_line(
        {
            "comparison": run.ref,
            "a": comparison.a,
            "b": comparison.b,
            "dictionary": comparison.sae_ref or "none",
            "text": str((run.config.get("data") or {}).get("text", "unknown"))
            if isinstance(run.config.get("data"), dict)
            else str(run.config.get("data", "unknown")),
            "tokens": count(comparison.number("behaviour", "tokens") or run.config.get("tokens")),
            "made": str(info.get("finished") or info.get("created", ""))[:16].replace("T", " ") + " UTC",
            "code": f"mechscope {code.get('mechscope', 'unknown')}".replace("not installed", "from source"),
        }
    )


if __name__ == "__main__":
    show()
