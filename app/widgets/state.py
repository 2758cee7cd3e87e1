"""The page's state lives in its address, so that a link, a bookmark and the Back button bring the same view back.

What a page shows (`run`, `f`) is read from the address and always written into it by `settle` and `put`: a widget bound
by Streamlit would leave it out whenever it equals the default, and the default (the newest run) changes. How it is
shown (filters, tabs, scales) is bound by Streamlit's `bind="query-params"`. A value that means nothing is replaced, and
a quiet note says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

HOME_PAGE, FEATURES_PAGE, FEATURE_PAGE = "views/home.py", "views/features.py", "views/feature.py"
PROMPT_PAGE, COMPARE_PAGE, DICTIONARIES_PAGE = "views/prompt.py", "views/compare.py", "views/dictionaries.py"
RELEVANCE_PAGE, PATCHING_PAGE = "views/relevance.py", "views/patching.py"
LAYERS_PAGE, HEADS_PAGE = "views/layers.py", "views/heads.py"
PROBES_PAGE, BOARD_PAGE = "views/probes.py", "views/board.py"
TEXT_BYTES = 1000  # of a text in an address
VIEW = {"ex": "Top", "scale": "shared", "spaces": False, "text": "", "vs": ""}
"""How the Feature page is set, with the defaults that an address leaves out; links between latents keep it."""


def settle(key: str, read: Callable[[str], Any | None], default: Any, what: str) -> tuple[Any, str | None]:
    """Return what the address says `key` is; else what it was before in this session; else `default`.

    Args:
        key: the query parameter.
        read: returns the value that a text in the address means, or None where it means nothing.
        default: the value otherwise.
        what: what was expected, for the note: "a latent of this dictionary (0 to 511)".

    Returns:
        (value, a note for the reader where the address held something else)
    """
    text, before = st.query_params.get(key), st.session_state.get(f"_{key}")
    value, note = None if text is None else read(text), None
    if text is not None and value is None:
        note = f"The address asked for {key}={_short(text)}, which is not {what}; this is {default}."
    elif value is None and before is not None:
        value = read(str(before))
    value = default if value is None else value
    if text != str(value) or value != before:  # a link to the page that is open leaves the browser's address alone
        st.query_params[key] = str(value)
    st.session_state[f"_{key}"] = value
    return value, note


def put(key: str, value: Any) -> None:
    """Write `key` into the address: what a widget's callback does."""
    st.query_params[key] = str(value)


def take(key: str, widget: str) -> None:
    """Write what the widget `widget` says into the address as `key`; an empty widget changes nothing."""
    if st.session_state.get(widget) is not None:
        put(key, st.session_state[widget])


def stray(keys: Sequence[str], allowed: Callable[[str, str], bool]) -> list[str]:
    """Return a note for each of `keys` whose value in the address is not allowed, so that its widget ignores it."""
    found = [(key, st.query_params.get(key)) for key in keys]
    bad = [(key, value) for key, value in found if value is not None and not allowed(key, value)]
    return [
        f"The address asked for {key}={_short(value)}, which is not a choice here; it is left out."
        for key, value in bad
    ]


def feature_address(run: str, latent: int) -> dict[str, str]:
    """Return the query parameters of the page of `latent`, seen as the reader sees the present one."""
    seen = {key: st.session_state.get(key) for key in VIEW} | {"text": short_text()}
    kept = {
        k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in seen.items() if v is not None and v != VIEW[k]
    }
    return {"run": run, "f": str(latent), **kept}


def keep_text(limit: int) -> str:
    """Return the reader's own text: of the address, else as it was left; cut to `limit` characters.

    It stands in the address while it has at most `TEXT_BYTES` bytes; a longer one lasts as long as the session.
    """
    address = st.query_params.get("text")
    text = (st.session_state.get("_text", "") if address is None else address)[:limit]
    st.session_state["_text"] = text
    wanted = short_text() or None
    if wanted is None:
        st.query_params.pop("text", None)
    elif address != wanted:
        st.query_params["text"] = wanted
    return text


def short_text() -> str:
    """Return the reader's own text if an address can hold it, else ""."""
    typed = st.session_state.get("text")  # of the box on the Feature page, while that is open
    text = str(st.session_state.get("_text", "") if typed is None else typed)
    return text if len(text.encode("utf-8", "replace")) <= TEXT_BYTES else ""


def put_text(widget: str) -> None:
    """Take the text that the widget `widget` holds: what the callback of a form does."""
    st.session_state["_text"] = st.session_state.get(widget) or ""
    st.query_params.pop("text", None)


def keep_prompt(defaults: Mapping[str, Any]) -> None:
    """Keep what the Prompt page is set to, where that differs from `defaults`, for the way back to it."""
    found = {key: st.query_params.get(key) for key in ("pos", "sae", "m")}
    found |= {key: st.session_state.get(key) for key in defaults}
    st.session_state["_prompt"] = {k: str(v) for k, v in found.items() if v is not None and v != defaults.get(k)}


def prompt_address(run: str | None) -> dict[str, str]:
    """Return the query parameters of the Prompt page, as it was left, with the reader's text."""
    text = short_text()
    return {
        **({"run": run} if run else {}), **st.session_state.get("_prompt", {}), **({"text": text} if text else {}),
    }  # fmt: skip


def keep_compare(defaults: Mapping[str, Any]) -> None:
    """Keep what the Compare page is set to, where that differs from `defaults`, for the way back to it."""
    found = {key: st.query_params.get(key) for key in ("vs", "beside", "latent", "layer", "head")}
    found |= {key: st.session_state.get(key) for key in defaults}
    st.session_state["_compare"] = {
        k: str(v).lower() if isinstance(v, bool) else str(v)
        for k, v in found.items()
        if v is not None and v != defaults.get(k)
    }


def compare_address(run: str | None) -> dict[str, str]:
    """Return the query parameters of the Compare page, as it was left."""
    return {**({"run": run} if run else {}), **st.session_state.get("_compare", {})}


def keep_dictionaries(defaults: Mapping[str, Any]) -> None:
    """Keep what the Dictionaries page is set to, where that differs from `defaults`, for the way back to it."""
    found = {key: st.query_params.get(key) for key in ("g", "dict")}
    found |= {key: st.session_state.get(key) for key in defaults}
    st.session_state["_dictionaries"] = {k: str(v) for k, v in found.items() if v is not None and v != defaults.get(k)}


def dictionaries_address(run: str | None) -> dict[str, str]:
    """Return the query parameters of the Dictionaries page, as it was left."""
    return {**({"run": run} if run else {}), **st.session_state.get("_dictionaries", {})}


def keep_attribution(page: str, defaults: Mapping[str, Any]) -> None:
    """Keep what the Relevance or the Patching page is set to; question and cell are common to both."""
    common = {key: st.query_params.get(key) for key in ("ask", "l", "p", "h", "n")}
    st.session_state["_attribution"] = {key: str(value) for key, value in common.items() if value is not None}
    found = {key: st.query_params.get(key) for key in ("dir", "kind", "ax", "rank", "map")}
    found |= {key: st.session_state.get(key) for key in defaults}
    st.session_state[f"_{page}"] = {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in found.items()
        if value is not None and value != defaults.get(key)
    }


def attribution_address(page: str, run: str | None) -> dict[str, str]:
    """Return the query parameters of the Relevance or the Patching page, as it was left."""
    kept = {**st.session_state.get("_attribution", {}), **st.session_state.get(f"_{page}", {})}
    return {**({"run": run} if run else {}), **kept}


def keep_layers(defaults: Mapping[str, Any]) -> None:
    """Keep what the Layers and the Heads page are set to; profile and layer are common to both."""
    found = {key: st.query_params.get(key) for key in ("prof", "with", "fam", "layer", "head")}
    found |= {key: st.session_state.get(key) for key in defaults}
    kept = {k: str(v) for k, v in found.items() if v is not None and v != defaults.get(k)}
    st.session_state["_layers"] = st.session_state.get("_layers", {}) | kept


def layers_address(run: str | None) -> dict[str, str]:
    """Return the query parameters of the Layers and the Heads page, as they were left."""
    return {**({"run": run} if run else {}), **st.session_state.get("_layers", {})}


def keep_probes() -> None:
    """Keep what the Probes page is set to, for the way back to it."""
    found = {key: st.query_params.get(key) for key in ("study", "kind", "at", "layer", "show")}
    st.session_state["_probes"] = {key: str(value) for key, value in found.items() if value is not None}


def probes_address(run: str | None) -> dict[str, str]:
    """Return the query parameters of the Probes page, as it was left."""
    return {**({"run": run} if run else {}), **st.session_state.get("_probes", {})}


def keep_board() -> None:
    """Keep what the Board page is set to, for the way back to it."""
    found = {key: st.query_params.get(key) for key in ("board", "label", "game", "t", "sq", "to", "how")}
    found["live"] = "true" if st.session_state.get("live") else None
    st.session_state["_board_page"] = {key: str(value) for key, value in found.items() if value is not None}


def board_address(run: str | None) -> dict[str, str]:
    """Return the query parameters of the Board page, as it was left."""
    return {**({"run": run} if run else {}), **st.session_state.get("_board_page", {})}


def keep_list(defaults: Mapping[str, Any]) -> None:
    """Keep what the Features page is set to, where that differs from `defaults`, for the way back to it."""
    found = {key: st.session_state.get(key) for key in defaults}
    st.session_state["_list"] = {k: str(v) for k, v in found.items() if v is not None and v != defaults[k]}


def list_address(run: str) -> dict[str, str]:
    """Return the query parameters of the Features page of `run`, as it was left."""
    return {"run": run, **st.session_state.get("_list", {})}


def restore_list(run: str) -> None:
    """Bring the filters back when the Back button came from a latent that a click in the list had opened.

    Streamlit's `switch_page` leaves a step in the browser's history with the new parameters on the old page: the list,
    without its filters but with a latent, which no link to the list has.
    """
    if "f" in st.query_params:
        st.query_params.from_dict(list_address(run))
        st.rerun()


def open_feature(run: str, latent: int) -> None:
    """Go to the page of `latent`."""
    st.switch_page(FEATURE_PAGE, query_params={"run": run, "f": str(latent)})


def selected_row(selection: Any) -> int | None:
    """Return the row of a table's selection (a row or a cell of it), or None."""
    chosen = selection.get("selection", {}) if hasattr(selection, "get") else {}
    rows = list(chosen.get("rows", [])) or [cell[0] for cell in chosen.get("cells", [])]
    return int(rows[0]) if rows else None


def selected_latent(selection: Any) -> int | None:
    """Return the latent of a chart's selected point (its `customdata[0]`), or None."""
    points = selection.get("selection", {}).get("points", []) if hasattr(selection, "get") else []
    data = points[0].get("customdata") if points else None
    if isinstance(data, dict):  # an array that was not a list comes back with its indices as keys
        data = list(data.values())
    return int(data[0]) if data else None


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:40] + "…"
