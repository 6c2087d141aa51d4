"""The weighted sum of adapters as one adapter: exact, or the best fit of a smaller rank.

An adapter changes a module's weight by `scale * B @ A`. A sum of such changes is one, too: the A
matrices below each other, and the B matrices, each times its scale and weight, beside each other.
Nothing is lost, and the ranks add up. Its best fit of a smaller rank is the truncated singular
value decomposition. That of the long and narrow product is found from two QR decompositions and
one small matrix, so the product itself is never made.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adapters_registry.check.key_names import KEY, PREFIX
from adapters_registry.check.peft_config import PeftConfig
from adapters_registry.check.weights import Tensor, Values, make_header, read_header
from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE

_BYTES_PER_VALUE = 4
_DIGITS = 6
"""Significant digits of an error."""


@dataclass(frozen=True)
class Part:
    """An adapter that the gate has accepted, and how often it is added."""

    directory: Path
    weight: float


@dataclass(frozen=True)
class Term:
    """What one adapter adds to a module: `factor * B @ A`."""

    a: Tensor
    """Rank x input features."""
    b: Tensor
    """Output features x rank."""
    factor: float

    @property
    def rank(self) -> int:
        """Return the number of A's rows."""
        return self.a.shape[0]


@dataclass(frozen=True)
class FitError:
    """How far a fit is from the sum, relative to the sum's size (Frobenius). 0 is exact."""

    total: float = 0.0
    by_layer: dict[str, float] = field(default_factory=dict)
    """By the number of the decoder layer, over the layer's modules. Exact layers are there, too."""


class WeightedSum:
    """The sum of some adapters. Only headers and configurations are read until it is written."""

    def __init__(self, parts: Sequence[Part], rank: int | None = None) -> None:
        """`rank` bounds the rank of each module; a larger sum is replaced by its best fit.

        Raises:
            OSError, ValueError: a file cannot be read.
        """
        self._limit = rank
        self._terms: dict[str, list[Term]] = defaultdict(list)
        for part in parts:
            for module, term in _terms_of(part):
                self._terms[module].append(term)

    @property
    def exact_rank(self) -> int:
        """Return the largest rank of a module in the exact sum."""
        return max(map(_rank_of, self._terms.values()))

    @property
    def ranks(self) -> dict[str, int]:
        """Return the rank of each module, as it is written."""
        return {module: self._rank(terms) for module, terms in self._terms.items()}

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all matrices, as they are written."""
        return sum(num_bytes for _, _, _, num_bytes in self._tensors())

    def write(self, directory: Path, base_model: str, metadata: Mapping[str, str]) -> FitError:
        """Write the sum in float32, as PEFT saves an adapter. Returns how far it is from the sum.

        `base_model` is the base that its configuration names. `metadata` are those of the file of
        weights. Only one module is in memory at a time.

        Raises:
            OSError: it cannot be written.
        """
        config = json.dumps(_config(self.ranks, base_model), indent=2, sort_keys=True)
        (directory / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")
        lost: dict[str, float] = defaultdict(float)
        whole: dict[str, float] = defaultdict(float)
        with (directory / WEIGHTS_FILE).open("wb") as file:
            file.write(make_header(self._tensors(), metadata))
            for module, terms in self._terms.items():
                a, b = _stacked(terms)
                layer = _layer_of(module)
                if self._rank(terms) < _rank_of(terms):
                    a, b, lost_here, whole_here = best_fit(a, b, self._rank(terms))
                    lost[layer] += lost_here
                else:
                    whole_here = _squared_size(a, b)
                whole[layer] += whole_here
                file.write(_bytes_of(a))
                file.write(_bytes_of(b))
        return FitError(
            _relative(sum(lost.values()), sum(whole.values())),
            {layer: _relative(lost[layer], size) for layer, size in whole.items()},
        )

    def _rank(self, terms: Sequence[Term]) -> int:
        exact = _rank_of(terms)
        if self._limit is None or exact <= self._limit:
            return exact
        return min(self._limit, terms[0].a.shape[1], terms[0].b.shape[0])

    def _tensors(self) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
        for module, terms in self._terms.items():
            rank = self._rank(terms)
            for side, shape in (
                ("A", (rank, terms[0].a.shape[1])),
                ("B", (terms[0].b.shape[0], rank)),
            ):
                num_bytes = shape[0] * shape[1] * _BYTES_PER_VALUE
                yield f"{PREFIX}{module}.lora_{side}.weight", "F32", shape, num_bytes


def best_fit(a: Values, b: Values, rank: int) -> tuple[Values, Values, float, float]:
    """Return A and B of the product of a rank that is nearest to `b @ a`.

    Also returns the squares of what is lost and of the whole (Frobenius). Computed in float64.
    """
    q_a, r_a = np.linalg.qr(a.T.astype(np.float64))
    q_b, r_b = np.linalg.qr(b.astype(np.float64))
    left, sizes, right = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    roots = np.sqrt(sizes[:rank])
    squares = sizes**2
    return (
        (roots[:, None] * right[:rank] @ q_a.T).astype(np.float32),
        (q_b @ left[:, :rank] * roots).astype(np.float32),
        float(squares[rank:].sum()),
        float(squares.sum()),
    )


def _terms_of(part: Part) -> Iterator[tuple[str, Term]]:
    """Yield the modules of an adapter that passed the gate: each has A and B, of one shape."""
    config = PeftConfig(json.loads((part.directory / CONFIG_FILE).read_text(encoding="utf-8")))
    pairs: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in read_header(part.directory / WEIGHTS_FILE).items():
        if match := KEY.fullmatch(key):
            pairs[match["module"]][match["side"]] = tensor
    for module, pair in pairs.items():
        yield module, Term(pair["A"], pair["B"], part.weight * config.scale_of(module))


def _rank_of(terms: Sequence[Term]) -> int:
    return sum(term.rank for term in terms)


def _stacked(terms: Sequence[Term]) -> tuple[Values, Values]:
    a = np.concatenate([term.a.load() for term in terms], axis=0)
    b = np.concatenate([term.b.load() * np.float32(term.factor) for term in terms], axis=1)
    return a, b


def _squared_size(a: Values, b: Values) -> float:
    """Return the square of the Frobenius norm of B A, from the small matrices A A' and B' B."""
    return max(0.0, float(np.sum((a @ a.T) * (b.T @ b), dtype=np.float64)))


def _relative(lost: float, whole: float) -> float:
    return float(f"{(lost / whole) ** 0.5:.{_DIGITS}g}") if whole else 0.0


def _bytes_of(values: Values) -> bytes:
    return np.ascontiguousarray(values, dtype="<f4").tobytes()


def _layer_of(module: str) -> str:
    """Return the number of a module's decoder layer (`model.layers.3.mlp.up_proj`)."""
    return module.split(".")[2]


def _config(ranks: Mapping[str, int], base_model: str) -> dict[str, Any]:
    """Return the configuration of an adapter whose B matrices have their scales in them."""
    rank = max(ranks.values())
    patterns = _patterns(ranks, rank)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "target_modules": sorted({_kind_of(module) for module in ranks}),
    }


def _patterns(ranks: Mapping[str, int], usual: int) -> dict[str, int]:
    """Return PEFT's pattern for modules of another rank than usual, by kind where that will do."""
    by_kind: dict[str, set[int]] = defaultdict(set)
    for module, rank in ranks.items():
        by_kind[_kind_of(module)].add(rank)
    return {
        _kind_of(module) if len(by_kind[_kind_of(module)]) == 1 else module: rank
        for module, rank in ranks.items()
        if rank != usual
    }


def _kind_of(module: str) -> str:
    return module.rsplit(".", 1)[1]
