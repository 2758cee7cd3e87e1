from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from interp.hooks import capture, patch
from interp.models import ModelHandle, ModelSpec, embedded_models, load_model
from interp.models.loading import CONVERT
from interp.sites import Site

FOLDERS = {"gpt2": "model_folder", "neox": "neox_folder", "llama": "llama_folder"}


@pytest.fixture(params=sorted(FOLDERS))
def folder_and_model(request: pytest.FixtureRequest) -> tuple[Path, ModelHandle]:
    return request.getfixturevalue(FOLDERS[request.param]), request.getfixturevalue(request.param)


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the GPT-2 folder that a test may damage."""
    copy = tmp_path / "model"
    copy.mkdir()
    for path in model_folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def ids(rows: int = 2, length: int = 9) -> Tensor:
    return torch.randint(300, (rows, length), generator=torch.Generator().manual_seed(3))


# -- the bridge


def test_bridging_leaves_the_module_as_it_was(
    model: ModelHandle, make_module: Callable[..., nn.Module], tokenizer: object
) -> None:
    family = {"gpt2": "gpt2", "gpt_neox": "neox", "llama": "llama"}[model.family]
    fresh = load_model(make_module(family))
    classes = {name: type(part) for name, part in fresh.module.named_modules()}
    before, digest = fresh.logits(ids()), fresh.digest()
    fresh.logits(ids(), view="bridge")
    fresh.bridge.set_use_attn_result(True)
    assert {name: type(part) for name, part in fresh.module.named_modules()} == classes
    assert fresh.module.config._attn_implementation == "sdpa"
    assert torch.equal(fresh.logits(ids()), before)
    fresh._digest = None
    assert fresh.digest() == digest
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in fresh.module.modules())


def test_the_bridge_shares_the_weights(model: ModelHandle) -> None:
    """No parameter is copied, but for GPT-NeoX's fused weights, which transformer-lens has to take apart."""
    ours = {tensor.untyped_storage().data_ptr() for tensor in model.module.parameters()}
    bridged = dict(nn.Module.named_parameters(model.bridge))
    theirs = {tensor.untyped_storage().data_ptr() for tensor in bridged.values()}
    assert ours <= theirs
    copied = {name for name, tensor in bridged.items() if tensor.untyped_storage().data_ptr() not in ours}
    assert all(".attention." in name and name.split(".")[-3] in ("q", "k", "v") for name in copied)
    assert not copied or model.family == "gpt_neox"
    assert not any(parameter.requires_grad for parameter in bridged.values())


def test_verify_is_small_and_notices_a_difference(model: ModelHandle) -> None:
    assert model.verify() < 1e-4
    assert model.verify(ids()) < 1e-4
    with patch(model, "resid_post.1", torch.zeros_like, view="bridge"):
        assert model.verify() > 1e-2


def test_transformer_lens_is_imported_by_the_bridge_only(model_folder: Path) -> None:
    code = """
import sys
from interp.hooks import capture
from interp.models import load_model
model = load_model(sys.argv[1])
with capture(model, "resid_post.1", stop=True):
    model.forward(model.tokens("the cat"))
assert "transformer_lens" not in sys.modules
model.verify()
assert "transformer_lens" in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(model_folder)], check=True, capture_output=True)


# -- sizes


def test_sizes(model: ModelHandle) -> None:
    config = model.module.config
    assert (model.n_layers, model.d_model, model.n_heads, model.d_head, model.d_vocab, model.n_ctx) == (
        3,
        32,
        4,
        8,
        300,
        64,
    )
    assert model.n_kv_heads == (2 if model.family == "llama" else 4)
    assert model.d_mlp == {"gpt2": 128, "gpt_neox": 64, "llama": 48}[config.model_type]
    assert model.n_parameters == sum(p.numel() for p in set(model.module.parameters()))
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_the_last_stream_becomes_the_logits(model: ModelHandle) -> None:
    with capture(model, "resid_post.2") as acts:
        logits = model.forward(ids())
    assert torch.allclose(model.final_norm(acts["resid_post.2"]) @ model.unembed().T, logits, atol=1e-4)


def test_sites_and_shapes(llama: ModelHandle, neox: ModelHandle) -> None:
    assert len(llama.sites()) == 3 * 11
    assert len(neox.sites()) == 3 * 10
    assert llama.sites() == sorted(llama.sites())
    assert llama.sites("resid_p*.1") == [Site(1, "resid_pre"), Site(1, "resid_post")]
    assert neox.sites("resid_mid.*") == []
    with pytest.raises(ValueError, match="Unknown site kind 'resid_pots'; did you mean 'resid_post'"):
        llama.sites("resid_pots.*")
    assert llama.shape("k.0") == "[batch pos n_kv_heads=2 d_head=8]"
    assert llama.shape(Site(0, "pattern")) == "[batch n_heads=4 query key]"
    assert llama.width("mlp_act.0") == 48
    assert llama.width("k.0") == 16
    with pytest.raises(ValueError, match=r"pattern.0 has no width"):
        llama.width("pattern.0")


def test_digest_follows_the_weights(make_model: Callable[..., ModelHandle], gpt2: ModelHandle) -> None:
    other = make_model("gpt2")
    assert other.digest() == gpt2.digest()
    assert len(gpt2.digest()) == 64
    changed = make_model("gpt2")
    with torch.no_grad():
        changed.module.transformer.h[1].mlp.c_fc.weight[0, 0] += 1e-3
    assert changed.digest() != gpt2.digest()


# -- text


def test_tokens_begin_with_bos(gpt2: ModelHandle) -> None:
    text = "the cat sat on the mat"
    tokens = gpt2.tokens(text)
    assert tokens.shape[0] == 1
    assert tokens[0, 0] == gpt2.bos_id == 0
    assert torch.equal(gpt2.tokens(text, bos=False), tokens[:, 1:])
    assert gpt2.decode(tokens[0, 1:]) == text
    assert gpt2.token_strings(tokens)[:3] == ["<|endoftext|>", "the", " cat"]
    assert gpt2.tokens([text, text]).shape == (2, tokens.shape[1])
    assert gpt2.tokens("").tolist() == [[0]]
    assert gpt2.decode(gpt2.tokens("a\ud800b", bos=False)) == "a\ufffdb"
    with pytest.raises(ValueError, match="must have the same number of tokens, got 2 to 3"):
        gpt2.tokens(["the", "the cat"])
    with pytest.raises(ValueError, match="no tokens and the model no BOS"):
        gpt2.tokens("", bos=False)


def test_token_strings_are_exact(gpt2: ModelHandle) -> None:
    text = " the\tcat\n\0 naïve\r  日本 \U0001f600 \\x41"
    tokens = gpt2.tokens(text, bos=False)
    strings = gpt2.token_strings(tokens)
    pieces = [s.encode().decode("unicode_escape") if s.startswith("\\x") and len(s) == 4 else s for s in strings]
    rebuilt = b"".join(p.encode("latin-1") if s != p else s.encode() for s, p in zip(strings, pieces, strict=True))
    assert rebuilt.decode() == text
    assert "\\xc3" in strings
    assert "\\xaf" in strings
    assert len(gpt2.vocabulary()) == 300
    assert gpt2.token_strings(5) == [gpt2.vocabulary()[5]]


def test_ids_beyond_the_tokenizer_have_a_name(make_model: Callable[..., ModelHandle], tokenizer: object) -> None:
    padded = make_model("gpt2", tokenizer, vocab_size=304)
    assert padded.vocabulary()[300:] == [f"<unused {i}>" for i in range(300, 304)]


def test_without_a_tokenizer(make_model: Callable[..., ModelHandle]) -> None:
    bare = make_model("llama")
    assert bare.verify() < 1e-4
    for use in (lambda: bare.tokens("a"), lambda: bare.decode([1]), lambda: bare.token_strings([1])):
        with pytest.raises(ValueError, match=r"'LlamaForCausalLM' has no tokenizer, so it reads token ids only"):
            use()


def test_a_bos_of_another_vocabulary_is_none(make_model: Callable[..., ModelHandle]) -> None:
    assert make_model("gpt2", bos_token_id=50256).bos_id is None
    assert make_model("gpt2", bos_token_id=7).bos_id == 7


def test_bad_tokens(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match=r"Token ids must lie in 0..d_vocab-1=299, got 300"):
        gpt2.forward(torch.tensor([[1, 300]]))
    with pytest.raises(ValueError, match=r"Token ids must lie in 0..d_vocab-1=299, got -1"):
        gpt2.token_strings([-1])
    with pytest.raises(ValueError, match=r"at most n_ctx=64 tokens at a time, got 65"):
        gpt2.forward(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one id"):
        gpt2.forward(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"a tensor of ids \[batch pos\]"):
        gpt2.forward(torch.zeros(1, 2, 2, dtype=torch.long))
    assert torch.equal(gpt2.logits(ids()[0]), gpt2.logits(ids()[:1]))


# -- names


def test_a_local_folder(folder_and_model: tuple[Path, ModelHandle], no_network: None) -> None:
    folder, model = folder_and_model
    loaded = load_model(str(folder), device="cpu")
    assert loaded.spec == ModelSpec(str(folder))
    assert torch.equal(loaded.logits(ids()), model.logits(ids()))
    assert loaded.digest() == model.digest()
    assert loaded.module.config._attn_implementation == "sdpa"
    assert loaded.tokens("the cat").tolist() == model.tokens("the cat").tolist()
    assert loaded.bos_id == 0


def test_a_folder_with_a_bare_tokenizer(folder: Path, gpt2: ModelHandle, no_network: None) -> None:
    (folder / "tokenizer_config.json").unlink()
    loaded = load_model(str(folder), device="cpu")
    assert loaded.tokens("the cat").tolist() == gpt2.tokens("the cat").tolist()
    assert loaded.tokenizer.bos_token == "<|endoftext|>"
    (folder / "tokenizer.json").unlink()
    assert load_model(str(folder), device="cpu").tokenizer is None
    assert (
        load_model(str(folder), device="cpu", tokenizer=gpt2.tokenizer).tokens("the").tolist()
        == gpt2.tokens("the").tolist()
    )


def test_embedded_models_load_without_a_network(no_network: None) -> None:
    for name in embedded_models():
        model = load_model(name, device="cpu")
        assert model.module.dtype == torch.float32
        assert model.verify() < 1e-3
        assert model.tokenizer is not None


def test_float16_shards_are_cast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_module: Callable[..., nn.Module], no_network: None
) -> None:
    """An embedded model is found by its folder, and its float16 shards become the format that was asked for."""
    module = make_module("gpt2").half()
    zoo = tmp_path / "zoo" / "small"
    module.save_pretrained(zoo, max_shard_size="40KB")  # type: ignore[operator]
    assert len(list(zoo.glob("model-*.safetensors"))) > 1
    monkeypatch.setattr("interp.models.embedded.files", lambda package: tmp_path)
    assert list(embedded_models()) == ["small"]
    loaded = load_model("small", device="cpu")
    assert torch.equal(loaded.logits(ids()), load_model(module.float()).logits(ids()))
    assert load_model(ModelSpec("small", dtype="bfloat16"), device="cpu").module.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="Unknown model 'smal'; did you mean 'small'"):
        load_model("smal")
    next(zoo.glob("model-00002*")).unlink()
    with pytest.raises(ValueError, match=r"lacks model-00002-of-.*, which model.safetensors.index.json lists"):
        load_model("small")


def test_a_ready_module(make_module: Callable[..., nn.Module]) -> None:
    module = make_module("gpt2").train()
    handle = load_model(module)
    assert handle.module is module
    assert not module.training
    assert handle.spec == ModelSpec("GPT2LMHeadModel")
    assert load_model(make_module("gpt2").double()).spec.dtype == "float64"
    with pytest.raises(ValueError, match="GPT2Model has no language-model head"):
        load_model(module.transformer)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Linear is of the architecture none .*GPT-2 \(gpt2\), GPT-NeoX"):
        load_model(nn.Linear(1, 1))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "no spaces"])
def test_a_path_that_is_not_there(name: str, no_network: None) -> None:
    with pytest.raises(ValueError, match="There is no folder"):
        load_model(name)


def test_an_unknown_name_offline(no_network: None) -> None:
    with pytest.raises(ValueError) as error:
        load_model("some-org/some-model")
    for part in ("Unknown model 'some-org/some-model'", "HF_HUB_OFFLINE", "a local Hugging Face folder, or a hub id"):
        assert part in str(error.value)


def test_bad_specs() -> None:
    with pytest.raises(ValueError, match="Unknown dtype 'float23'; did you mean 'float32'"):
        ModelSpec("tiny", dtype="float23")
    for name in ("", " ", "a\0b"):
        with pytest.raises(ValueError, match="A model's name is"):
            ModelSpec(name)
    with pytest.raises(ValueError, match="Pass device or device_map, not both"):
        load_model("tiny", device="cpu", device_map="auto")


@pytest.mark.parametrize("device", ["cdua", "cuda:99"])
def test_a_device_that_is_not_there(device: str, model_folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"device must be one .*\(cpu.*got '{device}'.*leave it out"):
        load_model(str(model_folder), device=device)


def test_a_revision_is_for_the_hub(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="revision='main' is for hub repositories"):
        load_model(ModelSpec(str(model_folder), revision="main"))


# -- damaged folders


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config.json, so it is no Hugging Face model folder"):
        load_model(str(folder))


def test_a_damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "gpt2", ')
    with pytest.raises(ValueError, match=r"config.json is damaged: .* Fetch it again"):
        load_model(str(folder))


@pytest.mark.parametrize(("key", "value"), [("n_embd", "wide"), ("n_head", 5), ("n_layer", 4), ("n_embd", 64)])
def test_a_config_that_does_not_fit(folder: Path, key: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ValueError, match=r"cannot be built|The weights in .* lack"):
        load_model(str(folder))


def test_an_unsupported_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"architecture bert. Supported are .*gpt2.*gpt_neox.*llama"):
        load_model(str(folder))


def test_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is truncated or damaged"):
        load_model(str(folder))


def test_a_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"The tokenizer in .* cannot be read"):
        load_model(str(folder), device="cpu")


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no weights: model.safetensors, or"):
        load_model(str(folder))


def test_pickled_weights_are_refused_and_the_advice_works(folder: Path, gpt2: ModelHandle) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(gpt2.module.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="only safetensors are read") as error:
        load_model(str(folder))
    command = str(error.value).partition("convert it yourself: ")[2]
    assert command == CONVERT
    assert "weights_only=True" in command
    subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=folder, check=True)
    assert torch.equal(load_model(str(folder), device="cpu").logits(ids()), gpt2.logits(ids()))


# -- the hub


@dataclass
class FakeHub:
    """Stands in for the hub: a list of files, a folder, or an error."""

    files: list[str]
    folder: Path
    error: Exception | None = None
    fetched: list[str] | None = None

    def list_repo_files(self, name: str, *, revision: str | None, token: str | None) -> list[str]:
        assert (name, revision, token) == ("org/model", "v1", "secret")
        if self.error is not None:
            raise self.error
        return self.files

    def snapshot_download(self, name: str, *, revision: str | None, **options: object) -> str:
        if options.get("local_files_only"):
            from huggingface_hub.errors import LocalEntryNotFoundError

            if self.folder.name == "absent":
                raise LocalEntryNotFoundError("not cached")
            return str(self.folder)
        assert options["token"] == "secret"
        self.fetched = options["allow_patterns"]  # type: ignore[assignment]
        return str(self.folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, model_folder: Path, no_network: None) -> FakeHub:
    import huggingface_hub

    fake = FakeHub(["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.json"], model_folder)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr("interp.models.loading._answers", lambda endpoint: True)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", fake.list_repo_files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def load_from_hub() -> ModelHandle:
    return load_model(ModelSpec("org/model", revision="v1"), token="secret", device="cpu")


def test_from_the_hub_come_safetensors_only(hub: FakeHub, gpt2: ModelHandle) -> None:
    loaded = load_from_hub()
    assert hub.fetched == ["model.safetensors", "config.json"]
    assert torch.equal(loaded.logits(ids()), gpt2.logits(ids()))
    assert loaded.spec.name == "org/model"


def test_a_hub_repository_with_pickles_only(hub: FakeHub) -> None:
    hub.files = ["config.json", "pytorch_model.bin"]
    with pytest.raises(ValueError, match=r"org/model has its weights in pytorch_model.bin only.*weights_only=True"):
        load_from_hub()
    assert hub.fetched is None


def test_a_dead_network_falls_back_to_the_cache(hub: FakeHub, gpt2: ModelHandle) -> None:
    hub.error = ConnectionError("no route")
    assert torch.equal(load_from_hub().logits(ids()), gpt2.logits(ids()))
    hub.folder = Path("absent")
    with pytest.raises(ValueError, match=r"Unknown model 'org/model'.*could not be reached \(ConnectionError\)"):
        load_from_hub()


def test_a_hub_that_takes_no_connection_is_not_asked_again(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, gpt2: ModelHandle
) -> None:
    monkeypatch.setattr("interp.models.loading._answers", lambda endpoint: False)
    hub.error = AssertionError("the hub was asked")
    assert torch.equal(load_from_hub().logits(ids()), gpt2.logits(ids()))
    hub.folder = Path("absent")
    with pytest.raises(ValueError, match="Unknown model 'org/model'.*the hub could not be reached"):
        load_from_hub()


def test_whether_an_address_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.models.loading import _answers

    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert _answers(f"http://127.0.0.1:{port}")
    assert not _answers(f"http://127.0.0.1:{port}")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert _answers(f"http://127.0.0.1:{port}")


def test_offline_only_the_cache_is_read(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    hub.error = AssertionError("the hub was asked")
    assert load_from_hub().n_layers == 3
    assert hub.fetched is None


def test_the_cache_of_the_hub_serves_offline(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2: ModelHandle, no_network: None
) -> None:
    repository = tmp_path / "models--org--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / "abc123").symlink_to(model_folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert torch.equal(load_model("org/model", device="cpu").logits(ids()), gpt2.logits(ids()))
    with pytest.raises(ValueError, match="The hub's cache on this machine does not hold it"):
        load_model(ModelSpec("org/model", revision="v2"))


def test_a_model_over_devices(model_folder: Path, gpt2: ModelHandle) -> None:
    spread = load_model(str(model_folder), device_map={"": "cpu"})
    assert torch.equal(spread.logits(ids()), gpt2.logits(ids()))
    assert spread.verify() < 1e-4


# -- recipes


@dataclass(frozen=True)
class Scale:
    """A weight step: multiplies the output matrix of one MLP."""

    factor: float

    def apply(self, module: nn.Module) -> None:
        with torch.no_grad():
            module.get_parameter("transformer.h.1.mlp.c_proj.weight").mul_(self.factor)


@dataclass(frozen=True)
class SkipMlp:
    """A runtime step: silences one MLP in both views."""

    layer: int

    def attach(self, handle: ModelHandle) -> None:
        handle.attach(Site(self.layer, "mlp_out"), torch.zeros_like)


def test_a_recipe_changes_both_views(model_folder: Path, gpt2: ModelHandle) -> None:
    spec = ModelSpec(str(model_folder), recipe=(Scale(2.0), Scale(0.5), SkipMlp(2)))
    changed = load_model(spec, device="cpu")
    with patch(gpt2, "mlp_out.2", torch.zeros_like):
        assert torch.allclose(changed.logits(ids()), gpt2.logits(ids()), atol=1e-5)
    assert changed.verify() < 1e-4
    assert not torch.allclose(changed.logits(ids()), gpt2.logits(ids()), atol=1e-3)
    doubled = load_model(ModelSpec(str(model_folder), recipe=(Scale(2.0),)), device="cpu")
    assert doubled.digest() != gpt2.digest()


def test_what_is_no_step_is_refused() -> None:
    """In a process of its own: here, the types are checked before the message is reached."""
    code = "from interp.models import ModelSpec; ModelSpec('tiny', recipe=(object(),))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ValueError: A step of a recipe has apply(module) or attach(handle), got object" in found.stderr


# -- a model this project did not make


@pytest.mark.data
def test_stories260k(data_dir: Path, no_network: None) -> None:
    model = load_model(str(data_dir / "models" / "stories260K"), device="cpu")
    assert (model.family, model.n_layers, model.n_heads, model.n_kv_heads) == ("llama", 5, 8, 4)
    assert len(model.sites()) == 5 * 11
    assert model.verify() < 1e-3
    tokens = model.tokens("Once upon a time, there was a café.")
    strings = model.token_strings(tokens)
    assert strings[:5] == ["<s>", " Once", " upon", " a", " time"]
    assert "".join(strings[1:]) == " Once upon a time, there was a café."
    stream = ["resid_pre.0", *(f"resid_post.{layer}" for layer in range(5))]
    with capture(model, stream) as acts:
        logits = model.logits(tokens)
    with torch.no_grad():
        theirs = model.module(input_ids=tokens, output_hidden_states=True)
    assert torch.equal(logits, theirs.logits)
    for name, expected in zip(stream[:-1], theirs.hidden_states, strict=False):
        assert torch.equal(acts[name], expected)
    assert torch.allclose(model.final_norm(acts["resid_post.4"]), theirs.hidden_states[-1], atol=1e-5)
    assert model.n_parameters == 260_032
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])
    assert loss < 3.5  # it has learnt: a uniform guess costs log(512) = 6.2
