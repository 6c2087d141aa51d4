"""Turns our settings into vLLM's arguments."""

from __future__ import annotations

import difflib
import logging
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from server.engine import cpu, environment
from server.engine.chat_formats import ChatFormats, chat_formats
from server.engine.device import defaults
from server.engine.device.base_size import size_of
from server.engine.device.device import Device
from server.engine.worker.lora_gpu import OPERATOR_VERSION
from server.engine.worker.speculation import PROPOSER
from server.settings import Settings, SettingsError
from server.settings.traces_endpoint import TracesEndpoint

log = logging.getLogger(__name__)

MANAGED = {
    "model": "--base",
    "served-model-name": "--served-base-name",
    "enable-lora": "the adapters settings",
    "lora-modules": "`loraplex adapters register`",
    "max-loras": "--max-loras",
    "max-lora-rank": "--max-lora-rank",
    "max-cpu-loras": "--max-cpu-loras",
    "worker-extension-cls": "the server alone, which needs its own class",
    "lora-target-modules": "the server alone: adapters may change linear layers only",
    "long-prefill-token-threshold": "--prefill-tokens",
    "long-prefill-token-threshold-adaptive": "--prefill-tokens",
    "scheduling-policy": "the server alone: requests run in the order of tenants' shares",
    "otlp-traces-endpoint": "--traces-endpoint",
    "host": "--host",
    "port": "--port",
    "api-key": "`loraplex keys`",
    "api-server-count": "replicas of the whole server",
    "config": "LORAPLEX_ variables",
}
"""Arguments of vLLM that the server sets itself, and what the operator uses instead."""

FORBIDDEN = {
    "trust-request-chat-template": "clients could run templates of their own",
    "trust-request-mm-kwargs": "clients could steer the engine's processors",
    "enable-prompt-embeds": "clients could send tensors, which are not checked",
    "enable-mm-embeds": "clients could send tensors, which are not checked",
    "allowed-local-media-path": "clients could read files of the server",
    "allowed-media-domains": "clients could have the server ask other hosts",
    "enable-log-requests": "prompts would stand in the logs",
    "enable-log-outputs": "answers would stand in the logs",
    "enable-log-deltas": "answers would stand in the logs",
    "middleware": "it would not be applied",
}
"""Arguments of vLLM that are refused. Most would let clients do what this server must prevent."""

VLLMS_GUESSES = ("speculative-config", "spec-method", "spec-model", "spec-tokens")
"""Arguments with which vLLM guesses tokens in its own way. They are refused on CPU, where its check
of guesses forgets the temperature, top-p and top-k of requests (vLLM 0.32)."""

NOT_WITH_GUESSES = {
    **dict.fromkeys(VLLMS_GUESSES, "both choose how tokens are guessed"),
    "logits-processors": "guesses would be checked without them",
    "logprobs-mode": "log-probabilities of guessed tokens are `raw_logprobs`",
    "async-scheduling": "guesses are made from what the step before has said",
}
"""Arguments of vLLM that can't be combined with `LORAPLEX_SPECULATION_TOKENS`, and why."""

GUESSES = "LORAPLEX_SPECULATION_TOKENS (--speculation-tokens)"

_GIB = 1 << 30

_NEVER_FULL = 1 << 20
"""vLLM's own bound on adapters in host memory, which would evict adapters that are in use. The
server keeps its own bound (`LORAPLEX_HOST_CACHE_GIB`), so vLLM's is never reached."""


def engine_arguments(
    settings: Settings, base: str, device: Device, *, has_adapters: bool = True
) -> Namespace:
    """Parse vLLM's arguments for a base directory or hub id.

    Without adapters, as on a dedicated server, no layer has slots, and none computes LoRA.

    Raises:
        SettingsError: `LORAPLEX_ENGINE_ARGS` has an argument that vLLM doesn't know or that the
            server sets itself; or the base doesn't fit the memory on CPU.
    """
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    except ModuleNotFoundError:  # where vLLM 0.33 has them
        from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise SettingsError(f"LORAPLEX_ENGINE_ARGS: {message.splitlines()[0]}")

    parser = make_arg_parser(Parser(allow_abbrev=False))
    known = [option.lstrip("-") for option in parser._option_string_actions]
    _check_passed_through(settings.engine_args, known)
    formats = chat_formats(base)
    arguments = _from_settings(settings, base, device, formats)
    if has_adapters:
        arguments.append("--enable-lora")
    namespace: Namespace = parser.parse_args([*arguments, *settings.engine_args])
    if namespace.model_tag is not None:
        raise SettingsError(f"{namespace.model_tag!r} is not a flag; the base is named with --base")
    # Embedding and head are left out: they would make each step slower and each slot larger (four
    # times, on a small base). The gate rejects adapters that change other layers than these.
    namespace.lora_target_modules = list(formats.family.targets)
    if not device.is_cpu and settings.gpu_lora_kernels == "fused":
        namespace.additional_config = _of_compiled_model(namespace.additional_config)
    _bound_prefill(namespace, settings, base, device)
    usual = parser.parse_args([])
    if settings.speculation_tokens:
        _add_guesses(namespace, usual, settings.speculation_tokens, device)
    elif device.is_cpu and (given := _given(VLLMS_GUESSES, namespace, usual)):
        raise SettingsError(
            f"LORAPLEX_ENGINE_ARGS: --{given[0]} is refused on CPU, where vLLM's check of guesses "
            f"forgets the temperature of requests; use {GUESSES}"
        )
    try:
        validate_parsed_serve_args(namespace)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"LORAPLEX_ENGINE_ARGS: {error}") from error
    return namespace


def _of_compiled_model(additional_config: dict[str, Any] | None) -> dict[str, Any]:
    """Add our operators' version to the settings that vLLM hashes to find a compiled model.

    vLLM looks in its cache of compiled models by this hash, and doesn't look at the model's code.
    Otherwise a server with vLLM's operators could load a model that was compiled with ours, and
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
        if name in FORBIDDEN:
            raise SettingsError(f"LORAPLEX_ENGINE_ARGS: --{name} is refused: {FORBIDDEN[name]}")
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean --{nearest[0]}?" if nearest else ""
            raise SettingsError(
                f"--{name} is not a setting, and not an engine argument of vLLM{hint}"
            )


def _add_guesses(namespace: Namespace, usual: Namespace, num_guesses: int, device: Device) -> None:
    """Have the engine guess tokens. `usual`: vLLM's defaults.

    A step has room for guesses for all requests, as vLLM wants, and for no more prompt tokens than
    without them.

    Raises:
        SettingsError: nothing can be guessed on this device, or not beside other arguments.
    """
    if not device.is_cpu:
        raise SettingsError(
            f"{GUESSES} works on CPU only; on a GPU set vLLM's own --speculative-config"
        )
    for name in _given(NOT_WITH_GUESSES, namespace, usual):
        raise SettingsError(f"{GUESSES} can't be combined with --{name}: {NOT_WITH_GUESSES[name]}")
    namespace.speculative_config = {
        "method": "custom_class",
        "model": PROPOSER,
        "num_speculative_tokens": num_guesses,
    }
    step, most_seqs = namespace.max_num_batched_tokens, namespace.max_num_seqs or device.max_seqs
    if namespace.max_num_scheduled_tokens is None:
        namespace.max_num_scheduled_tokens = step
    namespace.max_num_batched_tokens = max(step, most_seqs * (1 + num_guesses))


def _given(names: Iterable[str], namespace: Namespace, usual: Namespace) -> list[str]:
    """Return those of the arguments that the operator has set, and not to false."""
    values = {name: name.replace("-", "_") for name in names}
    return [
        name
        for name, field in values.items()
        if getattr(namespace, field) not in (False, getattr(usual, field))
    ]


def _bound_prefill(namespace: Namespace, settings: Settings, base: str, device: Device) -> None:
    """Set how many tokens one step computes, and how many of a long prompt beside others.

    vLLM refuses a bound of more than a context.
    """
    if device.is_cpu and namespace.max_num_batched_tokens is None:
        max_seqs = namespace.max_num_seqs or device.max_seqs
        namespace.max_num_batched_tokens = max(
            defaults.CPU_STEP_TOKENS, settings.prefill_tokens or 0, max_seqs
        )
    bounds = defaults.prefill(device, settings.prefill_tokens, step_tokens(namespace, device))
    size = size_of(Path(base))
    contexts = [settings.max_model_len, size.max_tokens if size else None]
    namespace.long_prefill_token_threshold = min(
        [bounds.threshold, *(tokens for tokens in contexts if tokens)]
    )
    namespace.long_prefill_token_threshold_adaptive = bounds.is_adaptive


def step_tokens(namespace: Namespace, device: Device) -> int:
    """Return how many tokens one step of the engine computes."""
    return namespace.max_num_batched_tokens or device.step_tokens


def _from_settings(
    settings: Settings, base: str, device: Device, formats: ChatFormats
) -> list[str]:
    traced_to = settings.traces_endpoint
    endpoint = TracesEndpoint.parse(traced_to) if traced_to else None
    options: dict[str, object] = {
        "model": base,
        "served-model-name": settings.served_base_name,
        "dtype": settings.dtype,
        "quantization": settings.quantization,
        # -1 takes the base's own context, or less if the KV cache holds less. Llama 3.1's context
        # of 131,072 tokens needs 16 GiB.
        "max-model-len": settings.max_model_len or -1,
        "max-loras": settings.max_loras,
        "max-lora-rank": settings.max_lora_rank,
        "max-cpu-loras": _NEVER_FULL,
        "worker-extension-cls": "server.engine.worker.extension.WorkerExtension",
        "kv-cache-memory-bytes": _kv_cache_bytes(settings, base, device),
        # The server's own probes come first; `metering.AHEAD` explains the order of the others.
        "scheduling-policy": "priority",
        "tool-call-parser": formats.tool_parser,
        "reasoning-parser": formats.reasoning_parser,
        "otlp-traces-endpoint": endpoint.url if endpoint else None,
        "attention-backend": defaults.attention_backend(
            device, has_cuda_compiler=environment.has_cuda_compiler()
        ),
        # With vLLM's default, answers may contain tool arguments that break the tool's schema.
        "tool-strict-level": "parameter",
        **dict(formats.family.engine_options),
    }
    arguments = ["--enable-auto-tool-choice", "--no-use-tqdm-on-load"]
    for name, value in options.items():
        if value is not None:
            arguments += [f"--{name}", str(value)]
    return arguments


def _kv_cache_bytes(settings: Settings, base: str, device: Device) -> int | None:
    """Return the size of the KV cache in bytes, or None to let vLLM decide.

    On CPU a size is always given. vLLM on its own would start only if 92 % of the memory is free.
    """
    wanted = int(settings.kv_cache_gib * _GIB) if settings.kv_cache_gib else None
    if not device.is_cpu:
        return wanted
    machine = cpu.read_machine()
    size = size_of(Path(base))
    resident = (size.weights_bytes if size else 0) + (settings.host_cache_bytes or 0)
    if wanted is None:
        try:
            return cpu.kv_cache_bytes(machine, resident)
        except cpu.KvCacheDoesNotFit as error:
            raise SettingsError(f"LORAPLEX_BASE (--base): {error}") from error
    if wanted > (room := cpu.room_bytes(machine, resident)):
        log.warning(
            "the KV cache of %.1f GiB (LORAPLEX_KV_CACHE_GIB) may not fit: base, adapters and "
            "processes leave %.1f GiB of memory",
            wanted / _GIB,
            room / _GIB,
        )
    return wanted
