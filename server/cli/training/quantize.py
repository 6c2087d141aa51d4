"""The command `loraplex quantize`, which rounds a base to 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.training.shared import base_or_bundled, explained, read, refuse

EXAMPLES = """Examples:

loraplex quantize base-4bit --recipe smart-home --recipe icd10-chapter

loraplex quantize base-4bit --base DIRECTORY --data chats.jsonl

loraplex quantize base-nf4 --method nf4
"""


def quantize(
    output: Annotated[
        Path, typer.Argument(help="A directory for the 4-bit checkpoint. It must be new or empty.")
    ],
    base: Annotated[
        Path | None,
        typer.Option(help="The directory of a BF16 or FP16 model. By default the bundled base."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Conversations to calibrate with, in any format that train takes. Repeat it for "
            "more files."
        ),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="A recipe whose training data is used to calibrate. Repeat it for more recipes."
        ),
    ] = None,
    num_samples: Annotated[
        int, typer.Option(help="How many conversations to calibrate with.", min=1)
    ] = 128,
    method: Annotated[
        str,
        typer.Option(
            help="w4a16 writes 4-bit weights. nf4 writes BF16 weights that are rounded to NF4, "
            "which is what adapters made with QLoRA are trained over."
        ),
    ] = "w4a16",
    group_size: Annotated[
        int,
        typer.Option(
            help="How many weights share a scale: 32, 64 or 128. Smaller groups are more exact."
        ),
    ] = 32,
) -> None:
    """Make a 4-bit checkpoint of a base, to serve with `loraplex serve --base OUTPUT`.

    With --data or --recipe the weights are calibrated (GPTQ). Without, each weight is rounded to
    the nearest value.
    """
    from training.data.recipe import load_recipe_data
    from training.quantization.calibration import sample_texts
    from training.quantization.w4a16 import quantize_checkpoint

    with explained():
        base = base_or_bundled(base)
        if method == "nf4":
            _quantize_to_nf4(base, output)
            return
        if method != "w4a16":
            refuse(f"--method must be w4a16 or nf4, not {method}")
        conversations = [chat for file in data or [] for chat in read(file)]
        for name in recipe or []:
            conversations += load_recipe_data(name).train
        samples = sample_texts(base, conversations, num_samples) if conversations else None
        quantize_checkpoint(base, output, group_size, samples)
    print(f"4-bit checkpoint in {output}; serve it with: loraplex serve --base {output}")


def _quantize_to_nf4(base: Path, output: Path) -> None:
    from training.quantization.nf4 import round_checkpoint_to_nf4

    round_checkpoint_to_nf4(base, output)
    print(f"NF4 checkpoint in {output}; serve it with: loraplex serve --base {output}")
