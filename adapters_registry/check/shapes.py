"""An adapter's tensors in pairs, A and B of each module, with their ranks and shapes."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from adapters_registry.check.base import BaseSpec
from adapters_registry.check.findings import Findings, counted
from adapters_registry.check.key_names import KEY, explain
from adapters_registry.check.peft_config import PeftConfig
from adapters_registry.check.ranks import RANK_LIMITS, limit_for
from adapters_registry.check.weights import Tensor
from adapters_registry.content.adapter_files import CONFIG_FILE
from adapters_registry.families import ModuleShape

_GATHER = (
    "DeepSpeed ZeRO-3 saves them so when they aren't gathered; save again with gathered weights "
    "(stage3_gather_16bit_weights_on_model_save)"
)
_CLAIM = f"correct r or rank_pattern in {CONFIG_FILE}"


@dataclass
class Pair:
    """The two matrices of one module, as far as the file has them."""

    a: Tensor | None = None
    b: Tensor | None = None

    @property
    def is_matrices(self) -> bool:
        """Return whether both are there, as matrices."""
        return bool(self.a and self.b and len(self.a.shape) == len(self.b.shape) == 2)

    @property
    def rank(self) -> int:
        """Return the rank that the two matrices can have together."""
        assert self.a is not None
        assert self.b is not None
        return min(self.a.shape[0], self.b.shape[1])


def check_ranks(
    config: PeftConfig, pairs: dict[str, Pair], base: BaseSpec, findings: Findings
) -> None:
    """Ranks over the limit, as claimed and as the tensors have them: the engine looks at both."""
    claimed = {key: rank for key, rank in config.claimed_ranks() if rank > base.max_rank}
    held = {
        module: rank
        for module, pair in pairs.items()
        if pair.is_matrices and (rank := pair.rank) > base.max_rank
    }
    over = held or claimed
    if not over:
        return
    rank = max([*held.values(), *claimed.values()])
    where = next(iter(over)) if len(over) == 1 else f"{len(over)} modules"
    message = f"rank {rank} is over this server's limit of {base.max_rank} ({where}): "
    findings.add(counted("rank_too_large", message + _remedy_for_rank(rank, base), list(over)))


def _remedy_for_rank(rank: int, base: BaseSpec) -> str:
    limit = limit_for(rank)
    if limit is None:
        return f"the engine takes {RANK_LIMITS[-1]} at most, so train it with a smaller one"
    more = (base.adapter_bytes(limit) - base.adapter_bytes(base.max_rank)) / (1 << 20)
    return (
        f"with fit_rank (--fit-rank) its best fit of rank {base.max_rank} is served; or an "
        f"operator can restart it with --max-lora-rank {limit}, which takes {more:.1f} MiB more "
        "for each slot"
    )


def pair_up(tensors: dict[str, Tensor], base: BaseSpec, findings: Findings) -> dict[str, Pair]:
    """Tensors by module, A and B together; every key must name a module of the base."""
    pairs: dict[str, Pair] = defaultdict(Pair)
    unknown: list[str] = []
    odd_types: dict[str, str] = {}
    twice: dict[str, str] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if not match or match["module"] not in base.modules:
            unknown.append(key)
            continue
        if not tensor.is_float:
            odd_types[key] = tensor.dtype
        pair, side = pairs[match["module"]], match["side"].lower()
        if getattr(pair, side) is not None:
            twice[key] = ""
        setattr(pair, side, tensor)
    if unknown:
        for reason in explain(unknown, len(tensors), base.modules, base.name):
            findings.add(reason)
    findings.refuse_all("bad_dtype", "unsupported type", odd_types, "key", "use F32, F16 or BF16")
    findings.refuse_all("duplicate_key", "there with and without its prefix", twice, "key")
    for side in ("lora_A", "lora_B"):
        lacking = {
            name: "" for name, pair in pairs.items() if getattr(pair, side[-1].lower()) is None
        }
        findings.refuse_all("unpaired", f"there is no {side}", lacking, "module")
    return pairs


def check_shapes(
    pairs: dict[str, Pair], config: PeftConfig, base: BaseSpec, findings: Findings
) -> None:
    """Refuse tensors without values, of another rank than claimed, or of another base's sizes."""
    empty: dict[str, str] = {}
    other_rank: dict[str, str] = {}
    other_size: dict[str, str] = {}
    for module, pair in pairs.items():
        if pair.a is None or pair.b is None:
            continue
        shape, rank = base.modules[module], config.rank_of(module)
        expected = _shapes_of(shape, rank)
        found = pair.a.shape, pair.b.shape
        if found == expected:
            continue
        detail = (
            f"A {list(found[0])} and B {list(found[1])}; with r={rank} this base needs "
            f"{list(expected[0])} and {list(expected[1])}"
        )
        if not math.prod(found[0]) and not math.prod(found[1]):
            empty[module] = detail
        elif pair.is_matrices and found == _shapes_of(shape, pair.rank):
            other_rank[module] = detail
        else:
            other_size[module] = detail
    findings.refuse_all("bad_shape", "the tensors are empty", empty, "module", _GATHER)
    findings.refuse_all("bad_shape", "not the rank that it claims", other_rank, "module", _CLAIM)
    findings.refuse_all("bad_shape", "not the shape of this base's layers", other_size, "module")


def _shapes_of(shape: ModuleShape, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (rank, shape.in_features), (shape.out_features, rank)
