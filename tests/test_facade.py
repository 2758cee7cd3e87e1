"""`mechscope.load`: from a reference to the thing that the run holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mechscope
from interp.config import to_json
from interp.runs import RunError, RunNotFound, start_run


def test_load_returns_the_dictionary_of_a_training(tmp_path: Path) -> None:
    from sae import Sae, SaeConfig

    config = SaeConfig(d_in=4, d_sae=8, rule="topk", rule_args={"k": 2})
    torch.manual_seed(0)
    sae = Sae(config)
    with torch.no_grad():
        sae.W_enc.normal_()
        sae.W_dec.normal_()
    with start_run("sae", {"sae": to_json(config)}, slug="x", root=tmp_path) as run:
        sae.save(run)
        run.finish({"fvu": 0.5})
    x = torch.randn(3, 4)
    for reference in (run, run.id, run.ref, run.path):
        loaded = mechscope.load(reference, tmp_path)
        assert isinstance(loaded, mechscope.Sae)
        assert torch.equal(loaded(x)[0], sae(x)[0])


def test_load_returns_the_run_itself_where_it_holds_records_only(tmp_path: Path) -> None:
    with start_run("evaluation", {"tokens": 3}, slug="x", root=tmp_path) as run:
        run.finish({"fvu": 0.5})
    assert mechscope.load(run.id, tmp_path).summary == {"fvu": 0.5}


def test_load_refuses_what_is_not_finished(tmp_path: Path) -> None:
    with start_run("sae", {"k": 3}, slug="x", root=tmp_path) as run:
        pass
    with pytest.raises(RunError, match=f"{run.ref} is interrupted, not finished; the command that began it resumes it"):
        mechscope.load(run.id, tmp_path)


def test_load_of_an_unknown_run_names_the_nearest(tmp_path: Path) -> None:
    with start_run("sae", {"k": 3}, slug="tiny", root=tmp_path) as run:
        run.finish({})
    with pytest.raises(RunNotFound, match=f"did you mean '{run.ref}'"):
        mechscope.load(run.ref.replace("tiny", "tinny"), tmp_path)


@pytest.mark.parametrize(("wrong", "meant"), [("trian", "train"), ("load_modle", "load_model"), ("sae", "Sae")])
def test_a_name_that_is_not_offered_is_answered_with_the_nearest(wrong: str, meant: str) -> None:
    with pytest.raises(AttributeError, match=f"Unknown name in module 'mechscope': '{wrong}'; did you mean '{meant}'?"):
        getattr(mechscope, wrong)
    assert not hasattr(mechscope, "__path__")


def test_every_name_that_is_offered_is_there() -> None:
    assert {name: getattr(mechscope, name) for name in mechscope.__all__}.keys() == set(mechscope.__all__)
    assert set(mechscope.__all__) <= set(dir(mechscope))


def test_every_kind_that_the_table_knows_can_be_opened() -> None:
    import importlib

    for module, name in mechscope._HOLDS.values():
        assert callable(getattr(importlib.import_module(module), name))
