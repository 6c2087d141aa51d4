"""The static gate: what can be refused from an adapter's files alone, without torch or engine.

The engine takes many adapters that can't work, or that hurt everyone: silently ignored features,
keys that match nothing (the answers equal the base's), NaN that spreads through the shared KV
cache. All reasons are collected, so that one look is enough to mend an adapter.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from adapters_registry.base import BaseSpec
from adapters_registry.content import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import AdapterRejected, Reason

MAX_CONFIG_BYTES = 1 << 20
MAX_REASONS = 100
MAX_UPDATE_NORM = 1000.0
"""Bound on scale * |A| * |B| (Frobenius) of a module: trained ones stay below 10."""

_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_PATTERN = re.compile(r"[\w.]+", re.ASCII)

_UNSUPPORTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "use_dora": (bool, "DoRA can't be served"),
    "lora_bias": (bool, "LoRA biases can't be served"),
    "bias": (lambda value: value != "none", "trained biases can't be served"),
    "modules_to_save": (bool, "fully trained modules can't be served"),
    "alpha_pattern": (bool, "the engine ignores a per-module alpha"),
    "fan_in_fan_out": (bool, "the engine ignores transposed weights"),
    "layer_replication": (bool, "replicated layers can't be served"),
    "trainable_token_indices": (bool, "trained token embeddings can't be served"),
    "target_parameters": (bool, "adapted parameters outside linear layers can't be served"),
    "alora_invocation_tokens": (bool, "activated LoRA can't be served"),
    "use_qalora": (bool, "QALoRA can't be served"),
    "use_bdlora": (bool, "block-diagonal LoRA can't be served"),
    "init_lora_weights": (
        lambda value: isinstance(value, str) and value.lower() not in _PLAIN_INITS,
        "this initialisation changes the base too: convert it to a plain LoRA first",
    ),
}


@dataclass(frozen=True)
class AdapterFacts:
    """What the gate learned of an adapter that passed."""

    rank: int
    target_modules: list[str]
    num_layers: int
    base_model: str | None


@dataclass
class _Findings:
    reasons: list[Reason] = field(default_factory=list)

    def refuse(self, code: str, message: str, key: str | None = None) -> None:
        if len(self.reasons) < MAX_REASONS:
            self.reasons.append(Reason(code, _clean(message), key and _clean(key)))

    def raise_if_any(self) -> None:
        if self.reasons:
            raise AdapterRejected(self.reasons)


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file: its header entry, and where its bytes begin."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    def load(self, path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The values as float32; bfloat16, which numpy lacks, is float32's upper half."""
        count = math.prod(self.shape)
        raw = np.fromfile(path, dtype=_DTYPES[self.dtype], count=count, offset=self.offset)
        if self.dtype == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)


@dataclass
class _Pair:
    a: _Tensor | None = None
    b: _Tensor | None = None


def check_adapter(directory: Path, base: BaseSpec) -> AdapterFacts:
    """Check an adapter directory against the base.

    Raises:
        AdapterRejected: it can't work on this base; holds every reason found.
    """
    findings = _Findings()
    config = _read_config(directory / CONFIG_FILE, findings)
    tensors = _read_header(directory / WEIGHTS_FILE, findings)
    findings.raise_if_any()
    _check_features(config, findings)
    _check_rank_limits(config, base, findings)
    pairs = _pair_up(tensors, base, findings)
    _check_shapes(pairs, config, base, findings)
    findings.raise_if_any()
    _check_values(directory / WEIGHTS_FILE, pairs, config, findings)
    findings.raise_if_any()
    return AdapterFacts(
        rank=max(pair.a.shape[0] for pair in pairs.values() if pair.a),
        target_modules=sorted({name.rsplit(".", 1)[1] for name in pairs}),
        num_layers=len({name.split(".")[2] for name in pairs}),
        base_model=_clean(str(config.get("base_model_name_or_path") or "")) or None,
    )


def _read_config(path: Path, findings: _Findings) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("it is larger than 1 MiB")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
        return config
    except (OSError, ValueError, RecursionError) as error:
        findings.refuse("config_unreadable", f"{CONFIG_FILE} can't be read: {error}")
        return {}


def _read_header(path: Path, findings: _Findings) -> dict[str, _Tensor]:
    try:
        with safe_open(path, framework="numpy"):  # the library checks offsets and sizes
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, ValueError, SafetensorError) as error:
        findings.refuse("weights_unreadable", f"{WEIGHTS_FILE} is no valid safetensors: {error}")
        return {}
    header.pop("__metadata__", None)
    if not header:
        findings.refuse("no_tensors", f"{WEIGHTS_FILE} holds no tensors")
    return {
        key: _Tensor(entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for key, entry in header.items()
    }


def _check_features(config: dict[str, Any], findings: _Findings) -> None:
    if config.get("peft_type") != "LORA":
        findings.refuse("not_lora", f"peft_type is {config.get('peft_type')!r}, not 'LORA'")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        findings.refuse("bad_rank", f"r must be a whole number from 1, not {rank!r}", "r")
    if not _is_finite_number(alpha):
        findings.refuse("bad_alpha", "lora_alpha must be a finite number", "lora_alpha")
    targets = config.get("target_modules")
    if not isinstance(targets, str | list) or not targets:
        findings.refuse("bad_targets", "target_modules names no modules", "target_modules")
    for key, (is_used, message) in _UNSUPPORTED.items():
        if key in config and is_used(config[key]):
            findings.refuse("unsupported_feature", f"{key}: {message}", key)
    for pattern, rank in _rank_patterns(config).items():
        if not _PATTERN.fullmatch(pattern) or type(rank) is not int or rank < 1:
            findings.refuse(
                "bad_rank", "rank_pattern must map module names to whole numbers", "rank_pattern"
            )


def _check_rank_limits(config: dict[str, Any], base: BaseSpec, findings: _Findings) -> None:
    """The engine measures the configuration as well as the tensors."""
    ranks = [config.get("r"), *_rank_patterns(config).values()]
    largest = max((rank for rank in ranks if type(rank) is int), default=0)
    if largest > base.max_rank:
        findings.refuse(
            "rank_too_large",
            f"rank {largest} is over this server's limit of {base.max_rank} "
            "(LORAPLEX_MAX_LORA_RANK)",
            "r",
        )


def _pair_up(tensors: dict[str, _Tensor], base: BaseSpec, findings: _Findings) -> dict[str, _Pair]:
    """Tensors by module, A and B together; every key must name a module of the base."""
    pairs: dict[str, _Pair] = defaultdict(_Pair)
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if not match or match["module"] not in base.modules:
            message = f"{key} is no LoRA weight of a module of {base.name}"
            findings.refuse("unknown_key", message, key)
            continue
        if tensor.dtype not in _DTYPES:
            findings.refuse("bad_dtype", f"{key} is {tensor.dtype}; use F32, F16 or BF16", key)
        if match["side"] == "A":
            pairs[match["module"]].a = tensor
        else:
            pairs[match["module"]].b = tensor
    return pairs


def _check_shapes(
    pairs: dict[str, _Pair], config: dict[str, Any], base: BaseSpec, findings: _Findings
) -> None:
    for module, pair in pairs.items():
        if pair.a is None or pair.b is None:
            missing = "lora_A" if pair.a is None else "lora_B"
            findings.refuse("unpaired", f"{module} has no {missing}", module)
            continue
        shape, rank = base.modules[module], _rank_of(module, config)
        expected = (rank, shape.in_features), (shape.out_features, rank)
        if (pair.a.shape, pair.b.shape) != expected:
            findings.refuse(
                "bad_shape",
                f"{module} has A {list(pair.a.shape)} and B {list(pair.b.shape)}; with r={rank} "
                f"this base needs {list(expected[0])} and {list(expected[1])}",
                module,
            )


def _rank_of(module: str, config: dict[str, Any]) -> Any:
    """The rank that the configuration gives a module; PEFT matches patterns at the name's end.

    PEFT and vLLM take a pattern for a regular expression; only plain names are let through, whose
    dots match any character there and a dot here: a name of this base never differs by that.
    """
    for pattern, rank in _rank_patterns(config).items():
        if module == pattern or module.endswith(f".{pattern}"):
            return rank
    return config.get("r")


def _rank_patterns(config: dict[str, Any]) -> dict[str, Any]:
    patterns = config.get("rank_pattern")
    return patterns if isinstance(patterns, dict) else {}


def _is_finite_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _clean(text: str) -> str:
    """Text that can be stored and sent as UTF-8, of bounded length."""
    return text[:500].encode("utf-8", "replace").decode()


def _check_values(
    path: Path, pairs: dict[str, _Pair], config: dict[str, Any], findings: _Findings
) -> None:
    any_effect = False
    for module, norm_a, norm_b in _norms(path, pairs):
        rank = _rank_of(module, config)
        scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        update = abs(scale) * norm_a * norm_b
        if not math.isfinite(norm_a) or not math.isfinite(norm_b):
            findings.refuse("not_finite", f"{module} holds NaN or infinite values", module)
        elif not update <= MAX_UPDATE_NORM:
            findings.refuse(
                "too_large",
                f"{module} could change the base by {update:.3g} (scale * |A| * |B|), "
                f"more than {MAX_UPDATE_NORM:g}: answers would overflow",
                module,
            )
        any_effect = any_effect or update > 0
    if not any_effect and not findings.reasons:
        findings.refuse("no_effect", "every module's update is zero: it would answer as the base")


def _norms(path: Path, pairs: dict[str, _Pair]) -> Iterator[tuple[str, float, float]]:
    """Frobenius norms of A and B, module by module; NaN or infinity where a value is."""
    for module, pair in pairs.items():
        if pair.a and pair.b:
            yield module, _norm(pair.a.load(path)), _norm(pair.b.load(path))


def _norm(values: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))
