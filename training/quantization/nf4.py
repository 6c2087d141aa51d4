"""Makes a base as QLoRA uses it: a checkpoint whose linear layers are rounded to NF4 and back.

An adapter that was trained over rounded weights should be served over them. vLLM serves such a
checkpoint like any other BF16 one, on any hardware. It is as large as a BF16 one.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from adapters_registry.check.base import MADE_FROM, QUANTIZATION, short_name
from training.models.base_model import NF4
from training.models.checkpoint import Checkpoint, CheckpointWriter, whole_or_not_at_all

BLOCK_SIZE = 64


def round_to_nf4(weight: torch.Tensor) -> torch.Tensor:
    """Round a weight to bitsandbytes' NF4 with double quantisation. Returns it in its own type."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(
        weight, blocksize=BLOCK_SIZE, compress_statistics=True, quant_type="nf4"
    )
    rounded: torch.Tensor = dequantize_4bit(packed, state)
    return rounded


def round_checkpoint_to_nf4(base: Path, out: Path) -> None:
    """Write the base to the new directory `out`, with every linear layer rounded to NF4.

    Raises:
        TrainingError: `out` isn't empty, or the base is quantised already.
    """
    checkpoint = Checkpoint.open(base)
    linear = checkpoint.linear_weights()
    with whole_or_not_at_all(out) as scratch:
        writer = CheckpointWriter(scratch)
        for name in track(
            list(checkpoint.file_of), "rounding", console=Console(stderr=True), transient=True
        ):
            tensor = checkpoint.tensor(name)
            writer.add({name: round_to_nf4(tensor) if name in linear else tensor})
        writer.finish()
        config = {MADE_FROM: short_name(str(base.absolute())), QUANTIZATION: NF4}
        text = json.dumps(checkpoint.config | config, indent=2)
        (scratch / "config.json").write_text(text + "\n")
        checkpoint.copy_other_files(scratch)
