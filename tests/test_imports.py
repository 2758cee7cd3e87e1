"""What an import really loads, seen from a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "transformer_lens", "datasets", "wandb", "streamlit", "sklearn", "pandas")


def loaded(code: str, cwd: Path = ROOT) -> set[str]:
    """Return which heavy libraries (and tyro) are loaded after `code`."""
    report = f"\nimport json, sys\nprint('\\n' + json.dumps([n for n in {(*HEAVY, 'tyro')!r} if n in sys.modules]))"
    prefix = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    done = subprocess.run([sys.executable, "-c", prefix + code + report], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_packages_load_nothing_heavy() -> None:
    code = "import mechscope, interp, sae, probes, app, interp.runs, interp.sites, interp.config, sae.config"
    assert loaded(code + "\nassert 'train' in dir(mechscope) and mechscope.__version__") == set()


def test_help_loads_neither_torch_nor_tyro() -> None:
    code = "from app.command import main\nassert main(['--help']) == 0\nassert main(['--version']) == 0"
    assert loaded(code) == set()


def test_help_of_every_command_loads_no_torch() -> None:
    code = (
        "from app.command import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    assert main([name, '--help']) == 0, name\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    assert loaded(code) == {"tyro"}


def test_doctor_starts_without_our_other_packages() -> None:
    code = "import app.commands.doctor\nassert not {'interp', 'sae', 'probes'} & set(sys.modules)"
    assert loaded(code) == set()


def test_a_lazy_package_imports_a_name_once() -> None:
    import interp

    assert interp.Site is interp.sites.Site
    assert "Site" in vars(interp)
    assert {"Site", "load_model", "capture"} <= set(dir(interp))


def test_a_lazy_package_lists_what_it_offers() -> None:
    import interp

    with pytest.raises(AttributeError, match=r"module 'interp' has no attribute 'capturee'; it offers .*capture, "):
        _ = interp.capturee


def test_an_import_that_fails_inside_a_submodule_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lazy_example"
    package.mkdir()
    source = "from interp.lazy import lazy\n__getattr__, __dir__, __all__ = lazy(__name__, {})\n"
    (package / "__init__.py").write_text(source)
    (package / "broken.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    import lazy_example  # pyright: ignore[reportMissingImports]

    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        _ = lazy_example.broken
    with pytest.raises(AttributeError, match="offers nothing"):
        _ = lazy_example.absent


def test_the_facade_offers_what_its_type_checking_block_imports() -> None:
    import ast

    import mechscope

    tree = ast.parse((ROOT / "mechscope.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(mechscope.__all__) == {*mechscope._EXPORTS, "load"}
    assert set(mechscope._EXPORTS) == set(typed) - {"Run"}
    for name in mechscope._EXPORTS:
        assert getattr(mechscope, name) is not None
