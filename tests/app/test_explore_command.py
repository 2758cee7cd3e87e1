"""`mechscope explore`: settings, ports, the process."""

from __future__ import annotations

import socket
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from app.commands import explore
from app.commands.explore import SETTINGS, Args, choose_port, start

ROOT = Path(__file__).resolve().parents[2]


def test_the_flags_are_the_settings_of_the_checkout() -> None:
    sections = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())

    def flat(keys: dict[str, Any], before: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in keys.items():
            found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
        return found

    assert flat(sections, "") == SETTINGS


def test_both_themes_say_the_same_things() -> None:
    names = [{key.split(".")[2] for key in SETTINGS if key.startswith(f"theme.{one}.")} for one in ("light", "dark")]
    assert names[0] == names[1] != set()
    assert "theme.base" not in SETTINGS  # it would keep the browser from choosing


def test_nothing_but_this_machine_may_connect() -> None:
    assert SETTINGS["server.address"] == "127.0.0.1"
    assert set(SETTINGS["server.allowedHosts"]) == {"localhost", "127.0.0.1"}
    assert SETTINGS["client.showErrorDetails"] == "type"


def test_a_taken_port_is_refused_when_asked_for_and_avoided_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"Port {port} is taken; leave --port out"):
            choose_port(port)
        monkeypatch.setattr(explore, "PORT", port)
        assert choose_port(None) != port


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match=f"port must lie in 1..65535, got {port}"):
        choose_port(port)


def test_a_file_is_no_folder_of_runs(tmp_path: Path) -> None:
    file = tmp_path / "runs"
    file.write_text("")
    with pytest.raises(ValueError, match="is a file; --runs takes the folder"):
        explore.run(Args(runs=file, browser=False))


def test_it_serves_from_any_folder_and_only_for_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise RuntimeError('the wrong app')")
    monkeypatch.chdir(tmp_path)
    process = start(tmp_path / "runs")
    try:
        process.wait_ready()
        with urllib.request.urlopen(process.url, timeout=10) as answer:
            assert b"<html" in answer.read()
        port = int(process.url.rsplit(":", 1)[1])
        assert handshake(port, f"127.0.0.1:{port}") == 101
        assert handshake(port, "evil.example") == 403
    finally:
        process.stop()
    assert process.poll() is not None
    process.stop()


def handshake(port: int, host: str) -> int:
    """Return the status with which the server answers a websocket handshake for `host`."""
    lines = [
        "GET /_stcore/stream HTTP/1.1",
        f"Host: {host}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return int(connection.recv(64).split()[1])


def test_a_server_that_ends_at_once_is_reported() -> None:
    process = explore.Explorer([sys.executable, "-c", "raise SystemExit(3)"], stderr=subprocess.DEVNULL)
    process.url = "http://127.0.0.1:1"
    with pytest.raises(OSError, match="ended at once with status 3"):
        process.wait_ready(30)
