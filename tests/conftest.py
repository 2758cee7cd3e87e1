"""Fixtures shared by the whole suite: tiny random models of the three families, built without any file or network."""

from __future__ import annotations

import os

# Before any import of a Hugging Face library: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from interp.models import ModelHandle

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the suite in the background lets it, and every process it starts, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

BOS = "<|endoftext|>"
CONTEXT = 64
SAMPLE = [
    "the cat sat on the mat and the dog sat on the log. " * 4,
    "the king and the queen of the land went to the sea; the sea was calm. " * 4,
]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 300 tokens: BOS (id 0), the 256 bytes, a few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, model_max_length=CONTEXT)


def build_module(family: str, **changes: object) -> torch.nn.Module:
    """Return a random Hugging Face model of `family`: 3 layers, d_model 32, 4 heads, 300 tokens, context 64."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
    )

    torch.manual_seed(0)
    # initializer_range far above the usual 0.02: at this width the default leaves every block almost silent.
    common = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.2}
    wide = common | {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
    }
    if family == "gpt2":
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        shape = {"n_positions": CONTEXT, "n_embd": 32, "n_layer": 3, "n_head": 4}
        module = GPT2LMHeadModel(GPT2Config(**(common | shape | dropout | changes)))
    elif family == "neox":
        module = GPTNeoXForCausalLM(GPTNeoXConfig(**(wide | {"intermediate_size": 64} | changes)))
    else:
        gated = {"intermediate_size": 48, "num_key_value_heads": 2, "tie_word_embeddings": False}
        module = LlamaForCausalLM(LlamaConfig(**(wide | gated | changes)))
    with torch.no_grad():  # biases and gains start at 0 and 1; a test that forgets them would pass
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return module


def build_handle(family: str, tokenizer: PreTrainedTokenizerFast | None = None, **changes: object) -> ModelHandle:
    """Return a `ModelHandle` around `build_module(family)`."""
    from interp.models import load_model

    return load_model(build_module(family, **changes), tokenizer=tokenizer)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 300 tokens."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def gpt2(tokenizer: PreTrainedTokenizerFast) -> ModelHandle:
    """A random GPT-2."""
    return build_handle("gpt2", tokenizer)


@pytest.fixture(scope="session")
def neox(tokenizer: PreTrainedTokenizerFast) -> ModelHandle:
    """A random GPT-NeoX with parallel attention (it has no resid_mid)."""
    return build_handle("neox", tokenizer)


@pytest.fixture(scope="session")
def llama(tokenizer: PreTrainedTokenizerFast) -> ModelHandle:
    """A random Llama: RMSNorm, rotary positions, gated MLP, 2 key-value heads for 4 query heads."""
    return build_handle("llama", tokenizer)


@pytest.fixture(params=["gpt2", "neox", "llama"])
def model(request: pytest.FixtureRequest) -> ModelHandle:
    """Each of the three random models in turn."""
    return request.getfixturevalue(request.param)


def save_model_folder(family: str, folder: Path) -> Path:
    """Write `build_module(family)` and its tokenizer into `folder` as a Hugging Face folder; return `folder`."""
    build_module(family).save_pretrained(folder)  # type: ignore[operator]
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder (config, safetensors, tokenizer) of the random GPT-2."""
    return save_model_folder("gpt2", tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="session")
def neox_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of the random GPT-NeoX."""
    return save_model_folder("neox", tmp_path_factory.mktemp("models") / "neox")


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of the random Llama."""
    return save_model_folder("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def make_module() -> Callable[..., torch.nn.Module]:
    """`make_module(family, **changes of its configuration)` builds a random Hugging Face module."""
    return build_module


@pytest.fixture(scope="session")
def make_model() -> Callable[..., ModelHandle]:
    """`make_model(family, tokenizer=None, **changes of its configuration)` builds a random model of one's own."""
    return build_handle


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach another machine fails the test."""
    import socket

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail(f"something tried to use the network: {args[:2]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The outside data folder ($MECHSCOPE_DATA); tests that need it skip where it is absent."""
    value = os.environ.get("MECHSCOPE_DATA")
    if not value:
        pytest.skip("MECHSCOPE_DATA is not set: it names the folder with the outside models and texts")
    if not Path(value).is_dir():
        pytest.skip(f"MECHSCOPE_DATA={value} is not a folder")
    return Path(value)
