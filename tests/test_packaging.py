"""What is built and shipped: packages, data, version, command."""

from __future__ import annotations

import fnmatch
import importlib
import re
import tomllib
from pathlib import Path

import mechscope

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def folders(package: str) -> set[str]:
    """Return `package` and its subpackages as they are on disk: folders with Python files."""
    found = {path.parent.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")}
    return {".".join(path.parts) for path in found}


def test_the_listed_packages_are_those_on_disk() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert listed == sorted(listed)
    assert set(listed) == {name for package in ("app", "interp", "probes", "sae") for name in folders(package)}


def test_every_package_is_a_regular_one() -> None:
    for name in PROJECT["tool"]["setuptools"]["packages"]:
        assert (ROOT / name.replace(".", "/") / "__init__.py").is_file(), f"{name} has no __init__.py"


def test_all_data_files_are_shipped() -> None:
    shipped = PROJECT["tool"]["setuptools"]["package-data"]
    for package in ("app", "interp", "probes", "sae"):
        patterns = [pattern.replace("**/", "*") for pattern in shipped.get(package, [])]
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                name = path.relative_to(ROOT / package).as_posix()
                assert any(fnmatch.fnmatch(name, p) for p in patterns), f"{package}/{name} is in no wheel: package-data"


def test_the_version_stands_in_one_place() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "mechscope.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", mechscope.__version__)
    assert f"## [{mechscope.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_command_points_at_a_function() -> None:
    module, function = PROJECT["project"]["scripts"]["mechscope"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_constraints_lie_within_the_requirements() -> None:
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    normal = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    extras = PROJECT["project"]["optional-dependencies"]
    for line in [*PROJECT["project"]["dependencies"], *(item for items in extras.values() for item in items)]:
        need = Requirement(line)
        assert need.name in normal, f"constraints.txt has no {need.name}"
        assert need.specifier.contains(normal[need.name]), f"{line}, but constraints.txt has {normal[need.name]}"
