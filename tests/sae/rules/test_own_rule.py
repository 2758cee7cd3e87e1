"""The how-to for a new rule in docs/training.md is followed to the letter, in a copy of the source."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sae.rules.lines import lines_of_code

ROOT = Path(__file__).resolve().parents[3]
COPIED = ("interp", "sae", "probes", "app", "mechscope.py", "conftest.py", "pyproject.toml", "tests/conftest.py")
COPIED_TESTS = ("tests/sae/conftest.py", "tests/sae/test_rules.py", "tests/sae/rules/lines.py")


def section() -> str:
    """Return the how-to."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    return page.split("\n## A rule of your own\n", 1)[1].split("\n## ", 1)[0]


def follow(folder: Path) -> str:
    """Do in a copy of the source in `folder` what the how-to says before its commands; return the new rule's name."""
    for name in (*COPIED, *COPIED_TESTS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    file, lines = re.findall(r"```python\n(.*?)```", section(), re.DOTALL)
    path = re.findall(r"`(sae/rules/\w+\.py)`", section())[0]
    assert not (folder / path).exists()
    (folder / path).write_text(file, encoding="utf-8")
    imported, entry = lines.strip().split("\n\n")
    table = folder / "sae" / "rules" / "__init__.py"
    text = table.read_text(encoding="utf-8")
    start = re.search(r"^RULES: .*\{$", text, re.MULTILINE)
    assert start
    end = text.index("\n}", start.end())
    text = f"{text[: start.start()]}{imported}\n\n{text[start.start() : end]}\n{entry}{text[end:]}"
    table.write_text(text, encoding="utf-8")
    return Path(path).stem


def test_the_rule_of_the_how_to_is_as_short_as_it_says() -> None:
    file, lines = re.findall(r"```python\n(.*?)```", section(), re.DOTALL)
    assert 10 < lines_of_code(file) < 60
    assert len([line for line in lines.splitlines() if line.strip()]) == 2


@pytest.mark.slow
def test_the_how_to_works_as_written(tmp_path: Path) -> None:
    name = follow(tmp_path)
    command, tests = re.findall(r"^(mechscope train|python -m pytest) (.+)$", section(), re.MULTILINE)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "MECHSCOPE_RUNS": "runs"}

    def call(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
        return done.stdout

    small = command[1].replace("1_000_000", "10_240")
    assert small != command[1]
    folder = call("-m", "app", "train", *small.split(), "--d-sae", "64").splitlines()[-1]
    assert f".{name}-64-" in folder
    measured = call("-m", "app", "evaluate", "--tokens", "500")
    assert re.search(r"\bfvu\s+0\.\d", measured), "what was saved is loaded again"
    report = call("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests[1].split())
    passed = re.search(r"(\d+) passed", report)
    assert passed, report
    assert int(passed[1]) >= 12, "the properties that every rule is asked for"
