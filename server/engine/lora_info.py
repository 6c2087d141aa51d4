"""Removes the gauge `vllm:lora_requests_info` from vLLM's metrics.

vLLM adds a series for every combination of adapters that ever ran together, and never removes one.
The server's own gauge of this name (`server/residency/metrics.py`) has one series, which says what
is in memory.
"""

from __future__ import annotations

import contextlib
from typing import Any

from prometheus_client import REGISTRY


def take_out_lora_info(stat_loggers: list[Any]) -> None:
    """Remove the gauge from vLLM's loggers and from the metrics registry."""
    for logger in stat_loggers:
        gauge = getattr(logger, "gauge_lora_info", None)
        if gauge is not None:
            logger.gauge_lora_info = None
            with contextlib.suppress(KeyError):  # by then vLLM may have made another registry
                REGISTRY.unregister(gauge)
