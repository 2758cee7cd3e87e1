"""The README and the pages of docs/ say what is true: links, commands, the example."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.command import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of `page`."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}, which is not there"
        assert not anchor or anchor in anchors(found), (
            f"{page.name} links to {target}; {found.name} has {anchors(found)}"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?:^|`)mechscope ([a-z]+)", text, re.MULTILINE):
        assert name in COMMANDS, f"{page.name} names `mechscope {name}`, which does not exist"
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE):
        assert f"\n{name}:" in makefile, f"{page.name} names `make {name}`, which does not exist"


def test_options_exist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = [line for page in PAGES for line in re.findall(r"^mechscope (.+)", page.read_text(), re.MULTILINE)]
    assert len(lines) > 5
    for line in lines:
        name = line.split()[0]
        assert main([name, "--help"]) == 0
        known = capsys.readouterr().out
        for option in re.findall(r"--[a-z][a-z0-9.-]*", line.partition("#")[0]):
            assert re.search(rf"{re.escape(option)}[ ,]", known), f"`mechscope {name}` has no {option}"


def test_every_rule_has_a_page() -> None:
    from sae.rules import RULES

    assert {path.stem for path in (ROOT / "docs" / "rules").glob("*.md")} == set(RULES)


@pytest.mark.slow
def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    small = code.replace('DataSpec("demo")', 'DataSpec("demo", context=32, tokens=30_000)').replace(
        "1_000_000", "20_480"
    )
    assert small.count("30_000") == small.count("20_480") == 1
    script = tmp_path / "example.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{small}print(list(logits.shape))\n")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures, shape = done.stdout.splitlines()
    assert len(figures.split()) == 3
    assert shape.startswith("[1, ")
