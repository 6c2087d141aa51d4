"""Loads the base of a training run as the method needs it, and computes its digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from adapters_registry.check.base import quantization_of
from adapters_registry.check.companions.companions import chat_template_of
from adapters_registry.families import Family, family_of
from training.errors import TrainingError
from training.models.checkpoint import Checkpoint
from training.models.device import chosen_device

CHAT_TEMPLATE_FILE = "chat_template.jinja"
"""The file in which transformers, PEFT's trainers and our own training keep a chat template."""
NF4 = "nf4"
"""The type that QLoRA rounds a base to: NF4 in blocks of 64, with quantised scales."""


def known_family(config: dict[str, Any], base: Path) -> Family:
    """Return the family of a base by its configuration.

    Raises:
        TrainingError: no server could serve adapters on it.
    """
    try:
        return family_of(config, base.name)
    except ValueError as error:
        raise TrainingError(str(error)) from None


def quiet_libraries() -> None:
    """Turn off transformers' own progress bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def load_tokenizer(base: Path, chat_template: str = "", **options: Any) -> Any:
    """Load the base's tokenizer. A `chat_template` replaces the base's own.

    Raises:
        TrainingError: it can't be loaded, or has no chat template.
    """
    quiet_libraries()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base, **options)
    except (OSError, ValueError) as error:
        raise TrainingError(f"can't load the base {base}: {error}") from error
    if chat_template:
        tokenizer.chat_template = chat_template
    if not tokenizer.chat_template:
        raise TrainingError(
            f"the tokenizer of {base} has no chat template: train on an instruct model, or give "
            "one with --chat-template FILE"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def own_chat_template(directory: Path) -> str:
    """Return the chat template beside an adapter, as a server finds it, or an empty text.

    Raises:
        TrainingError: it can't be read.
    """
    try:
        return chat_template_of(directory)
    except (OSError, ValueError) as error:
        raise TrainingError(f"can't read the chat template in {directory}: {error}") from error


def load_model(base: Path, dtype: torch.dtype = torch.bfloat16, *, nf4: bool = False) -> Any:
    """Load the base onto the chosen device, in this type or with its linear layers in NF4.

    QLoRA (arXiv:2305.14314) trains over a base in NF4.

    Raises:
        TrainingError: it can't be loaded.
    """
    quiet_libraries()
    from transformers import AutoModelForCausalLM

    device = chosen_device()
    options: dict[str, Any] = {"dtype": dtype}
    if nf4:
        options["quantization_config"] = _nf4_config()
    if device.type != "cpu":
        options["device_map"] = {"": device}  # so that no copy is made in host memory
    try:
        model = AutoModelForCausalLM.from_pretrained(base, **options)
    except (OSError, ValueError) as error:
        raise TrainingError(f"can't load the base {base}: {error}") from error
    if nf4:
        _keep_nf4_as_it_is(model)
    return model


def _nf4_config() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _keep_nf4_as_it_is(model: Any) -> None:
    """Keep bitsandbytes from repacking weights in evaluation, which breaks training afterwards.

    On CPUs with AVX512-BF16 `Linear4bit` repacks its weight for an inference kernel and never
    unpacks it. Most gradients are then zero, and dequantising gives wrong values (bitsandbytes
    #2078).
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def quantization_in_training(base: Path, method: str) -> str:
    """Return the base's quantization in training, or an empty text if it isn't rounded."""
    return NF4 if method == "qlora" else quantization_of(Checkpoint.open(base).config)


def base_digest(base: Path) -> str:
    """Return the SHA-256 over the names and contents of the base's weight files, sorted by name.

    Raises:
        TrainingError: it isn't a model directory with complete safetensors files.
    """
    digest = hashlib.sha256()
    for name in sorted(set(Checkpoint.open(base).file_of.values())):
        with (base / name).open("rb") as file:
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
