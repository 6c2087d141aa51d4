"""Computes, before anything is loaded, whether base, adapter slots and KV cache fit a GPU."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.engine.device.device import Device, Gpu
from server.settings import Settings

if TYPE_CHECKING:
    from server.engine.device.base_size import BaseSize

GIB = 1 << 30

UTILIZATION = 0.92
"""Share of the GPU that vLLM uses by default (`--gpu-memory-utilization`)."""
RUNTIME_BYTES = GIB
"""Bytes of CUDA's context, the kernels and the CUDA graphs. A low estimate."""
BYTES_PER_STEP_TOKEN = 192 * 1024
"""Bytes that a step holds for each of its tokens: 1.5 GiB for 8,192. An estimate as well."""
USEFUL_TOKENS = 2048
"""A KV cache for fewer tokens would not serve one ordinary chat."""


class TooLittleMemory(Exception):
    """The parts don't fit the GPU. The message says what each takes, and what to lower."""


@dataclass(frozen=True)
class PlannedSlots:
    """Adapter slots, each with room for adapters of this rank."""

    num_slots: int
    rank: int


@dataclass(frozen=True)
class EngineOptions:
    """vLLM's own options that decide about memory, as far as the operator passes them through."""

    num_shards: int
    """GPUs that hold one base between them."""
    utilization: float
    step_tokens: int | None

    @classmethod
    def of(cls, arguments: Sequence[str]) -> EngineOptions:
        """Read `LORAPLEX_ENGINE_ARGS`. If a value can't be read, vLLM will refuse it later."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        parser.add_argument("--tensor-parallel-size", "-tp", default="1")
        parser.add_argument("--pipeline-parallel-size", "-pp", default="1")
        parser.add_argument("--gpu-memory-utilization", default=str(UTILIZATION))
        parser.add_argument("--max-num-batched-tokens")
        try:
            given, _ = parser.parse_known_args([_with_dashes(each) for each in arguments])
            return cls(
                num_shards=int(given.tensor_parallel_size) * int(given.pipeline_parallel_size),
                utilization=float(given.gpu_memory_utilization),
                step_tokens=int(given.max_num_batched_tokens or 0) or None,
            )
        except (argparse.ArgumentError, ValueError):
            return cls(1, UTILIZATION, None)


def _with_dashes(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


@dataclass(frozen=True)
class GpuPlan:
    """The parts of one GPU's memory, in bytes. Several GPUs share weights, slots and KV cache."""

    gpu: Gpu
    options: EngineOptions
    base: BaseSize
    weights_bytes: int
    runtime_bytes: int
    kv_bytes: int
    """The KV cache that the operator asks for, or else the smallest useful one."""
    kv_setting: str
    """The setting that makes the KV cache so large. Empty if it is the smallest useful one."""

    @classmethod
    def of(cls, settings: Settings, device: Device, base: BaseSize) -> GpuPlan:
        """Plan for the GPU with the least memory."""
        options = EngineOptions.of(settings.engine_args)
        gpu = min(device.gpus, key=lambda gpu: gpu.total_bytes)
        step_tokens = options.step_tokens or device.step_tokens
        kv_bytes, kv_setting = _kv_cache(settings, base, options.num_shards)
        return cls(
            gpu,
            options,
            base,
            weights_bytes=base.weights_bytes // options.num_shards,
            runtime_bytes=RUNTIME_BYTES + step_tokens * BYTES_PER_STEP_TOKEN,
            kv_bytes=kv_bytes,
            kv_setting=kv_setting,
        )

    @property
    def usable_bytes(self) -> int:
        """Return the bytes that vLLM uses on this GPU."""
        return int(self.gpu.total_bytes * self.options.utilization)

    @property
    def room_bytes(self) -> int:
        """Return the bytes that the base leaves for slots and KV cache. They may be negative."""
        return self.usable_bytes - self.weights_bytes - self.runtime_bytes

    def slot_bytes(self, rank: int) -> int:
        """Return the bytes of one slot's part on this GPU."""
        return rank * self.base.slot_bytes_per_rank // self.options.num_shards

    def check(self, planned: PlannedSlots) -> None:
        """Raise `TooLittleMemory` if the parts don't fit."""
        if self.gpu.free_bytes < self.usable_bytes:
            share = self.gpu.free_bytes / self.gpu.total_bytes
            raise TooLittleMemory(
                f"{self._name} has {_gib(self.gpu.free_bytes)} free, and the engine wants "
                f"{_gib(self.usable_bytes)}: end the other process that holds the rest, or give "
                f"--gpu-memory-utilization {int(share * 100) / 100:g} or less"
            )
        slots = planned.num_slots * self.slot_bytes(planned.rank)
        if slots + self.kv_bytes <= self.room_bytes:
            return
        raise TooLittleMemory(
            f"{self._name} lets the engine use {_gib(self.usable_bytes)}, which is too little: the "
            f"base takes {_gib(self.weights_bytes)}, {planned.num_slots} adapter slots of rank "
            f"{planned.rank} {_gib(slots)}, a step and its kernels {_gib(self.runtime_bytes)}, the "
            f"KV cache {_gib(self.kv_bytes)}; {self._remedy(planned, slots)}"
        )

    @property
    def _name(self) -> str:
        return f"{self.gpu.name} ({_gib(self.gpu.total_bytes)})"

    def _remedy(self, planned: PlannedSlots, slots_bytes: int) -> str:
        """Name the first setting that would make everything fit."""
        left = self.room_bytes - self.kv_bytes
        if num_slots := max(0, left) // self.slot_bytes(planned.rank):
            return f"lower LORAPLEX_MAX_LORAS to {num_slots}, or LORAPLEX_MAX_LORA_RANK"
        if self.kv_setting and slots_bytes < self.room_bytes:
            return f"lower {self.kv_setting}"
        return (
            "choose a smaller or 4-bit base (LORAPLEX_BASE), or divide it among several GPUs "
            "(--tensor-parallel-size)"
        )


def _kv_cache(settings: Settings, base: BaseSize, num_shards: int) -> tuple[int, str]:
    if settings.kv_cache_gib is not None:
        return int(settings.kv_cache_gib * GIB), "LORAPLEX_KV_CACHE_GIB"
    smallest = min(base.max_tokens, USEFUL_TOKENS)
    num_tokens = settings.max_model_len or smallest
    setting = "LORAPLEX_MAX_MODEL_LEN" if num_tokens > smallest else ""
    return num_tokens * base.kv_bytes_per_token // num_shards, setting


def host_floor_bytes(num_slots: int, rank: int, base: BaseSize) -> int:
    """Return the bytes that the adapters of all slots take in host memory, at the largest rank.

    With less, a version that was granted a slot could wait for ever for room in host memory.
    """
    return num_slots * rank * base.slot_bytes_per_rank


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
