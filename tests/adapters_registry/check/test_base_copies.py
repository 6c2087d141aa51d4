"""Copies of the base's embeddings in an adapter's file are dropped; trained ones are refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file

from adapters_registry.check.base import BaseSpec
from adapters_registry.check.base_copies import drop, find_copies, rounded
from adapters_registry.check.static_check import check_adapter
from adapters_registry.check.weights import TRAINED_QUANTIZATION, trained_quantization
from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE, digest_of
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import KeyReused
from adapters_registry.records.idempotency import Idempotency
from adapters_registry.records.tables import VersionState
from adapters_registry.registry import Registry
from tests.adapters_registry.adapters import check, take_in
from tests.tiny import AdapterFactory

EMBEDDING, HEAD = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"


@pytest.fixture
def base(tmp_path: Path, tiny_base: BaseSpec) -> BaseSpec:
    """The tiny base with an embedding, to which its head is tied."""
    torch.manual_seed(0)
    (tmp_path / "base").mkdir()
    embedding = torch.randn(50, 16).bfloat16()
    save_file({"model.embed_tokens.weight": embedding}, tmp_path / "base" / "model.safetensors")
    return replace(tiny_base, directory=tmp_path / "base")


def with_copies(adapter: Path, base: BaseSpec, *, change: float = 0, dtype: torch.dtype) -> Path:
    assert base.directory is not None
    copy = load_tensors(base.directory / "model.safetensors")["model.embed_tokens.weight"].to(dtype)
    head = copy.clone()
    head[-1, -1] += change
    tensors = {EMBEDDING: copy, **load_tensors(adapter / WEIGHTS_FILE), HEAD: head}
    save_file(tensors, adapter / WEIGHTS_FILE, metadata={TRAINED_QUANTIZATION: "nf4"})
    return adapter


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_equal_copies_are_dropped_and_nothing_else(
    make_adapter: AdapterFactory, base: BaseSpec, dtype: torch.dtype
) -> None:
    adapter = make_adapter()
    before = load_file(adapter / WEIGHTS_FILE)
    weights = with_copies(adapter, base, dtype=dtype) / WEIGHTS_FILE
    copies = find_copies(weights, base.directory)
    assert set(copies) == {EMBEDDING, HEAD}
    drop(weights, copies)
    after = load_file(weights)
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[key], before[key]) for key in before)
    assert trained_quantization(weights) == "nf4"
    assert [file.name for file in adapter.iterdir()].count(WEIGHTS_FILE) == 1
    check_adapter(adapter, base)


def test_a_copy_that_was_trained_stays(make_adapter: AdapterFactory, base: BaseSpec) -> None:
    adapter = with_copies(make_adapter(), base, change=0.5, dtype=torch.bfloat16)
    assert find_copies(adapter / WEIGHTS_FILE, base.directory) == [EMBEDDING]


def test_what_is_no_adapter_has_no_copies(
    make_adapter: AdapterFactory, base: BaseSpec, tmp_path: Path
) -> None:
    weights = make_adapter() / WEIGHTS_FILE
    assert find_copies(weights, base.directory) == []
    assert find_copies(weights, tmp_path / "nowhere") == []
    weights.write_bytes(b"\xff" * 100)
    assert find_copies(weights, base.directory) == []


def test_rounding_is_torchs() -> None:
    torch.manual_seed(1)
    values = torch.randn(10_000) * 100
    for name, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)):
        assert np.array_equal(rounded(values.numpy(), name), values.to(dtype).float().numpy())


def test_registering_them(
    make_adapter: AdapterFactory, base: BaseSpec, tmp_path: Path, database_url: str
) -> None:
    registry = Registry(database_url, ContentStore(tmp_path / "content"), base)
    adapter = make_adapter(config={"modules_to_save": ["lm_head"]})
    small = digest_of(adapter)[1]
    came_as = digest_of(with_copies(adapter, base, dtype=torch.float32))[0]
    key = Idempotency("caller", "key")
    version, is_new = take_in(registry, adapter, idempotency=key, metadata={"left_out": "mine"})
    assert is_new
    assert version.size_bytes < small + 200
    assert version.digest != came_as
    assert version.metadata["left_out"]["digest"] == came_as
    ready = check(registry, version)
    assert ready.state is VersionState.READY
    copies, absent, over = ready.metadata["checked"]["warnings"]
    assert copies.startswith("copies of the base's own tensors were left out")
    assert absent.startswith("modules_to_save names modules")
    assert "weights rounded to nf4" in over
    again = partial(take_in, registry, adapter, idempotency=key, metadata={"left_out": "mine"})
    assert again()[0].number == 1
    assert take_in(registry, adapter) == (registry.get_version("default", "home", 1), False)
    (adapter / CONFIG_FILE).write_text((adapter / CONFIG_FILE).read_text() + " ")
    with pytest.raises(KeyReused):
        again()
    registry.close()


def test_a_trained_head_is_refused_with_what_to_do(
    make_adapter: AdapterFactory, base: BaseSpec, tmp_path: Path
) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'r.db'}", ContentStore(tmp_path / "content"), base)
    adapter = with_copies(make_adapter(), base, change=0.5, dtype=torch.bfloat16)
    rejected = check(registry, take_in(registry, adapter)[0])
    (reason,) = rejected.reasons
    assert reason["key"] == HEAD
    assert "merge the adapter with PEFT and serve the result as a base" in reason["message"]
    registry.close()
