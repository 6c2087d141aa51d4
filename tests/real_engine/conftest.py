"""Engines that several modules share: to start one takes longer than most tests of it.

A module that shares one uses names of its own for adapters and tenants. `ENGINES` in
`tests/conftest.py` says which modules `make test` gives to one worker for that.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.otlp_receiver import Receiver, otlp_receiver
from tests.real_engine.mixed_batch import BatchEngine
from tests.real_engine.running_server import RunningServer


@pytest.fixture(scope="session")
def collector() -> Iterator[Receiver]:
    """Receives the traces of `server`."""
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, collector: Receiver
) -> Iterator[RunningServer]:
    """The one engine that the tests of answers share. Its requests are traced.

    It reads adapters from the folder `loras` beside its data folder.
    """
    folder = tmp_path_factory.mktemp("shared")
    (folder / "loras").mkdir()
    server = RunningServer(
        folder / "var",
        "--demo",
        "--local-roots",
        str(folder / "loras"),
        "--traces-endpoint",
        collector.endpoint,
    )
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of random weights, for engines that start in a moment."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=208,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.12,
        tie_word_embeddings=False,
    )
    directory = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


SLOTS, NUM_KV_BLOCKS, BLOCK_BYTES = 3, 24, 128 * 512
"""Of `random_engine`. A block is of 128 tokens of 512 bytes: 2 layers, K and V of 2 heads of 32, in
bfloat16."""
RANDOM_ENGINE: dict[str, Any] = {
    "max_loras": SLOTS,
    "max_lora_rank": 64,
    "max_cpu_loras": 8,
    "max_num_batched_tokens": 256,
    "kv_cache_memory_bytes": NUM_KV_BLOCKS * BLOCK_BYTES,
}


@pytest.fixture(scope="session")
def random_engine(random_base: Path) -> Iterator[BatchEngine]:
    """An engine of that base, without a server."""
    engine = BatchEngine(random_base, **RANDOM_ENGINE)
    yield engine
    engine.stop()
