"""`mechscope explore`: the explorer on a folder of runs, in a browser on this machine only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import console
from app.command import Common
from interp.runs import runs_root

ADDRESS = "127.0.0.1"
PORT = 8501
READY_WITHIN = 60.0  # seconds; the first start on a slow disk imports for a while

SETTINGS: dict[str, bool | int | str | list[str]] = {
    "server.address": ADDRESS,
    "server.allowedHosts": ["localhost", ADDRESS],
    "server.headless": True,
    "server.fileWatcherType": "none",
    "server.maxUploadSize": 20,
    "browser.gatherUsageStats": False,
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "type",
    "theme.light.primaryColor": "#2f6f9f",
    "theme.light.backgroundColor": "#fdfdfe",
    "theme.light.secondaryBackgroundColor": "#f3f5f7",
    "theme.light.textColor": "#1c2733",
    "theme.light.borderColor": "#dde3e8",
    "theme.dark.primaryColor": "#4aa3e0",
    "theme.dark.backgroundColor": "#14181d",
    "theme.dark.secondaryBackgroundColor": "#1e252c",
    "theme.dark.textColor": "#e3e8ee",
    "theme.dark.borderColor": "#323b45",
    "theme.baseFontSize": 14,
    "theme.baseRadius": "small",
}
"""What `.streamlit/config.toml` says too; given as flags, because that file is found only from the checkout."""


@dataclass(frozen=True)
class Args(Common):
    """Open the explorer on a folder of runs; Ctrl-C ends it."""

    port: int | None = None
    """Port on 127.0.0.1; None takes 8501, or a free one where that is taken."""
    browser: bool = True
    """Open the page in a browser."""


class Explorer(subprocess.Popen[bytes]):
    """The explorer's process, with its address."""

    url: str
    """Where it answers, such as "http://127.0.0.1:8501"."""

    def wait_ready(self, seconds: float = READY_WITHIN) -> None:
        """Return when it answers.

        Raises:
            OSError: it ended, or did not answer in time.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.poll() is not None:
                raise OSError(f"The explorer ended at once with status {self.returncode}; its message stands above.")
            try:
                with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise OSError(
            f"The explorer did not answer at {self.url} within {seconds:.0f} s; try again, or another --port."
        )

    def stop(self) -> None:
        """End it, politely first; again is harmless."""
        if self.poll() is None:
            self.terminate()
            try:
                self.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()
                self.wait()


def start(runs: Path, port: int | None = None) -> Explorer:
    """Start the explorer on the folder `runs` and return its process at once; `wait_ready` waits until it answers.

    Raises:
        ValueError: `port` is taken or no port.
    """
    chosen = choose_port(port)
    flags = [f"--{key}={_flag(item)}" for key, value in SETTINGS.items() for item in _items(value)]
    main = Path(__file__).resolve().parent.parent / "main.py"
    command = [sys.executable, "-m", "streamlit", "run", str(main), f"--server.port={chosen}", *flags]
    # The checkout comes first on the path, whatever the current folder holds.
    path = os.pathsep.join(part for part in (str(main.parent.parent), os.environ.get("PYTHONPATH", "")) if part)
    environment = {**os.environ, "MECHSCOPE_RUNS": str(runs_root(runs)), "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    process = Explorer(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    process.url = f"http://{ADDRESS}:{chosen}"
    return process


def choose_port(wanted: int | None) -> int:
    """Return `wanted` if it is free; for None the usual port, or any free one.

    Raises:
        ValueError: `wanted` is taken or no port.
    """
    if wanted is not None:
        if not 1 <= wanted <= 65535:
            raise ValueError(f"port must lie in 1..65535, got {wanted}.")
        if not _free(wanted):
            raise ValueError(f"Port {wanted} is taken; leave --port out to get a free one.")
        return wanted
    if _free(PORT):
        return PORT
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


def run(args: Args) -> dict[str, Any]:
    """Serve until Ctrl-C or until the server ends; return the address it had."""
    root = runs_root(args.runs)
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file; --runs takes the folder that holds the runs.")
    process = start(root, args.port)
    try:
        process.wait_ready()
        console.emit(f"The explorer shows {root} at {process.url} (Ctrl-C ends it)")
        if args.browser:
            webbrowser.open(process.url)
        status = process.wait()
    finally:
        process.stop()
    return {"url": process.url, "ok": status == 0}


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except (OSError, OverflowError):
            return False
    return True


def _items(value: bool | int | str | list[str]) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _flag(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
