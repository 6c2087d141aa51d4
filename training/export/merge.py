"""An adapter becomes part of the weights: a whole model, that serves as a base of its own.

Weights are read, changed and written one by one, so that memory stays near one file of the
checkpoint. Sums are taken in float32.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from adapters_registry.check.base import MADE_FROM, ROUNDED_TO
from training.errors import TrainingError
from training.evaluation.candidates import is_trained_over_nf4
from training.export.parity import Parity, measure_parity, probe_texts
from training.models.adapter import Update, read_updates
from training.models.checkpoint import Checkpoint, CheckpointWriter, whole_or_not_at_all
from training.quantization.nf4 import round_to_nf4

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
MAX_DIFFERENCE = 1e-4
"""Float32: bound on the largest difference of a logit; rounding the weights leaves about 1e-5."""
MAX_DIVERGENCE = 1e-3
"""BF16: bound on the mean KL divergence, in nats; rounding the weights leaves about 2e-4."""
MIN_TOP1 = 0.99
"""BF16: bound on the share of positions with the same most likely token, near ties aside."""
OVER = ("trained", "original", "nf4")


def merge_adapter(
    adapter: Path, base: Path, out: Path, dtype: str = "bfloat16", over: str = "trained"
) -> Parity:
    """Merge an adapter into its base in the new directory `out`, once that is verified.

    `over` says which base: the one that the adapter was trained over as far as it says so
    (`trained`), the checkpoint as it is (`original`), or rounded to NF4 (`nf4`). Verified is
    against base and adapter as they were in training; with another base the difference is
    measured, and not bounded.

    Raises:
        TrainingError: `out` is taken, the adapter doesn't fit, or the merged model differs from
            base and adapter by more than rounding.
    """
    if dtype not in DTYPES or over not in OVER:
        raise TrainingError(
            f"--dtype is {' or '.join(DTYPES)}, --over is {', '.join(OVER)}; not {dtype}, {over}"
        )
    checkpoint = Checkpoint.open(base)
    linear = checkpoint.linear_weights()
    updates = read_updates(adapter, base)
    trained_nf4 = is_trained_over_nf4(adapter) and checkpoint.config.get(ROUNDED_TO) is None
    merged_nf4 = trained_nf4 if over == "trained" else over == "nf4"
    with whole_or_not_at_all(out) as scratch:
        writer = CheckpointWriter(scratch)
        for name in track(
            list(checkpoint.file_of), "merging", console=Console(stderr=True), transient=True
        ):
            weight = checkpoint.tensor(name)
            if merged_nf4 and name in linear:
                weight = round_to_nf4(weight)
            update = updates.get(name.removesuffix(".weight"))
            writer.add({name: merged_weight(weight, update).to(DTYPES[dtype])})
        writer.finish()
        _write_config(checkpoint, dtype, scratch)
        checkpoint.copy_other_files(scratch)
        rounded = linear if trained_nf4 else set()
        parity = measure_parity(
            checkpoint, Checkpoint.open(scratch), probe_texts(base), updates, rounded
        )
        if merged_nf4 == trained_nf4:
            _check(parity, dtype)
    return parity


def merged_weight(weight: torch.Tensor, update: Update | None) -> torch.Tensor:
    """The weight with the update added, in float32."""
    return weight.float() if update is None else weight.float() + update.delta


def _check(parity: Parity, dtype: str) -> None:
    if dtype == "float32":
        is_fine = parity.max_difference < MAX_DIFFERENCE
    else:
        is_fine = parity.divergence < MAX_DIVERGENCE and parity.top1 > MIN_TOP1
    if not is_fine:
        raise TrainingError(f"the merged model isn't base and adapter: {parity}; nothing is kept")


def _write_config(checkpoint: Checkpoint, dtype: str, directory: Path) -> None:
    """The base's configuration, in the new type, and no longer that of a copy of another base."""
    config = {k: v for k, v in checkpoint.config.items() if k not in (MADE_FROM, ROUNDED_TO)}
    config.pop("torch_dtype", None)
    text = json.dumps(config | {"dtype": dtype}, indent=2)
    (directory / "config.json").write_text(text + "\n")
