"""The static check: what an adapter's files alone show, without torch and without the engine.

The engine accepts many adapters that cannot work or that harm other requests: features that it
silently ignores, keys that match nothing (the answers equal the base's), NaN that spreads through
the shared KV cache. Every cause is collected once, with how often it holds and
what mends it, so that the adapter can be corrected in one step.
"""

from __future__ import annotations

import json
import math
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adapters_registry.check.base import BaseSpec, split_quantization
from adapters_registry.check.companions.companions import check_companions
from adapters_registry.check.companions.serving_defaults import ServingDefaults
from adapters_registry.check.findings import Findings, clean, counted
from adapters_registry.check.key_names import KEY
from adapters_registry.check.peft_config import PeftConfig
from adapters_registry.check.shapes import Pair, check_ranks, check_shapes, pair_up
from adapters_registry.check.weights import (
    TRAINED_QUANTIZATION,
    Tensor,
    Values,
    read_header,
    trained_quantization,
)
from adapters_registry.content.adapter_files import (
    ADAPTER_FILES,
    ALL_FILES,
    CONFIG_FILE,
    WEIGHTS_FILE,
)

MAX_CONFIG_BYTES = 1 << 20
MAX_CHANGE = 1.0
"""The bound on |scale * B * A| / |W| (Frobenius) of a module. Trained ones have 0.02 to 0.09."""
NF4_COST = "exact match 0.72 and 0.70 over the NF4 base, 0.45 and 0.68 over the unrounded one"
"""The scores of two QLoRA adapters on held-out smart-home examples (training/RESULTS.md)."""
MAX_ENTRY = 65504.0
"""The bound on entries of A, B and scale * B: the largest of float16, so that no cast overflows."""

_EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")
_TRAINED = (
    "the file has embeddings or a head that aren't the base's, and fully trained modules can't be "
    "served: train without them, or merge the adapter with PEFT and serve the result as a base"
)
_TEXTS = {".json", ".md", ".txt"}
_SAME_AS = {"bitsandbytes": "nf4"}
"""What a base is rounded to whose configuration names a library."""


@dataclass(frozen=True)
class AdapterFacts:
    """What the check found out about an adapter that passed."""

    rank: int
    target_modules: list[str]
    num_layers: int
    base_model: str | None
    trained_quantization: str | None
    """The base's quantization in training. Empty: none. None: the file does not say."""
    warnings: list[str]
    """What may make its answers worse, or is used in place of the base's; it may serve."""
    serving: ServingDefaults = field(default_factory=ServingDefaults)
    """What it brings for its requests, where that is not the base's."""
    logprob_change: float | None = None
    """How far it moves a log-probability of the smoke test's prompt, at most. In nats."""

    def to_json(self) -> dict[str, Any]:
        """Return the facts under the names that the API shows."""
        facts = asdict(self)
        return {"trained_over": facts.pop("trained_quantization"), **facts}


def check_adapter(
    directory: Path, base: BaseSpec, *, allow_base_mismatch: bool = False
) -> AdapterFacts:
    """Check an adapter directory against the base.

    `allow_base_mismatch` lets an adapter pass whose configuration names another base, or that was
    trained over a base with another quantization.

    Raises:
        AdapterRejected: it cannot work on this base. The error holds every reason found.
    """
    findings = Findings()
    _check_files(directory, findings)
    values = _read_config(directory / CONFIG_FILE, findings)
    tensors = _read_tensors(directory / WEIGHTS_FILE, findings)
    findings.raise_if_any()
    config = PeftConfig(values)
    faults = list(config.faults(base.modules))
    trained = _fully_trained(tensors, values.get("modules_to_save"))
    if trained and not values.get("modules_to_save"):
        findings.add(counted("unsupported_feature", _TRAINED, sorted(trained)))
    for fault in faults:
        if fault.key == "modules_to_save" and not trained:
            findings.warnings.append(
                "modules_to_save names modules that the file does not hold: the base's are used"
            )
            continue
        findings.add(fault)
    if not allow_base_mismatch:
        _check_base(config, base, findings)
    over = trained_quantization(directory / WEIGHTS_FILE)
    if over is None:  # what our own training wrote says more than a name
        over = split_quantization(config.base_model)[1]
    _check_quantization(over, base, findings, is_allowed=allow_base_mismatch)
    beside = check_companions(directory, base.directory)
    for reason in beside.reasons:
        findings.add(reason)
    findings.warnings += map(clean, beside.warnings)
    tensors = {key: tensor for key, tensor in tensors.items() if key not in trained}
    pairs = pair_up(tensors, base, findings)
    if not any(fault.code == "bad_rank" for fault in faults):
        check_ranks(config, pairs, base, findings)
        check_shapes(pairs, config, base, findings)
    findings.raise_if_any()
    _check_values(pairs, config, base, findings)
    findings.raise_if_any()
    return AdapterFacts(
        rank=max(
            *(pair.a.shape[0] for pair in pairs.values() if pair.a),
            *(rank for _, rank in config.claimed_ranks()),  # the engine looks at both
        ),
        target_modules=sorted({name.rsplit(".", 1)[1] for name in pairs}),
        num_layers=len({name.split(".")[2] for name in pairs}),
        base_model=clean(config.base_model) or None,
        trained_quantization=over and clean(over),
        warnings=findings.warnings,
        serving=beside.defaults,
    )


def _check_files(directory: Path, findings: Findings) -> None:
    """Allow only regular files: the two of an adapter, and texts. No pickle, no code, no links."""
    for entry in sorted(directory.iterdir()):
        if not stat.S_ISREG(entry.lstat().st_mode):
            findings.refuse("not_a_file", f"{entry.name} is not a regular file", entry.name)
        elif entry.name not in ALL_FILES and entry.suffix not in _TEXTS:
            kept = " and ".join(ADAPTER_FILES)
            message = f"{entry.name} does not belong to an adapter: keep only {kept}"
            findings.refuse("unexpected_file", message, entry.name)


def _read_config(path: Path, findings: Findings) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise ValueError("it is not there")
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("it is larger than 1 MiB")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is not a JSON object")
        return config
    except (ValueError, RecursionError) as error:
        message = f"{CONFIG_FILE} cannot be read: {error}"
        findings.refuse("config_unreadable", message, CONFIG_FILE)
        return {}


def _read_tensors(path: Path, findings: Findings) -> dict[str, Tensor]:
    try:
        if not path.is_file():
            raise ValueError("it is not there")
        tensors = read_header(path)
    except (ValueError, RecursionError) as error:
        message = f"{WEIGHTS_FILE} is not a valid safetensors file: {error}"
        findings.refuse("weights_unreadable", message, WEIGHTS_FILE)
        return {}
    if not tensors:
        findings.refuse("no_tensors", f"{WEIGHTS_FILE} holds no tensors", WEIGHTS_FILE)
    return tensors


def _check_base(config: PeftConfig, base: BaseSpec, findings: Findings) -> None:
    if config.base_model and not base.is_named(config.base_model):
        findings.refuse(
            "base_mismatch",
            f"it was trained on {config.base_model!r}, and this server's base is {base.name!r}; "
            "if both are the same model, register it with allow_base_mismatch "
            "(--allow-base-mismatch) or correct the name",
            "base_model_name_or_path",
        )


def _check_quantization(
    over: str | None, base: BaseSpec, findings: Findings, *, is_allowed: bool
) -> None:
    """Compare the base's quantization with that in training: rounding changes the weights."""
    if over is None or over == _SAME_AS.get(base.quantization, base.quantization):
        return
    learned, served = (
        f"weights rounded to {name}" if name else "unrounded weights"
        for name in (over, base.quantization)
    )
    message = (
        f"it was trained over {learned}, and this server's base has {served}: its answers may be "
        f"worse here (measured with two adapters trained over NF4 on the bundled base: {NF4_COST})"
    )
    if over == "nf4":
        message += "; `loraplex quantize --method nf4` makes the base that it was trained over"
    if base.refuses_quantization_mismatch and not is_allowed:
        findings.refuse("rounding_mismatch", message, TRAINED_QUANTIZATION)
    else:
        findings.warnings.append(clean(message))


def _fully_trained(tensors: dict[str, Tensor], modules: Any) -> set[str]:
    """Return the keys of whole weights: of embeddings, and of what `modules_to_save` names.

    Copies of the base's are gone already.
    """
    names = set(map(str, modules)) if isinstance(modules, list) else set()
    others = (key for key in tensors if not KEY.fullmatch(key))
    return {
        key for key in others if key.endswith(_EMBEDDINGS) or not names.isdisjoint(key.split("."))
    }


def _check_values(
    pairs: dict[str, Pair], config: PeftConfig, base: BaseSpec, findings: Findings
) -> None:
    """Values that would do harm, or nothing at all; module by module, so that little is held."""
    any_change = False
    not_finite: dict[str, str] = {}
    overflowing: dict[str, str] = {}
    too_large: dict[str, str] = {}
    for module, pair in pairs.items():
        assert pair.a is not None
        assert pair.b is not None
        a, b, scale = pair.a.load(), pair.b.load(), config.scale_of(module)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            not_finite[module] = ""
            continue
        largest = max(_largest(a), _largest(b), abs(scale) * _largest(b))
        if largest > MAX_ENTRY:
            overflowing[module] = f"{largest:.3g}"
            continue
        shape = base.modules[module]
        weight = base.norms.of(module, shape.in_features * shape.out_features)
        change = abs(scale) * _product_norm(a, b) / weight
        if change > MAX_CHANGE:
            too_large[module] = f"{change:.3g} times its size"
        any_change = any_change or bool(scale and a.any() and b.any())
    findings.refuse_all("not_finite", "NaN or infinite values", not_finite, "module")
    findings.refuse_all(
        "overflow",
        f"values (B times the scale) over {MAX_ENTRY:g}, which overflow in the engine",
        overflowing,
        "module",
    )
    findings.refuse_all(
        "too_large",
        f"it would change the base's weight by more than {MAX_CHANGE:g} times its size: nothing "
        "of the base would be left",
        too_large,
        "module",
    )
    if not any_change and not findings.reasons:
        findings.refuse("no_effect", "every module's update is zero: it would answer as the base")


def _largest(values: Values) -> float:
    return float(np.abs(values).max())


def _product_norm(a: Values, b: Values) -> float:
    """Return the Frobenius norm of B A, computed from the small matrices A A' and B' B."""
    return math.sqrt(max(0.0, float(np.sum((a @ a.T) * (b.T @ b), dtype=np.float64))))
