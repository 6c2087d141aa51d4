"""An adapter's `adapter_config.json`, as PEFT writes it, and which of its features can be served.

vLLM ignores many features silently. They are refused here (tried on vLLM 0.32 with PEFT 0.21).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

from adapters_registry.check.findings import counted
from adapters_registry.check.module_patterns import ModulePatterns, fault_of
from adapters_registry.errors import Reason

_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")

_UNSUPPORTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "use_dora": (bool, "DoRA can't be served"),
    "lora_bias": (bool, "LoRA biases can't be served"),
    "bias": (lambda value: value != "none", "trained biases can't be served"),
    "modules_to_save": (
        bool,
        "fully trained modules can't be served: train without modules_to_save, or merge the "
        "adapter with PEFT and serve the result as a base",
    ),
    "fan_in_fan_out": (bool, "the engine ignores transposed weights"),
    "layer_replication": (bool, "replicated layers can't be served"),
    "trainable_token_indices": (bool, "trained token embeddings can't be served"),
    "target_parameters": (bool, "adapted parameters outside linear layers can't be served"),
    "alora_invocation_tokens": (bool, "activated LoRA can't be served"),
    "use_qalora": (bool, "QALoRA can't be served"),
    "use_bdlora": (bool, "block-diagonal LoRA can't be served"),
    "arrow_config": (bool, "Arrow's routing can't be served"),
    "kasa_config": (bool, "KaSA can't be served"),
    "monteclora_config": (bool, "MonteCLoRA can't be served"),
    "init_lora_weights": (
        lambda value: isinstance(value, str) and value.lower() not in _PLAIN_INITS,
        "this initialisation changes the base too: convert it to a plain LoRA first",
    ),
}

_KNOWN = frozenset(
    {
        *("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode"),
        *("base_model_name_or_path", "revision"),
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("lora_dropout", "runtime_config", "velora_config", "ensure_weight_tying"),
        *("eva_config", "corda_config", "loftq_config", "lora_ga_config"),
        *("megatron_config", "megatron_core", "qalora_group_size"),
    }
)
"""Keys that are read here, or that change nothing in the answers of finished weights."""


class PeftConfig:
    """One adapter's configuration. The other methods make sense only if `faults` yields nothing."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    @property
    def base_model(self) -> str:
        """Return the base that it names, or an empty string."""
        return str(self._values.get("base_model_name_or_path") or "")

    def faults(self, modules: Collection[str] = ()) -> Iterator[Reason]:
        """Yield every reason why it cannot be served, whatever the tensors are.

        The patterns for ranks and alphas are tried on the names of these modules.

        Raises:
            OSError: the patterns could not be tried.
        """
        yield from self._numbers()
        yield from self._patterns(modules)
        for key, (is_used, message) in _UNSUPPORTED.items():
            if key in self._values and is_used(self._values[key]):
                yield Reason("unsupported_feature", f"{key}: {message}", key)
        unknown = [key for key, value in self._values.items() if _is_unknown(key, value)]
        if unknown:
            first = unknown[0][:200]
            which = (
                f"{first} is" if len(unknown) == 1 else f"{len(unknown)} keys, such as {first}, are"
            )
            message = f"{which} unknown here: remove what answers don't depend on"
            yield counted("unknown_feature", message, unknown)

    def _numbers(self) -> Iterator[Reason]:
        peft_type = self._values.get("peft_type")
        if peft_type != "LORA":
            yield Reason("not_lora", f"peft_type is {peft_type!r}, not 'LORA'", "peft_type")
        rank, alpha = self._values.get("r"), self._values.get("lora_alpha")
        if not _is_rank(rank):
            yield Reason("bad_rank", f"r must be a whole number from 1, not {rank!r}", "r")
        if not _is_finite_number(alpha):
            yield Reason("bad_alpha", "lora_alpha must be a finite number", "lora_alpha")
        targets = self._values.get("target_modules")
        if not isinstance(targets, str | list) or not targets:
            yield Reason("bad_targets", "target_modules names no modules", "target_modules")

    def _patterns(self, modules: Collection[str]) -> Iterator[Reason]:
        for key, code, values, is_allowed in (
            ("rank_pattern", "bad_rank", "whole numbers from 1", _is_rank),
            ("alpha_pattern", "bad_alpha", "finite numbers", _is_finite_number),
        ):
            patterns = self._values.get(key) or {}
            if not isinstance(patterns, dict) or not all(map(is_allowed, patterns.values())):
                message = f"{key} must map names of modules, or regular expressions, to {values}"
                yield Reason(code, message, key)
            elif fault := fault_of(patterns, modules):
                yield Reason(code, f"{key}: {fault}", key)

    def claimed_ranks(self) -> Iterator[tuple[str, int]]:
        """Yield every rank that it mentions, with the key: the engine refuses by each of them."""
        if _is_rank(self._values.get("r")):
            yield "r", self._values["r"]
        patterns = self._values.get("rank_pattern")
        if isinstance(patterns, dict):
            yield from (("rank_pattern", rank) for rank in patterns.values() if _is_rank(rank))

    def rank_of(self, module: str) -> Any:
        """Return the rank of a module."""
        own = self._ranks.of(module)
        return self._values.get("r") if own is None else own

    def scale_of(self, module: str) -> float:
        """Return the factor by which a module's B times A is multiplied."""
        rank, own = self.rank_of(module), self._alphas.of(module)
        alpha: Any = self._values.get("lora_alpha") if own is None else own
        return float(alpha / (math.sqrt(rank) if self._values.get("use_rslora") else rank))

    @property
    def scaling(self) -> str:
        """Return all that `scale_of` depends on."""
        keys = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
        return json.dumps([self._values.get(key) for key in keys])

    @cached_property
    def _ranks(self) -> ModulePatterns:
        return ModulePatterns(self._values.get("rank_pattern") or {})

    @cached_property
    def _alphas(self) -> ModulePatterns:
        return ModulePatterns(self._values.get("alpha_pattern") or {})


def _is_unknown(key: str, value: Any) -> bool:
    """Return whether a key may be a feature that is not known here.

    Numbers and names only tune features. A switch or a structure may be a feature.
    """
    return key not in _KNOWN and key not in _UNSUPPORTED and _is_switched_on(value)


def _is_switched_on(value: Any) -> bool:
    return value is True or (isinstance(value, dict | list) and bool(value))


def _is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_finite_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False
