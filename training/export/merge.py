"""Merges an adapter into the base's weights. The result is a full model, which can be served alone.

Weights are read, changed and written one by one, so about one file of the checkpoint is in memory
at a time. Updates are added in float32.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from adapters_registry.check.base import MADE_FROM, QUANTIZATION
from adapters_registry.content.adapter_files import GENERATION_FILE, TEMPLATE_FILE
from training.errors import TrainingError
from training.evaluation.candidates import is_trained_on_nf4
from training.export.parity import Parity, measure_parity, probe_texts
from training.models.adapter import Update, read_updates
from training.models.base_model import own_chat_template
from training.models.checkpoint import Checkpoint, CheckpointWriter, whole_or_not_at_all
from training.quantization.nf4 import round_to_nf4

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
MAX_DIFFERENCE = 1e-4
"""The largest difference of a logit allowed in float32. Rounding alone makes about 1e-5."""
MAX_DIVERGENCE = 1e-3
"""The mean KL divergence allowed in BF16, in nats. Rounding alone makes about 2e-4."""
MIN_TOP1 = 0.99
"""In BF16, the smallest share of positions with the same top token, apart from near ties."""
OVER = ("trained", "original", "nf4")


def merge_adapter(
    adapter: Path,
    base: Path,
    out: Path,
    dtype: str = "bfloat16",
    over: str = "trained",
    *,
    keeps_companions: bool = True,
) -> Parity:
    """Merge an adapter into its base, verify the result, and keep it in the new directory `out`.

    `over` names the form of the base: as the adapter's file says it was in training (`trained`),
    the checkpoint as it is (`original`), or rounded to NF4 (`nf4`). The result is compared with
    base and adapter as they were in training. If `over` names another form, the difference is
    measured but not bounded. `keeps_companions`: whether the adapter's chat template and generation
    configuration replace the base's.

    Returns the difference.

    Raises:
        TrainingError: `out` isn't empty, the adapter doesn't fit, or the merged model differs from
            base and adapter by more than rounding.
    """
    if dtype not in DTYPES or over not in OVER:
        raise TrainingError(
            f"--dtype must be {' or '.join(DTYPES)}, and --over one of {', '.join(OVER)}, "
            f"not {dtype} and {over}"
        )
    checkpoint = Checkpoint.open(base)
    linear = checkpoint.linear_weights()
    updates = read_updates(adapter, base)
    trained_nf4 = is_trained_on_nf4(adapter) and checkpoint.config.get(QUANTIZATION) is None
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
        if keeps_companions:
            _keep_what_is_beside(adapter, scratch)
        rounded = linear if trained_nf4 else set()
        parity = measure_parity(
            checkpoint, Checkpoint.open(scratch), probe_texts(base), updates, rounded
        )
        if merged_nf4 == trained_nf4:
            _check(parity, dtype)
    return parity


def merged_weight(weight: torch.Tensor, update: Update | None) -> torch.Tensor:
    """Return the weight with the update added, in float32."""
    return weight.float() if update is None else weight.float() + update.delta


def _keep_what_is_beside(adapter: Path, merged: Path) -> None:
    """Give the merged model what a server uses for the adapter's requests in place of the base's.

    This is its chat template, and what its generation configuration says.
    """
    if template := own_chat_template(adapter):
        (merged / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    if not (adapter / GENERATION_FILE).is_file():
        return
    try:
        own = json.loads((adapter / GENERATION_FILE).read_text(encoding="utf-8"))
        file = merged / GENERATION_FILE
        of_base = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        text = json.dumps(of_base | own, indent=2)
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"can't read {adapter / GENERATION_FILE}: {error}") from error
    file.write_text(f"{text}\n", encoding="utf-8")


def _check(parity: Parity, dtype: str) -> None:
    if dtype == "float32":
        is_fine = parity.max_difference < MAX_DIFFERENCE
    else:
        is_fine = parity.divergence < MAX_DIVERGENCE and parity.top1 > MIN_TOP1
    if not is_fine:
        raise TrainingError(
            f"the merged model differs from base and adapter: {parity}; nothing is kept"
        )


def _write_config(checkpoint: Checkpoint, dtype: str, directory: Path) -> None:
    """Write the base's configuration with the new type. The mark of a quantized copy is removed."""
    config = {k: v for k, v in checkpoint.config.items() if k not in (MADE_FROM, QUANTIZATION)}
    config.pop("torch_dtype", None)
    text = json.dumps(config | {"dtype": dtype}, indent=2)
    (directory / "config.json").write_text(text + "\n")
