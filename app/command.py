"""The `mechscope` command: a static table of commands, each read from a frozen dataclass by tyro when it is called.

A command is a module in `app/commands/` with `Args` (a frozen dataclass that inherits `Common`, or a union of such for
subcommands) and `run(args) -> dict | None`. The dictionary is the result: its `run` is printed as the last line, all of
it as one JSON object with `--json`, and `{"ok": False}` in it makes the exit status 1.

Exit status: 0 done, 1 something is wrong, 2 the request is, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import console

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("app.commands.demo", "Capture, train, evaluate, describe features and explore, on the embedded model."),
    "doctor": ("app.commands.doctor", "Look at the installation, the machine and the caches; say what to repair."),
    "models": ("app.commands.models", "List models and their sites, show a model's card, compare its two views."),
    "capture": ("app.commands.capture", "Write the activations of a model at some sites to disk."),
    "train": ("app.commands.train", "Train a sparse dictionary on the activations of a model."),
    "evaluate": ("app.commands.evaluate", "Measure a dictionary inside its model: FVU, L0, loss recovered."),
    "features": ("app.commands.features", "Describe every latent: density, examples, logits, neighbours."),
    "steer": ("app.commands.steer", "Clamp, ablate or add one latent: next tokens before and after, KL."),
    "attribute": ("app.commands.attribute", "Find what makes a model do a task: patching, AtP, RelP, LRP, latents."),
    "probe": ("app.commands.probe", "Probe what a model knows at which layer: sweeps, Concept Depth, controls."),
    "edit": ("app.commands.edit", "Edit an attribute inside a model by a probe, a difference in means, or CASAL."),
    "import": ("app.commands.import_", "Take in a dictionary of sae-lens, Gemma Scope, sparsify, dictionary_learning."),
    "export": ("app.commands.export", "Write a dictionary for sae-lens or sparsify; publish it on the hub."),
    "compress": ("app.commands.compress", "Compress a model by a recipe: bits, coverage, error; save the copy."),
    "compare": ("app.commands.compare", "Compare two models inside: outputs, drift, features, heads, lens."),
    "layers": ("app.commands.layers", "Profile a model layer by layer: stream, geometry, lenses, heads, importance."),
    "sweep": ("app.commands.sweep", "Run many trainings from one file in wandb's schema; tell which are best."),
    "runs": ("app.commands.runs", "List, show and verify runs."),
    "explore": ("app.commands.explore", "Open the explorer on a folder of runs."),
}

HEAVY = frozenset(
    {"demo", "capture", "train", "evaluate", "features", "attribute", "probe", "compare", "layers", "sweep"}
)
"""Commands that compute for long: they start under the allocator setting below and resume after Ctrl-C."""

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
"""glibc maps every large tensor anew and faults its pages in again at each step; kept in the heap, training on a CPU
is 16 to 46% faster. glibc reads these only when a process starts."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options that every command has."""

    runs: Path | None = None
    """Folder of the runs; $MECHSCOPE_RUNS, else ./runs, unless given."""
    json: bool = False
    """Print one JSON object as the last line, and nothing else on stdout."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (that of the process unless given) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character is no reason to fail
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    name = arguments[0] if arguments else "--help"
    if argv is None and name in HEAVY and not {"-h", "--help"} & set(arguments):
        restart_with_allocator()
    return _guarded(lambda: _dispatch(name, arguments[1:]), name)


def usage() -> str:
    """Return the text of `mechscope --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mechscope COMMAND [OPTIONS]",
            "",
            "Look inside transformer language models.",
            "",
            "Commands:",
            *lines,
            "",
            "`mechscope COMMAND --help` lists a command's options; `mechscope --version` prints the version.",
            "Start with `mechscope demo`: the whole job on an embedded model, no download.",
        ]
    )


def _dispatch(name: str, arguments: list[str]) -> int:
    if name in ("-h", "--help"):
        console.emit(usage())
        return 0
    if name in ("-V", "--version"):
        from mechscope import __version__

        console.emit(__version__)
        return 0
    if name not in COMMANDS:
        from interp.names import unknown

        options = ["--help", "--version"]
        raise ValueError(unknown(*(("option", name, options) if name.startswith("-") else ("command", name, COMMANDS))))
    module = importlib.import_module(COMMANDS[name][0])
    args = getattr(module, "parse", parse)(module.Args, arguments, prog=f"mechscope {name}")
    with console.json_output(args.json):
        result = module.run(args)
    console.result(result, args.json)
    return 1 if result and result.get("ok") is False else 0


def parse(cls: Any, arguments: Sequence[str], prog: str) -> Any:
    """Return an instance of `cls` (a dataclass or a union of them) from `arguments`.

    Raises:
        SystemExit: with status 0 after `--help`, 2 after a message about an unknown or malformed option.
    """
    import tyro

    return tyro.cli(cls, args=list(arguments), prog=prog, config=(tyro.conf.FlagCreatePairsOff,))


def _guarded(job: Callable[[], int], name: str) -> int:
    """Return what `job` returns; turn what goes wrong into one line on stderr and an exit status."""
    debug = os.environ.get("MECHSCOPE_DEBUG", "") not in ("", "0")
    try:
        return job()
    except SystemExit as stop:  # tyro has written its message
        if isinstance(stop.code, str):
            console.error(stop.code)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        console.error("stopped; the same command resumes it" if name in HEAVY else "stopped")
        return 130
    except BrokenPipeError:
        # The reader has left (`| head`): nothing to say, and nothing to flush into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except (ValueError, OSError) as problem:
        if debug:
            traceback.print_exc()
        console.error(_message(problem))
        return 2
    except MemoryError:
        console.error("the memory is full; take a smaller batch, context or dictionary.")
        return 1
    except Exception as problem:
        if debug:
            traceback.print_exc()
        what = " ".join(f"{type(problem).__name__}: {problem}".split())
        console.error(f"unexpected {what}" + ("" if debug else "; set MECHSCOPE_DEBUG=1 for the traceback."))
        return 1


def _message(problem: ValueError | OSError) -> str:
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {problem.filename}" if problem.filename else ""
        return f"the disk is full{where}. Free some space and give the same command again; finished runs are intact."
    if isinstance(problem, OSError) and problem.strerror and problem.filename is not None:
        return f"{problem.filename}: {problem.strerror}"
    return str(problem) or type(problem).__name__


def restart_with_allocator(*, insist: bool = False) -> None:
    """Start this process again, once, under the allocator setting.

    Whoever set a part of it keeps theirs, unless this is to `insist` (measurements do).
    """
    theirs = any(key in os.environ for key in ALLOCATOR)
    if insist:
        theirs = all(os.environ.get(key) == value for key, value in ALLOCATOR.items())
    if sys.platform == "linux" and sys.executable and not theirs:
        os.environ.update(ALLOCATOR)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
