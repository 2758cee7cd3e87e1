"""Dictionaries on the Hugging Face hub: fetched by id and folder, published only when asked, with the user's token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from interp.names import shorten
from interp.runs.files import shown
from sae.readers.dictionary_learning import CONVERT, PICKLE
from sae.readers.formats import FORMATS

PART = re.compile(r"[A-Za-z0-9_][\w.-]*")
"""One part of an id or of a folder on the hub."""

FORM = "a folder of this machine, or user/repository[/folder/in/it] on the hub"


def parse(source: str) -> tuple[str, str]:
    """Return (repository, folder in it, "" for its top) of `user/repository/folder`.

    Raises:
        ValueError: it is no such name.
    """
    parts = source.strip().rstrip("/").split("/")
    if len(parts) < 2 or not all(PART.fullmatch(part) and ".." not in part for part in parts):
        raise ValueError(f"{shorten(source)} is no dictionary; give {FORM}.")
    return "/".join(parts[:2]), "/".join(parts[2:])


def fetch(source: str, revision: str | None = None) -> tuple[Path, str | None]:
    """Return (folder with the files of one dictionary, commit on the hub or None for a folder of this machine).

    Only the files that a format is made of are fetched.

    Raises:
        ValueError: there is no such folder or repository, it cannot be reached, or it holds no dictionary.
    """
    local = Path(source).expanduser()
    if local.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for hub repositories; {source!r} is on this machine.")
        return local, None
    if local.is_file():
        raise ValueError(f"{shown(local)} is a file; give the folder that holds the dictionary's files.")
    if source.startswith((".", "~", "/")):
        raise ValueError(f"There is no folder {source}; give {FORM}.")
    repository, folder = parse(source)
    top = _snapshot(repository, folder, revision)
    return top / folder if folder else top, top.name


def _snapshot(repository: str, folder: str, revision: str | None) -> Path:
    """Return the folder of a snapshot that holds the wanted files of `folder`."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    inside = PurePosixPath(folder)
    wanted = sorted({str(inside / name) for one in FORMATS.values() for name in one.files})
    wanted.append(str(inside.parent / "config.json"))  # sparsify notes the model one folder up
    try:
        if hub.is_offline_mode():
            return Path(hub.snapshot_download(repository, revision=revision, local_files_only=True))
        _check_names(repository, folder, hub.list_repo_files(repository, revision=revision))
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except errors.LocalEntryNotFoundError as error:
        raise ValueError(
            f"{repository} is not in the hub's cache on this machine, and the hub cannot be reached."
        ) from error
    except errors.GatedRepoError as error:
        raise ValueError(f"{repository} is gated: accept its terms on the hub, then set HF_TOKEN.") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"The hub repository {repository} has no revision {revision!r}.") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(f"The hub knows no repository {repository}, or it is private (set HF_TOKEN).") from error
    except ValueError:
        raise
    except Exception as error:  # a dead network: the HTTP library below, and its errors, differ between versions
        raise ValueError(f"{repository} could not be fetched from the hub ({type(error).__name__}).") from error


def _check_names(repository: str, folder: str, names: Sequence[str]) -> None:
    """Refuse a folder on the hub without a dictionary, naming those that have one."""
    weights = {one.files[-1] for one in FORMATS.values()}
    prefix = f"{folder}/" if folder else ""
    if any(prefix + name in names for name in weights):
        return
    if prefix + PICKLE in names:
        raise ValueError(
            f"{repository}/{prefix}{PICKLE} is a pickle, which can run code when opened, and is never read. Download "
            f"its folder and convert it there yourself: {CONVERT} Then import that folder."
        )
    others = sorted({str(PurePosixPath(name).parent) for name in names if PurePosixPath(name).name in weights})
    near = [name for name in others if name.startswith(prefix)] or others
    listed = ", ".join(near[:5]) + (f" and {len(near) - 5} more" if len(near) > 5 else "")
    raise ValueError(
        f"{repository} has no dictionary in {folder or 'its top folder'}. Folders with one: {listed or 'none'}."
    )


def ready(repository: str) -> tuple[str, str, str]:
    """Return (repository, folder in it, token) for publishing.

    Raises:
        ValueError: the name is none, or this machine has no token.
    """
    import huggingface_hub as hub

    name, folder = parse(repository)
    token = hub.get_token()
    if not token:
        raise ValueError("Publishing needs a token of the hub: run `hf auth login`, or set HF_TOKEN, and repeat.")
    return name, folder, token


def publish(paths: Sequence[Path], repository: str, *, public: bool = False) -> str:
    """Upload files to a repository of the hub, made where it is missing, and return its address.

    Args:
        paths: what to upload; nothing else is.
        repository: user/name, or user/name/folder.
        public: whether a repository that is made now can be read by everybody.

    Raises:
        ValueError: the name is none, there is no token, or the hub refuses.
    """
    import huggingface_hub as hub

    name, folder, token = ready(repository)
    api = hub.HfApi(token=token)
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        additions = [hub.CommitOperationAdd("/".join(filter(None, (folder, path.name))), path) for path in paths]
        api.create_commit(name, additions, commit_message="Add a sparse dictionary")
    except Exception as error:  # of the network or the hub; their classes differ between versions
        raise ValueError(f"The hub did not take {name}: {' '.join(str(error).split())[:300]}") from error
    return f"https://huggingface.co/{name}"
