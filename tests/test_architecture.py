"""The shape of the source: who may import whom, what stays light, what is never called. Read from the AST alone."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("interp", "sae", "probes", "app")
ALLOWED = {"interp": set(), "sae": {"interp"}, "probes": {"interp"}, "app": {"interp", "sae", "probes", "mechscope"}}

# Lower layers know nothing of higher ones. A new module of interp gets its place here.
INTERP_LAYERS = (
    {"lazy", "names", "config", "types", "metrics", "runs", "sites", "checkpoint"},
    {"models", "hooks", "activations", "data", "tasks", "figures"},
    {"attribution"},
    {"circuits", "layers"},
    {"compression", "zoo"},
)
MODEL_LIBRARIES = {"transformers", "transformer_lens", "tokenizers", "datasets", "wandb", "streamlit"}
HEAVY = {"torch", "safetensors.torch", "transformers", "transformer_lens", "datasets", "wandb"}

# Everything that `mechscope --help`, `mechscope COMMAND --help`, `mechscope runs` and the explorer's pages import.
LIGHT = (
    "mechscope", "interp", "sae", "probes", "app", "interp.lazy", "interp.names", "interp.config", "interp.sites",
    "interp.runs", "interp.models.spec", "interp.data.documents", "sae.config", "app.command", "app.console",
    "app.machine", "app.shadowing", "app.main", "app.commands.*", "app.views.*", "app.widgets.*",
)  # fmt: skip
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE = {("allow_pickle", "True"), ("weights_only", "False"), ("trust_remote_code", "True")}
MAX_LINES = 400


def files(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def modules() -> dict[str, Path]:
    return {"mechscope": ROOT / "mechscope.py", **{module_name(path): path for path in files(*PACKAGES)}}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def walk(node: ast.AST, functions: bool, type_checking: bool) -> Iterator[ast.AST]:
    """Yield the nodes below `node`; bodies of functions and of `if TYPE_CHECKING` only where asked for."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not functions:
            continue
        if is_type_checking(child) and not type_checking:
            continue
        yield child
        yield from walk(child, functions, type_checking)


def imports(path: Path, functions: bool = True, type_checking: bool = True) -> set[str]:
    """Return what `path` imports: modules, and `module.name` for `from module import name`."""
    found = set()
    for node in walk(tree(path), functions, type_checking):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno} imports relatively; write the whole name."
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return found - {"__future__", "__future__.annotations"}


@cache
def lazy_table(path: Path) -> dict[str, str]:
    """Return {public name: module} of a lazy `__init__`."""
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "lazy":
            table = node.value.args[1]
            return ast.literal_eval(table) if isinstance(table, ast.Dict) else {}
    return {}


def loaded_by(name: str) -> set[str]:
    """Return the modules that importing module `name` of ours imports at once, ours and others."""
    found = set()
    for target in imports(modules()[name], functions=False, type_checking=False):
        package, _, attribute = target.rpartition(".")
        if target in modules() or target.split(".")[0] not in {*PACKAGES, "mechscope"}:
            found.add(target)
            continue
        while package in modules() and attribute in lazy_table(modules()[package]):
            package = lazy_table(modules()[package])[attribute]
            found.add(package)
    parts = name.split(".")
    return found | {".".join(parts[:i]) for i in range(1, len(parts))}


def chain_to(name: str, unwanted: set[str]) -> list[str] | None:
    """Return a chain of imports from module `name` to one of `unwanted`, None where there is none."""
    todo, seen = [[name]], {name}
    while todo:
        chain = todo.pop(0)
        for target in sorted(loaded_by(chain[-1])):
            if any(target == bad or target.startswith(bad + ".") for bad in unwanted):
                return [*chain, target]
            if target in modules() and target not in seen:
                seen.add(target)
                todo.append([*chain, target])
    return None


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package: str) -> None:
    for path in files(package):
        foreign = {name.split(".")[0] for name in imports(path)} & {*PACKAGES, "mechscope"} - {package}
        assert foreign <= ALLOWED[package], (
            f"{path.relative_to(ROOT)} imports {sorted(foreign - ALLOWED[package])}; {package} may import "
            f"{sorted(ALLOWED[package])}. Take a Protocol of interp.types, or move what needs both to app/studies/."
        )


def test_lazy_tables_name_what_their_own_package_defines() -> None:
    for name, path in modules().items():
        for public, module in lazy_table(path).items():
            assert module.split(".")[0] == name.split(".")[0], f"{name} offers {public} of {module}, another package."
            assert module in modules(), f"{name} offers {public} from {module}, which is not there."
            defined = {n.id for n in ast.walk(tree(modules()[module])) if isinstance(n, ast.Name)}
            defined |= {n.name for n in tree(modules()[module]).body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
            defined |= {n.rpartition(".")[2] for n in imports(modules()[module], functions=False)}
            defined |= lazy_table(modules()[module]).keys()
            assert public in defined, f"{name} offers {public} from {module}, which does not define it."


def test_interp_is_layered() -> None:
    rank = {name: level for level, layer in enumerate(INTERP_LAYERS) for name in layer}
    for path in files("interp"):
        name = module_name(path)
        if name == "interp":
            continue
        own = name.split(".")[1]
        assert own in rank, f"{path.relative_to(ROOT)}: give interp.{own} a place in INTERP_LAYERS of this test."
        targets = {t.split(".")[1] for t in imports(path, type_checking=False) if t.startswith("interp.")} & rank.keys()
        higher = {t for t in targets if rank[t] > rank[own]}
        assert not higher, f"{name} imports {sorted(higher)} of a higher layer; pass it in instead."
        if rank[own] == 0:
            libraries = {t.split(".")[0] for t in imports(path)} & MODEL_LIBRARIES
            assert not libraries, f"{name} is in the lowest layer and imports {sorted(libraries)}."


def test_streamlit_stays_in_the_explorer() -> None:
    explorer = {"app.main", "app.views", "app.widgets"}
    for name, path in modules().items():
        if ".".join(name.split(".")[:2]) not in explorer:
            loaded = {t.split(".")[0] for t in imports(path, functions=not name.startswith("app."))}
            assert "streamlit" not in loaded, f"{name} imports streamlit; only the explorer may (main, views, widgets)."
    assert not (ROOT / "app" / "pages").exists(), "app/pages/ starts Streamlit's own discovery; screens are app/views/."


def light_modules() -> list[str]:
    patterns = [pattern.removesuffix(".*") for pattern in LIGHT]
    named = {name for name in LIGHT if name in modules()}
    below = {
        name
        for name in modules()
        for whole, prefix in zip(LIGHT, patterns, strict=True)
        if whole.endswith(".*") and (name == prefix or name.startswith(prefix + "."))
    }
    return sorted(named | below)


@pytest.mark.parametrize("name", light_modules())
def test_light_modules_load_no_heavy_library(name: str) -> None:
    chain = chain_to(name, HEAVY)
    assert chain is None, f"{' -> '.join(chain or [])}: import it inside the function, or under `if TYPE_CHECKING`."


def test_wandb_and_datasets_are_imported_where_they_are_used() -> None:
    for name, path in modules().items():
        early = {t.split(".")[0] for t in imports(path, functions=False, type_checking=False)} & {"wandb", "datasets"}
        assert not early, f"{name} imports {sorted(early)} at once; import it inside the function that uses it."


@pytest.mark.parametrize("package", PACKAGES)
def test_public_init_files_are_lazy(package: str) -> None:
    path = ROOT / package / "__init__.py"
    loaded = imports(path, type_checking=False)
    assert loaded <= {"interp.lazy", "interp.lazy.lazy"}, f"{path} imports {sorted(loaded)}; use interp.lazy."


def test_libraries_do_not_print() -> None:
    for path in files(*PACKAGES):
        if "zoo" in path.parts:  # scripts
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                pytest.fail(f"{path.relative_to(ROOT)}:{node.lineno} prints; use logging, or app.console.")


def test_nothing_runs_what_it_reads() -> None:
    for path in [*files(*PACKAGES), ROOT / "mechscope.py"]:
        where = path.relative_to(ROOT)
        pickles = {name.split(".")[0] for name in imports(path)} & PICKLES
        assert not pickles, f"{where} imports {sorted(pickles)}; a run holds safetensors, Parquet and JSON only."
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load"}, (
                f"{where}:{node.lineno} calls {called}, which can run what it reads."
            )
            for keyword in node.keywords:
                pair = (keyword.arg, ast.unparse(keyword.value))
                assert pair not in UNSAFE, (
                    f"{where}:{node.lineno} passes {'='.join(map(str, pair))}; it runs what it reads."
                )


def test_nothing_is_registered_by_an_import() -> None:
    for path in files(*PACKAGES):
        where = path.relative_to(ROOT)
        assert "pkgutil" not in imports(path), f"{where} searches for modules; name them in a table."
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.name != "__init_subclass__", f"{where}:{node.lineno} registers subclasses; use a table."
                decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
                found = [text for text in decorators if "regist" in text.lower()]
                assert not found, f"{where}:{node.lineno} registers itself by @{found}; use a table."


@pytest.mark.parametrize("folder", PACKAGES)
def test_modules_fit_in_a_head(folder: str) -> None:
    for path in files(folder):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines, more than {MAX_LINES}: split it."


def test_modules_say_what_they_are() -> None:
    for path in [*files(*PACKAGES), ROOT / "mechscope.py"]:
        assert ast.get_docstring(tree(path)), f"{path.relative_to(ROOT)} has no docstring."


def test_app_modules_carry_no_library_name() -> None:
    # Streamlit puts app/ first on the path: there, `import X` would take app/X.py.
    ours = {path.stem for path in (ROOT / "app").iterdir() if path.suffix == ".py" or path.is_dir()}
    ours -= {"__init__", "__main__", "__pycache__"}
    theirs = {name for name, owners in packages_distributions().items() if set(owners) != {"mechscope"}}
    clash = ours & (theirs | set(sys.stdlib_module_names) | set(PACKAGES))
    assert not clash, f"app/ holds {sorted(clash)}, names of installed libraries: rename them."


def test_the_check_sees_a_chain() -> None:
    assert chain_to("sae.model", {"torch"}) == ["sae.model", "torch"]
    assert chain_to("sae.config", {"torch"}) is None
