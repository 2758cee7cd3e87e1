"""Labelled sets: formats, fields, and a division that keeps groups whole."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from interp.data.labelled import Labelled, read_labelled, split

ROWS = [("the cat, it sat", "1", "a"), ('a "dog"', "0", "b"), ("été", "1", "a")]


def write(folder: Path, name: str) -> Path:
    path = folder / name
    if ".jsonl" in name:
        text = "\n".join(json.dumps({"text": t, "label": int(y), "city": g}) for t, y, g in ROWS) + "\n\n"
    else:
        tab = "\t" if ".tsv" in name else ","
        text = tab.join(["text", "label", "city"]) + "\n"
        text += "".join(tab.join(['"' + t.replace('"', '""') + '"', y, g]) + "\n" for t, y, g in ROWS)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv", "a.CSV.gz"])
def test_every_format_says_the_same(tmp_path: Path, name: str) -> None:
    if name == "a.CSV.gz":
        found = read_labelled(write(tmp_path, "a.csv.gz").rename(tmp_path / name), group="city")
    else:
        found = read_labelled(write(tmp_path, name), group="city")
    assert list(zip(found.texts, found.labels, found.groups, strict=True)) == ROWS
    assert found.classes == ("0", "1")
    assert found.is_class("1").tolist() == [True, False, True]


def test_groups_are_not_divided_and_equal_texts_are_a_group(tmp_path: Path) -> None:
    texts = [f"text {i // 3}" for i in range(90)]
    labels = [str(i % 2) for i in range(90)]
    for seed in range(5):
        train = split(labels, texts, 0.2, seed)
        assert not {t for t, on in zip(texts, train, strict=True) if on} & {
            t for t, on in zip(texts, train, strict=True) if not on
        }
        assert 18 <= (~train).sum() <= 20
    assert (split(labels, texts, seed=1) == split(labels, texts, seed=1)).all()
    assert (split(labels, texts, seed=1) != split(labels, texts, seed=2)).any()
    assert read_labelled(write(tmp_path, "a.csv")).groups == tuple(row[0] for row in ROWS)


def test_sample() -> None:
    whole = Labelled(tuple(map(str, range(40))), ("x", "y") * 20, tuple(map(str, range(40))))
    part = whole.sample(10, seed=3)
    assert len(part) == 10
    assert set(part.texts) < set(whole.texts)
    assert all(label == ("x", "y")[int(text) % 2] for text, label in zip(part.texts, part.labels, strict=True))
    assert whole.sample(100) == whole


def test_refusals(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl")
    with pytest.raises(ValueError, match="Unknown field 'txt'; did you mean 'text'"):
        read_labelled(path, text="txt")
    with pytest.raises(ValueError, match=r"none of \.jsonl"):
        read_labelled(tmp_path / "a.parquet")
    path.write_text('{"text": "a", "label": 1}\n{"text": "", "label": 0}\n')
    with pytest.raises(ValueError, match="line 2 of .* has an empty text"):
        read_labelled(path)
    path.write_text('{"text": "a", "label": 1}\n[1]\n')
    with pytest.raises(ValueError, match="holds a list"):
        read_labelled(path)
    path.write_text('{"text": "a", "label": 1}\n')
    with pytest.raises(ValueError, match="two labels or more"):
        read_labelled(path)
    with pytest.raises(ValueError, match="Of 3 groups, the .* part has no '[01]' in any"):
        split(["0", "1", "1"], ["a", "b", "c"], 0.34, seed=1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        split(["0", "1"], ["a", "b"], 1.0)
    with pytest.raises(ValueError, match="Unknown label"):
        Labelled(("a", "b"), ("x", "y"), ("a", "b")).is_class("z")


@pytest.mark.data
def test_true_and_false_cities(data_dir: Path) -> None:
    path = data_dir / "probes" / "geometry-of-truth" / "cities.csv"
    found = read_labelled(path, text="statement", group="city")
    train = found.split(0.2, seed=0)
    cities = [{g for g, on in zip(found.groups, train, strict=True) if on == side} for side in (True, False)]
    assert found.classes == ("0", "1")
    assert cities[0]
    assert cities[1]
    assert not cities[0] & cities[1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "\xff", "label": 1}', "decode byte 0xff"),
        ("a.csv", b"text,label\n\x80,1\n", "decode byte 0x80"),
        ("a.jsonl.gz", b"text", "Not a gzipped file"),
        ("a.tsv.gz", gzip.compress(b"text\tlabel\n" + bytes(2000))[:-12], "ended before"),
        ("a.csv", b"text,label\n" + b"a" * 200_000 + b",1\n", "field larger than"),
    ],
    ids=["jsonl", "csv", "gz", "cut off", "huge"],  # gzip writes the time into its bytes
)
def test_damaged_files_are_named(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} cannot be read as {name[2:]}: .*{said}"):
        read_labelled(tmp_path / name)
