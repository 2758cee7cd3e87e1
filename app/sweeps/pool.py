"""Worker processes for the cells of a sweep: each takes one cell after the other; one that dies costs its cell only."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.command import ALLOCATOR

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PATIENCE = 60.0
"""Seconds that stopped workers have for their checkpoints."""


def worker_command() -> list[str]:
    """Return the command line of a worker."""
    return [sys.executable, "-m", "app.sweeps.worker"]


def worker_environment(threads: int) -> dict[str, str]:
    """Return the environment of a worker with its share of threads and the allocator setting of long commands."""
    checkout = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(part for part in (checkout, os.environ.get("PYTHONPATH", "")) if part)
    kept = ALLOCATOR if sys.platform == "linux" and not any(key in os.environ for key in ALLOCATOR) else {}
    return {
        **os.environ,
        **kept,
        **dict.fromkeys(THREADS, str(threads)),
        "PYTHONPATH": path,
        "PYTHONSAFEPATH": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


class Pool:
    """Workers that answer requests in any order."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], workers: int, log: Path) -> None:
        """Start `workers` of `command` when there is work; what they say outside of cells goes to `log`."""
        self.command, self.environment, self.workers, self.log = list(command), dict(environment), workers, log
        self._todo: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[dict[str, Any], dict[str, Any]]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._processes: list[subprocess.Popen[str]] = []

    def work(self, requests: Sequence[dict[str, Any]]) -> Generator[tuple[dict[str, Any], dict[str, Any]], None, None]:
        """Yield (request, answer) as answers come; an answer has "status", "seconds" and what the worker said.

        Leaving the loop early (Ctrl-C) stops the workers and waits until they have saved what they were at.
        """
        for request in requests:
            self._todo.put(request)
        count = min(self.workers, len(requests))
        threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        complete = False
        try:
            for _ in requests:
                yield self._done.get()
            complete = True
        finally:
            self._stopping.set()
            if not complete:
                self._stop()
            for thread in threads:
                thread.join()
            for process in self._processes:
                _let_go(process)

    def _serve(self) -> None:
        """Feed one worker, and a new one whenever that has died, until there is nothing left to do."""
        process: subprocess.Popen[str] | None = None
        while not self._stopping.is_set():
            try:
                request = self._todo.get_nowait()
            except queue.Empty:
                break
            started = time.monotonic()
            try:
                if process is None:
                    process = self._start()
                line = _ask(process, request)
            except OSError as error:  # no more processes, or no such program
                line, answer = "", {"status": "failed", "error": f"No worker could be started: {error}"}
            else:
                answer = json.loads(line) if line else None
            if answer is None and process is not None:
                answer = {"status": "failed", "error": _death(process.wait(), request.get("log"))}
                process = None  # the next cell gets a new one
            self._done.put((request, (answer or {}) | {"seconds": round(time.monotonic() - started, 2)}))
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()  # nothing more to do: it ends

    def _start(self) -> subprocess.Popen[str]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
                text=True,
                start_new_session=True,  # Ctrl-C reaches a worker once, from the sweep
            )
        self._processes.append(process)
        return process

    def _stop(self) -> None:
        """Ask the workers to stop, wait for their checkpoints, and end those that take too long."""
        living = [process for process in self._processes if process.poll() is None]
        for process in living:
            with contextlib.suppress(OSError):
                process.send_signal(signal.SIGINT)
        end = time.monotonic() + PATIENCE
        for process in living:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _ask(process: subprocess.Popen[str], request: dict[str, Any]) -> str:
    """Return the worker's answer to `request`; "" where it died."""
    if process.stdin is None or process.stdout is None:
        raise OSError("the worker has no pipes")
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    return ""


def _let_go(process: subprocess.Popen[str]) -> None:
    """Wait for the end of a process that was told to end, and close its pipes."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _death(code: int, log: str | None) -> str:
    """Return how a worker ended, for the record of its cell."""
    seen = f"; its last words are in {log}" if log else ""
    if code < 0:
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
        memory = " (the system does that when memory is full)" if name == "SIGKILL" else ""
        return f"The worker was ended by {name}{memory}{seen}."
    return f"The worker ended with status {code}{seen}."
