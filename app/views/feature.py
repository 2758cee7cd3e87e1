"""Feature: one latent from every side: how often and how strongly it fires, on what, what it writes, who is near."""

from __future__ import annotations

import random
from typing import Any

import streamlit as st

from app.widgets import frame, live, state
from app.widgets.artefacts import FeatureSet
from app.widgets.compare_with import compared, selector
from app.widgets.comparisons import Comparison
from app.widgets.examples import examples
from app.widgets.feature_card import badges, badges_html
from app.widgets.links import links
from app.widgets.live_box import live_box
from app.widgets.notes import note_box, notes_of, workspace
from app.widgets.steer_box import steer_box
from app.widgets.text import count, number, safe, share, token_html
from app.workspace import Note
from interp.figures import activation_histogram

NEIGHBOURS = {
    "decoder": ("Decoder", "cosine of the decoder rows: what they write alike"),
    "encoder": ("Encoder", "cosine of the encoder rows: what they read alike"),
    "coactivation": ("Co-active", "normalised pointwise mutual information of firing on the same token, -1 to 1"),
}
MOMENTS = {
    "density": ("density", "share of tokens on which it fires", share),
    "count": ("fires on", "tokens of those read", count),
    "density_negative": ("density below 0", "share of tokens on which it is negative", share),
    "count_negative": ("below 0 on", "tokens of those read", count),
    "mean": ("mean", "of the activations where it fires", number),
    "mean_negative": ("mean below 0", "of the negative activations", number),
    "second_moment": ("E[a²]", "mean square over all tokens, silent ones too", number),
    "skew": ("skew", "third moment about 0 over the second to the 3/2, where it fires", number),
    "kurtosis": ("kurtosis", "fourth moment about 0 over the second squared, where it fires", number),
    "max": ("largest", "activation seen", number),
    "min": ("smallest", "activation seen where it fires", number),
    "token_entropy": ("token entropy", "nats, of the tokens at its largest activations", number),
    "enc_dec_cosine": ("encoder · decoder", "cosine of what it reads and what it writes", number),
    "decoder_norm": ("decoder norm", "length of its decoder row", number),
    "encoder_norm": ("encoder norm", "length of its encoder row", number),
    "bias": ("encoder bias", "added before the rule", number),
}


def show() -> None:
    """Draw the page."""
    features = frame.current()
    if features is None:
        return
    with frame.section():
        latent, second = choose(features)
        row = features.row(latent)
        note = notes_of(features).get(latent, Note())
        header(features, row, note)
        if second is not None:
            compared(second, latent)
        with st.container(key="split-feature"):
            left, right = st.columns([1, 1.6], gap="large")
        with right:
            fired = live_box(features, row)
            with frame.section("Activations", "how often it takes each value"):
                histogram(features, row, fired)
            steer_box(features, row)
            examples(features, row)
        with left:
            note_box(workspace(features), latent, note)
            aside = "; where it is negative, the other way round" if row.get("count_negative") else ""
            with frame.section("Direct logits", f"decoder row through the unembedding{aside}"):
                logits(features, latent)
            neighbours(features, latent)
            with frame.section("Statistics"):
                moments(row)
        frame.python(python(features, latent))
    frame.footer(features)


def choose(features: FeatureSet) -> tuple[int, Comparison | None]:
    """Draw number, previous, next, random and the second model; return (latent, comparison) of the address."""
    first, last = int(features.index[0]), int(features.index[-1])

    def read(text: str) -> int | None:
        whole = text.removesuffix(".0")
        valid = whole.isascii() and whole.isdigit() and len(whole) < 12 and first <= int(whole) <= last
        return int(whole) if valid else None

    alive = features.index[features.column("density") > 0]
    start = int(alive[0]) if alive.size else first
    second: Comparison | None = None
    latent, strange = state.settle("f", read, start, f"a latent of this dictionary ({first} to {last})")
    st.session_state["f-widget"] = latent
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="walk"):
        st.html('<span class="ms-walk">Latent</span>', width="content")
        st.number_input(
            "Latent", first, last, step=1, key="f-widget", on_change=state.take, args=("f", "f-widget"), width=90,
            label_visibility="collapsed",
        )  # fmt: skip
        for name, target, icon, key in (
            ("Previous", latent - 1, "chevron_left", "Left"),
            ("Next", latent + 1, "chevron_right", "Right"),
        ):
            st.button(
                name, on_click=state.put, args=("f", target), disabled=not first <= target <= last, key=f"go-{key}",
                icon=f":material/{icon}:", shortcut=key,
            )  # fmt: skip
        st.button("Random", on_click=_random, args=(alive,), icon=":material/casino:", disabled=not alive.size)
        st.page_link(state.FEATURES_PAGE, label="All features", query_params=state.list_address(features.run.name))
        with frame.section():
            second = selector(features)
    if strange:
        frame.note(strange)
    return latent, second


def _random(alive: Any) -> None:
    state.put("f", int(random.choice(alive)))


def header(features: FeatureSet, row: dict[str, Any], note: Note) -> None:
    """Write number, label, badges and the figures that people look at first."""
    star = '<span class="ms-star" title="bookmarked">★</span>' if note.bookmarked else ""
    label = safe(note.label) if note.label else '<span class="none">no label yet</span>'
    facts = {"density": share(row.get("density"))} | (both_ends(row) if row.get("count_negative") else one_end(row))
    facts |= {
        "fires on": f"{count(row.get('count'))} of {count(features.tokens)} tokens",
        "nearest": f"{row.get('nearest')} at {number(row.get('nearest_cosine'))}"
        if row.get("nearest") is not None
        else "–",
    }
    items = "".join(f"<div><dt>{key}</dt><dd>{safe(value)}</dd></div>" for key, value in facts.items())
    st.html(
        f'<div class="ms-head"><div class="title"><span class="number">{int(row["latent"])}</span> {star}'
        f'<span class="label">{label}</span> {badges_html(badges(row))}</div><dl>{items}</dl></div>'
    )


def one_end(row: dict[str, Any]) -> dict[str, str]:
    """Return largest and mean activation of a latent without negative values."""
    return {
        key: number(row.get(name)) if row.get("count") else "–" for key, name in (("largest", "max"), ("mean", "mean"))
    }


def both_ends(row: dict[str, Any]) -> dict[str, str]:
    """Return density, extreme and mean of both signs of a signed latent."""
    count_above = (row.get("count") or 0) - row["count_negative"]
    below, total = row["density_negative"], row.get("density") or 0.0
    of_below = row["count_negative"] * (row.get("mean_negative") or 0.0)
    above = ((row.get("mean") or 0.0) * (row.get("count") or 0) - of_below) / count_above if count_above else None
    return {
        "above 0": f"{share(total - below) if count_above else '0%'}, mean {number(above)}",
        "largest": number(row.get("max")) if count_above else "–",
        "below 0": f"{share(below)}, mean {number(row.get('mean_negative'))}",
        "most negative": number(row.get("min")),
    }


def histogram(features: FeatureSet, row: dict[str, Any], fired: live.Fired | None) -> None:
    """Draw the histogram, with the reader's own text marked."""
    latent = int(row["latent"])
    if not row.get("count"):
        frame.note(f"It never fired on the {count(features.tokens)} tokens read.")
        return
    counts, edges = features.histogram(latent)
    at = fired.strongest(latent) if fired else None
    marker = fired.values(latent)[at] if fired and at is not None else None
    negative = features.negative(latent)
    chart = activation_histogram(counts, edges, negative=negative, marker=marker, marker_label="your text")
    frame.chart(chart, key="histogram", alt="Histogram of the activations")


def moments(row: dict[str, Any]) -> None:
    """Write the table of moments, each with its definition."""
    lines = "".join(
        f'<tr><td>{safe(name)}</td><td class="n">{write(row[key])}</td><td class="d">{safe(meaning)}</td></tr>'
        for key, (name, meaning, write) in known(row).items()
        if key in row
    )
    st.html(f'<table class="ms-table">{lines}</table>')


def known(row: dict[str, Any]) -> dict[str, Any]:
    """Return `MOMENTS` and, of a crosscoder, the lengths of the decoder row in its blocks."""
    blocks = [key for key in row if key.startswith("decoder_norm.")]
    found = MOMENTS | {key: (key.partition(".")[2], "length of its decoder row there", number) for key in blocks}
    if "relative_norm" in row:
        found["relative_norm"] = ("share in a", "of the decoder row's length, 1 is all the first model's", number)
    return found


def logits(features: FeatureSet, latent: int) -> None:
    """Write the tokens whose logits the latent raises and lowers most, side by side."""
    rows = features.related("logits.parquet", latent)
    if not rows:
        frame.note(f"{features.written or 'This site'} has no direct path to the logits.")
        return
    scale = max((abs(row["value"]) for row in rows), default=1.0) or 1.0
    parts = []
    for side, title in (("+", "raised"), ("-", "lowered")):
        lines = [
            f'<tr><td class="tok">{token_html(features.texts([row["token_id"]])[0])}</td>'
            f'<td class="bar"><u class="{"neg" if row["value"] < 0 else "pos"}" '
            f'style="width:{100 * min(1.0, abs(row["value"]) / scale):.0f}%"></u></td>'
            f'<td class="n">{number(row["value"])}</td></tr>'
            for row in rows
            if row["side"] == side
        ]
        parts.append(
            f'<table class="ms-table">{_LOGIT_COLUMNS}<tr><th colspan="3">{title}</th></tr>{"".join(lines)}</table>'
        )
    st.html(f'<div class="ms-logits">{"".join(parts)}</div>')


_LOGIT_COLUMNS = '<colgroup><col class="c1"><col><col class="c3"></colgroup>'


def neighbours(features: FeatureSet, latent: int) -> None:
    """Write the nearest latents by three measures, each a link."""
    with frame.section("Neighbours"):
        rows = features.related("neighbours.parquet", latent)
        tabs = st.tabs([title for title, _ in NEIGHBOURS.values()], key="near")
        for tab, (kind, (_, meaning)) in zip(tabs, NEIGHBOURS.items(), strict=True):
            with tab:
                near = [(row["other"], row["value"]) for row in rows if row["kind"] == kind][:8]
                frame.note(meaning if near else "None was found.")
                links(features, near, 1.0, kind)


def _where(features: FeatureSet) -> str:
    """Return in words where an atom goes."""
    sites = features.run.config.get("sites")
    return f": {', '.join(map(str, sites))}, side by side" if sites else f" at {features.written}"


def python(features: FeatureSet, latent: int) -> list[str]:
    """Return the lines that open this latent in Python."""
    lines = [
        *frame.opening(features),
        f'examples = features.examples({latent}, "top").to_pandas()',
        *([f'negative = features.examples({latent}, "bottom").to_pandas()'] if features.signed else []),
        f"neighbours = features.neighbours({latent}).to_pandas()",
    ]
    if features.sae is not None:
        lines += [
            "",
            "from interp.runs import open_run",
            "from sae.model import load_sae",
            "",
            f"sae = load_sae(open_run({features.sae_ref!r}, root={str(features.run.root)!r}))",
            f"direction = sae.W_dec[{latent}]  # what it writes{_where(features)}",
        ]
    return lines


if __name__ == "__main__":
    show()
