"""What a comparison found in one sentence, in a row of numbers, and, for several of them, in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import streamlit as st

from app.widgets.comparisons import Comparison
from app.widgets.text import count, number, safe, share


@dataclass(frozen=True)
class Figure:
    """One number of the overview."""

    title: str
    meaning: str
    """Definition, unit and direction."""
    write: Callable[[Comparison], str]
    """The number as text, "–" where the comparison does not have it."""
    interval: Callable[[Comparison], str] = lambda _: ""
    """What stands beside it in small type."""


def signed(value: float | None) -> str:
    """Return a difference with its sign: "+0.12", "−0.03", "0"."""
    text = number(value)
    return text if value is None or text in ("–", "0") else f"+{text}" if value > 0 else f"−{text.lstrip('-')}"


def bits(comparison: Comparison) -> float | None:
    """Return the stored bits per parameter of b, None where the run does not say."""
    return comparison.headline("bits_b")


def _interval(comparison: Comparison) -> str:
    low, high = (comparison.number("behaviour", f"loss_delta_{end}") for end in ("low", "high"))
    return f"{signed(low)} to {signed(high)}" if low is not None and high is not None else ""


def _kept(comparison: Comparison, state: str) -> str:
    found, active = comparison.number("survival", state), comparison.number("survival", "active")
    if found is None:
        return "–"
    return f"{count(found)} ({share(found / active)})" if active and state != "new" else count(found)


def _matrices(comparison: Comparison) -> str:
    found = comparison.headline("matrix_bits_b")
    return f"{number(found)} where changed" if found is not None else ""


def _heads(comparison: Comparison) -> str:
    survived, before = (comparison.number("heads", key) for key in ("induction_survived", "induction_heads_a"))
    if before == 0:
        return "none in a"
    return f"{count(survived)} of {count(before)}" if survived is not None else "–"


def _arrow(panel: str, name: str) -> Callable[[Comparison], str]:
    def write(one: Comparison) -> str:
        a, b = one.number(panel, f"{name}_a"), one.number(panel, f"{name}_b")
        return "–" if a is None and b is None else f"{number(a)} → {number(b)}"

    return write


FIGURES = (
    Figure("bits a parameter", "Storage of all of b: scales, zero points and masks counted; 32 is float32. "
           "Small: in the matrices that the recipe changes.",
           lambda c: number(bits(c)), _matrices),
    Figure("loss b − a", "Difference of the mean loss, nats a token, on the same text; below 0 b is better. Small: 95% "
           "interval of a paired bootstrap over blocks.",
           lambda c: signed(c.number("behaviour", "loss_delta")), _interval),
    Figure("KL", "Mean over tokens of the divergence KL(a, b) of the two next-token distributions, nats; 0: same.",
           lambda c: number(c.number("behaviour", "kl_mean"))),
    Figure("top-1 agreement", "Share of tokens for which both models hold the same next token likeliest.",
           lambda c: share(c.number("behaviour", "top1_agreement"))),
    Figure("kept", "Features active in a whose activations in b correlate with those in a, r at least 0.9 unless the "
           "run says otherwise; share of the active.", lambda c: _kept(c, "kept")),
    Figure("blurred", "Features active in a with r from 0.5 to 0.9.", lambda c: _kept(c, "blurred")),
    Figure("lost", "Features active in a with r below 0.5: in b they fire elsewhere, or not at all.",
           lambda c: _kept(c, "lost")),
    Figure("new", "Features active in b and not in a.", lambda c: _kept(c, "new")),
    Figure("FVU a → b", "What the dictionary leaves unexplained of the activations of each model; 0 is best, 1 is no "
           "better than the mean.", _arrow("dictionary", "fvu")),
    Figure("induction heads", "Heads of a above the threshold of the induction score that are so in b too.", _heads),
    Figure("depth shift", "By how many blocks later (+) the logit lens of b finds its final top-1 token.",
           lambda c: signed(c.number("lens", "depth_delta"))),
)  # fmt: skip


def sentence(comparison: Comparison, nulls: Sequence[Comparison]) -> str:
    """Return what changed in one or two sentences, as HTML."""
    parts = [f"From <b>{safe(comparison.a)}</b> to <b>{safe(comparison.b)}</b>: {safe(_behaviour(comparison))}"]
    active, kept = comparison.number("survival", "active"), comparison.number("survival", "kept_share")
    if active and kept is not None:
        lost = comparison.number("survival", "lost") or 0.0
        where = comparison.summaries["survival"].get("site")
        text = f"Of {count(active)} active features{f' at {where}' if where else ''} {share(kept)} are kept"
        text += f", {share(lost / active)} lost" if lost else ", none lost"
        found = [(one, one.number("survival", "kept_share")) for one in nulls]
        same = [f"{share(value)} under {one.change}" for one, value in found if value is not None]
        parts.append(safe(text + (f"; at the same KL {' and '.join(same)}." if same else ".")))
    return " ".join(parts)


def _behaviour(comparison: Comparison) -> str:
    delta, kl = (comparison.number("behaviour", name) for name in ("loss_delta", "kl_mean"))
    low, high = (comparison.number("behaviour", f"loss_delta_{end}") for end in ("low", "high"))
    tokens, agree = (comparison.number("behaviour", name) for name in ("tokens", "top1_agreement"))
    if delta is None:
        return "the losses were not measured."
    if kl == 0 and delta == 0:
        return f"no prediction changed on {count(tokens)} tokens."
    change = f"the loss {'rises' if delta > 0 else 'falls'} by {number(abs(delta))} nats a token"
    if low is not None and high is not None and low <= 0 <= high:
        change = f"the loss does not change measurably ({signed(delta)} nats a token)"
    follows = (
        f", and {share(agree)} of {count(tokens)} tokens keep their likeliest successor" if agree is not None else ""
    )
    return f"{change}{follows}."


def numbers(comparison: Comparison) -> None:
    """Draw the numbers of one comparison in a row."""
    items = []
    for figure in FIGURES:
        text, interval = figure.write(comparison), figure.interval(comparison)
        if text != "–":
            small = f"<small>{safe(interval)}</small>" if interval else ""
            items.append(
                f'<div title="{safe(figure.meaning)}"><dt>{figure.title}</dt><dd>{safe(text)}</dd>{small}</div>'
            )
    st.html(f'<dl class="ms-facts big">{"".join(items)}</dl>')


def table(chosen: Comparison, shown: Sequence[Comparison], names: dict[str, str]) -> None:
    """Draw the headline numbers of several comparisons, a row each; columns that are empty are left out."""
    columns = [figure for figure in FIGURES if any(figure.write(one) != "–" for one in shown)]
    head = "".join(f'<th class="n" title="{safe(figure.meaning)}">{figure.title}</th>' for figure in columns)
    lines = []
    for one in shown:
        cells = "".join(f'<td class="n">{safe(figure.write(one))}{_small(figure, one)}</td>' for figure in columns)
        look = "null" if one.null_of else "on" if one.ref == chosen.ref else ""
        lines.append(f'<tr class="{look}"><td>{safe(names[one.ref])}{_NULL if one.null_of else ""}</td>{cells}</tr>')
    rows = f"<tr><th>b</th>{head}</tr>{''.join(lines)}"
    st.html(f'<div class="ms-scroll"><table class="ms-table ms-wide">{rows}</table></div>')


def _small(figure: Figure, one: Comparison) -> str:
    interval = figure.interval(one)
    return f"<small>{safe(interval)}</small>" if interval else ""


_NULL = '<small title="a null: noise that changes the predictions as much (the same KL)">null</small>'
