"""Editing the activations of a model while it runs: to a probe's wanted probability, or by any change of rows.

    with edit(handle, probes, "positive", 0.9) as done:
        logits = handle.logits(tokens)            # or a generation: what is edited moves along
    done.table()                                  # probability before and after, |h' - h| / |h|, by site and position

With probes at several layers each sees what the edits below it have made of its input. A probe is applied at the site
that it was fitted at and nowhere else: the released code of the paper (Ju et al. 2025) fits on the input of a block and
edits its output, which runs without any error. Rows that are not edited are left as they are, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.hooks import Positions, patch, where
from interp.metrics import finite_rows
from interp.sites import Site
from probes.base import BaseProbe
from probes.hyperplane import Hyperplane
from probes.source import Source

if TYPE_CHECKING:
    import pyarrow as pa

    from interp.models import ModelHandle

RowEdit = Callable[[Float[np.ndarray, "row d_in"]], Float[np.ndarray, "row d_in"]]
"""What is made of activations, row by row, in float64."""

ALL, LAST, MEAN = "all", "last", "mean"


@dataclass(frozen=True, eq=False)
class Move:
    """What was made of one site's activation in the last forward."""

    rows: Bool[np.ndarray, "batch pos"]
    """Which positions could be edited."""
    before: Float[np.ndarray, "row d_in"]
    """Their activations, text after text."""
    after: Float[np.ndarray, "row d_in"]
    """The same as the model went on with them, rounded to its format."""

    @property
    def size(self) -> Float[np.ndarray, " row"]:
        """How far each was moved, ||h' - h|| / ||h||; where h is 0, ||h' - h||."""
        length = np.linalg.norm(self.before, axis=1)
        return np.linalg.norm(self.after - self.before, axis=1) / np.where(length > 0, length, 1.0)


@dataclass(eq=False)
class Edited:
    """What the edits inside a context did in its last forward."""

    moves: dict[Site, Move] = field(default_factory=dict)
    """By site."""
    planes: dict[Site, Hyperplane] = field(default_factory=dict)
    """The hyperplanes that were moved to; none for other edits."""

    def table(self) -> pa.Table:
        """Return (site, row, position, before, after, size): probabilities of the class, null without a probe."""
        import pyarrow as pa

        schema = pa.schema(
            [("site", pa.string()), ("row", pa.int32()), ("position", pa.int32())]
            + [(name, pa.float64()) for name in ("before", "after", "size")]
        )
        rows: list[dict[str, Any]] = []
        for site, move in sorted(self.moves.items()):
            plane = self.planes.get(site)
            sides = (move.before, move.after)
            before, after = ([None] * len(x) if plane is None else plane.probability(x).tolist() for x in sides)
            places = np.argwhere(move.rows).tolist()
            for (row, position), old, new, size in zip(places, before, after, move.size.tolist(), strict=True):
                one = {"site": str(site), "row": row, "position": position}
                rows.append(one | {"before": old, "after": new, "size": size})
        return pa.Table.from_pylist(rows, schema)


@contextmanager
def edit(
    handle: ModelHandle,
    probes: BaseProbe | Iterable[BaseProbe],
    target: Any,
    p: float,
    *,
    positions: Positions | str = None,
    same_weights: bool = True,
    view: str = "hf",
) -> Iterator[Edited]:
    """Move activations to where probes give a class the probability `p`, in every forward inside the context.

    Args:
        handle: the model that the probes were fitted on.
        probes: one fitted linear probe, or one for each of several sites.
        target: the class, or its text.
        p: the probability; rows that have it, or more, are left alone.
        positions: where, as in `change_rows`. None: where each probe was fitted. Of a probe that was fitted on means
            over a text the mean over these positions is what reaches `p`.
        same_weights: False to edit another model, such as a compressed copy, with this one's probes.
        view: `hf` or `bridge`.

    Yields:
        What was done, filled by each forward.

    Raises:
        ValueError: a probe of another site or model, without a hyperplane or probabilities, two probes of one site.
    """
    given = [probes] if isinstance(probes, BaseProbe) else list(probes)
    if not given:
        raise ValueError("At least one probe is needed, got none.")
    done, places = Edited(), {}
    pooled = set()
    for probe in given:
        site, positions_of = check_probe(handle, probe, same_weights=same_weights)
        if site in places:
            raise ValueError(f"Two probes are of {site}; the second edit would undo the first. Give one for a site.")
        done.planes[site] = Hyperplane.of(probe, target, p)
        places[site] = positions_of if positions is None else positions
        if positions_of == MEAN:
            pooled.add(site)
    with ExitStack() as stack:
        for site, plane in done.planes.items():
            options = {"pooled": site in pooled, "into": done, "view": view}
            stack.enter_context(change_rows(handle, site, plane.move, places[site], **options))
        yield done


def check_probe(handle: ModelHandle, probe: BaseProbe, *, same_weights: bool = True) -> tuple[Site, str]:
    """Return (site, positions) of a probe, if they are of this model.

    Raises:
        ValueError: the probe does not know its source, or it is of another model.
    """
    if probe.source is None:
        raise ValueError(
            f"This {type(probe).__name__} does not know what it was fitted on; make it with "
            "source=Source.of(handle, site)."
        )
    here = Source.of(handle, probe.source.site, probe.source.positions)
    probe.check_source(here, same_weights=same_weights)
    return Site.parse(here.site), here.positions


@contextmanager
def change_rows(
    handle: ModelHandle,
    site: Site | str,
    change: RowEdit,
    positions: Positions | str = None,
    *,
    pooled: bool = False,
    into: Edited | None = None,
    view: str = "hf",
) -> Iterator[Edited]:
    """Replace activations at a site by what `change` makes of them, in every forward inside the context.

    Args:
        handle: the model.
        site: where; heads are flattened.
        change: from rows to rows of the same shape, in float64.
        positions: numbers (0 is BOS, where there is one; negative ones from the end), a mask [batch pos], or what
            `probes.capturing` calls positions: `last`, `mean` (what changes the mean over a text's tokens is added to
            each of them), `0` (the first token after BOS), `-2`. None or `all`: all but BOS.
        pooled: change the mean over the positions of each text, and add what that changes to each of them.
        into: where to note what was done.
        view: `hf` or `bridge`.

    Raises:
        ValueError: no such site or position; from the forward, what `change` raises, and rows of another shape.
    """
    place = handle.check_site(site)
    numbers, of_mean = resolve(handle, positions)
    done = Edited() if into is None else into

    def replace(x: Tensor) -> Tensor:
        flat = x.flatten(2)
        chosen = where(numbers, x, handle).to(x.device) & finite_rows(flat)
        before = flat[chosen].double().cpu().numpy()
        if pooled or of_mean:
            moved = before + _pooled(before, chosen.cpu().numpy(), change)
        else:
            moved = np.asarray(change(before)) if len(before) else before
        if moved.shape != before.shape:
            raise ValueError(f"The change at {place} must return rows {list(before.shape)}, got {list(moved.shape)}.")
        new = torch.from_numpy(moved).to(x.device, x.dtype)
        still = torch.from_numpy((moved == before).all(1)).to(x.device)
        new = torch.where(still[:, None], flat[chosen], new)
        done.moves[place] = Move(chosen.cpu().numpy(), before, new.double().cpu().numpy())
        return flat.index_put((chosen,), new).view_as(x)

    with patch(handle, place, replace, view=view):
        yield done


def resolve(handle: ModelHandle, positions: Positions | str) -> tuple[Positions, bool]:
    """Return (positions as numbers, a mask or None; whether the mean over them is what is changed).

    Raises:
        ValueError: a text that names no position.
    """
    if not isinstance(positions, str):
        return positions, False
    name = positions.strip()
    if name in (ALL, MEAN):
        return None, name == MEAN
    if name == LAST:
        return (-1,), False
    if not name.removeprefix("-").isdecimal():
        raise ValueError(
            f"A position is all, last, mean, or a whole number such as -2 or 0, got {positions!r}. Give positions= as "
            "numbers or as a mask [batch pos]."
        )
    number = int(name)
    return (number if number < 0 or handle.bos_id is None else number + 1,), False


def _pooled(
    before: Float[np.ndarray, "row d_in"], chosen: Bool[np.ndarray, "batch pos"], change: RowEdit
) -> Float[np.ndarray, "row d_in"]:
    """Return what `change` adds to the mean over each text, for each row of that text."""
    text = np.nonzero(chosen)[0]
    texts, number, count = np.unique(text, return_inverse=True, return_counts=True)
    means = np.zeros((len(texts), before.shape[1]))
    np.add.at(means, number, before)
    means /= count[:, None]
    return (np.asarray(change(means)) - means)[number] if len(means) else before
