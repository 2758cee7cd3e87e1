"""Whether token ids mean the same in two models: the condition of whatever compares them token by token."""

from __future__ import annotations

from interp.models.handle import ModelHandle


def check_same_vocabulary(a: ModelHandle, b: ModelHandle) -> None:
    """Refuse two models whose token ids do not mean the same.

    Raises:
        ValueError: with the sizes, or the number of ids that differ and the first of them.
    """
    if a.d_vocab != b.d_vocab:
        raise ValueError(
            f"Two models are compared token by token and need one vocabulary: {a.spec.name} has {a.d_vocab:,} tokens, "
            f"{b.spec.name} {b.d_vocab:,}."
        )
    if a is b or (a.tokenizer is None and b.tokenizer is None):
        return
    for model in (a, b):
        if model.tokenizer is None:
            raise ValueError(
                f"{model.spec.name} has no tokenizer, so it cannot be told whether its {model.d_vocab:,} tokens are "
                "those of the other model. Put tokenizer.json beside its weights, or pass tokenizer= to load_model."
            )
    other = [i for i, (x, y) in enumerate(zip(a.vocabulary(), b.vocabulary(), strict=True)) if x != y]
    if other:
        i = other[0]
        raise ValueError(
            f"Two models are compared token by token and need one vocabulary: {len(other):,} of {a.d_vocab:,} tokens "
            f"differ, the first is {i}: {a.vocabulary()[i]!r} in {a.spec.name}, {b.vocabulary()[i]!r} in {b.spec.name}."
        )
