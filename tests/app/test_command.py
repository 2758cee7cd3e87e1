"""The command line: dispatch, help, messages, exit statuses."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app import command, console
from app.command import ALLOCATOR, COMMANDS, HEAVY, Common, main

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Inner:
    """A nested configuration."""

    rule: str = "topk"
    """Sparsity rule."""
    k: int = 32
    """Active latents per token."""

    def __post_init__(self) -> None:
        if self.k > 64:
            raise ValueError(f"k must lie in 1..64, got {self.k}.")


@dataclass(frozen=True)
class Args(Common):
    """A command of the tests."""

    sae: Inner = Inner()
    """The dictionary."""
    explore: bool = True
    """Open the explorer."""


def outcome(args: Args) -> dict[str, Any] | None:
    console.emit("some text")
    return {"run": "sae/x-12345678", "fvu": 0.25, "k": args.sae.k, "explore": args.explore}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A command `fake` whose `run` a test may replace."""
    module = types.ModuleType("fake_command")
    module.Args, module.run = Args, outcome  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_command", module)
    monkeypatch.setitem(COMMANDS, "fake", ("fake_command", "A command of the tests."))
    monkeypatch.delenv("MECHSCOPE_DEBUG", raising=False)
    return module


def failing(module: types.ModuleType, error: BaseException) -> None:
    def run(args: Args) -> dict[str, Any] | None:
        raise error

    module.run = run  # type: ignore[attr-defined]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for name, (_, summary) in COMMANDS.items():
        assert f"  {name} " in out
        assert summary in out


def test_every_command_has_a_module() -> None:
    for name, (module, summary) in COMMANDS.items():
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), f"{name}: {module} is missing"
        assert summary.endswith(".")
    assert set(COMMANDS) > HEAVY


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import mechscope

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == mechscope.__version__ + "\n"


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mechscope: Unknown command 'trian'; did you mean 'train'? Known: attribute, capture, ")


def test_unknown_option_before_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--hlep"]) == 2
    assert "did you mean '--help'?" in capsys.readouterr().err


def test_the_run_is_the_last_line(fake: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fake"]) == 0
    assert capsys.readouterr().out == "some text\nsae/x-12345678\n"


def test_json_is_all_there_is_on_stdout(fake: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fake", "--json", "--sae.k", "8", "--no-explore"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"run": "sae/x-12345678", "fvu": 0.25, "k": 8, "explore": False}
    assert err == "some text\n"


def test_options_have_help(fake: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fake", "--help"]) == 0
    out = capsys.readouterr().out
    for text in ("--runs", "--json", "--sae.k INT", "Active latents per token.", "--no-explore"):
        assert text in out


def test_unknown_key_names_the_nearest(fake: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fake", "--sae.rul", "topk"]) == 2
    err = capsys.readouterr().err
    assert "--sae.rul" in err
    assert "Perhaps you meant" in err
    assert "--sae.rule STR" in err


def test_a_value_that_a_configuration_refuses(fake: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fake", "--sae.k", "65"]) == 2
    assert "k must lie in 1..64, got 65." in capsys.readouterr().err


def test_a_result_that_is_not_ok_is_status_1(fake: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    fake.run = lambda args: {"ok": False}  # type: ignore[attr-defined]
    assert main(["fake"]) == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("k must lie in 1..16, got 40."), 2, "mechscope: k must lie in 1..16, got 40.\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.txt"), 2, "mechscope: a.txt: No such file\n"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 2, "the disk is full while writing runs/x. Free "),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "the disk is full. Free some space"),
        (KeyError("W_dec"), 1, "unexpected KeyError: 'W_dec'; set MECHSCOPE_DEBUG=1 for the traceback.\n"),
        (RuntimeError("two\nlines"), 1, "unexpected RuntimeError: two lines; set"),
        (MemoryError(), 1, "the memory is full"),
        (SystemExit("gone"), 1, "mechscope: gone\n"),
        (KeyboardInterrupt(), 130, "mechscope: stopped\n"),
    ],
)
def test_errors_are_one_line_without_a_traceback(
    fake: types.ModuleType, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, text: str
) -> None:
    failing(fake, error)
    assert main(["fake"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_debug_shows_the_traceback(
    fake: types.ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MECHSCOPE_DEBUG", "1")
    failing(fake, KeyError("W_dec"))
    assert main(["fake"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("mechscope: unexpected KeyError: 'W_dec'\n")


def test_stopping_long_work_says_that_it_resumes(
    fake: types.ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "HEAVY", frozenset({"fake"}))
    failing(fake, KeyboardInterrupt())
    assert main(["fake"]) == 130
    assert capsys.readouterr().err == "mechscope: stopped; the same command resumes it\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "import sys; from app.command import main; sys.exit(main(['--help']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


def test_a_terminal_without_the_characters_is_no_error() -> None:
    code = "from app import command, console; command.main(['--version']); console.emit('\\u4f60\\u00e9')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "\\u4f60\\xe9"


class Restarted(Exception):
    """Raised in place of the new process."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines with which the process was to be replaced."""
    lines: list[list[str]] = []

    def execv(program: str, arguments: list[str]) -> None:
        lines.append([program, *arguments])
        raise Restarted

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "app", "train"])
    for key in ALLOCATOR:
        monkeypatch.setenv(key, "before")  # so that the end of the test puts back what was there
        monkeypatch.delenv(key)
    return lines


def test_heavy_commands_start_again_with_the_allocator_setting(started: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mechscope", "train"])
    with pytest.raises(Restarted):
        main()
    assert started == [[sys.executable, sys.executable, "-m", "app", "train"]]
    assert {key: os.environ[key] for key in ALLOCATOR} == ALLOCATOR


@pytest.mark.parametrize("argv", [["mechscope", "train", "--help"], ["mechscope", "--version"]])
def test_light_commands_do_not_start_again(started: list, monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    main()
    assert started == []


def test_an_allocator_setting_of_the_user_is_kept(started: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    command.restart_with_allocator()
    assert started == []
    assert "MALLOC_MMAP_MAX_" not in os.environ
