"""Settings of the base: the model, its data types, its context and KV cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import field_validator
from pydantic_settings import BaseSettings

from server.settings.fields import setting

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class BaseModelSettings(BaseSettings):
    """The base model."""

    base: str = setting(
        "",
        "Base",
        "The base model: a directory, or a Hugging Face id that is downloaded at start. It is of a "
        "family in docs/bases.md, such as Llama 3 or Qwen 3. Default: the bundled base.",
    )
    served_base_name: str = setting(
        "base", "Base", "The name with which requests ask for the base.", min_length=1
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto", "Base", "Data type of weights and activations. `auto` takes the checkpoint's."
    )
    cpu_base_kernels: Literal["auto", "compiled", "stock"] = setting(
        "auto",
        "Base",
        "Kernels that compute a base in BF16 or 4 bits (W4A16) on CPU: Loraplex's own, compiled "
        "when the engine starts, or vLLM's (`stock`). `auto` measures the matrix products of both "
        "at the start and takes the faster ones.",
    )
    speculation_tokens: int = setting(
        0,
        "Base",
        "On CPU: how many of an answer's next tokens the engine guesses and then checks in one "
        "step. It guesses what followed the same tokens before, in the request or in recent "
        "answers of the tenant's requests to the same adapter. Greedy answers (`temperature` 0) "
        "come sooner if they repeat themselves, such as JSON of one form, and never change. Other "
        "requests get no guesses. 3 to 5 are useful; 0 guesses nothing.",
        ge=0,
        le=15,
    )
    quantization: str | None = setting(
        None,
        "Base",
        "vLLM's name of the quantization method. It is needed only if the checkpoint doesn't name "
        "it.",
    )
    max_model_len: int | None = setting(
        None,
        "Base",
        "The largest number of tokens of prompt and answer together. Default: the length that the "
        "base was trained for, or less if the KV cache holds less.",
        ge=16,
    )
    kv_cache_gib: float | None = setting(
        None,
        "Base",
        "Size of the KV cache in GiB. Default on CPU: an eighth of the memory that the base "
        "leaves, at least 1 and at most 16. Default on a GPU: the rest of the share that "
        "`--gpu-memory-utilization` sets (0.92).",
        gt=0,
    )

    @field_validator("base")
    @classmethod
    def _check_base(cls, value: str) -> str:
        if not value:
            return value
        directory = Path(value).expanduser()
        if directory.is_dir():
            if not (directory / "config.json").is_file():
                raise ValueError(f"{value} has no config.json, so it isn't a model directory")
            return str(directory)
        if value.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(value):
            raise ValueError(
                f"{value} doesn't exist: give a model directory or a Hugging Face id (org/name)"
            )
        return value
