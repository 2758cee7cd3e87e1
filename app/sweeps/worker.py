"""A process that works off cells: one JSON object per line on stdin, one per line back on stdout, until stdin ends.

Whatever the cells say goes to their own log files. When the sweep that started it is gone, however it went, stdin ends:
the cell in hand is stopped as by Ctrl-C, which leaves a checkpoint, and the process ends.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from app import console
from app.sweeps.mirror import Mirror, MirrorConfig
from app.sweeps.programs import open_program


def main() -> int:
    """Serve until stdin ends."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # nothing but answers reaches the sweep
        requests: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        busy = threading.Event()
        threading.Thread(target=_listen, args=(requests, busy), daemon=True).start()
        try:
            while (request := requests.get()) is not None:
                busy.set()
                answer = execute(request)
                busy.clear()
                answers.write(json.dumps(answer) + "\n")
                answers.flush()
        except (KeyboardInterrupt, BrokenPipeError):
            return 130
    return 0


def execute(request: dict[str, Any]) -> dict[str, Any]:
    """Do one cell; return {"status": "finished", "runs", "metrics"}, or "failed" with its error."""
    _log_to(Path(request["log"]))
    runs = Path(request["runs"]) if request.get("runs") else None
    try:
        with (
            console.json_output(),  # tables belong into the log too
            Mirror(MirrorConfig(**request["mirror"]), request["parameters"], runs) as mirror,
        ):
            found = open_program(request["program"]).run_cell(request["parameters"], runs, mirror)
    except Exception as error:
        traceback.print_exc()
        return {"status": "failed", "error": message(error)}
    return {"status": "finished", **found}


def message(error: Exception) -> str:
    """Return what went wrong in one line; the name of the error where its text was not written for people."""
    text = " ".join(str(error).split())
    return text if text and isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}".rstrip(": ")


def _listen(requests: queue.SimpleQueue[dict[str, Any] | None], busy: threading.Event) -> None:
    """Hand on requests; at the end of stdin stop the cell in hand, if there is one."""
    rest = b""
    while piece := os.read(0, 65536):  # not sys.stdin: a thread that waits in it would block the interpreter's end
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            requests.put(json.loads(line))
    requests.put(None)
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGINT)


def _log_to(path: Path) -> None:
    """Send stdout and stderr to the end of the file `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)


if __name__ == "__main__":
    sys.exit(main())
