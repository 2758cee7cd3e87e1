"""`mechscope runs`: list what has been made, show one run with its lineage, verify the hashes of every file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from app import console
from app.command import Common
from interp.runs import Run, RunError, children, damaged_runs, find_runs, lineage, locate, runs_root, verify_run
from interp.runs.files import shown

State = Literal["finished", "running", "interrupted", "failed", "damaged"]


@dataclass(frozen=True, kw_only=True)
class List(Common):
    """List the runs, newest first, with what is unfinished or damaged and why."""

    kind: str | None = None
    """Only this kind, such as sae, activations, evaluation or features."""
    state: State | None = None
    """Only runs in this state."""


@dataclass(frozen=True, kw_only=True)
class Show(Common):
    """Show one run: its configuration, results, files, and what it was made from and for."""

    ref: tyro.conf.Positional[str]
    """The run: KIND/NAME, a name, at least four digits of its id, or its folder."""


@dataclass(frozen=True, kw_only=True)
class Verify(Common):
    """Read every byte of finished runs and compare with their manifests; exit with 1 when something differs."""

    refs: tyro.conf.Positional[tuple[str, ...]] = ()
    """The runs, named as for `show`; without any, all that are finished or damaged."""


Args = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
)


def run(args: List | Show | Verify) -> dict[str, Any]:
    """Do what the subcommand says; return what it printed."""
    if isinstance(args, List):
        return _list(args)
    return _show(args) if isinstance(args, Show) else _verify(args)


def _list(args: List) -> dict[str, Any]:
    root = runs_root(args.runs)
    everything = [_entry(found) for found in find_runs(root)]
    everything += [
        {"ref": _ref(path), "kind": path.parent.name, "status": "damaged", "made": "", "note": _inner(path, reason)}
        for path, reason in damaged_runs(root)
    ]
    wanted = [
        entry for entry in everything if args.kind in (None, entry["kind"]) and args.state in (None, entry["status"])
    ]
    if wanted:
        console.table(
            ["run", "state", "made", "what"], [[e["ref"], e["status"], e["made"][:16], e["note"][:100]] for e in wanted]
        )
    elif everything:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(e["kind"] for e in everything).items()))
        console.emit(f"No run matches; {root} holds {kinds}.")
    else:
        console.emit(f"No runs in {root} yet. `mechscope demo` makes some; --runs names another folder.")
    return {"root": str(root), "runs": wanted}


def _entry(found: Run) -> dict[str, Any]:
    """Return one row of the list."""
    status = found.status
    if status == "finished":
        note = _headline(found.summary)
    elif status == "failed":
        note = str(found.info.get("error", ""))
    else:
        note = _progress(found) or "just begun"
        if status == "interrupted":
            note += "; the same command resumes it"
    return {
        "ref": found.ref,
        "kind": found.kind,
        "status": status,
        "made": found.info["created"],
        "note": note,
        "path": str(found.path),
        "parents": found.parents,
        "summary": found.summary,
    }


def _headline(summary: dict[str, Any], most: int = 5) -> str:
    """Return the first numbers of a summary on one line."""
    numbers = [(k, v) for k, v in summary.items() if isinstance(v, int | float) and not isinstance(v, bool)]
    return "  ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.4g}" for k, v in numbers[:most])


def _progress(found: Run) -> str:
    """Return how far an unfinished run is."""
    progress = found.info.get("progress")
    if not isinstance(progress, dict) or not isinstance(progress.get("done"), int | float):
        return ""
    total = progress.get("total")
    share = f" of {total:,} ({progress['done'] / total:.0%})" if isinstance(total, int | float) and total > 0 else ""
    return f"{progress['done']:,}{share} {progress.get('unit', '')}".rstrip()


def _show(args: Show) -> dict[str, Any]:
    found = Run.load(locate(args.ref, args.runs))
    above, below = lineage(found, args.runs), children(found, args.runs)
    missing = sorted(set(found.parents) - {parent.ref for parent in above})
    facts = {
        **_entry(found),
        "info": found.info,
        "config": found.config,
        "progress": found.info.get("progress"),
        "files": found.files,
        "lineage": [parent.ref for parent in above],
        "missing_parents": missing,
        "children": [child.ref for child in below],
    }
    _print_head(found)
    relatives = [[f"made from ({a.kind})", a.ref, a.status] for a in above]
    relatives += [["made from", ref, "missing or damaged"] for ref in missing]
    relatives += [[f"used by ({b.kind})", b.ref, b.status] for b in below]
    _section("Lineage", ["", "run", "state"], relatives)
    _section("Summary", ["what", "value"], _flat(found.summary))
    _section("Configuration", ["key", "value"], _flat(found.config))
    _section("Files", ["file", "bytes"], [[name, size] for name, size in found.files.items()])
    return facts


def _print_head(found: Run) -> None:
    """Print name, state, and how the run came to be."""
    info = found.info
    code = info["code"] if isinstance(info.get("code"), dict) else {}
    changed = " with local changes" if code.get("dirty") else ""
    rows = [
        ["run", found.ref],
        ["folder", str(found.path)],
        ["state", found.status],
        ["made", f"{info['created'][:19]} UTC on {info.get('host')} (process {info.get('pid')})"],
        ["code", f"mechscope {code.get('mechscope')}, commit {code.get('commit') or 'unknown'}{changed}"],
        ["python", f"{info.get('python')}, {info.get('platform')}"],
        ["seed", str(info.get("seed"))],
        ["attempts", str(info.get("attempts"))],
    ]
    if not found.finished:
        rows += [["progress", _progress(found) or "none yet"], ["last sign of life", str(info.get("heartbeat"))[:19]]]
    if info.get("error") and not found.finished:
        rows.append(["error", str(info["error"])])
    console.table(["what", "is"], rows)


def _section(title: str, headers: list[str], rows: list[list[Any]]) -> None:
    """Print a titled table; nothing where there are no rows."""
    if rows:
        console.emit(f"\n{title}")
        console.table(headers, rows)


def _flat(value: Any, key: str = "") -> list[list[str]]:
    """Return [dotted key, text] for every leaf of nested objects."""
    if isinstance(value, dict) and value:
        return [row for k, v in value.items() for row in _flat(v, f"{key}.{k}" if key else str(k))]
    text = value if isinstance(value, str) else json.dumps(value)
    return [[key, text if len(text) <= 200 else text[:197] + "..."]] if key else []


def _verify(args: Verify) -> dict[str, Any]:
    root = runs_root(args.runs)
    folders = [locate(ref, root) for ref in args.refs]
    if not args.refs:
        folders = [found.path for found in find_runs(root, finished=True)] + [path for path, _ in damaged_runs(root)]
    problems: dict[str, list[str]] = {}
    for folder in dict.fromkeys(folders):
        try:
            problems[_ref(folder)] = verify_run(folder)
        except RunError as error:
            problems[_ref(folder)] = [str(error)]
    for ref, found in problems.items():
        console.emit(f"{ref}: {'sound' if not found else f'{len(found)} problems' if len(found) > 1 else '1 problem'}")
        for sentence in found:
            console.emit(f"  {sentence}")
    wrong = sum(map(bool, problems.values()))
    console.emit(f"{len(problems)} checked, {wrong} with problems." if problems else f"No finished runs in {root}.")
    return {"ok": not wrong, "checked": len(problems), "problems": problems}


def _inner(folder: Path, reason: str) -> str:
    """Return `reason` without the folder's own path, which the row names already."""
    return reason.replace(f"{shown(folder)}/", "").replace(shown(folder), "the folder")


def _ref(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"
