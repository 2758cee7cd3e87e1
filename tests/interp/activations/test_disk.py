from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from torch import Tensor

from interp.activations import CaptureConfig, DiskStore, read_info, write_store
from interp.hooks import patch
from interp.models import load_model
from interp.runs import Run, RunBusy, RunDamaged, RunError, open_run, start_run, verify_run

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

SITE = "resid_post.1"
CONFIG = CaptureConfig((SITE, "head_out.0"), dtype="float32", shard_rows=100, seed=1)

if os.name != "posix":
    pytest.skip("needs fork and kill -9", allow_module_level=True)


def write(
    root: Path, model: ModelHandle, blocks: Blocks, config: CaptureConfig = CONFIG, on_progress: Any = lambda _: None
) -> Run:
    with start_run("activations", config, slug="test", root=root) as run:
        write_store(run, model, blocks, config, on_progress=on_progress)
    return run


@pytest.fixture(scope="module")
def finished(gpt2: ModelHandle, blocks: Blocks, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished store of `CONFIG`; tests that damage it work on a copy."""
    return write(tmp_path_factory.mktemp("runs"), gpt2, blocks)


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Run:
    shutil.copytree(finished.root, tmp_path / "runs")
    return open_run(finished.ref, tmp_path / "runs")


def shards(run: Run) -> list[dict[str, np.ndarray]]:
    return [load_file(path) for path in sorted(run.path.glob("rows-*.safetensors"))]


def contents(run: Run) -> dict[str, str]:
    """Return the hash of every file that holds results."""
    files = [*run.path.glob("rows-*"), run.path / "store.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# -- what is on disk


def test_rows_on_disk_are_those_of_single_blocks(
    gpt2: ModelHandle, finished: Run, blocks: Blocks, reference: Tensor
) -> None:
    seen = torch.zeros_like(blocks.tokens)
    for shard in shards(finished):
        block, position = torch.from_numpy(shard["block"]).long(), torch.from_numpy(shard["position"]).long()
        torch.testing.assert_close(torch.from_numpy(shard[SITE]), reference[block, position], rtol=1e-5, atol=1e-5)
        assert torch.equal(torch.from_numpy(shard["token"]), blocks.tokens[block, position])
        seen[block, position] += 1
    assert torch.equal(seen.bool(), blocks.keep & (blocks.tokens != gpt2.bos_id)), "every usable row"
    assert seen.max() == 1, "and once"


def test_the_file_on_disk_is_shuffled_when_it_says_so(finished: Run, blocks: Blocks) -> None:
    assert read_info(finished).shuffled
    first = shards(finished)[0]
    place = first["block"].astype(np.int64) * blocks.context + first["position"]
    assert abs(np.corrcoef(np.arange(len(place)), place)[0, 1]) < 0.3
    assert (np.diff(first["block"]) != 0).mean() > 0.7, "neighbours on disk are from different blocks"
    spread = np.unique(first["block"])
    assert spread.min() < len(blocks) / 4, "blocks of a shard are drawn from the whole corpus"
    assert spread.max() > len(blocks) * 3 / 4


def test_unshuffled_store_keeps_the_order_of_the_text(gpt2: ModelHandle, blocks: Blocks, tmp_path: Path) -> None:
    run = write(tmp_path, gpt2, blocks, CaptureConfig((SITE,), shard_rows=100, shuffle=False))
    assert not read_info(run).shuffled
    place = np.concatenate([s["block"].astype(np.int64) * blocks.context + s["position"] for s in shards(run)])
    assert (np.diff(place) > 0).all()


def test_store_says_what_it_holds(gpt2: ModelHandle, finished: Run, blocks: Blocks, reference: Tensor) -> None:
    info = read_info(finished)
    usable = blocks.keep & (blocks.tokens != gpt2.bos_id)
    assert info.rows == int(usable.sum()) == info.counts["rows"] == finished.summary["rows"]
    assert info.counts["bos"] == int((~usable).sum())
    assert [shard.rows for shard in info.shards] == [100] * (info.rows // 100) + [info.rows % 100]
    assert info.widths == {"head_out.0": 32, SITE: 32}
    assert info.mean_norm[SITE] == pytest.approx(float(reference[usable].norm(dim=1).mean()), rel=1e-5)
    assert (info.weights, info.tokens) == (gpt2.digest(), blocks.digest())
    assert verify_run(finished) == []


def test_float16_halves_the_disk_and_keeps_the_values(
    gpt2: ModelHandle, blocks: Blocks, finished: Run, tmp_path: Path
) -> None:
    run = write(tmp_path, gpt2, blocks, CaptureConfig((SITE, "head_out.0"), shard_rows=100, seed=1))
    assert [shard[SITE].dtype for shard in shards(run)] == [np.float16] * len(shards(run))
    half, full = DiskStore(run, SITE, 64), DiskStore(finished, SITE, 64)
    assert half.batch(0).dtype == torch.float32
    torch.testing.assert_close(half.batch(0), full.batch(0), rtol=1e-3, atol=1e-3)


def scaled(model: ModelHandle, factor: float, positions: Any) -> Any:
    def edit(x: Tensor) -> Tensor:
        x[:, positions] = x[:, positions] * factor
        return x

    return patch(model, SITE, edit)


def test_values_beyond_float16_are_an_error(gpt2: ModelHandle, blocks: Blocks, tmp_path: Path) -> None:
    with scaled(gpt2, 1e6, slice(None)), pytest.raises(ValueError, match=r"beyond the largest float16.*Use float32"):
        write(tmp_path, gpt2, blocks, CaptureConfig((SITE,)))
    with scaled(gpt2, 1e6, 2):  # as outliers they are left out before they are stored
        run = write(tmp_path, gpt2, blocks, CaptureConfig((SITE,), outlier_norm=10))
    assert read_info(run).counts["outliers"] > 0


@pytest.mark.parametrize(
    ("factor", "reason"), [(float("nan"), "nonfinite"), (float("inf"), "nonfinite"), (1e3, "outliers")]
)
def test_unusable_rows_are_counted_and_left_out(
    gpt2: ModelHandle, blocks: Blocks, tmp_path: Path, factor: float, reason: str
) -> None:
    with scaled(gpt2, factor, 5):
        run = write(tmp_path, gpt2, blocks, CaptureConfig((SITE, "head_out.0"), shard_rows=100, outlier_norm=20))
    info = read_info(run)
    expected = int((blocks.keep & (blocks.tokens != gpt2.bos_id))[:, 5].sum())
    assert info.counts[reason] == expected
    assert info.rows == info.counts["rows"] == sum(len(shard["token"]) for shard in shards(run))
    assert all((shard["position"] != 5).all() and np.isfinite(shard[SITE]).all() for shard in shards(run))


def test_model_that_gives_only_nan_is_an_error(gpt2: ModelHandle, blocks: Blocks, tmp_path: Path) -> None:
    with scaled(gpt2, float("nan"), slice(None)), pytest.raises(ValueError, match="All 100 rows of shard 0 hold NaN"):
        write(tmp_path, gpt2, blocks)


# -- broken jobs


def killed_at(event: int, job: Callable[[Callable[[], None]], object]) -> int:
    """Run `job` in a copy of this process that kills itself (kill -9) at the n-th event; return its exit status.

    Events are calls of the function that `job` is given, and every fsync and rename of a file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: forking beside threads
        child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        count = 0

        def tick(*_: Any) -> None:
            nonlocal count
            count += 1
            if count > event:
                os.kill(os.getpid(), signal.SIGKILL)

        for name in ("fsync", "replace"):
            real = getattr(os, name)
            setattr(os, name, lambda *args, real=real: (tick(), real(*args), tick()))
        job(tick)
        os._exit(0)
    except BaseException:
        os._exit(1)


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_random_points_it_ends_in_the_same_files(
    gpt2: ModelHandle, blocks: Blocks, finished: Run, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    for _ in range(3):
        status = killed_at(rng.randrange(25), lambda tick: write(tmp_path, gpt2, blocks, on_progress=tick))
        assert status in (0, signal.SIGKILL)
    run = write(tmp_path, gpt2, blocks)
    assert contents(run) == contents(finished)
    assert verify_run(open_run(run.ref, tmp_path)) == [], "and nothing else is left lying in the run"


def test_finished_shards_are_kept_not_written_again(gpt2: ModelHandle, blocks: Blocks, tmp_path: Path) -> None:
    assert killed_at(14, lambda tick: write(tmp_path, gpt2, blocks, on_progress=tick)) == signal.SIGKILL
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("rows-*.safetensors")}
    assert 1 <= len(times) < 5
    run = write(tmp_path, gpt2, blocks)
    assert run.resumed
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_ctrl_c_leaves_a_run_that_resumes(gpt2: ModelHandle, blocks: Blocks, finished: Run, tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done > 250:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, gpt2, blocks, on_progress=stop)
    (path,) = tmp_path.glob("activations/*")
    assert open_run(path.name, tmp_path).status == "interrupted"
    with pytest.raises(RunError, match="is not finished"):
        DiskStore(open_run(path.name, tmp_path), SITE)
    assert contents(write(tmp_path, gpt2, blocks)) == contents(finished)


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, "disk is full.*same command again"), (errno.EROFS, "Read-only file system")]
)
def test_full_or_read_only_disk(
    gpt2: ModelHandle, blocks: Blocks, finished: Run, tmp_path: Path, monkeypatch: Any, code: int, message: str
) -> None:
    rows = []

    def fail(_: int) -> None:
        if len(rows) > 2:
            raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(RunError, match=message):
            write(tmp_path, gpt2, blocks, on_progress=rows.append)
    assert 1 <= len(list(tmp_path.rglob("rows-*.safetensors"))) < 5
    assert contents(write(tmp_path, gpt2, blocks)) == contents(finished)


def test_second_writer_is_refused(gpt2: ModelHandle, blocks: Blocks, tmp_path: Path) -> None:
    with start_run("activations", CONFIG, slug="test", root=tmp_path), pytest.raises(RunBusy, match="being written by"):
        write(tmp_path, gpt2, blocks)


def begin(root: Path, model: ModelHandle, blocks: Blocks) -> Path:
    """Write the first two shards and stop; return the run's folder."""

    def stop(done: int) -> None:
        if done > 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(root, model, blocks, on_progress=stop)
    (path,) = root.glob("activations/*")
    assert len(list(path.glob("rows-*"))) == 2
    return path


def flip(path: Path, offset: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "was changed after it was written"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cut off or damaged"),
        (lambda path: path.write_bytes(b""), "no whole safetensors file"),
        (lambda path: save_file({"x": np.zeros(3, np.float32)}, path), "no shard of an activation store"),
        (lambda path: shutil.copy(path.with_name("rows-00000.safetensors"), path), "belongs to another capture"),
    ],
)
def test_broken_job_does_not_go_on_over_damaged_shards(
    gpt2: ModelHandle, blocks: Blocks, finished: Run, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    path = begin(tmp_path, gpt2, blocks) / "rows-00001.safetensors"
    damage(path)
    with pytest.raises(RunDamaged, match=rf"(?s)rows-00001.*{message}.*Remove rows-00001\.safetensors and run"):
        write(tmp_path, gpt2, blocks)
    path.unlink()
    assert contents(write(tmp_path, gpt2, blocks)) == contents(finished)


def test_broken_job_does_not_go_on_with_other_weights_or_text(
    gpt2: ModelHandle, blocks: Blocks, tmp_path: Path
) -> None:
    begin(tmp_path, gpt2, blocks)
    with pytest.raises(RunDamaged, match="rows-00000.safetensors belongs to another capture"):
        write(tmp_path, gpt2, blocks.select(torch.arange(len(blocks) - 1)))


def test_shards_of_strangers_are_refused(gpt2: ModelHandle, blocks: Blocks, tmp_path: Path) -> None:
    path = begin(tmp_path, gpt2, blocks)
    shutil.copy(path / "rows-00000.safetensors", path / "rows-00077.safetensors")
    with pytest.raises(RunDamaged, match=r"not part of it: rows-00077\.safetensors"):
        write(tmp_path, gpt2, blocks)


def test_run_of_another_kind_is_refused(gpt2: ModelHandle, blocks: Blocks, tmp_path: Path) -> None:
    with (
        start_run("sae", {}, slug="x", root=tmp_path) as run,
        pytest.raises(RunError, match="kind 'activations', got sae/x"),
    ):
        write_store(run, gpt2, blocks, CONFIG)


def test_finished_store_is_read_not_written(gpt2: ModelHandle, blocks: Blocks, finished: Run) -> None:
    again = write(finished.root, gpt2, blocks, on_progress=lambda _: pytest.fail("computed again"))
    assert again.ref == finished.ref


# -- reading


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 50), min_size=1, max_size=8), batch=st.integers(1, 250))
def test_batches_on_disk_are_a_pure_function(finished: Run, order: list[int], batch: int) -> None:
    one, other = DiskStore(finished, SITE, batch, seed=3), DiskStore(finished, SITE, batch, seed=3)
    straight = {step: one.batch(step) for step in sorted(set(order))}
    for step in order:
        assert torch.equal(other.batch(step), straight[step])
        assert straight[step].shape == (batch, 32)


@pytest.mark.parametrize("batch", [1, 32, 150])
def test_every_row_comes_once_per_epoch(finished: Run, batch: int, reference: Tensor) -> None:
    store = DiskStore(finished, SITE, batch)
    orders = []
    for epoch in (0, 1):
        steps = range(epoch * store.batches_per_epoch, (epoch + 1) * store.batches_per_epoch)
        origins = [store.origin(step) for step in steps]
        place = torch.cat([o["block"] * 16 + o["position"] for o in origins])
        assert len(place.unique()) == len(place) == store.rows // batch * batch
        rows = torch.cat([store.batch(step) for step in steps])
        torch.testing.assert_close(rows, reference.flatten(0, 1)[place.long()], rtol=1e-5, atol=1e-5)
        orders.append(place.tolist())
    assert orders[0] != orders[1]


def test_sites_of_one_store_are_aligned_and_seeds_differ(finished: Run) -> None:
    stream, heads = DiskStore(finished, SITE, 64), DiskStore(finished, "head_out.0", 64)
    for name, values in stream.origin(2).items():
        assert torch.equal(values, heads.origin(2)[name])
    assert not torch.equal(stream.batch(2), heads.batch(2))
    assert not torch.equal(stream.batch(2), DiskStore(finished, SITE, 64, seed=1).batch(2))


def test_files_are_mapped_not_read(finished: Run) -> None:
    store = DiskStore(finished, SITE, 64)
    assert all(isinstance(shard[SITE], np.memmap) for shard in store._shards)
    assert not any(shard[SITE].flags.writeable for shard in store._shards)


def test_readers_in_several_processes_get_the_same(finished: Run, tmp_path: Path) -> None:
    def job(_: Any) -> None:
        np.save(tmp_path / f"{len(list(tmp_path.iterdir()))}.npy", DiskStore(finished, SITE, 64).batch(5).numpy())

    mine = DiskStore(finished, SITE, 64)
    mine.batch(0)
    assert [killed_at(10**9, job) for _ in range(2)] == [0, 0]
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(np.load(path), mine.batch(5).numpy())
    assert len(list(tmp_path.iterdir())) == 2


def test_sample_is_pure_distinct_and_of_the_store(finished: Run, reference: Tensor) -> None:
    store = DiskStore(finished, SITE, 64)
    sample = store.sample(70, seed=4)
    assert torch.equal(DiskStore(finished, SITE, 32).sample(70, seed=4), sample)
    assert not torch.equal(store.sample(70, seed=5), sample)
    distance = torch.cdist(sample, reference.flatten(0, 1), compute_mode="donot_use_mm_for_euclid_dist")
    assert distance.min(1).values.max() < 1e-4
    assert store.sample(10**6).shape == (store.rows, 32)
    whole = store.sample(10**6).double().sum(0)
    torch.testing.assert_close(whole, DiskStore(finished, SITE, store.rows).batch(0).double().sum(0))


def test_edited_rows_are_refused_when_they_are_first_used(copied: Run) -> None:
    name = "rows-00002.safetensors"
    flip(copied.path / name, -2000)  # in a site's rows; the size stays, so only the hash can tell
    stores = [DiskStore(copied, site, 64) for site in ("head_out.0", SITE)]
    refusals = [_refusal(store) for store in stores]
    assert sorted(refusal is None for refusal in refusals) == [False, True], "only the tensor that was touched"
    assert f"{name} was changed after it was written" in str(refusals)
    assert verify_run(copied)


def _refusal(store: DiskStore) -> RunDamaged | None:
    try:
        for step in range(store.batches_per_epoch):
            store.batch(step)
    except RunDamaged as error:
        return error
    return None


def test_shards_in_each_others_place_are_refused(copied: Run) -> None:
    first, second = (copied.path / f"rows-0000{i}.safetensors" for i in (0, 1))
    first.rename(copied.path / "other")
    second.rename(first)
    (copied.path / "other").rename(second)
    with pytest.raises(RunDamaged, match=r"rows-00000\.safetensors belongs to another store or was changed"):
        DiskStore(copied, SITE, 64)


def test_cut_off_and_missing_shards_are_refused(copied: Run) -> None:
    path = copied.path / "rows-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    for look in (lambda: DiskStore(copied, SITE, 64), lambda: open_run(copied.ref, copied.root)):
        with pytest.raises(RunDamaged, match="rows-00001"):
            look()
    path.unlink()
    with pytest.raises(RunDamaged, match="rows-00001"):
        DiskStore(copied, SITE, 64)


@pytest.mark.parametrize("text", ['{"rows": 3}', "[]", '{"key": 1', '{"shards": "none"}'])
def test_damaged_description_is_refused(copied: Run, text: str) -> None:
    (copied.path / "store.json").write_text(text)
    with pytest.raises(RunDamaged, match=r"store\.json"):
        DiskStore(copied, SITE, 64)


def test_store_of_another_model_or_site_is_refused(finished: Run, gpt2: ModelHandle, llama: ModelHandle) -> None:
    assert DiskStore(finished, SITE, 64, model=gpt2).d_in == 32
    with pytest.raises(RunError, match="activations of other weights"):
        DiskStore(finished, SITE, 64, model=llama)
    with pytest.raises(
        ValueError, match=r"'resid_post\.2'; did you mean 'resid_post\.1'\? Known: head_out\.0, resid_post\.1"
    ):
        DiskStore(finished, "resid_post.2", 64)
    with pytest.raises(ValueError, match="several sites; say which"):
        DiskStore(finished)


def test_bad_requests_of_a_reader(finished: Run, tmp_path: Path) -> None:
    for batch in (0, 10_000):
        with pytest.raises(ValueError, match=rf"batch must lie in 1\.\.\d+, the rows of .*, got {batch}"):
            DiskStore(finished, SITE, batch)
    with pytest.raises(ValueError, match="seed must be 0 or more"):
        DiskStore(finished, SITE, 64, seed=-1)
    with pytest.raises(ValueError, match="step must be 0 or more"):
        DiskStore(finished, SITE, 64).batch(-1)
    with (
        start_run("sae", {}, slug="x", root=tmp_path) as run,
        pytest.raises(RunError, match="kind 'sae'; wanted 'activ"),
    ):
        DiskStore(run, SITE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float61"}, "did you mean 'float16'"),
        ({"shard_rows": 0}, "shard_rows must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"outlier_norm": 1.0}, "must be above 1, got 1.0"),
        ({"sites": ()}, "At least one site"),
        ({"sites": ("resid_pst.1",)}, "did you mean 'resid_post'"),
    ],
)
def test_configuration_refuses_nonsense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptureConfig(**({"sites": (SITE,)} | changes))


@pytest.mark.data
def test_a_model_that_was_not_made_here(data_dir: Path, tmp_path: Path) -> None:
    from interp.data import DataSpec, token_blocks

    model = load_model(str(data_dir / "models" / "stories260K"))
    text = DataSpec(str(data_dir / "text" / "stories"), context=64, tokens=4000)
    blocks = token_blocks(model, text)
    run = write(tmp_path, model, blocks, CaptureConfig(("resid_post.2",), shard_rows=1000))
    store = DiskStore(run, batch=256, model=model)
    origin = store.origin(3)
    with torch.no_grad():
        hidden = model.module(blocks.tokens.long(), output_hidden_states=True).hidden_states[3]
    wanted = hidden[origin["block"].long(), origin["position"].long()]
    torch.testing.assert_close(store.batch(3), wanted, rtol=2e-3, atol=2e-3)
