"""What the reader says about a latent: reading it, and the box that writes it into the workspace."""

from __future__ import annotations

import streamlit as st

from app.widgets import frame
from app.widgets.artefacts import FeatureSet
from app.workspace import LABEL_LENGTH, NOTE_LENGTH, Note, Workspace, WorkspaceError


def workspace(features: FeatureSet) -> Workspace:
    """Return the notes on the dictionary of `features`."""
    return Workspace(features.run.root, features.sae_ref)


def notes_of(features: FeatureSet, *, say: bool = True) -> dict[int, Note]:
    """Return the notes on the dictionary; with `say`, a damaged file of notes is named, and the page goes on."""
    try:
        return workspace(features).notes()
    except WorkspaceError as error:
        if say:
            frame.problem(str(error), "Labels are left out until then.")
        return {}


def note_box(notes: Workspace, latent: int, note: Note) -> None:
    """Draw label, note and bookmark, kept in the workspace beside the runs."""
    title = "Label and notes"
    with st.expander(title, expanded=bool(note.note), key=f"notes-{latent}"), st.form(f"note-{latent}", border=False):
        label = st.text_input(
            "Label", note.label, max_chars=LABEL_LENGTH, placeholder="what it stands for, in a few words"
        )
        text = st.text_area("Notes", note.note, max_chars=NOTE_LENGTH, height=90)
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            bookmarked = st.checkbox("Bookmark", note.bookmarked)
            saved = st.form_submit_button("Save")
        if saved:
            with frame.section():
                notes.save(latent, Note(label or "", text or "", bookmarked))
                st.rerun()
