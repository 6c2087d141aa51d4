"""From our settings to vLLM's arguments."""

from __future__ import annotations

import difflib
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any, NoReturn

from server.engine import cpu
from server.engine.worker.lora_gpu import OPERATOR_VERSION
from server.settings import Settings, SettingsError

log = logging.getLogger(__name__)

MANAGED = {
    "model": "--base",
    "served-model-name": "--served-base-name",
    "enable-lora": "the adapters settings",
    "lora-modules": "`loraplex adapters register`",
    "max-loras": "--max-loras",
    "max-lora-rank": "--max-lora-rank",
    "max-cpu-loras": "--max-cpu-loras",
    "worker-extension-cls": "nothing: it is ours",
    "lora-target-modules": "nothing: adapters touch the linear layers",
    "long-prefill-token-threshold": "--prefill-tokens",
    "host": "--host",
    "port": "--port",
    "api-key": "`loraplex keys`",
    "api-server-count": "replicas of the whole server",
    "config": "LORAPLEX_ variables",
}
"""Arguments of vLLM that are ours to set, and what to use instead."""

_GIB = 1 << 30

_NEVER_FULL = 1 << 20
"""Adapters in host memory, for vLLM: it would evict one that runs. Our own budget is a setting."""

ADAPTED_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What the gate lets adapters touch. Wrapping embedding and head too would cost each step time,
and each slot memory (three quarters of it on a small base), for nothing."""


def engine_arguments(settings: Settings, base: str) -> Namespace:
    """vLLM's parsed arguments for a base directory or hub id.

    Raises:
        SettingsError: a passed-through argument that vLLM doesn't know, or that is ours to set.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise SettingsError(f"LORAPLEX_ENGINE_ARGS: {message.splitlines()[0]}")

    parser = make_arg_parser(Parser(allow_abbrev=False))
    known = [option.lstrip("-") for option in parser._option_string_actions]
    _check_passed_through(settings.engine_args, known)
    arguments = _from_settings(settings, base, on_cpu=current_platform.is_cpu())
    namespace: Namespace = parser.parse_args([*arguments, *settings.engine_args])
    if namespace.model_tag is not None:
        raise SettingsError(f"{namespace.model_tag!r} is no flag; the base is named with --base")
    namespace.lora_target_modules = list(ADAPTED_MODULES)
    if current_platform.is_cuda() and settings.gpu_lora_kernels == "fused":
        namespace.additional_config = _of_compiled_model(namespace.additional_config)
    try:
        validate_parsed_serve_args(namespace)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"LORAPLEX_ENGINE_ARGS: {error}") from error
    return namespace


def _of_compiled_model(additional_config: dict[str, Any] | None) -> dict[str, Any]:
    """Keep models that were compiled with our LoRA operators apart from others.

    vLLM loads a compiled model from its cache by the hash of its own settings, before anything of
    the model's code is looked at: without this, a server with its operators would run ours, and
    the other way round.
    """
    return {**(additional_config or {}), "loraplex_lora_operators": OPERATOR_VERSION}


def _check_passed_through(arguments: tuple[str, ...], known: list[str]) -> None:
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        name = argument.lstrip("-").partition("=")[0].partition(".")[0].replace("_", "-")
        if name in MANAGED:
            raise SettingsError(f"LORAPLEX_ENGINE_ARGS: --{name} is set through {MANAGED[name]}")
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean --{nearest[0]}?" if nearest else ""
            raise SettingsError(f"--{name} is no setting, and no engine argument of vLLM{hint}")


def _from_settings(settings: Settings, base: str, *, on_cpu: bool) -> list[str]:
    options: dict[str, object] = {
        "model": base,
        "served-model-name": settings.served_base_name,
        "dtype": settings.dtype,
        "quantization": settings.quantization,
        # -1: the base's own, or what the KV cache holds. Llama 3.1's 131,072 tokens want 16 GiB.
        "max-model-len": settings.max_model_len or -1,
        "max-loras": settings.max_loras,
        "max-lora-rank": settings.max_lora_rank,
        "max-cpu-loras": _NEVER_FULL,
        "worker-extension-cls": "server.engine.worker.extension.WorkerExtension",
        "kv-cache-memory-bytes": _kv_cache_bytes(settings, Path(base), on_cpu=on_cpu),
        "long-prefill-token-threshold": prefill_tokens(settings),
        "tool-call-parser": tool_call_parser(base),
        # With vLLM's default, tool arguments that break the tool's schema come back.
        "tool-strict-level": "parameter",
    }
    arguments = ["--enable-lora", "--enable-auto-tool-choice", "--no-use-tqdm-on-load"]
    for name, value in options.items():
        if value is not None:
            arguments += [f"--{name}", str(value)]
    return arguments


def _kv_cache_bytes(settings: Settings, base: Path, *, on_cpu: bool) -> int | None:
    """An explicit size on CPU: vLLM's own measuring wants 92 % of the memory free."""
    wanted = int(settings.kv_cache_gib * _GIB) if settings.kv_cache_gib else None
    if not on_cpu:
        return wanted
    machine = cpu.read_machine()
    resident = cpu.resident_bytes(base, settings.max_loras, settings.max_lora_rank)
    if wanted is None:
        try:
            return cpu.kv_cache_bytes(machine, resident)
        except cpu.TooLittleMemory as error:
            raise SettingsError(f"LORAPLEX_BASE (--base): {error}") from error
    if wanted > (room := cpu.room_bytes(machine, resident)):
        log.warning(
            "the KV cache of %.1f GiB (LORAPLEX_KV_CACHE_GIB) may not fit: base, adapter slots and "
            "processes leave %.1f GiB of memory",
            wanted / _GIB,
            room / _GIB,
        )
    return wanted


def default_max_running() -> int:
    """Prompts that are worth computing together: more make each slower, and all hardly faster."""
    from vllm.platforms import current_platform

    return 32 if current_platform.is_cpu() else 256


def prefill_tokens(settings: Settings) -> int:
    """What a step computes of a long prompt beside others: each of their tokens waits for it."""
    from vllm.platforms import current_platform

    wanted = settings.prefill_tokens or (64 if current_platform.is_cpu() else 512)
    return min(wanted, settings.max_model_len or wanted)  # vLLM refuses to start with more


def tool_call_parser(base: str) -> str:
    """Llama 3's own format where the tokenizer knows its tag, else Hermes' (the bundled base)."""
    tokenizer = Path(base) / "tokenizer.json"
    if Path(base).is_dir() and not (
        tokenizer.is_file() and "<|python_tag|>" in tokenizer.read_text(encoding="utf-8")
    ):
        return "hermes"
    return "llama3_json"
