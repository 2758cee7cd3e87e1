from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from interp.runs import start_run
from sae.features import load_features


@pytest.fixture
def features(describe: Any, bench: Any) -> Any:
    return describe(bench.sae(), bench.blocks())


def test_reading_and_the_commands_options_load_no_torch(features: Any) -> None:
    program = """
import sys
from sae.features import Features, FeaturesConfig, load_features
found = load_features(sys.argv[1], sys.argv[2])
assert isinstance(found, Features) and len(found) == 24
assert found.examples(3).num_rows and found.logits(3).num_rows == 20 and found.neighbours(3).num_rows
assert len(found.histogram(3).edges) == len(found.histogram(3).counts) + 1 and found.vocabulary[1]
import app.commands.features
loaded = {"torch", "transformers", "transformer_lens"} & set(sys.modules)
assert not loaded, loaded
"""
    command = [sys.executable, "-c", program, features.run.ref, str(features.run.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_one_latent_is_read_at_a_time(features: Any) -> None:
    assert set(features.examples(5)["latent"].to_pylist()) == {5}
    assert set(features.examples(5, "near_miss")["group"].to_pylist()) == {"near_miss"}
    assert set(features.neighbours(5, "encoder")["kind"].to_pylist()) == {"encoder"}


def test_it_shows_itself_in_a_line(features: Any) -> None:
    assert "24 latents" in features._repr_html_()
    assert features.run.ref in repr(features)


def test_unknown_latents_groups_and_kinds_are_refused(features: Any) -> None:
    with pytest.raises(ValueError, match=r"latent must lie in 0\.\.23 for features/test-.*, got 24"):
        features.examples(24)
    with pytest.raises(ValueError, match="latent must lie in"):
        features.histogram(-1)
    with pytest.raises(ValueError, match="Unknown group 'near'; did you mean 'near_miss'"):
        features.examples(1, "near")
    with pytest.raises(ValueError, match="Unknown kind 'decode'; did you mean 'decoder'"):
        features.neighbours(1, "decode")


def test_other_runs_are_refused(tmp_path: Any) -> None:
    with start_run("sae", {}, slug="x", root=tmp_path) as run:
        run.finish({})
    with pytest.raises(ValueError, match="run of kind 'sae'; features are in a run of kind 'features'"):
        load_features(run)
    with start_run("features", {}, slug="x", root=tmp_path) as run:
        pass
    with pytest.raises(ValueError, match="is interrupted; run `mechscope features` again"):
        load_features(run)
