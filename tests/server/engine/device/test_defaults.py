"""What each device gets, and that what the operator sets wins."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.engine.device import defaults
from server.engine.device.base_size import BaseSize
from server.engine.device.defaults import fit, summary
from server.engine.device.device import Device
from server.engine.device.memory import TooLittleMemory
from server.settings import Settings
from tests.llama import LLAMA31_8B, LLAMA31_70B
from tests.server.engine.device.devices import A10, CPU, GIB, H100, H200, L40, cpu, gpu

BASE_8B, BASE_70B = BaseSize.from_config(LLAMA31_8B), BaseSize.from_config(LLAMA31_70B)
BASE_8B_4BIT = BaseSize.from_config(
    LLAMA31_8B | {"quantization_config": {"quant_method": "compressed-tensors"}}
)
SMALL_BASE = BaseSize(GIB // 4, 810_000, 23_040, 8192)


@pytest.mark.parametrize(
    ("device", "base", "slots", "rank"),
    [
        (H200, BASE_8B, 32, 64),
        (H100, BASE_8B, 16, 64),
        (L40, BASE_8B, 16, 16),
        (A10, BASE_8B, 5, 16),
        (A10, BASE_8B_4BIT, 16, 16),
        (H200, SMALL_BASE, 64, 64),
        (CPU, SMALL_BASE, 64, 16),
        (cpu(4), SMALL_BASE, 38, 16),
        (cpu(64), BASE_8B, 64, 16),
        (cpu(32), BASE_8B, 27, 16),
        (cpu(18), BASE_8B, 9, 16),
        (cpu(1), BASE_8B, 1, 16),
        (H200, None, 16, 16),
    ],
)
def test_slots_and_rank_follow_the_memory(
    device: Device, base: BaseSize | None, slots: int, rank: int
) -> None:
    fitted = fit(Settings(), device, base)
    assert (fitted.max_loras, fitted.max_lora_rank) == (slots, rank)


@pytest.mark.parametrize("device", [H200, L40, CPU])
def test_what_the_operator_sets_wins(device: Device) -> None:
    fitted = fit(Settings(max_loras=3, max_lora_rank=8, host_cache_gib=2), device, BASE_8B)
    assert (fitted.max_loras, fitted.max_lora_rank, fitted.host_cache_gib) == (3, 8, 2)
    fixed_rank = fit(Settings(max_lora_rank=128), H100, BASE_8B)
    assert fixed_rank.max_loras == 8, "a tenth of the room, at this rank"
    assert fit(Settings(max_loras=64), H100, BASE_8B).max_lora_rank == 16


@pytest.mark.parametrize("device", [H200, CPU])
def test_slots_are_no_more_than_the_adapters_that_host_memory_may_hold(device: Device) -> None:
    assert fit(Settings(max_cpu_loras=20), device, SMALL_BASE).max_loras == 20
    little = fit(Settings(host_cache_gib=0.25, max_lora_rank=16), device, SMALL_BASE)
    assert little.max_loras == (GIB // 4) // (16 * 810_000)
    assert fit(Settings(max_loras=32, max_cpu_loras=40), device, SMALL_BASE).max_loras == 32


def test_host_memory_is_bounded_in_bytes() -> None:
    assert fit(Settings(), H200, BASE_8B).host_cache_gib == 64
    assert fit(Settings(), cpu(24.25), SMALL_BASE).host_cache_gib == pytest.approx(3)
    short = fit(Settings(), cpu(1), SMALL_BASE)
    assert short.host_cache_bytes is not None
    assert short.host_cache_bytes >= short.max_loras * short.max_lora_rank * 810_000
    assert fit(Settings(), CPU, None).host_cache_gib is None


def test_two_gpus_share_a_base() -> None:
    two = gpu("NVIDIA H100 80GB HBM3", 79.6, count=4)
    args = ("--tensor_parallel_size=4",)
    assert fit(Settings(engine_args=args), two, BASE_70B).max_loras == 16
    with pytest.raises(TooLittleMemory, match="tensor-parallel-size"):
        fit(Settings(), two, BASE_70B)


@pytest.mark.parametrize(
    ("settings", "device", "message"),
    [
        ({"max_loras": 128, "max_lora_rank": 64}, A10, r"lower LORAPLEX_MAX_LORAS to \d+"),
        ({"max_lora_rank": 256}, A10, r"lower LORAPLEX_MAX_LORAS to \d, or LORAPLEX_MAX_LORA_RANK"),
        ({"max_model_len": 100_000}, A10, "lower LORAPLEX_MAX_MODEL_LEN"),
        ({"kv_cache_gib": 40}, A10, "lower LORAPLEX_KV_CACHE_GIB"),
        ({}, gpu("NVIDIA T4", 14.6), "4-bit base"),
        ({}, gpu("NVIDIA L40", 44.5, free_gib=30), r"--gpu-memory-utilization 0\.67"),
    ],
)
def test_a_gpu_that_is_too_small_is_refused_in_one_line(
    settings: dict[str, Any], device: Device, message: str
) -> None:
    with pytest.raises(TooLittleMemory, match=message) as error:
        fit(Settings(**settings), device, BASE_8B)
    assert "\n" not in str(error.value)


def test_the_remedy_fits() -> None:
    with pytest.raises(TooLittleMemory) as error:
        fit(Settings(max_loras=500), A10, BASE_8B)
    named = int(str(error.value).split("LORAPLEX_MAX_LORAS to ")[1].split(",")[0])
    assert fit(Settings(max_loras=named), A10, BASE_8B).max_loras == named
    with pytest.raises(TooLittleMemory):
        fit(Settings(max_loras=named + 1), A10, BASE_8B)


def test_the_message_says_what_takes_how_much() -> None:
    with pytest.raises(TooLittleMemory) as error:
        fit(Settings(max_loras=100), A10, BASE_8B)
    for part in ("base takes 15.0 GiB", "100 adapter slots of rank 16 7.8 GiB", "KV cache 0.2 GiB"):
        assert part in str(error.value)


def test_prompts_on_a_gpu_are_bounded_by_the_engines_step() -> None:
    large, small = defaults.prefill(H200, None, 8192), defaults.prefill(L40, None, 2048)
    assert (large.threshold, large.is_adaptive, large.tenant_tokens) == (2048, True, 8192)
    assert (small.threshold, small.is_adaptive, small.tenant_tokens) == (512, True, 2048)
    assert defaults.prefill(CPU, None, 2048) == defaults.Prefill(64, False, 64)
    assert defaults.prefill(H200, 100, 8192) == defaults.Prefill(100, False, 100)


def test_as_many_prompts_run_as_a_step_holds() -> None:
    assert defaults.max_running(CPU, None) == 32
    assert defaults.max_running(H200, None) == 512
    assert defaults.max_running(H200, 64) == 32
    assert defaults.max_running(L40, 1) == 1


def test_a_gpu_gets_nothing_that_is_meant_for_cpu() -> None:
    found = defaults.environment(is_cpu=False, has_cuda_compiler=False, cache=Path("/data/cache"))
    assert not defaults.ON_CPU.keys() & found.keys()
    assert found["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert found["VLLM_CACHE_ROOT"] == "/data/cache/vllm"
    with_compiler = defaults.environment(is_cpu=False, has_cuda_compiler=True, cache=Path("/c"))
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in with_compiler
    assert defaults.environment(is_cpu=True, has_cuda_compiler=False, cache=Path("/c")).keys() == (
        defaults.EVERYWHERE.keys() | defaults.ON_CPU.keys()
    )


def test_without_a_compiler_no_attention_is_chosen_that_needs_one() -> None:
    b200 = replace(H200, gpus=tuple(replace(gpu, generation=10) for gpu in H200.gpus))
    assert defaults.attention_backend(b200, has_cuda_compiler=False) == "TRITON_ATTN"
    assert defaults.attention_backend(b200, has_cuda_compiler=True) is None
    for device in (H200, L40, CPU):
        assert defaults.attention_backend(device, has_cuda_compiler=False) is None


def test_an_engine_on_a_gpu_has_more_time_to_end() -> None:
    assert 5 <= defaults.stop_seconds(CPU) < defaults.stop_seconds(H200)


def test_the_start_line_says_what_was_chosen_and_from_what() -> None:
    fitted = fit(Settings(), H100, BASE_8B)
    line = summary(fitted, H100, BASE_8B, "torch.compile and CUDA graphs are on")
    assert line == (
        "NVIDIA H100 80GB HBM3 (80 GiB): 16 adapter slots of rank 64 take 5.0 GiB of the 55.8 GiB "
        "that the base leaves on a GPU; the KV cache gets the rest; adapters in host memory may "
        "take 64.0 GiB of 256 GiB that are available; torch.compile and CUDA graphs are on"
    )
    assert "CPU: 64 adapter slots" in summary(fit(Settings(), CPU, SMALL_BASE), CPU, None, "")
