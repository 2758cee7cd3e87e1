"""What doctor sees: strangers with our names, places that cannot be written, versions that do not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app import machine, shadowing
from app.commands import doctor

ROOT = Path(__file__).resolve().parent.parent.parent


def package(folder: Path, name: str) -> Path:
    """Write a regular package `name` into `folder`; return its `__init__.py`."""
    (folder / name).mkdir(parents=True)
    init = folder / name / "__init__.py"
    init.touch()
    return init


def test_our_own_packages_are_no_problem(tmp_path: Path) -> None:
    assert shadowing.foreign_modules(tmp_path, [str(ROOT)], ROOT) == []
    assert shadowing.foreign_modules(ROOT, [str(ROOT)], ROOT) == []


def test_a_foreign_package_before_ours_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init = package(tmp_path / "other", "sae")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
    (found,) = shadowing.foreign_modules(tmp_path, [str(tmp_path / "other"), str(ROOT)], ROOT)
    assert f"'import sae' takes {init}, not mechscope's" in found
    assert f"PYTHONPATH names {tmp_path / 'other'}." in found


def test_a_foreign_package_behind_ours_is_no_problem(tmp_path: Path) -> None:
    package(tmp_path / "other", "sae")
    assert shadowing.foreign_modules(tmp_path, [str(ROOT), str(tmp_path / "other")], ROOT) == []


@pytest.mark.parametrize("name", shadowing.NAMES)
def test_a_foreign_package_in_the_current_folder_is_seen(tmp_path: Path, name: str) -> None:
    init = package(tmp_path, name)
    (found,) = shadowing.foreign_modules(tmp_path, [str(ROOT)], ROOT)
    assert found.startswith(f"{init} hides mechscope's '{name}' from Python and Jupyter started in {tmp_path}.")


def test_a_foreign_module_in_the_current_folder_is_seen(tmp_path: Path) -> None:
    (tmp_path / "probes.py").touch()
    (found,) = shadowing.foreign_modules(tmp_path, ["", str(ROOT)], ROOT)
    assert "probes.py hides mechscope's 'probes'" in found


def test_a_folder_without_python_files_gives_way_to_ours(tmp_path: Path) -> None:
    (tmp_path / "sae").mkdir()
    assert shadowing.foreign_modules(tmp_path, [str(ROOT)], ROOT) == []


def test_a_foreign_distribution_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "sae")
    info = tmp_path / "their_sae-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-sae\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("sae\ninterp\n")
    (info / "RECORD").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = shadowing.foreign_distributions()
    assert "'their-sae' also provides 'interp', 'sae'" in found
    assert "pip uninstall their-sae" in found


def test_a_clone_with_the_name_of_a_package_is_seen(tmp_path: Path) -> None:
    (found,) = shadowing.badly_named_clone(tmp_path / "sae")
    assert f"mv {tmp_path / 'sae'} {tmp_path / 'mechscope'}" in found
    assert shadowing.badly_named_clone(tmp_path / "mechscope") == []
    assert shadowing.badly_named_clone(tmp_path / "work") == []


def test_doctor_reports_a_stranger_in_the_current_folder_with_status_1(tmp_path: Path) -> None:
    package(tmp_path, "sae")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", "app", "doctor", "--json", "--runs", str(tmp_path / "runs")]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert result["ok"] is False
    assert any(f"'import sae' takes {tmp_path / 'sae' / '__init__.py'}" in text for text in result["problems"])
    assert result["packages"]["torch"]
    assert not (tmp_path / "runs").exists()


def test_doctor_prints_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shadowing, "problems", lambda folder: ["The moon is full. Do: wait."])
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "hub" / "models--a--b").mkdir(parents=True)
    result = doctor.run(doctor.Args(runs=tmp_path / "runs"))
    out = capsys.readouterr().out
    assert result["ok"] is False
    assert "WRONG: The moon is full. Do: wait." in out
    assert f"{tmp_path / 'hub'}, 1 models from the hub" in out
    assert "offline by HF_HUB_OFFLINE" in out


def test_doctor_refuses_a_runs_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    result = doctor.run(doctor.Args(runs=tmp_path / "runs"))
    assert any("is not a folder open for writing" in text for text in result["problems"])


def test_versions_outside_the_requirements_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["numpy>=999", "no-such-library>=1", "torch>=2", "pytest>=999; extra == 'dev'"]
    monkeypatch.setattr(machine, "requires", lambda name: needs)
    found = machine.requirement_problems()
    assert len(found) == 2
    assert found[0].startswith("numpy must be >=999, got ")
    assert found[1] == "no-such-library is missing. Do: pip install 'no-such-library>=1'."
