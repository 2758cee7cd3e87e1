"""What holds for every test: types checked at run time, and data from outside only where it is set."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
from jaxtyping import install_import_hook

# Shapes and types of every function are checked while the tests run, and only then. The hook comes before the first
# import of the packages. `is_pep484_tower`: an int may stand where a float is asked for, as everywhere in Python.
# `app` is left out: it handles few tensors, and many stand-ins (captured streams, Streamlit's test session).
install_import_hook(["interp", "sae", "probes"], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# No test asserts seconds, also not hypothesis; the same examples every time, and no folder with earlier ones.
hypothesis.settings.register_profile("mechscope", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("mechscope")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `data` where $MECHSCOPE_DATA names no folder."""
    if item.get_closest_marker("data") and not Path(os.environ.get("MECHSCOPE_DATA") or "/nonexistent").is_dir():
        pytest.skip("MECHSCOPE_DATA names no folder")
