"""Does the model use what the probe reads? The box that moves activations along the probe's direction and listens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from app.labelled_texts import prompts_of
from app.widgets import frame
from app.widgets.artefacts import Unreadable
from app.widgets.loaded import changed, load_model_of, one_sentence
from app.widgets.probe_studies import Study, editable, site
from app.widgets.text import count, number, safe, visible
from interp.figures import strength_curves
from interp.runs import open_run

TEXTS = 24  # test texts that are read, at most
FITTED = 128  # training texts whose means are compared, at most
NULLS = 6  # random directions
STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
WORDS = 120  # letters of each list
EFFECTS = {
    "log_odds": ("preference for the words", "change of their log-odds as the next token, nats, mean over texts"),
    "kl": ("change of the next token", "KL(before, after) in nats, mean over texts"),
}
"""Column of a causal check -> what it is called, what it is."""


@st.fragment
def causal_box(study: Study, kind: str, position: str, layer: int) -> None:
    """Draw the box and, once it is pressed, the effect against strength."""
    frame.heading(
        "Does the model use it?",
        "activations moved along the probe, beside random directions of the same length; loads the model on Run",
    )
    with frame.section():
        if not editable(study, kind):
            frame.note(f"Nothing can be put back at {kind}, so the model cannot be asked. Probe resid_post.")
            return
        if len(study.classes) < 2:
            raise Unreadable(f"{study.run.ref} does not name its classes; make the study again.")
        target, words, pressed = controls(study)
        asked = (study.run.ref, kind, position, layer)
        if pressed:
            st.session_state["_cause"] = asked
        if st.session_state.get("_cause") != asked:
            return
        rows = check(str(study.run.root), study.run.ref, changed(study.run), kind, layer, position, target, words)
        answer(rows, target, any(words))


def controls(study: Study) -> tuple[str, tuple[str, str], bool]:
    """Draw the form; return the class to move towards, the words for and against it, and whether Run was pressed."""
    with st.form("cause", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        target = st.selectbox("Towards", study.classes, index=len(study.classes) - 1, key="towards", width=160)
        wanted = st.text_input(
            "Next words for it", key="for-words", max_chars=WORDS, width=220, placeholder="good great, optional",
            help="Words that the model should then prefer, each a single token. Without words only the KL is shown.",
        )  # fmt: skip
        against = st.text_input(
            "Next words against it", key="against-words", max_chars=WORDS, width=220, placeholder="bad awful"
        )
        pressed = st.form_submit_button("Run")
    return str(target), (wanted or "", against or ""), pressed


@st.cache_data(max_entries=16, show_spinner="Moving activations…")
def check(
    root: str, ref: str, modified: int, kind: str, layer: int, position: str, target: str, words: tuple[str, str]  # noqa: ARG001
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the rows of `probes.causal.causal_check` for the probe of one place.

    Raises:
        Unreadable: the model cannot be loaded or is another, the words are no tokens, the run is damaged.
    """
    from probes.causal import causal_check
    from probes.effects import word_ids
    from probes.saving import load_probe
    from probes.steering_vectors import mean_differences

    with one_sentence():
        run = open_run(ref, Path(root))
        handle = load_model_of(run)
        probe = load_probe(run, f"probes/{site(kind, layer)}@{position}")
        rows = prompts_of(run)
        fitted = [row for row in rows if row["part"] == "train"][:FITTED]
        read = [row["prompt"] for row in rows if row["part"] == "test"][:TEXTS]
        if not read:
            raise ValueError(f"{ref}/texts.parquet has no test texts; make the study again.")
        vectors = mean_differences(
            handle, [row["prompt"] for row in fitted], [row["label"] for row in fitted], target,
            [site(kind, layer)], position,
        )  # fmt: skip
        (found,) = vectors.values()
        if any(words) and not all(words):
            raise ValueError("Words are compared with words: give some for the class and some against it.")
        forms = [[form for word in side.split() for form in (word, f" {word}")] for side in words]
        wanted, against = (word_ids(handle, side) if side else [] for side in forms)
        return causal_check(
            handle,
            probe,
            read,
            target=target,
            strengths=STRENGTHS,
            difference=found.vector,
            nulls=NULLS,
            words=(wanted, against) if all(words) else None,
        ).to_pylist()


def answer(rows: list[dict[str, Any]], target: str, words: bool) -> None:
    """Draw the effects, and say in one sentence whether the direction does more than a random one."""
    columns = ["log_odds", "kl"] if words else ["kl"]
    st.html(f'<p class="ms-text">{safe(verdict(rows, "kl"))}</p>')
    with st.container(key="split-curves-cause"):
        places = st.columns(2, gap="medium")
    for column, place in zip(columns, places, strict=False):
        title, aside = EFFECTS[column]
        with place:
            st.html(f'<p class="ms-curve">{safe(title)}<span>{safe(aside)}</span></p>')
            frame.chart(strength_curves(rows, column, title), key=f"cause-{column}", alt=title)
    norm = next((row["norm"] for row in rows if row["strength"] == 1.0), None)
    frame.note(
        f"At most {TEXTS} test texts. Strength 1 moves by {number(norm)}, the distance between the mean of "
        f"{visible(target, limit=30)} and that of the rest; negative strengths move away from it."
    )


def verdict(rows: list[dict[str, Any]], column: str) -> str:
    """Return how the probe's direction compares with random ones at strength 1: what is outside their range counts."""
    at = [row for row in rows if row["strength"] == 1.0 and row[column] is not None]
    own = [row[column] for row in at if row["direction"] == "probe"]
    random = [row[column] for row in at if row["direction"] == "random"]
    if not own or not random:
        return "There are no random directions to compare with."
    above = sum(value < own[0] for value in random)
    said = f"At strength 1 the next token changes by {number(own[0])} nats of KL along the probe; "
    return said + f"{count(above)} of {count(len(random))} random directions of the same length change it less."
