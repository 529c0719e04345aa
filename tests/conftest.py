"""Fixtures that tests of several folders share."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.helpers import cli_world
from tests.helpers.installs import install_wheel
from tests.helpers.texts import PROMPTS, digest_scorer, word_tokenizer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of each file in a random order, and the files, where RANDOM_ORDER names a seed."""
    if seed := os.environ.get("RANDOM_ORDER"):
        draw = random.Random(seed)
        draw.shuffle(items)
        files = {item.path: draw.random() for item in items}  # whose fixtures are made once
        items.sort(key=lambda item: files[item.path])


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """What a test says of processes that work together is not true of the next one."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For small networks, which a second thread makes slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def wheel_install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to put on PYTHONPATH, into which a wheel of this package was installed, without what it requires."""
    return install_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `cli_world.build`; a file that needs more in it has a fixture of its own of that name, made of this one."""
    return cli_world.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """22 words and <pad>, <eos>, <unk>."""
    return word_tokenizer()


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges, like GPT-2's: one token is both padding and end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*alphabet, "<|endoftext|>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>", unk_token=None
    )


@pytest.fixture(scope="session")
def task_options(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Arguments of a small SafeRLHF-v0 that needs no model."""
    return {
        "prompts": PROMPTS,
        "tokenizer": tokenizer,
        "reward_model": digest_scorer("reward"),
        "cost_model": digest_scorer("cost"),
        "max_prompt_length": 7,
        "max_response_length": 5,
    }
