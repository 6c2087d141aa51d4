"""Chooses the settings that the operator left open, for a device, a machine and a base.

It reads neither the environment nor the hardware, so the choice for any GPU can be tested anywhere.
The operator's own settings always win.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from server.engine.device.device import Device
from server.engine.device.memory import GIB, GpuPlan, PlannedSlots, host_floor_bytes
from server.settings import Settings

if TYPE_CHECKING:
    from server.engine.device.base_size import BaseSize

NUM_SLOTS, RANK = 16, 16
LARGER_SLOTS, LARGER_RANKS = (32, 64), (32, 64)
"""Numbers of slots and ranks for a GPU with enough memory for them."""
FEWEST_SLOTS = 4
CPU_MAX_RUNNING = 32
CPU_SLOTS = 2 * CPU_MAX_RUNNING
"""As many as run at a time at most (see `max_running`), so that each may have its own adapter."""
SLOTS_SHARE = 1 / 10
"""Share of the GPU memory left by the base that adapter slots get. The KV cache gets the rest."""
CPU_SLOTS_SHARE = 1 / 4
HOST_SHARE, CPU_HOST_SHARE = 1 / 4, 1 / 8
"""Share of the machine's free memory for adapters. On CPU the KV cache is in that memory too."""
LEAST_THRESHOLD = 512
CPU_PREFILL_TOKENS = 64
CPU_STEP_TOKENS = 256
"""A lone prompt has whole steps. Whoever asks next waits for the one that runs, and so does a
readiness probe: vLLM's 2,048 tokens take two cores many seconds, and are no cheaper per token."""
HANG_SECONDS, CPU_HANG_SECONDS = 60.0, 120.0
STOP_SECONDS, CPU_STOP_SECONDS = 10.0, 5.0
"""An engine on a GPU frees its memory and graphs before it ends, which takes some seconds."""

EVERYWHERE = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
ON_CPU = {
    # How long a thread spins at a barrier before it sleeps. By default it spins for milliseconds.
    # With another busy process on two cores, a token then took up to 1,700 ms, and 60 ms with this
    # value. If nothing else runs on the machine, the server is a fifth faster with 300000.
    "GOMP_SPINCOUNT": "1000",
    # The engine's process runs the model itself. A worker process would import everything again,
    # and each step would cost a message in each direction.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Otherwise the first request with log-probabilities starts a compilation of 12 to 21 s, for
    # which all streams wait. Nothing else is compiled on CPU.
    "TORCH_COMPILE_DISABLE": "1",
}
NO_FLASHINFER_SAMPLER = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
"""FlashInfer compiles its sampler when the engine starts, which needs nvcc; without nvcc the engine
would not start. vLLM's own sampler needs no compiler."""


FLASHINFER_GENERATION = 10
"""The generation of GPUs on which vLLM prefers FlashInfer's attention."""


@dataclass(frozen=True)
class Prefill:
    """How many prompt tokens one step of the engine computes beside other requests."""

    threshold: int
    """Tokens of one prompt (vLLM's `--long-prefill-token-threshold`)."""
    is_adaptive: bool
    """Whether a prompt gets its share of the step where that is more than the threshold."""
    tenant_tokens: int
    """Tokens of all prompts of one tenant that wait for their first token (see `FairQueue`)."""


def environment(*, is_cpu: bool, has_cuda_compiler: bool, cache: Path) -> dict[str, str]:
    """Return the variables to set where the operator has not set them.

    On a GPU the variables for CPU are not set, so torch.compile and CUDA graphs stay on. Compiled
    models and kernels are kept under `cache`, so that only the first start compiles them.
    """
    if is_cpu:
        return EVERYWHERE | ON_CPU
    caches = {
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "CUDA_CACHE_PATH": str(cache / "cuda"),
        "FLASHINFER_WORKSPACE_BASE": str(cache / "flashinfer"),
    }
    return EVERYWHERE | caches | ({} if has_cuda_compiler else NO_FLASHINFER_SAMPLER)


def prefill(device: Device, wanted: int | None, step_tokens: int) -> Prefill:
    """Return the bounds on prompts. `wanted` is the operator's bound, `step_tokens` a step's size.

    On a GPU steps with many prompt tokens are efficient, so a prompt always gets its share of the
    step, and at least a quarter of it. A step is filled as long as prompts wait, so one tenant
    alone is as fast as with no bound at all.
    """
    if wanted is not None:
        return Prefill(wanted, False, wanted)
    if device.is_cpu:
        return Prefill(CPU_PREFILL_TOKENS, False, CPU_PREFILL_TOKENS)
    return Prefill(max(LEAST_THRESHOLD, step_tokens // 4), True, step_tokens)


def attention_backend(device: Device, *, has_cuda_compiler: bool) -> str | None:
    """Return the attention that the engine should use, or None to let vLLM choose.

    On data-centre GPUs of the Blackwell generation vLLM chooses FlashInfer's, of which kernels are
    compiled by nvcc at the first request that needs them. Without nvcc such a request would fail.
    Triton brings its compiler along.
    """
    compiles = any(gpu.generation == FLASHINFER_GENERATION for gpu in device.gpus)
    return "TRITON_ATTN" if compiles and not has_cuda_compiler else None


def max_running(device: Device, max_seqs: int | None) -> int:
    """Return how many prompts run in the engine before others must wait for their tenant's turn.

    Under the rules of `FairQueue` up to twice as many run. On a GPU twice this number is what one
    step holds: further requests would wait inside vLLM, first come, first served.
    """
    if device.is_cpu:
        return CPU_MAX_RUNNING
    return max(1, (max_seqs or device.max_seqs) // 2)


def hang_seconds(device: Device) -> float:
    """Return for how many seconds an engine may be silent. On CPU its steps take longer."""
    return CPU_HANG_SECONDS if device.is_cpu else HANG_SECONDS


def stop_seconds(device: Device) -> float:
    """Return how long the engine's process may take to end by itself before it is killed."""
    return CPU_STOP_SECONDS if device.is_cpu else STOP_SECONDS


def fit(settings: Settings, device: Device, base: BaseSize | None) -> Settings:
    """Fill in slots, rank and host memory where the operator has set none.

    If `base` is None, nothing is known about it, and the fixed defaults stay.

    Raises:
        TooLittleMemory: base, slots and the smallest useful KV cache don't fit the GPU.
    """
    slots = settings.max_loras if "max_loras" in settings.model_fields_set else None
    rank = settings.max_lora_rank if "max_lora_rank" in settings.model_fields_set else None
    if base is None:
        planned = PlannedSlots(slots or NUM_SLOTS, rank or RANK)
    elif device.gpus:
        plan = GpuPlan.of(settings, device, base)
        planned = _slots(slots, rank, plan.slot_bytes(1), plan.room_bytes * SLOTS_SHARE)
        plan.check(planned)
    else:
        planned = _slots_on_cpu(slots, rank, device, base)
    if slots is None:
        planned = _within_host_memory(planned, settings, base)
    chosen: dict[str, float] = {"max_loras": planned.num_slots, "max_lora_rank": planned.rank}
    if settings.host_cache_gib is None and base is not None:
        chosen["host_cache_gib"] = _host_cache_bytes(device, base, planned) / GIB
    return settings.model_copy(update=chosen)


def _within_host_memory(
    planned: PlannedSlots, settings: Settings, base: BaseSize | None
) -> PlannedSlots:
    """Lower the number of slots to that of adapters for which the operator allows host memory.

    Otherwise a version that was granted a slot could wait for ever for room in host memory.
    """
    most = settings.max_cpu_loras or planned.num_slots
    if base is not None and settings.host_cache_bytes is not None:
        most = min(most, settings.host_cache_bytes // host_floor_bytes(1, planned.rank, base))
    return PlannedSlots(max(1, min(planned.num_slots, most)), planned.rank)


def _slots(slots: int | None, rank: int | None, bytes_per_rank: int, budget: float) -> PlannedSlots:
    """Choose the rank for the usual number of slots, then the number of slots for that rank."""

    def fits(num_slots: int, of_rank: int) -> bool:
        return num_slots * of_rank * bytes_per_rank <= budget

    if rank is None:
        rank = max((r for r in LARGER_RANKS if fits(slots or NUM_SLOTS, r)), default=RANK)
    if slots is None:
        slots = max((n for n in (NUM_SLOTS, *LARGER_SLOTS) if fits(n, rank)), default=0)
        slots = slots or max(FEWEST_SLOTS, int(budget / (rank * bytes_per_rank)))
    return PlannedSlots(slots, rank)


def _slots_on_cpu(
    slots: int | None, rank: int | None, device: Device, base: BaseSize
) -> PlannedSlots:
    """Choose slots and rank on CPU, where a slot is only a pointer to an adapter in host memory.

    These adapters must fit the memory. There are more than `NUM_SLOTS` if they fit the part of it
    that adapters get anyway, and fewer if it is short.
    """
    rank = rank or RANK
    free = device.host_bytes - base.weights_bytes

    def most(share: float) -> int:
        return int(free * share / (rank * base.slot_bytes_per_rank))

    slots = slots or max(
        1, min(NUM_SLOTS, most(CPU_SLOTS_SHARE)), min(CPU_SLOTS, most(CPU_HOST_SHARE))
    )
    return PlannedSlots(slots, rank)


def _host_cache_bytes(device: Device, base: BaseSize, planned: PlannedSlots) -> float:
    if device.is_cpu:
        wanted = (device.host_bytes - base.weights_bytes) * CPU_HOST_SHARE
    else:
        wanted = device.host_bytes * HOST_SHARE
    return max(wanted, host_floor_bytes(planned.num_slots, planned.rank, base))


def summary(settings: Settings, device: Device, base: BaseSize | None, compiling: str) -> str:
    """Return a line that says what was chosen, and why. `settings` are those `fit` returned."""
    parts = [f"{settings.max_loras} adapter slots of rank {settings.max_lora_rank}"]
    if device.is_cpu:
        parts[0] += " (on CPU a slot takes no memory of its own)"
    elif device.gpus and base is not None:
        plan = GpuPlan.of(settings, device, base)
        slots = plan.slot_bytes(settings.max_lora_rank) * settings.max_loras
        parts[0] += (
            f" take {slots / GIB:.1f} GiB of the {plan.room_bytes / GIB:.1f} GiB that the base "
            "leaves on a GPU; the KV cache gets the rest"
        )
    if settings.host_cache_gib is not None:
        parts.append(
            f"adapters in host memory may take {settings.host_cache_gib:.1f} GiB of "
            f"{device.host_bytes / GIB:.0f} GiB that are available"
        )
    if not device.is_cpu:
        parts.append(compiling)
    return f"{_name(device)}: {'; '.join(parts)}"


def _name(device: Device) -> str:
    names = [f"{gpu.name} ({gpu.total_bytes / GIB:.0f} GiB)" for gpu in device.gpus]
    return "CPU" if device.is_cpu else ", ".join(names) or "GPU"
