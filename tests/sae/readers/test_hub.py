"""The hub, with a stand-in: what is fetched, what is refused, and that nothing is uploaded without a token."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors

from sae.readers import fetch, publish, read_dictionary
from sae.readers.hub import parse
from tests.sae.readers import layouts


class Hub:
    """A hub with one repository; it remembers what it is asked for."""

    def __init__(self, folder: Path, commit: Path) -> None:
        self.folder, self.commit = folder, commit
        self.fetched: list[str] = []

    def names(self, repository: str, revision: str | None = None) -> list[str]:
        if repository != "user/dictionaries":
            # Its constructor wants the answer of an HTTP library that differs between versions.
            raise errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)
        return [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()]

    def snapshot(self, repository: str, revision: str | None = None, allow_patterns: Any = None, **_: Any) -> str:
        for name in self.names(repository):
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                self.fetched.append(name)
                (self.commit / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.folder / name, self.commit / name)
        return str(self.commit)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    one = Hub(tmp_path / "hub", tmp_path / "snapshots" / ("c" * 40))
    layouts.write_lens(one.folder / "gpt2" / "layer_2", layouts.LENS["standard"])
    (one.folder / "gpt2" / "layer_2" / "optimizer.pt").write_bytes(b"x")
    (one.folder / "README.md").write_text("hello")
    (one.folder / "old").mkdir()
    (one.folder / "old" / "ae.pt").write_bytes(b"x")
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", one.names)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", one.snapshot)
    return one


def test_only_the_files_of_the_dictionary_are_fetched(hub: Hub) -> None:
    folder, commit = fetch("user/dictionaries/gpt2/layer_2")
    assert commit == "c" * 40
    assert sorted(hub.fetched) == ["gpt2/layer_2/cfg.json", "gpt2/layer_2/sae_weights.safetensors"]
    assert read_dictionary(folder)[0] == "sae-lens"


def test_a_folder_of_this_machine_never_asks_the_hub(tmp_path: Path, no_network: None) -> None:
    folder = layouts.write_lens(tmp_path / "user" / "name", layouts.LENS["standard"])
    assert fetch(str(folder)) == (folder, None)
    with pytest.raises(ValueError, match="revision='main' is for hub repositories"):
        fetch(str(folder), "main")
    with pytest.raises(ValueError, match="is a file; give the folder"):
        fetch(str(folder / "cfg.json"))
    with pytest.raises(ValueError, match="There is no folder ./absent"):
        fetch("./absent")


def test_folders_without_a_dictionary_name_those_that_have_one(hub: Hub) -> None:
    with pytest.raises(ValueError, match="no dictionary in its top folder. Folders with one: gpt2/layer_2"):
        fetch("user/dictionaries")
    with pytest.raises(ValueError, match=r"old/ae\.pt is a pickle.*weights_only=True"):
        fetch("user/dictionaries/old")
    with pytest.raises(ValueError, match="The hub knows no repository user/other"):
        fetch("user/other")
    assert hub.fetched == []


@pytest.mark.parametrize(
    "name", ["user", "user/../../etc", "user/name/../x", "user/name//x", "user/na me", "user/.git", "user/name/*"]
)
def test_names_that_are_no_place_on_the_hub_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no dictionary; give a folder of this machine, or user/repository"):
        parse(name)


def test_without_a_network_the_cache_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, local_files_only: bool, **__: Any) -> str:
        assert local_files_only
        raise errors.LocalEntryNotFoundError("no")

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(ValueError, match="user/name is not in the hub's cache on this machine"):
        fetch("user/name")


class Api:
    """What `HfApi` is asked to do."""

    calls: list[Any] = []  # noqa: RUF012

    def __init__(self, token: str) -> None:
        self.calls.append(("token", token))

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", repository, private, exist_ok))

    def create_commit(self, repository: str, operations: list[Any], *, commit_message: str) -> None:
        if repository == "user/full":
            raise OSError("quota")
        self.calls.append(("commit", repository, [one.path_in_repo for one in operations]))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[Api]:
    monkeypatch.setattr(Api, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    return Api


def test_publishing_uploads_the_files_and_nothing_else(tmp_path: Path, api: type[Api], no_network: None) -> None:
    folder = layouts.write_lens(tmp_path / "d", layouts.LENS["standard"])
    paths = [folder / "cfg.json", folder / "sae_weights.safetensors"]
    torch.save({}, folder / "secret.pt")
    assert publish(paths, "user/name/layer_2") == "https://huggingface.co/user/name"
    assert api.calls == [
        ("token", "hf_x"),
        ("create", "user/name", True, True),
        ("commit", "user/name", ["layer_2/cfg.json", "layer_2/sae_weights.safetensors"]),
    ]
    publish(paths, "user/name", public=True)
    assert ("create", "user/name", False, True) in api.calls
    with pytest.raises(ValueError, match="The hub did not take user/full: quota"):
        publish(paths, "user/full")


def test_nothing_is_uploaded_without_a_token(
    tmp_path: Path, api: type[Api], monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match="Publishing needs a token of the hub"):
        publish([tmp_path / "x"], "user/name")
    assert api.calls == []
