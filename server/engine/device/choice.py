"""Fills in the settings that depend on the device, and prints what was chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from server.engine import environment
from server.engine.device import defaults
from server.engine.device.base_size import size_of
from server.engine.device.device import read_device
from server.engine.device.memory import TooLittleMemory, host_floor_bytes
from server.settings import Settings, SettingsError


def fit_to_device(
    settings: Settings, config_directory: Path, announce: Callable[[str], None]
) -> Settings:
    """Return the settings with slots, rank and host memory filled in; announce them in one line.

    Raises:
        SettingsError: base, slots and KV cache don't fit the GPU, or adapters don't fit the host
            memory that the operator allows.
    """
    device, size = read_device(), size_of(config_directory)
    try:
        fitted = defaults.fit(settings, device, size)
    except TooLittleMemory as error:
        raise SettingsError(f"LORAPLEX_BASE (--base): {error}") from error
    if size is not None and fitted.host_cache_bytes is not None:
        least = host_floor_bytes(fitted.max_loras, fitted.max_lora_rank, size)
        if fitted.host_cache_bytes < least:
            raise SettingsError(
                f"LORAPLEX_HOST_CACHE_GIB (--host-cache-gib): {fitted.max_loras} slots of rank "
                f"{fitted.max_lora_rank} need {least / (1 << 30):.3g}; raise it, or lower "
                "LORAPLEX_MAX_LORAS"
            )
    announce(defaults.summary(fitted, device, size, environment.compiling(settings.engine_args)))
    return fitted
