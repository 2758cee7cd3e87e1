from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.command import main


def test_list_names_the_embedded_models(capsys: pytest.CaptureFixture[str]) -> None:
    from interp.models import compiled_models, embedded_models

    assert main(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert out.split()[:3] == ["name", "family", "layers"]
    assert all(name in out for name in [*embedded_models(), *compiled_models()])


def test_compiled_models_have_cards_and_two_views(capsys: pytest.CaptureFixture[str]) -> None:
    from interp.models import compiled_models

    for name, one in compiled_models().items():
        assert main(["models", "card", name]) == 0
        assert capsys.readouterr().out == one.card
    assert main(["models", "verify", "compiled/gated"]) == 0
    assert "they agree" in capsys.readouterr().out


def test_sites_shows_shapes_and_both_names(llama_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "sites", str(llama_folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 + 3 * 11
    assert ["k.1", "[batch", "pos", "n_kv_heads=2", "d_head=8]", "blocks.1.attn.hook_k"] in lines
    assert ["resid_post.2", "[batch", "pos", "d_model=32]", "blocks.2.hook_resid_post"] in lines


def test_sites_of_a_pattern(neox_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "sites", str(neox_folder), "resid_*.0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["site"] for row in result["sites"]] == ["resid_pre.0", "resid_post.0"]
    assert result["sites"][0] == {
        "site": "resid_pre.0",
        "shape": "[batch pos d_model=32]",
        "transformer_lens": "blocks.0.hook_resid_pre",
    }
    assert main(["models", "sites", str(neox_folder), "resid_mid.*"]) == 0
    assert "has no site resid_mid.*" in capsys.readouterr().out


def test_verify_compares_the_views(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "verify", str(model_folder)]) == 0
    assert "they agree" in capsys.readouterr().out
    assert main(["models", "verify", str(model_folder), "--tolerance", "0", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["difference"] < 1e-4
    assert result["ok"] is False


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_verify_accepts_what_rounding_explains(
    dtype: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "verify", str(model_folder), "--dtype", dtype, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["difference"] <= result["tolerance"]
    assert (result["tolerance"] == 1e-3) == (dtype == "float64")


def test_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "zoo" / "small").mkdir(parents=True)
    (tmp_path / "zoo" / "small" / "config.json").write_text("{}")
    monkeypatch.setattr("interp.models.embedded.files", lambda package: tmp_path)
    assert main(["models", "card", "small"]) == 2
    assert "'small' has no card" in capsys.readouterr().err
    (tmp_path / "zoo" / "small" / "README.md").write_text("# small\nA card.\n")
    assert main(["models", "card", "small"]) == 0
    assert capsys.readouterr().out == "# small\nA card.\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["card", "tinny"], "Unknown model 'tinny'; did you mean 'tiny'"),
        (["sites", "./nowhere"], "There is no folder ./nowhere"),
        (["sites", "tiny", "q.99"], "q.99 lies beyond this model"),
        (["verify", "tiny", "--device", "cdua"], "device must be one that this machine has"),
        (["verify", "tiny", "--dtype", "float23"], "Unknown dtype 'float23'; did you mean 'float32'?"),
    ],
)
def test_bad_requests(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
