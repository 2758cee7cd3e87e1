"""Lazy package contents (PEP 562): a name is imported when somebody first asks for it.

`import interp` costs nothing this way, and `interp.runs` can be read without the model libraries.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, exports: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `(__getattr__, __dir__, __all__)` for `package`, whose `exports` maps public names to modules.

    Submodules are found as well (`interp.hooks` after `import interp`), also those that export nothing here.
    """
    public = sorted(exports)

    def get(name: str) -> Any:
        if name in exports:
            value = getattr(importlib.import_module(exports[name]), name)
            setattr(sys.modules[package], name, value)  # the next look-up is an ordinary attribute
            return value
        if not name.startswith("_"):
            module = f"{package}.{name}"
            try:
                return importlib.import_module(module)
            except ModuleNotFoundError as error:
                if error.name != module:
                    raise
        offers = ", ".join(public) or "nothing"
        raise AttributeError(f"module {package!r} has no attribute {name!r}; it offers {offers}.")

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *public})

    return get, names, public
