"""What the exports of embedded models share: float16 shards below 4 MiB, and a tokenizer that Hugging Face can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHARD = "3900KB"
"""Largest file of weights."""


def save_half(model: Any, folder: Path) -> None:
    """Round `model` to float16 in place and write it to `folder` in shards; weights that were there are removed."""
    from interp.models.loading import no_progress_bars

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model*"):
        old.unlink()
    with no_progress_bars():
        model.half().save_pretrained(folder, max_shard_size=SHARD)


def save_tokenizer(tokenizer: Any, folder: Path, context: int, **special: str) -> None:
    """Write a `tokenizers.Tokenizer` to `folder`, and which of its tokens are `special` (`bos_token="<s>"`)."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def table(rows: dict[str, str]) -> str:
    """Return a Markdown table of what was measured."""
    return "\n".join(["| what | value |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows.items())])
