"""Files that are cut off, strange or malicious are refused, with what was wanted, what came and what to do."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae.readers import read_dictionary
from tests.sae.readers import layouts
from tests.sae.readers.layouts import D_IN, D_SAE, Case

STANDARD = layouts.LENS["standard"]


def lens(folder: Path, config: dict[str, Any] | None = None, **tensors: torch.Tensor | None) -> Path:
    """Write the standard dictionary with some keys and tensors changed (None: left out)."""
    held = {name: value for name, value in (STANDARD.tensors | tensors).items() if value is not None}
    settings = {key: value for key, value in (STANDARD.config | (config or {})).items() if value is not ...}
    return layouts.write_lens(folder, Case("relu", held, settings, STANDARD.encode, STANDARD.decode))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "jumpreluu"}, "Unknown architecture in .*'jumpreluu'; did you mean 'jumprelu'"),
        ({"architecture": "temporal"}, "Unknown architecture"),
        ({"d_in": 13}, "says d_in=13, the weights have 12; fetch both again"),
        ({"d_sae": "30"}, "'d_sae' must be of type int, got '30'"),
        ({"d_sae": True}, "'d_sae' must be of type int, got True"),
        ({"d_in": ...}, "lacks the key 'd_in'"),
        ({"clever_scaling": 2}, "Unknown key in .*'clever_scaling'"),
        ({"normalize_activations": "expected_average_only_in"}, "times a factor that the file does not hold"),
        ({"normalize_activations": "constant_norm_rescale"}, "must be none or layer_norm, got 'constant_norm_rescale'"),
        ({"reshape_activations": "fold"}, "reshape_activations must be none or hook_z, got 'fold'"),
        ({"metadata": {"hook_head_index": 3}}, r"reads one head only \(3\)"),
        ({"architecture": "topk"}, "lacks the key 'k'"),
    ],
)
def test_a_configuration_of_another_meaning_is_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_dictionary(lens(tmp_path / "d", config))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"b_enc": None}, "lacks the tensor 'b_enc'; it holds W_dec, W_enc, b_dec"),
        ({"thresholt": torch.ones(D_SAE)}, "Unknown tensor in .*'thresholt'"),
        ({"b_dec": torch.ones(D_IN + 1)}, r"b_dec must have the shape \[d_out\] = \[12\], got \[13\]"),
        (
            {"W_dec": torch.ones(D_SAE, D_IN + 2), "b_dec": torch.ones(D_IN + 2)},
            "read width 12 and write 14",
        ),
        ({"b_enc": torch.full((D_SAE,), torch.nan)}, "b_enc holds NaN or infinity"),
        ({"b_enc": torch.ones(D_SAE, dtype=torch.uint8)}, r"tensor 'b_enc' \[30\] is U8; weights are F16 to F64"),
        ({"scaling_factor": torch.full((D_SAE,), 2.0)}, "has a scaling_factor that is not 1"),
        ({"W_enc": torch.ones(D_SAE, D_IN)}, r"b_enc must have the shape \[d_sae\] = \[12\], got \[30\]"),
    ],
)
def test_weights_of_another_form_are_refused(tensors: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_dictionary(lens(tmp_path / "d", **tensors))


def test_a_scaling_factor_of_one_is_nothing(tmp_path: Path) -> None:
    assert read_dictionary(lens(tmp_path / "d", scaling_factor=torch.ones(D_SAE)))[1].rule == "relu"


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json"])
def test_files_cut_off_or_overwritten_anywhere_are_refused_in_words(name: str, tmp_path: Path) -> None:
    folder = lens(tmp_path / "d")
    whole = (folder / name).read_bytes()
    draw = random.Random(0)
    for trial in range(60):
        cut = draw.randrange(len(whole))
        broken = whole[:cut] if trial % 2 else whole[:cut] + draw.randbytes(8) + whole[cut + 8 :]
        (folder / name).write_bytes(broken)
        try:
            read_dictionary(folder)  # other bytes in a weight are other weights
        except ValueError as error:
            assert len(str(error)) < 2000  # noqa: PT017
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut off or damaged"):
        read_dictionary(folder)


@pytest.mark.parametrize("length", [1 << 21, 1 << 40, (1 << 63) - 1])
def test_a_huge_safetensors_header_is_refused_before_it_is_read(length: int, tmp_path: Path) -> None:
    folder = lens(tmp_path / "d")
    (folder / "sae_weights.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}" + b" " * 64)
    with pytest.raises(ValueError, match=f"announces a header of {length:,} bytes"):
        read_dictionary(folder)


def test_shapes_that_do_not_fit_the_bytes_allocate_nothing(tmp_path: Path) -> None:
    folder = lens(tmp_path / "d")
    entry = {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 16]}
    header = json.dumps({"W_enc": entry}).encode()
    (folder / "sae_weights.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(ValueError, match="damaged"):
        read_dictionary(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "must hold a JSON object"),
        ("[" * 200_000, "no JSON"),
        (" " * (1 << 20) + "{}", "a configuration at most 1,048,576"),
        ('{"d_in": ' + "9" * 10_000 + "}", "no JSON"),
    ],
)
def test_strange_json_is_refused(text: str, message: str, tmp_path: Path) -> None:
    folder = lens(tmp_path / "d")
    (folder / "cfg.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_dictionary(folder)


def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    folder = lens(tmp_path / "d")
    (folder / "cfg.json").unlink()
    with pytest.raises(ValueError, match="cfg.json is missing"):
        read_dictionary(folder)
    os.mkfifo(folder / "cfg.json")
    with pytest.raises(ValueError, match="is no ordinary file"):
        read_dictionary(folder)


# Archives


class Touch:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (os.mkdir, (str(self.path),))


def gemma(folder: Path, **changes: Any) -> Path:
    return layouts.write_gemma(folder, layouts.gemma_case().tensors | changes)


def test_objects_in_an_archive_are_never_unpickled(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    folder = gemma(tmp_path / "d", threshold=np.array([Touch(trap)], dtype=object))
    with pytest.raises(ValueError, match="threshold.npy is an array of object.*never read"):
        read_dictionary(folder)
    assert not trap.exists()


def test_a_pickle_in_the_place_of_an_array_is_never_read(tmp_path: Path) -> None:
    trap, folder = tmp_path / "trap", tmp_path / "d"
    folder.mkdir()
    with zipfile.ZipFile(folder / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", pickle.dumps(Touch(trap)))
    with pytest.raises(ValueError, match=r"W_enc\.npy is cut off or damaged: it is no numpy array"):
        read_dictionary(folder)
    (folder / "params.npz").write_bytes(pickle.dumps(Touch(trap)))
    with pytest.raises(ValueError, match=r"it is no whole \.npz archive"):
        read_dictionary(folder)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["../../W_enc.npy", "/W_enc.npy", "run.sh", "W enc.npy"])
def test_names_that_leave_an_archive_or_are_no_arrays_are_refused(name: str, tmp_path: Path) -> None:
    folder = gemma(tmp_path / "d")
    with zipfile.ZipFile(folder / "params.npz", "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(ValueError, match=r"an archive of weights holds plain names ending in \.npy"):
        read_dictionary(folder)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["d", "params.npz"]


def test_an_archive_that_would_become_far_larger_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    np.savez_compressed(folder / "params.npz", W_enc=np.zeros((2000, 1000), np.float32))
    with pytest.raises(ValueError, match=r"would become 8,000,128; it is a hostile file"):
        read_dictionary(folder)


def test_an_array_with_a_false_shape_is_refused_before_it_is_read(tmp_path: Path) -> None:
    folder, raw = tmp_path / "d", io.BytesIO()
    folder.mkdir()
    np.lib.format.write_array_header_1_0(raw, {"descr": "<f4", "fortran_order": False, "shape": (1 << 30, 1 << 20)})
    with zipfile.ZipFile(folder / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", raw.getvalue() + bytes(64))
    with pytest.raises(ValueError, match=r"W_enc\.npy is cut off: .* do not fill"):
        read_dictionary(folder)


def test_archives_cut_off_or_overwritten_are_refused_in_words(tmp_path: Path) -> None:
    folder = gemma(tmp_path / "d")
    whole = (folder / "params.npz").read_bytes()
    draw = random.Random(1)
    for trial in range(60):
        cut = draw.randrange(len(whole))
        broken = whole[:cut] if trial % 2 else whole[:cut] + draw.randbytes(8) + whole[cut + 8 :]
        (folder / "params.npz").write_bytes(broken)
        try:
            read_dictionary(folder)
        except ValueError as error:
            assert len(str(error)) < 2000  # noqa: PT017
    (folder / "params.npz").write_bytes(whole[:-30])
    with pytest.raises(ValueError, match="cut off or damaged"):
        read_dictionary(folder)


def test_missing_and_unknown_arrays_are_refused(tmp_path: Path) -> None:
    tensors = layouts.gemma_case().tensors
    less = {name: value for name, value in tensors.items() if name != "threshold"}
    with pytest.raises(ValueError, match="lacks the tensor 'threshold'"):
        read_dictionary(layouts.write_gemma(tmp_path / "a", less))
    with pytest.raises(ValueError, match="Unknown tensor in .*'scale'"):
        read_dictionary(gemma(tmp_path / "b", scale=np.ones(3)))
    with pytest.raises(ValueError, match="it is a transcoder, which is recognised by"):
        read_dictionary(gemma(tmp_path / "c", W_dec=np.ones((D_SAE, 5)), b_dec=np.ones(5)))


# Other formats


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation": "jumprelu"}, "activation must be topk or groupmax, got 'jumprelu'"),
        ({"k": 0}, r"k must lie in 1\.\.30"),
        ({"k": 31}, r"k must lie in 1\.\.30 .*got 31"),
        ({"num_latents": 0, "expansion_factor": 4}, "says d_in=12 and 48 latents, the weights have 12 and 30"),
        ({"signed": True}, "signed codes of early versions are not read"),
        ({"gate": 1}, "Unknown key in .*'gate'"),
    ],
)
def test_sparsify_of_another_meaning_is_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    case = layouts.SPARSIFY["topk"]
    changed = Case(case.rule, case.tensors, case.config | config, case.encode, case.decode)
    with pytest.raises(ValueError, match=message):
        read_dictionary(layouts.write_sparsify(tmp_path / "layers.1", changed))


def test_groups_that_do_not_make_up_the_dictionary_are_refused(tmp_path: Path) -> None:
    folder = layouts.write_learning(tmp_path / "d", "MatryoshkaBatchTopKSAE")
    tensors = layouts.LEARNING["MatryoshkaBatchTopKSAE"].tensors | {"group_sizes": torch.tensor([5, 10])}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "ae.safetensors")
    with pytest.raises(ValueError, match=r"group_sizes must add up to 30, got \[5, 10\]"):
        read_dictionary(folder)


def test_a_pickled_dictionary_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    folder = layouts.write_learning(tmp_path / "d", "AutoEncoder")
    whole = layouts.LEARNING["AutoEncoder"].tensors
    (folder / "ae.safetensors").unlink()
    (folder / "ae.pt").write_bytes(pickle.dumps(Touch(trap)))
    with pytest.raises(ValueError, match=r"ae\.pt is a pickle.*weights_only=True"):
        read_dictionary(folder)
    assert not trap.exists()
    torch.save(whole, folder / "ae.pt")
    try:
        read_dictionary(folder)
    except ValueError as error:
        command = str(error).split("convert it yourself: ")[1].split(" Then")[0]
    code = command.removeprefix('python -c "').removesuffix('"')
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(code, {})
    finally:
        os.chdir(before)
    assert read_dictionary(folder)[1].rule == "relu"


def test_a_folder_with_none_or_with_two_dictionaries_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no folder .*none"):
        read_dictionary(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"holds no dictionary: cfg\.json \+ sae_weights\.safetensors .*there is nothing"
    ):
        read_dictionary(tmp_path / "empty")
    both = lens(tmp_path / "both")
    save_file({"x": torch.ones(1)}, both / "sae.safetensors")
    with pytest.raises(ValueError, match="holds dictionaries of sae-lens and sparsify; say which with --format"):
        read_dictionary(both)
    assert read_dictionary(both, "sae-lens")[0] == "sae-lens"
    with pytest.raises(ValueError, match="Unknown format 'sealens'; did you mean 'sae-lens'"):
        read_dictionary(both, "sealens")


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "C:\\x", "a b", "~/model", ".hidden", "", 7])
def test_a_model_name_in_a_file_is_never_a_path(name: object, tmp_path: Path) -> None:
    _, foreign = read_dictionary(lens(tmp_path / "d", {"metadata": {"model_name": name, "hook_name": name}}))
    assert foreign.model is None
    assert foreign.site is None
