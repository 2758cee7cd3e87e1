"""The box "Steer by it": hold, remove or push a latent on the reader's own text; every answer is kept as a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from app.commands.steer import Args, steered
from app.widgets import frame
from app.widgets.artefacts import FeatureSet, Unreadable
from app.widgets.examples import largest
from app.widgets.loaded import TEXT_LENGTH, load_dictionary, load_model_of, one_sentence
from app.widgets.steer_answer import answer, title
from app.widgets.text import number
from interp.runs import Run, find_runs

WAYS = {
    "clamp": "hold it at that value",
    "ablate": "hold it at 0",
    "add": "push it by that value, wherever it stands",
}
PLACES = {
    "all": "every token but BOS, in the continuation too",
    "from": "from one position on, to the end of the text",
    "last": "the last token",
}
STRONGEST = 100.0  # times its largest activation
CONTINUE = 20  # tokens, as `mechscope steer` does


@dataclass(frozen=True)
class Wish:
    """What the reader set."""

    how: str
    strength: float
    """In units of the latent's largest |activation|."""
    places: str
    start: int
    """First position, of "from"."""
    text: str
    new_tokens: int

    def value(self, peak: float) -> float | None:
        """Return the value in the latent's units; None for ablate."""
        return None if self.how == "ablate" else float(f"{self.strength * peak:.4g}")

    def positions(self, length: int) -> tuple[int, ...] | None:
        """Return the positions of a text of `length` tokens that are changed; None is all but BOS.

        Raises:
            ValueError: the first one lies behind the text.
        """
        if self.places == "all":
            return None
        if self.places == "last":
            return (-1,)
        if self.start >= length:
            raise ValueError(f"The first position must lie in 0..{length - 1} for this text, got {self.start}.")
        return tuple(range(self.start, length))


@st.fragment
def steer_box(features: FeatureSet, row: dict[str, Any]) -> None:
    """Draw the box, and the answer that the address names (`steer`, a run of kind steering)."""
    latent = int(row["latent"])
    frame.heading("Steer by it", "what the model says when it is held, removed or pushed; loads the model on Run")
    with frame.section():
        reason = unfit(features)
        if reason:
            frame.note(reason)
            return
        saved = answers(features, latent)
        shown = st.container()
        with shown:
            wish, pressed = controls(row)
        if pressed:
            run = make(features, row, wish)
            saved = answers(features, latent)
            st.query_params["steer"] = run.id
        chosen = choose(features, saved)
        if chosen is not None:
            answer(chosen, largest(row) if row.get("count") else None)


def unfit(features: FeatureSet) -> str:
    """Return why latents of the dictionary cannot be steered by, "" where they can."""
    config = features.run.config
    if features.sae is None:
        return f"The dictionary {features.sae_ref or '?'} is not in this folder, so nothing can be steered by it."
    if config.get("target_site") or config.get("sites"):
        return (
            "This latent reads at one site and writes at another, so its atom cannot be added where it reads. "
            "In Python, interp.hooks.patch adds it at its place."
        )
    return ""


def controls(row: dict[str, Any]) -> tuple[Wish, bool]:
    """Draw the settings; return them and whether Run was pressed."""
    peak = largest(row)
    unit = f"× {number(peak)}, its largest activation" if row.get("count") else "in its own units; it never fired"
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="steer-settings"):
        how = st.segmented_control(
            "Do", list(WAYS), default="clamp", required=True, key="steer-how",
            help="  \n".join(f"**{name}**: {meaning}" for name, meaning in WAYS.items()),
        )  # fmt: skip
        strength = 1.0
        if how != "ablate":
            strength = st.number_input(
                f"Strength ({unit})", -STRONGEST, STRONGEST, 1.0, 0.5, key="steer-strength", width=270,
                help="1 is the largest activation seen when the features were described; below 0 is the other way.",
            )  # fmt: skip
        places = st.segmented_control(
            "At", list(PLACES), default="all", required=True, key="steer-places",
            help="  \n".join(f"**{name}**: {meaning}" for name, meaning in PLACES.items()),
        )  # fmt: skip
        start = 1
        if places == "from":
            start = st.number_input("Position", 0, 10_000, 1, key="steer-start", width=90, help="A BOS, if any, is 0.")
        new = st.number_input(
            "Continue by", 0, 100, CONTINUE, 5, key="steer-new", width=110, help="Tokens that are sampled both ways."
        )
    with st.container(horizontal=True, vertical_alignment="bottom", key="steer-text-row"):
        usual = str(st.session_state.get("_text") or "")[:TEXT_LENGTH]
        text = st.text_input(
            "Text", usual, key="steer-text", max_chars=TEXT_LENGTH, label_visibility="collapsed",
            placeholder="A text for the model to read",
        )  # fmt: skip
        pressed = st.button("Run", key="steer-run", type="primary")
    return Wish(str(how), float(strength), str(places), int(start), text or "", int(new)), pressed


def make(features: FeatureSet, row: dict[str, Any], wish: Wish) -> Run:
    """Return the run that answers `wish`: found, or made now.

    Raises:
        Unreadable: it cannot be done; says why in a sentence.
    """
    if not wish.text.strip():
        raise Unreadable("There is no text yet; type a few words for the model to read.")
    with one_sentence(), st.spinner("Steering…"):
        from app.sources import subject

        own = subject(features.sae_ref, features.run.root)
        model, sae = load_model_of(own.run), load_dictionary(own.run)
        length = int(model.tokens(wish.text).shape[1])
        how: Any = wish.how
        asked = Args(
            latent=int(row["latent"]), text=wish.text, sae=features.sae_ref, how=how, value=wish.value(largest(row)),
            positions=wish.positions(length), new_tokens=wish.new_tokens, runs=features.run.root,
        )  # fmt: skip
        return steered(asked, own, model, sae)


def answers(features: FeatureSet, latent: int) -> list[Run]:
    """Return the finished steering runs of a latent, newest first."""
    asked = {"sae_run": features.sae_ref, "latent": latent}
    return find_runs(features.run.root, kind="steering", finished=True, where=asked)


def choose(features: FeatureSet, saved: list[Run]) -> Run | None:
    """Return the answer that the address names; a selector appears where some were kept."""
    named = st.query_params.get("steer", "")
    chosen = next((run for run in saved if named and run.id == named), None)
    if named and chosen is None:
        st.query_params.pop("steer")
        others = find_runs(features.run.root, kind="steering")
        if all(run.id != named for run in others):  # one of another latent is left behind when the reader walks on
            short = named if len(named) <= 40 else f"{named[:40]}…"
            frame.note(f"The address asked for steer={short}, which is no steering run of this latent; it is left out.")
    if not saved:
        return None
    titles = {run.id: title(run) for run in saved}
    st.session_state["steer-pick"] = chosen.id if chosen else ""
    st.selectbox(
        "Answers", ["", *titles], key="steer-pick", on_change=_take, label_visibility="collapsed",
        format_func=lambda name: titles.get(name, f"{len(titles)} kept: choose one…"),
        help="Answers are runs of kind steering, as `mechscope steer` makes them.",
    )  # fmt: skip
    return chosen


def _take() -> None:
    name = st.session_state.get("steer-pick")
    if name:
        st.query_params["steer"] = name
    else:
        st.query_params.pop("steer", None)
