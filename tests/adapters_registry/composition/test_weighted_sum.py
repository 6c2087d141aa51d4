"""Sums of adapters against PEFT's own, in float32, and against the full matrices."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from adapters_registry.check.base import BaseSpec
from adapters_registry.check.static_check import check_adapter
from adapters_registry.composition.process import write_apart
from adapters_registry.composition.weighted_sum import FitError, Part, WeightedSum, best_fit
from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.content.stopping import GivenUp, stop_flag
from tests.adapter_recipe import PREFIX, as_bfloat16
from tests.tiny import AdapterFactory
from tests.tiny_llama import make_tiny_llama
from tests.training.adapters import make_adapter as make_peft_adapter

WEIGHTS = (0.7, -0.3, 1.5)
PROMPT = torch.tensor([[1, 5, 9, 2, 7]])


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama", bytes_only=True)


@pytest.fixture(scope="module")
def peft_adapters(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of other ranks, scales and modules each."""
    folder = tmp_path_factory.mktemp("adapters")
    options: list[dict[str, Any]] = [
        {"use_rslora": True},
        {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"]},
        {"rank_pattern": {"down_proj": 6, "layers.1.self_attn.q_proj": 3}},
    ]
    options[2]["alpha_pattern"] = {"layers.0.mlp.down_proj": 5}
    return [
        make_peft_adapter(tiny_llama, folder / str(number), seed=number, **each)
        for number, each in enumerate(options, 1)
    ]


def load(base: Path, *adapters: Path) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapters[0], "0")
    for number, adapter in enumerate(adapters[1:], 1):
        model.load_adapter(adapter, str(number))
    return model.eval()


def deltas(model: Any, adapter: str) -> dict[str, torch.Tensor]:
    """What an adapter of PEFT's adds to each weight."""
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight(adapter)
        for name, module in model.named_modules()
        if adapter in getattr(module, "lora_A", ())
    }


def logprobs(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(PROMPT).logits.log_softmax(-1)
    return found


def written(sources: list[Path], out: Path, rank: int | None = None) -> FitError:
    out.mkdir()
    parts = [Part(source, weight) for source, weight in zip(sources, WEIGHTS, strict=False)]
    return WeightedSum(parts, rank).write(out, "tiny-llama", {})


def test_the_sum_is_that_of_pefts_updates(
    tiny_llama: Path, peft_adapters: list[Path], tmp_path: Path
) -> None:
    assert written(peft_adapters, tmp_path / "out").total == 0
    parts, ours = load(tiny_llama, *peft_adapters), load(tiny_llama, tmp_path / "out")
    of_parts = [deltas(parts, str(number)) for number in range(len(peft_adapters))]
    found = deltas(ours, "0")
    assert {module.rsplit(".", 1)[1] for module in found} == {"q_proj", "v_proj", "down_proj"}
    for module, delta in found.items():
        expected = torch.zeros_like(delta)
        for weight, part in zip(WEIGHTS, of_parts, strict=True):
            expected += weight * part.get(module, torch.zeros_like(delta))
        torch.testing.assert_close(delta, expected, rtol=0, atol=1e-6)
    config = json.loads((tmp_path / "out" / CONFIG_FILE).read_text())
    assert (config["r"], config["lora_alpha"]) == (10, 10), "down_proj: 4 and 6"
    assert config["rank_pattern"] == {"model.layers.1.self_attn.q_proj": 9, "v_proj": 2}
    assert config["alpha_pattern"] == config["rank_pattern"]


def test_it_is_pefts_cat(tiny_llama: Path, peft_adapters: list[Path], tmp_path: Path) -> None:
    two = peft_adapters[:2]
    written(two, tmp_path / "out")
    model = load(tiny_llama, *two)
    model.peft_config["0"].use_rslora = False  # PEFT copies this one, and the sums are scaled
    model.add_weighted_adapter(["0", "1"], list(WEIGHTS[:2]), "cat", combination_type="cat")
    model.set_adapter("cat")
    ours = load(tiny_llama, tmp_path / "out")
    for module, delta in deltas(model, "cat").items():
        torch.testing.assert_close(deltas(ours, "0")[module], delta, rtol=0, atol=1e-6)
    torch.testing.assert_close(logprobs(ours), logprobs(model), rtol=0, atol=1e-5)
    model.set_adapter("0")
    assert (logprobs(ours) - logprobs(model)).abs().max() > 1e-2


def test_a_fit_is_the_truncated_decomposition(
    tiny_llama: Path, peft_adapters: list[Path], tmp_path: Path
) -> None:
    error = written(peft_adapters, tmp_path / "out", rank=4)
    parts, ours = load(tiny_llama, *peft_adapters), load(tiny_llama, tmp_path / "out")
    of_parts = [deltas(parts, str(number)) for number in range(len(peft_adapters))]
    lost = whole = 0.0
    for module, delta in deltas(ours, "0").items():
        exact = torch.zeros_like(delta)
        for weight, part in zip(WEIGHTS, of_parts, strict=True):
            exact += weight * part.get(module, torch.zeros_like(delta))
        left, sizes, right = torch.linalg.svd(exact, full_matrices=False)
        best = left[:, :4] * sizes[:4] @ right[:4]
        torch.testing.assert_close(delta, best, rtol=0, atol=1e-5)
        lost += float((exact - delta).norm()) ** 2
        whole += float(exact.norm()) ** 2
    assert error.total == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
    assert error.by_layer.keys() == {"0", "1"}
    assert min(error.by_layer.values()) <= error.total <= max(error.by_layer.values())
    config = json.loads((tmp_path / "out" / CONFIG_FILE).read_text())
    assert config["r"] == 4
    assert config["rank_pattern"] == {"v_proj": 2}


def test_what_passed_the_gate_passes_it_again(
    make_adapter: AdapterFactory, tiny_base: BaseSpec, tmp_path: Path
) -> None:
    one = make_adapter(
        seed=1, rank=3, ranks={"down_proj": 2}, config={"rank_pattern": {"down_proj": 2}}
    )
    two = make_adapter(seed=2, after=as_bfloat16, modules=("layers.1.self_attn.q_proj",))
    written([one, two], tmp_path / "out")
    facts = check_adapter(tmp_path / "out", tiny_base, allow_base_mismatch=True)
    assert facts.rank == 5
    tensors = load_file(tmp_path / "out" / WEIGHTS_FILE)
    assert {values.dtype for values in tensors.values()} == {np.dtype(np.float32)}
    a = tensors[f"{PREFIX}model.layers.1.self_attn.q_proj.lora_A.weight"]
    assert a.shape == (5, 16)
    assert (
        a[:3]
        == load_file(one / WEIGHTS_FILE)[f"{PREFIX}model.layers.1.self_attn.q_proj.lora_A.weight"]
    ).all()


def test_the_size_is_known_before(make_adapter: AdapterFactory, tmp_path: Path) -> None:
    sources = [make_adapter(seed=1), make_adapter(seed=2)]
    for rank in (None, 3):
        out = tmp_path / str(rank)
        written(sources, out, rank)
        total = WeightedSum([Part(source, 1) for source in sources], rank)
        values = load_file(out / WEIGHTS_FILE).values()
        assert total.size_bytes == sum(each.nbytes for each in values)
        assert total.exact_rank == 4


def test_the_same_sum_has_the_same_bytes(make_adapter: AdapterFactory, tmp_path: Path) -> None:
    sources = [make_adapter(seed=1), make_adapter(seed=2)]
    for name in ("a", "b"):
        written(sources, tmp_path / name)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_fit_of_nothing_is_nothing() -> None:
    zeros = np.zeros((3, 5), np.float32), np.zeros((4, 3), np.float32)
    a, b, lost, whole = best_fit(*zeros, 2)
    assert (a.shape, b.shape, lost, whole) == ((2, 5), (4, 2), 0, 0)
    assert not (b @ a).any()


def test_another_process_writes_the_same(make_adapter: AdapterFactory, tmp_path: Path) -> None:
    parts = [Part(make_adapter(seed=seed), seed / 2) for seed in (1, 2)]
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    here = WeightedSum(parts, 3).write(tmp_path / "here", "tiny", {"trained_over": "nf4"})
    there = write_apart(parts, 3, tmp_path / "there", "tiny", {"trained_over": "nf4"})
    assert there == here
    assert there.total > 0
    for tensors in (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("here", "there")):
        assert {a.shape[0] for key, a in tensors.items() if "lora_A" in key} == {3}


def test_the_other_process_passes_on_what_fails(
    make_adapter: AdapterFactory, tmp_path: Path
) -> None:
    parts = [Part(make_adapter(), 1)]
    with pytest.raises(FileNotFoundError):
        write_apart(parts, None, tmp_path / "nowhere", "tiny", {})
    with pytest.raises(RuntimeError, match="worker"):
        write_apart(
            [Part(make_adapter(after=lambda d: (d / CONFIG_FILE).write_text("{")), 1)],
            None,
            tmp_path,
            "tiny",
            {},
        )


def test_it_ends_when_nobody_waits(make_adapter: AdapterFactory, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    token = stop_flag.set(stop)
    try:
        with pytest.raises(GivenUp):
            write_apart([Part(make_adapter(), 1)], None, tmp_path, "tiny", {})
    finally:
        stop_flag.reset(token)
    assert not (tmp_path / WEIGHTS_FILE).exists()
