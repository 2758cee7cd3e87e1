from __future__ import annotations

import copy
import gzip
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp.data import Blocks, DataSpec, documents, formats, read_documents, token_blocks

if TYPE_CHECKING:
    from interp.models import ModelHandle

TEXTS = ["the cat sat on the mat.", "the dog sat\non the log.", "the king and the queen"]


def write_jsonl(path: Path, texts: list[Any], field: str = "text") -> Path:
    lines = "".join(json.dumps({field: text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def read(path: Path | str, **changes: Any) -> list[str]:
    return list(read_documents(DataSpec(str(path), **changes)))


def ids_of(model: ModelHandle, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


# -- documents


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"])
def test_formats_give_the_same_documents(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": TEXTS, "id": [1, 2, 3]}), path, row_group_size=2)
    elif name.endswith(".json"):
        path.write_text(json.dumps([TEXTS[0], *({"text": text} for text in TEXTS[1:])]))
    else:
        write_jsonl(path, TEXTS)
    assert read(path) == TEXTS


def test_folder_is_read_in_name_order_and_json_beside_text_is_metadata(tmp_path: Path) -> None:
    (tmp_path / "2.txt").write_text("two\r\nlines")
    write_jsonl(tmp_path / "1.jsonl", ["one"])
    pq.write_table(pa.table({"text": ["three"]}), tmp_path / "3.parquet")
    (tmp_path / "about.json").write_text('[{"title": "not a text"}]')
    (tmp_path / "licence.pdf").write_bytes(b"\0")
    assert read(tmp_path) == ["one", "two\nlines", "three"]


def test_folder_of_json_only(tmp_path: Path) -> None:
    (tmp_path / "stories.json").write_text(json.dumps(TEXTS))
    assert read(tmp_path) == TEXTS


def test_documents_without_visible_characters_are_skipped(tmp_path: Path) -> None:
    assert read(write_jsonl(tmp_path / "a.jsonl", ["", " \n\t", None, "x"])) == ["x"]


@pytest.mark.parametrize("name", ["wiki.test.tokens", "noextension", "a.md"])
def test_a_file_of_another_extension_is_plain_text_but_not_in_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("one\ntwo")
    assert read(tmp_path / name) == ["one\ntwo"]
    with pytest.raises(ValueError, match="holds no"):
        read(tmp_path)


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfabc")
    assert read(tmp_path / "a.txt") == ["abc"]


def test_long_document_comes_in_pieces_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "PIECE", 50)
    monkeypatch.setattr(formats, "_CHUNK", 7)  # smaller than a piece, and cutting the two-byte letters
    text = "".join(f"line {i} with é and ü\n" for i in range(100)) + "x" * 300
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    pieces = list(documents.read_pieces(DataSpec(str(tmp_path / "a.txt"))))
    assert len(pieces) > 10
    assert [piece.first for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert max(len(piece.text) for piece in pieces) <= 100
    assert "".join(piece.text for piece in pieces) == text
    assert read(tmp_path / "a.txt") == [text]


def test_pieces_give_the_tokens_of_the_whole(
    gpt2: ModelHandle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = "\n".join(f"the cat {i} sat on the mat, twice\n" for i in range(40))
    (tmp_path / "a.txt").write_text(text)
    spec = DataSpec(str(tmp_path / "a.txt"), context=16)
    whole = token_blocks(gpt2, spec)
    monkeypatch.setattr(formats, "PIECE", 60)
    assert token_blocks(gpt2, spec).digest() == whole.digest()


def test_demo_reads_the_shipped_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "DEMO", tmp_path / "corpus.jsonl.gz")
    with pytest.raises(ValueError, match="demo text is not part of this installation; name a file"):
        read("demo")
    write_jsonl(documents.DEMO, TEXTS)
    assert read("demo", field="ignored") == TEXTS


def fake_datasets(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    fake, exceptions = types.ModuleType("datasets"), types.ModuleType("datasets.exceptions")
    fake.load_dataset = load  # type: ignore[attr-defined]
    exceptions.DatasetsError = type("DatasetsError", (Exception,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setitem(sys.modules, "datasets.exceptions", exceptions)


def test_hub_data_set_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, config: str | None, *, split: str, streaming: bool) -> Any:
        asked.append((name, config, split, streaming))
        return ({"content": text} for text in TEXTS)

    fake_datasets(monkeypatch, load)
    assert read("owner/name:part", split="validation", field="content") == TEXTS
    assert asked == [("owner/name", "part", "validation", True)]
    with pytest.raises(ValueError, match=r"Unknown field 'contnt'; did you mean 'content'\?.*row 0 of owner/name"):
        read("owner/name", field="contnt")


def test_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise ConnectionError("offline mode is enabled")

    fake_datasets(monkeypatch, load)
    with pytest.raises(ValueError, match="neither a file nor a folder here.*offline mode is enabled.*local file"):
        read("owner/name")


def test_local_text_imports_neither_torch_nor_datasets(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    code = (
        "import sys; from interp.data import DataSpec, read_documents\n"
        f"assert len(list(read_documents(DataSpec({str(path)!r})))) == 3\n"
        "print([m for m in ('torch', 'datasets', 'transformers', 'pyarrow', 'httpx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- what cannot be read


def test_nul_bytes_name_file_and_offset(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"some text\0more")
    with pytest.raises(ValueError, match=r"a\.txt has a NUL byte at offset 9: it looks like a binary"):
        read(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n\0')
    with pytest.raises(ValueError, match=r"a\.jsonl has a NUL byte at offset 14"):
        read(tmp_path / "a.jsonl")


def test_invalid_utf8_names_file_byte_and_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_CHUNK", 4)
    (tmp_path / "a.txt").write_bytes("abcé".encode() * 5 + b"caf\xe9 ")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 at byte 28 \(0xe9.*iconv"):
        read(tmp_path / "a.txt")
    (tmp_path / "cut.txt").write_bytes(b"abc\xc3")
    with pytest.raises(ValueError, match="not UTF-8 at byte 3 "):
        read(tmp_path / "cut.txt")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl is not UTF-8 at byte 24 "):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_unknown_field_gives_nearest_and_list(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.jsonl":
        path.write_text('{"content": "x", "title": "y"}\n')
    else:
        pq.write_table(pa.table({"content": ["x"], "title": ["y"]}), path)
    with pytest.raises(ValueError, match=r"'conten'; did you mean 'content'\? Known: content, title\."):
        read(path, field="conten")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\nnot json\n', r"line 2 of .*a\.jsonl is not JSON"),
        ("a.jsonl", b"[1, 2]\n", "holds a list; wanted an object with the field 'text'"),
        ("a.jsonl", b'{"text": 7}\n', "field 'text' holds a int; wanted text"),
        ("a.jsonl", b"[" * 100_000, "is not JSON"),
        ("a.json", b'{"text": "x"}', "holds a JSON dict; wanted an array"),
        ("a.parquet", b"PAR1 and no more", "not a readable parquet file"),
        ("a.jsonl.gz", b"\x1f\x8b\x08\x00broken", "damaged gzip"),
        ("a.jsonl.gz", b"no gzip at all", "damaged gzip"),
        ("a.pdf", b"%PDF\xff", r"a\.pdf is not UTF-8 at byte 4 "),
        ("noextension", b"text\0", "NUL byte at offset 4"),
    ],
)
def test_unreadable_files_say_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_cut_off_gzip_says_so(tmp_path: Path) -> None:
    whole = write_jsonl(tmp_path / "a.jsonl.gz", TEXTS * 100).read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="damaged gzip"):
        read(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize("text", ["missing.txt", "/no/such/folder", "./here", "~/nowhere/at/all", "a/b/c"])
def test_missing_path_is_no_hub_name(text: str) -> None:
    with pytest.raises(ValueError, match="no file or folder"):
        read(text)


def test_folder_without_text_lists_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.txt.*found inner.*not searched"):
        read(tmp_path)


def test_hostile_documents_become_tokens(gpt2: ModelHandle, tmp_path: Path) -> None:
    hostile = ["<|endoftext|>", "\ud800 alone", "a\u0000b", "\u202e right to left", "🜁" * 30, "<script>x</script>" * 3]
    path = write_jsonl(tmp_path / "a.jsonl", hostile)
    assert read(path)[1] == "\ufffd alone"
    blocks = token_blocks(gpt2, DataSpec(str(path), context=64, across_documents=False))
    first = blocks.tokens[0][blocks.keep[0]].tolist()
    assert first[0] == gpt2.bos_id
    assert gpt2.bos_id not in first[1:], "a special token spelled out in the text stays text"
    assert gpt2.decode(first[1:]) == "<|endoftext|>"


@pytest.mark.parametrize(("name", "value"), [("heldout", 1.0), ("heldout", -0.1), ("tokens", 0)])
def test_spec_refuses_values_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} .*got {value}"):
        DataSpec(**{name: value})  # type: ignore[arg-type]


# -- blocks


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1, max_size=8),
    context=st.integers(2, 12),
)
def test_joined_blocks_give_back_the_token_stream(
    gpt2: ModelHandle, tmp_path: Path, texts: list[str], context: int
) -> None:
    visible = [text for text in texts if text.strip()]
    stream = [token for text in visible for token in [0, *ids_of(gpt2, text)]][1:]
    spec = DataSpec(str(write_jsonl(tmp_path / "a.jsonl", texts)), context=context)
    if len(stream) < context - 1:
        with pytest.raises(ValueError, match="empty|shorter than one block"):
            token_blocks(gpt2, spec)
        return
    blocks = token_blocks(gpt2, spec)
    assert (blocks.tokens[:, 0] == gpt2.bos_id).all()
    assert blocks.keep.all()
    back = blocks.tokens[:, 1:].flatten().tolist()
    assert back == stream[: len(back)]
    assert len(stream) - len(back) < context - 1, "only what does not fill a block is dropped"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1, max_size=8),
    context=st.integers(2, 12),
)
def test_separate_blocks_hold_one_document_each(
    gpt2: ModelHandle, tmp_path: Path, texts: list[str], context: int
) -> None:
    wanted = [ids for text in texts if text.strip() and (ids := ids_of(gpt2, text))]
    spec = DataSpec(str(write_jsonl(tmp_path / "a.jsonl", texts)), context=context, across_documents=False)
    if not wanted:
        with pytest.raises(ValueError, match="is empty"):
            token_blocks(gpt2, spec)
        return
    blocks = token_blocks(gpt2, spec)
    found: list[list[int]] = []
    for tokens, keep in zip(blocks.tokens, blocks.keep, strict=True):
        assert keep.int().diff().le(0).all(), "padding is at the end"
        assert tokens[0] == gpt2.bos_id
        body = tokens[keep][1:].tolist()
        if found and len(found[-1]) < len(wanted[len(found) - 1]):
            found[-1] += body
        else:
            found.append(body)
    assert found == wanted
    assert blocks.documents == len(wanted)


def test_model_without_bos_or_end_of_text(neox: ModelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neox, "bos_id", None)
    monkeypatch.setattr(neox, "tokenizer", copy.deepcopy(neox.tokenizer))
    neox.tokenizer.eos_token = None
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    blocks = token_blocks(neox, DataSpec(str(path), context=4))
    stream = [token for text in TEXTS for token in ids_of(neox, text)]
    assert blocks.tokens.flatten().tolist() == stream[: blocks.tokens.numel()]
    assert not blocks.bos().any()
    assert "no BOS" in blocks.describe()


def test_tokens_limit_stops_reading(gpt2: ModelHandle, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "the cat sat on the mat"}\n' * 20_000 + "this line would be an error\n")
    seen: list[int] = []
    blocks = token_blocks(gpt2, DataSpec(str(path), context=16, tokens=1000), on_progress=seen.append)
    assert blocks.tokens.numel() == 1000 // 16 * 16
    assert seen == sorted(seen)
    assert seen[-1] == blocks.tokens[:, 1:].numel()
    fewer = token_blocks(gpt2, DataSpec(str(path), context=16, tokens=1000), limit=100)
    assert torch.equal(fewer.tokens, blocks.tokens[:6])
    alone = token_blocks(gpt2, DataSpec(str(path), context=16, tokens=1000, across_documents=False))
    assert 980 < alone.n_tokens <= 1000


@pytest.mark.parametrize("across", [True, False])
def test_empty_text(gpt2: ModelHandle, tmp_path: Path, across: bool) -> None:
    (tmp_path / "a.txt").write_text(" \n ")
    with pytest.raises(ValueError, match=r"a\.txt' is empty: .*visible character"):
        token_blocks(gpt2, DataSpec(str(tmp_path / "a.txt"), context=8, across_documents=across))


def test_text_shorter_than_a_block_says_what_would_do(gpt2: ModelHandle, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("xyz")
    with pytest.raises(ValueError, match=r"gave 3 tokens \(and BOS\), and context=32.*--context 4 makes one block"):
        token_blocks(gpt2, DataSpec(str(tmp_path / "a.txt"), context=32))
    assert len(token_blocks(gpt2, DataSpec(str(tmp_path / "a.txt"), context=4))) == 1


@pytest.mark.parametrize("context", [1, 65])
def test_context_must_suit_the_model(gpt2: ModelHandle, context: int) -> None:
    with pytest.raises(ValueError, match=rf"context must lie in 2\.\.n_ctx=64 for this model, got {context}"):
        token_blocks(gpt2, DataSpec("demo", context=context))


def test_fewer_tokens_than_a_block(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match="10 tokens are less than one block of context=32"):
        token_blocks(gpt2, DataSpec("demo", context=32, tokens=10))


def test_tokenizer_of_another_model_is_refused(gpt2: ModelHandle, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 4)
    monkeypatch.setattr(gpt2, "d_vocab", 50)
    with pytest.raises(ValueError, match="vocabulary has 50: they do not belong together"):
        token_blocks(gpt2, DataSpec(str(tmp_path / "a.txt"), context=8))


def test_model_without_tokenizer(gpt2: ModelHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt2, "tokenizer", None)
    with pytest.raises(ValueError, match="without a tokenizer"):
        token_blocks(gpt2, DataSpec("demo"))


def some_blocks(count: int, context: int = 8) -> Blocks:
    tokens = torch.arange(count * context, dtype=torch.int32).view(count, context) + 1
    tokens[:, 0] = 0
    return Blocks(tokens, torch.ones_like(tokens, dtype=torch.bool), 3, True, 0)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_split_is_disjoint_complete_and_repeatable(share: float) -> None:
    blocks = some_blocks(20)
    train, heldout = blocks.split(share, seed=1)
    both = torch.cat([train.tokens, heldout.tokens])
    assert sorted(both[:, 1].tolist()) == blocks.tokens[:, 1].tolist()
    assert len(heldout) == min(max(round(share * 20), 1), 19)
    assert blocks.split(share, seed=1)[0].digest() == train.digest()
    assert blocks.split(0.3, seed=2)[0].digest() != blocks.split(0.3, seed=3)[0].digest()


def test_split_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="heldout_share must lie between 0 and 1, got 1"):
        some_blocks(4).split(1)
    with pytest.raises(ValueError, match="at least 2 blocks, and the text gave 1.*heldout 0"):
        some_blocks(1).split(0.5)


def test_digest_sees_tokens_padding_and_shape() -> None:
    blocks = some_blocks(4)
    other = some_blocks(4)
    assert blocks.digest() == other.digest()
    other.tokens[3, 3] += 1
    changed = [other, some_blocks(4), some_blocks(2, 16)]
    changed[1].keep[3, 7] = False
    assert len({blocks.digest(), *(one.digest() for one in changed)}) == 4


def test_first_takes_at_most_the_tokens_but_one_block() -> None:
    blocks = some_blocks(5)
    assert [len(blocks.first(tokens)) for tokens in (1, 8, 23, 24, 1000)] == [1, 1, 2, 3, 5]
    assert torch.equal(blocks.first(16).tokens, blocks.tokens[:2])


def test_describe_states_what_attends_to_what(gpt2: ModelHandle, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    joined = token_blocks(gpt2, DataSpec(str(path), context=8))
    assert "attention crosses document boundaries. Every block starts with BOS" in joined.describe()
    alone = token_blocks(gpt2, DataSpec(str(path), context=32, across_documents=False))
    assert "every block holds one document" in alone.describe()
    assert np.isclose(float(alone.keep.float().mean()), alone.n_tokens / alone.tokens.numel())


@pytest.mark.data
def test_stories_with_their_own_model(data_dir: Path) -> None:
    from interp.models import load_model

    model = load_model(str(data_dir / "models" / "stories260K"))
    blocks = token_blocks(model, DataSpec(str(data_dir / "text" / "stories"), context=64, tokens=2000))
    assert len(blocks) == 2000 // 64
    assert (blocks.tokens[:, 0] == model.bos_id).all()
    assert model.decode(blocks.tokens[0, 1:]).strip().startswith("One day, a little girl named Lily")
