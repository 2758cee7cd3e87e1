"""Data selection by dictionary codes: texts that are like a prototype come first; are they of its kind?

    z = mean over tokens of the code          p = mean of z over the class' texts of the training part
    J(z, p) = sum_i min(z_i, p_i) / sum_i max(z_i, p_i)          the generalised Jaccard similarity

Ma et al. 2025 (MONA), arXiv 2503.15573. J needs numbers that are not negative: a signed latent counts as two, its
positive and its negative part, of the text's mean code. Test texts are ranked by J; the area under the ROC curve and
the precision of the first k say how many are of the class. Beside it stands what a dictionary has to beat: cosine
similarity of the mean activations (as they are, and less their mean over the training part), a random dictionary of the
same size and sparsity, and a bag of tokens with the same J; cosine similarity of the codes tells J from the codes.

Where texts of a class share words, the bag does as well; groups must keep those apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from app.studies.pooled import Pooled, pool
from app.studies.random_dictionary import random_dictionary
from interp.data.labelled import Labelled
from interp.models import ModelHandle
from interp.sites import Site
from probes.controls import bag_of_tokens
from probes.intervals import RESAMPLES, bootstrap, weighted_auroc
from probes.study import StudyResult
from sae.model import Sae

TOP = (10, 50)
SHOWN = 20
"""Texts and latents of each class that the tables list."""
DICTIONARY, RANDOM, BAG = "dictionary", "random dictionary", "bag of tokens"
CODES_COSINE, RAW_COSINE, CENTRED_COSINE = "dictionary, cosine", "activations, cosine", "centred activations, cosine"

Similarity = Callable[[NDArray, NDArray], NDArray]


def jaccard(z: Float[np.ndarray, "text part"], prototype: Float[np.ndarray, " part"]) -> Float[np.ndarray, " text"]:
    """Return sum min / sum max of each row and the prototype; 0 where both are 0 everywhere.

    Raises:
        ValueError: a negative number (`halves` makes two columns of a signed one).
    """
    if (z < 0).any() or (prototype < 0).any():
        raise ValueError("The generalised Jaccard similarity is for numbers from 0 on; split signed codes by halves().")
    shared = np.minimum(z, prototype).sum(1)
    # max(a, b) = a + b - min(a, b), so that one pass is enough.
    either = z.sum(1) + prototype.sum() - shared
    return np.divide(shared, either, out=np.zeros(len(z)), where=either > 0)


def cosine(z: Float[np.ndarray, "text part"], prototype: Float[np.ndarray, " part"]) -> Float[np.ndarray, " text"]:
    """Return the cosine of each row and the prototype; 0 where one of them is 0 everywhere."""
    lengths = np.linalg.norm(z, axis=1) * np.linalg.norm(prototype)
    return np.divide(z @ prototype, lengths, out=np.zeros(len(z)), where=lengths > 0)


def halves(codes: Float[np.ndarray, "text latent"]) -> Float[np.ndarray, "text part"]:
    """Return the positive parts and then the negative parts of signed codes; the codes, where none is negative."""
    return np.concatenate([codes.clip(0), (-codes).clip(0)], 1) if (codes < 0).any() else codes


def precision_at(scores: Float[np.ndarray, " text"], wanted: Bool[np.ndarray, " text"], k: int) -> float:
    """Return the share of wanted texts among the first k; equal scores at the edge share the places that are left.

    Raises:
        ValueError: k out of range.
    """
    if not 1 <= k <= len(scores):
        raise ValueError(f"k must lie in 1..{len(scores)}, the number of texts, got {k}.")
    edge = np.sort(scores)[-k]
    above, level = scores > edge, scores == edge
    return float((wanted[above].sum() + (k - above.sum()) * wanted[level].mean()) / k)


def data_selection(
    handle: ModelHandle,
    sae: Sae,
    site: Site | str,
    labelled: Labelled,
    *,
    positions: str = "mean",
    context: int = 128,
    test: float = 0.5,
    top: Sequence[int] = TOP,
    resamples: int = RESAMPLES,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda _: None,
) -> StudyResult:
    """Return how well texts of each class are found by their likeness to the class.

    Args:
        handle: the model.
        sae: the dictionary, in evaluation mode.
        site: where it belongs.
        labelled: the texts.
        positions: `mean` over the tokens, or the `last` token.
        context: longest text in tokens.
        test: share of the texts that is ranked; groups are not divided.
        top: numbers of texts to take (those larger than the test part are left out).
        resamples: draws of the bootstrap over groups.
        seed: of the division, the random dictionary and the bootstrap.
        on_progress: hears the number of texts done so far; the texts are read twice.

    Returns:
        Table `selection`: method, label, auroc, low, high, chance (share of the class), n_prototype, n_test. Table
        `precision`: method, label, k, precision, chance. Table `ranked`: label, rank, score, own, text (the first by
        the dictionary). Table `prototypes`: label, latent, sign, weight, elsewhere (the largest differences to the
        mean of the other classes).

    Raises:
        ValueError: what `pool` refuses, or a class that is missing in a part.
    """
    train = labelled.split(test, seed)
    settings: dict[str, Any] = {"positions": positions, "context": context}
    pooled = pool(handle, site, sae, labelled.texts, on_progress=on_progress, **settings)
    signed = bool((pooled.codes < 0).any())
    other = random_dictionary(sae, pooled.active, signed=signed, seed=seed)
    done = len(labelled)
    random = pool(handle, site, other, labelled.texts, on_progress=lambda n: on_progress(done + n), **settings)
    tokens = [handle.tokens(text, bos=False)[0][: context - 1].tolist() for text in labelled.texts]
    methods = _methods(pooled, random, bag_of_tokens(tokens, np.flatnonzero(train)), train)
    rows, precisions = [], []
    for name, (x, like) in methods.items():
        for label in labelled.classes:
            wanted = labelled.is_class(label)
            scores = like(x[~train], x[train & wanted].mean(0))
            rows.append({"method": name, "label": label} | _measured(scores, labelled, train, label, resamples, seed))
            precisions += [
                {"method": name, "label": label, "k": k, "precision": precision_at(scores, wanted[~train], k)}
                | {"chance": float(wanted[~train].mean())}
                for k in top
                if k <= len(scores)
            ]
    return _result(rows, precisions, methods[DICTIONARY][0], labelled, train, pooled)


def _methods(
    pooled: Pooled, random: Pooled, bag: NDArray, train: Bool[np.ndarray, " text"]
) -> Mapping[str, tuple[NDArray, Similarity]]:
    codes, raw = halves(pooled.codes.double().numpy()), pooled.raw.double().numpy()
    return {
        DICTIONARY: (codes, jaccard),
        CODES_COSINE: (codes, cosine),
        RANDOM: (halves(random.codes.double().numpy()), jaccard),
        RAW_COSINE: (raw, cosine),
        CENTRED_COSINE: (raw - raw[train].mean(0), cosine),
        BAG: (bag / bag.sum(1, keepdims=True).clip(1), jaccard),
    }


def _measured(
    scores: NDArray, labelled: Labelled, train: NDArray, label: str, resamples: int, seed: int
) -> dict[str, Any]:
    wanted = labelled.is_class(label)
    groups = np.array(labelled.groups)[~train]
    area = bootstrap(weighted_auroc(scores, wanted[~train]), groups, resamples=resamples, seed=seed)
    found = {"auroc": area.value, "low": area.low, "high": area.high, "chance": float(wanted[~train].mean())}
    return found | {"n_prototype": int((train & wanted).sum()), "n_test": len(scores)}


def _result(
    rows: list[dict[str, Any]],
    precisions: list[dict[str, Any]],
    codes: NDArray,
    labelled: Labelled,
    train: NDArray,
    pooled: Pooled,
) -> StudyResult:
    import pyarrow as pa

    summary: dict[str, Any] = {}
    for name in dict.fromkeys(row["method"] for row in rows):
        short = name.replace(", ", "_").replace(" ", "_")
        summary[f"{short}_auroc"] = float(np.mean([row["auroc"] for row in rows if row["method"] == name]))
    k = min((row["k"] for row in precisions), default=None)
    for name in (DICTIONARY, BAG):
        found = [row["precision"] for row in precisions if row["method"] == name and row["k"] == k]
        summary[f"{name.replace(' ', '_')}_precision"] = float(np.mean(found)) if found else None
    summary |= {"k": k, "chance": float(np.mean([row["chance"] for row in rows])), "active": pooled.active}
    tables = {"selection": rows, "precision": precisions}
    tables |= {"ranked": list(_ranked(codes, labelled, train))}
    tables |= {"prototypes": list(_prototypes(codes, labelled, train, pooled.codes.shape[1]))}
    return StudyResult({name: pa.Table.from_pylist(found) for name, found in tables.items()}, summary)


def _ranked(codes: NDArray, labelled: Labelled, train: NDArray) -> Iterable[dict[str, Any]]:
    tested = np.flatnonzero(~train)
    for label in labelled.classes:
        scores = jaccard(codes[tested], codes[train & labelled.is_class(label)].mean(0))
        for rank, place in enumerate(np.argsort(-scores, kind="stable")[:SHOWN], 1):
            row = int(tested[place])
            found = {"label": label, "rank": rank, "score": float(scores[place])}
            yield found | {"own": labelled.labels[row], "text": labelled.texts[row]}


def _prototypes(codes: NDArray, labelled: Labelled, train: NDArray, d_sae: int) -> Iterable[dict[str, Any]]:
    for label in labelled.classes:
        wanted = labelled.is_class(label)
        own, other = codes[train & wanted].mean(0), codes[train & ~wanted].mean(0)
        for part in np.argsort(-np.abs(own - other), kind="stable")[:SHOWN].tolist():
            sign = -1 if part >= d_sae else 1
            found = {"label": label, "latent": part % d_sae, "sign": sign}
            yield found | {"weight": float(own[part]), "elsewhere": float(other[part])}
