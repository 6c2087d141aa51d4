"""A BF16 or FP16 checkpoint becomes a 4-bit one that vLLM serves: weights W4A16, group by group.

The format is compressed-tensors' `pack-quantized`, which runs on CPU and, through Marlin or
Machete, on GPUs. Embedding, head and norms keep their type; activations always do.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
)
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from adapters_registry.base import BaseSpec
from training.errors import TrainingError

GROUP_SIZES = (32, 64, 128)
NUM_BITS = 4
FEATURES_STEP = 32
"""The kernels want both sides of a layer divisible by this."""

CLIPS = [1.0 - 0.05 * step for step in range(10)]
"""Shares of a group's range that are tried: cutting outliers off leaves the others finer steps."""
ROWS_AT_ONCE = 2048
"""Bounds the memory that the search takes, whatever the layer's size."""

INDEX_FILE = "model.safetensors.index.json"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


@dataclass(frozen=True)
class Checkpoint:
    """A model directory: its configuration, its weight files, and the layers to quantise."""

    directory: Path
    config: dict[str, Any]
    files: dict[str, list[str]]
    """File name to the names of its tensors."""
    linear: frozenset[str]
    """Names of the linear layers' weights."""


def quantize_checkpoint(base: Path, out: Path, group_size: int = 32) -> None:
    """Quantise a Llama checkpoint to 4 bits in the new directory `out`.

    One weight file at a time is held in memory, at its new size.

    Raises:
        TrainingError: `out` is taken, or the base can't be quantised so; says why.
    """
    if group_size not in GROUP_SIZES:
        raise TrainingError(f"--group-size must be one of {', '.join(map(str, GROUP_SIZES))}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} isn't empty; name a new directory")
    checkpoint = open_checkpoint(base, group_size)
    scheme = _scheme(group_size)
    with _whole_or_not_at_all(out.resolve()) as scratch:
        _write_weights(checkpoint, scheme, scratch)
        _write_config(checkpoint.config, scheme, scratch)
        for file in base.iterdir():
            is_weights = file.name.endswith(WEIGHT_SUFFIXES)
            if file.is_file() and not is_weights and file.name != "config.json":
                shutil.copyfile(file, scratch / file.name)


def open_checkpoint(base: Path, group_size: int) -> Checkpoint:
    """Read what there is to quantise, and refuse what can't be.

    Raises:
        TrainingError: no Llama checkpoint in safetensors, quantised already, or layers whose sides
            aren't divisible by the group, or by what the kernels want.
    """
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        modules = BaseSpec.from_directory(base, max_rank=1).modules
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{base} is no model directory that can be quantised: {error}"
        ) from None
    if "quantization_config" in config:
        raise TrainingError(f"{base} is quantised already; start from its BF16 or FP16 checkpoint")
    files = _weight_files(base)
    missing = {f"{name}.weight" for name in modules} - {
        n for names in files.values() for n in names
    }
    if missing:
        raise TrainingError(f"{base} lacks {len(missing)} weights, the first is {min(missing)}")
    for name, shape in modules.items():
        if shape.in_features % group_size or shape.out_features % FEATURES_STEP:
            raise TrainingError(
                f"{name} maps {shape.in_features} features to {shape.out_features}: they must be "
                f"divisible by the group size {group_size} and by {FEATURES_STEP}"
            )
    return Checkpoint(base, config, files, frozenset(f"{name}.weight" for name in modules))


def _weight_files(base: Path) -> dict[str, list[str]]:
    index = base / INDEX_FILE
    try:
        if index.is_file():
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        else:
            shards = ["model.safetensors"]
        names: dict[str, list[str]] = {}
        for shard in sorted(set(shards)):
            with safe_open(base / shard, framework="pt") as file:
                names[shard] = list(file.keys())
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise TrainingError(f"{base} has no whole weights in safetensors: {error}") from None
    return names


@contextmanager
def _whole_or_not_at_all(out: Path) -> Iterator[Path]:
    """A directory beside `out` to write to, which becomes `out` at the end, or else goes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield scratch
        scratch.rename(out)
    except BaseException:
        shutil.rmtree(scratch)
        raise


def _write_weights(checkpoint: Checkpoint, scheme: QuantizationScheme, scratch: Path) -> None:
    """Write each file's tensors to a file of the same name, and the index that shards need."""
    weight_map: dict[str, str] = {}
    total_size = 0
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("quantising", total=sum(map(len, checkpoint.files.values())))
        for shard, names in checkpoint.files.items():
            tensors: dict[str, torch.Tensor] = {}
            with safe_open(checkpoint.directory / shard, framework="pt") as file:
                for name in names:
                    tensor = file.get_tensor(name)
                    if name in checkpoint.linear:
                        module = name.removesuffix("weight")
                        for part, value in quantize_weight(name, tensor, scheme).items():
                            tensors[module + part] = value
                    else:
                        tensors[name] = tensor
                    progress.advance(task)
            save_file(tensors, scratch / shard, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, shard)
            total_size += sum(tensor.nbytes for tensor in tensors.values())
    if len(checkpoint.files) > 1:
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        (scratch / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n")


def quantize_weight(
    name: str, weight: torch.Tensor, scheme: QuantizationScheme
) -> dict[str, torch.Tensor]:
    """The tensors that stand for one weight: packed values, scales, zero points, shape.

    Raises:
        TrainingError: the weight is of another type than BF16, FP16 or FP32, or not finite.
    """
    if weight.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise TrainingError(f"{name} is of {weight.dtype}; only BF16 and FP16 can be quantised")
    if not weight.isfinite().all():
        raise TrainingError(f"{name} holds values that aren't finite")
    pieces = [_fit(rows, scheme.weights) for rows in torch.split(weight, ROWS_AT_ONCE)]
    scale, zero_point = (torch.cat(part) for part in zip(*pieces, strict=True))
    state = {"weight": weight.float(), "weight_scale": scale, "weight_zero_point": zero_point}
    packed: dict[str, torch.Tensor] = PackedQuantizationCompressor.compress(state, scheme)
    return packed | {"weight_scale": scale.to(weight.dtype)}


def _fit(weight: torch.Tensor, args: QuantizationArgs) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales (float32, exact in the weight's type) and zero points of least squared error."""
    values = weight.float()

    def grouped(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(len(values), -1, args.group_size)

    low, high = grouped(values).aminmax(dim=-1)
    best_error = torch.full_like(low, torch.inf)
    best_scale, best_zero = torch.ones_like(low), torch.zeros_like(low, dtype=torch.int8)
    for clip in CLIPS:
        scale, zero = calculate_qparams(low * clip, high * clip, args)
        scale = scale.to(weight.dtype).float()
        rounded = dequantize(quantize(values, scale, zero, args), scale, zero, args)
        error = grouped(rounded - values).square().sum(-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _scheme(group_size: int) -> QuantizationScheme:
    """With a zero point for each group: clearly better on small models than without."""
    weights = QuantizationArgs(
        num_bits=NUM_BITS, type="int", symmetric=False, strategy="group", group_size=group_size
    )
    return QuantizationScheme(targets=["Linear"], weights=weights)


def _write_config(config: dict[str, Any], scheme: QuantizationScheme, scratch: Path) -> None:
    """The base's configuration, and what vLLM needs to know of the weights."""
    quantization = QuantizationConfig(
        config_groups={"group_0": scheme},
        ignore=["lm_head"],
        format=CompressionFormat.pack_quantized.value,
        quantization_status=QuantizationStatus.COMPRESSED,
    )
    whole = config | {"quantization_config": quantization.model_dump(mode="json")}
    (scratch / "config.json").write_text(json.dumps(whole, indent=2) + "\n")
