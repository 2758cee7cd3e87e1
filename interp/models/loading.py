"""From a name to a `ModelHandle`: embedded and compiled models, local Hugging Face folders, hub ids, ready modules.

Embedded, compiled and local names never touch the network. Weights are read from safetensors only: pickled `.bin`
files can run code when they are opened.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from interp.models.compiled.catalog import compiled_models
from interp.models.embedded import embedded_models
from interp.models.handle import ModelHandle
from interp.models.spec import ModelSpec
from interp.models.taps import TAPS
from interp.names import unknown
from interp.types import WeightStep

CONVERT = (
    'python -c "import sys, torch, safetensors.torch as s; '
    "w = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "s.save_file({k: v.clone().contiguous() for k, v in w.items()}, sys.argv[2], {'format': 'pt'})\" "
    "pytorch_model.bin model.safetensors"
)
"""A user's own command that turns pickled weights into safetensors without running code from the file."""

INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_OTHERS = "A model is one of these, a local Hugging Face folder, or a hub id such as openai-community/gpt2."
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_model(
    spec: ModelSpec | str | nn.Module,
    *,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    token: str | None = None,
    tokenizer: Any = None,
) -> ModelHandle:
    """Return a handle on the model that `spec` names.

    Args:
        spec: a `ModelSpec`, a name (embedded or compiled model, local folder, hub id), or a ready Hugging Face module,
            which the handle then owns: it is put in evaluation mode and its parameters stop taking gradients.
        device: where to put it; None is the first GPU, else the CPU (a ready module stays where it is).
        device_map: for a model spread over devices, as in transformers; excludes `device`.
        token: of the hub, for private and gated repositories.
        tokenizer: used instead of the one stored with the model.

    Raises:
        ValueError: for an unknown name or device, a damaged or unsupported folder, an unsupported architecture, or a
            recipe that does not fit the model.
    """
    if device is not None and device_map is not None:
        raise ValueError("Pass device or device_map, not both: device_map says where each part goes.")
    if device is not None:
        _check_device(device)
    if isinstance(spec, nn.Module):
        _check_family(getattr(spec, "config", None), type(spec).__name__)
        if getattr(spec, "get_output_embeddings", lambda: None)() is None:
            raise ValueError(f"{type(spec).__name__} has no language-model head; pass the module that has one.")
        module: Any = spec if device is None else spec.to(device)
        dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
        return ModelHandle(ModelSpec(type(spec).__name__, dtype=dtype), module, tokenizer)
    spec = ModelSpec(spec) if isinstance(spec, str) else spec
    module = _without_folder(spec, device, device_map)
    if module is None:
        folder = find_folder(spec.name, spec.revision, token)
        module = _load_module(folder, spec, device, device_map)
        tokenizer = tokenizer if tokenizer is not None else _load_tokenizer(folder, module.config)
    handle = ModelHandle(spec, module, tokenizer)
    _apply_recipe(handle)
    return handle


def _apply_recipe(handle: ModelHandle) -> None:
    """Apply the steps of the handle's recipe to its pristine module, or attach them, in order; keep their reports."""
    for step in handle.spec.recipe:
        if isinstance(step, WeightStep):
            handle._base_digest = handle.base_digest()  # of the weights as they came: the first step finds no other
            report = step.apply(handle.module)
            handle._digest = None
        else:
            report = step.attach(handle)
        handle.reports += () if report is None else (report,)


def _check_device(device: str | torch.device) -> None:
    """Raise ValueError unless tensors can be put on `device`."""
    try:
        torch.empty(0, device=device)
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError, ...: each backend has its own
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        here += ["mps"] if torch.backends.mps.is_available() else []
        why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"device must be one that this machine has and this PyTorch can use ({', '.join(here)}), got "
            f"{str(device)!r}: {why}. Name one of these, or leave it out."
        ) from error


def find_folder(name: str, revision: str | None = None, token: str | None = None) -> Path:
    """Return the folder with the files of the model `name`, fetched from the hub if it is neither embedded nor local.

    Raises:
        ValueError: if there is no such model, or it has no safetensors.
    """
    embedded = embedded_models()
    local = Path(name).expanduser()
    if name in embedded or local.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for hub repositories; {name!r} is on this machine.")
        return embedded.get(name, local)
    if local.is_file():
        raise ValueError(f"{name} is a file; a model is a Hugging Face folder with config.json and safetensors.")
    if name.startswith((".", "~", os.sep)) or not _HUB_ID.fullmatch(name):
        raise ValueError(
            f"There is no folder {name}. Embedded models: {', '.join(embedded) or 'none'}. "
            "A hub id looks like openai-community/gpt2."
        )
    return _fetch(name, revision, token)


def _fetch(name: str, revision: str | None, token: str | None) -> Path:
    """Return the folder of a hub repository: from the cache when offline, else downloaded."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    offline = hub.is_offline_mode()
    try:
        if offline or not _answers(hub.constants.ENDPOINT):
            return Path(hub.snapshot_download(name, revision=revision, local_files_only=True))
        wanted = _wanted(name, hub.list_repo_files(name, revision=revision, token=token))
        return Path(hub.snapshot_download(name, revision=revision, token=token, allow_patterns=wanted))
    except errors.LocalEntryNotFoundError as error:
        reason = "is offline (HF_HUB_OFFLINE)" if offline else "could not be reached"
        why = f"The hub's cache on this machine does not hold it, and the hub {reason}."
        raise ValueError(_nowhere(name, why)) from error
    except errors.GatedRepoError as error:
        raise ValueError(f"{name} is gated: accept its terms on the hub, then pass token= or set HF_TOKEN.") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"The hub repository {name} has no revision {revision!r}.") from error
    except errors.RepositoryNotFoundError as error:
        why = "The hub does not know it either, or it is private (pass token= or set HF_TOKEN)."
        raise ValueError(_nowhere(name, why)) from error
    except ValueError:
        raise
    except Exception as error:  # a dead network: the HTTP library below, and its errors, differ between versions
        try:
            return Path(hub.snapshot_download(name, revision=revision, local_files_only=True))
        except errors.LocalEntryNotFoundError:
            why = f"The hub's cache does not hold it, and the hub could not be reached ({type(error).__name__})."
            raise ValueError(_nowhere(name, why)) from error


def _answers(endpoint: str, seconds: float = 5.0) -> bool:
    """Return whether the hub's address takes a connection; its own client retries a dead network for half a minute."""
    if getproxies():  # what connects is the proxy, and only the client knows how to ask it
        return True
    address = urlsplit(endpoint)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), seconds).close()
    except OSError:
        return False
    return True


def _nowhere(name: str, why: str) -> str:
    return f"{unknown('model', name, [*embedded_models(), *compiled_models()])} {why} {_OTHERS}"


def _wanted(name: str, names: list[str]) -> list[str]:
    """Return the files of a hub repository to fetch: configuration, tokenizer, safetensors, nothing else."""
    top = [one for one in names if "/" not in one]
    weights = [one for one in top if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", one)]
    if INDEX in top and "model.safetensors" in weights:
        weights = ["model.safetensors"]  # the same weights twice: shards and whole
    if not weights:
        raise ValueError(_no_safetensors(name, top))
    keep = (".json", ".model", ".txt", ".jinja")
    return [*weights, *(one for one in top if one.endswith(keep))]


def _no_safetensors(where: str, names: list[str]) -> str:
    pickled = [one for one in names if one.endswith((".bin", ".pt", ".pth"))]
    if not pickled:
        return f"{where} has no weights: model.safetensors, or {INDEX} with its shards, was expected."
    return (
        f"{where} has its weights in {pickled[0]} only. Such files are pickles, which can run code when opened; only "
        f"safetensors are read. In a folder with a copy of it, convert it yourself: {CONVERT}"
    )


def _without_folder(spec: ModelSpec, device: Any, device_map: Any) -> nn.Module | None:
    """Return a compiled model, or one of a bare file of weights that is known by its tensors; None for all others."""
    path = Path(spec.name).expanduser()
    if spec.name in compiled_models():
        module: Any = compiled_models()[spec.name].build()
    elif path.suffix == ".safetensors" and path.is_file():
        from interp.models.compiled.trained import read_trained

        module = read_trained(path)
    else:
        return None
    if spec.revision is not None or device_map is not None:
        raise ValueError(f"{spec.name} is small and on this machine: it takes no revision and no device_map.")
    where = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    return module.to(where, getattr(torch, spec.dtype))


def _load_module(folder: Path, spec: ModelSpec, device: Any, device_map: Any) -> Any:
    """Return the Hugging Face module in `folder`, cast to the format of `spec`."""
    _check_config(folder)
    _check_weights(folder)
    from transformers import AutoModelForCausalLM

    with no_progress_bars():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, spec.dtype),
                device_map=device_map,
                attn_implementation="sdpa",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except MemoryError:
            raise
        except Exception as error:  # a configuration can lead transformers into an error of any kind
            why = " ".join(str(error).split())
            raise ValueError(f"The model in {folder} cannot be built: {why}") from error
    module, report = loaded
    absent = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if absent:
        raise ValueError(
            f"The weights in {folder} lack {len(absent)} tensors of the shape that config.json asks for, such as "
            f"{absent[0]}; they would be random. Are config.json and the weights of one model?"
        )
    if device_map is not None:
        return module
    return module.to(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")


def _check_config(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json, so it is no Hugging Face model folder.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Fetch it again.") from error
    _check_family(config, str(folder))


def _check_family(config: Any, where: str) -> None:
    family = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)
    if family not in TAPS:
        raise ValueError(
            f"{where} is of the architecture {family or 'none (it has no configuration)'}. Supported are the causal "
            f"language models of three families: GPT-2 (gpt2), GPT-NeoX and Pythia (gpt_neox), and Llama (llama)."
        )


def _check_weights(folder: Path) -> None:
    """Raise ValueError if a safetensors file of `folder` is missing or damaged, before anything is built."""
    from safetensors import SafetensorError, safe_open

    if (folder / "model.safetensors").is_file():
        paths = [folder / "model.safetensors"]
    elif (folder / INDEX).is_file():
        try:
            shards = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{folder / INDEX} is damaged: {error}. Fetch it again.") from error
        paths = [folder / Path(shard).name for shard in shards]
    else:
        raise ValueError(_no_safetensors(str(folder), sorted(path.name for path in folder.iterdir())))
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{folder} lacks {path.name}, which {INDEX} lists. Fetch it again.")
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or damaged ({error}). Fetch it again.") from error


def _load_tokenizer(folder: Path, config: Any) -> Any:
    """Return the tokenizer in `folder`, or None if it holds none."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if (folder / "tokenizer_config.json").is_file() or not (folder / "tokenizer.json").is_file():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        plain = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        for role in ("bos", "eos"):  # a bare tokenizer.json does not say which token is which; the model does
            index = getattr(config, f"{role}_token_id", None)
            if isinstance(index, int) and 0 <= index < len(plain):
                setattr(plain, f"{role}_token", plain.convert_ids_to_tokens(index))
        return plain
    except Exception as error:  # the Rust side raises bare Exception
        raise ValueError(f"The tokenizer in {folder} cannot be read: {error}. Fetch its files again.") from error


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence transformers' bars while weights are read or written."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
