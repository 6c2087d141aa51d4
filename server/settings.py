"""The one settings object: frozen, validated at start, the only reader of the environment.

Each field is an environment variable (`LORAPLEX_` and its name in capitals) and, for those of the
server, a flag of `loraplex serve`. The flag wins.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "LORAPLEX_"
RANK_LIMITS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class SettingsError(Exception):
    """A setting that can't be used; one line that names it and says how to mend it."""


def _field(default: Any, group: str, description: str, **constraints: Any) -> Any:
    return Field(
        default=default, description=description, json_schema_extra={"group": group}, **constraints
    )


class Settings(BaseSettings):
    """Everything that can be set. Sizes and times carry their unit in the name."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    base: str = _field(
        "", "Base", "The base: a model directory or a Hugging Face id; empty is the bundled base."
    )
    served_base_name: str = _field(
        "base", "Base", "The name under which requests find the base.", min_length=1
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = _field(
        "auto", "Base", "Data type of weights and activations; auto takes the checkpoint's."
    )
    quantization: str | None = _field(
        None, "Base", "vLLM's quantisation method, if the checkpoint doesn't say it itself."
    )
    max_model_len: int | None = _field(
        None,
        "Base",
        "Longest prompt and answer together, in tokens; default: the base's, or what fits the KV "
        "cache.",
        ge=16,
    )
    kv_cache_gib: float | None = _field(
        None,
        "Base",
        "KV-cache size in GiB; default on CPU: an eighth of what the base leaves, 1 to 16.",
        gt=0,
    )

    max_loras: int = _field(4, "Adapters", "Slots: adapters in one batch at a time.", ge=1, le=512)
    max_lora_rank: int = _field(
        16, "Adapters", f"Largest rank accepted; one of {', '.join(map(str, RANK_LIMITS))}."
    )
    max_cpu_loras: int | None = _field(
        None, "Adapters", "Adapters kept in host memory; default: four times the slots.", ge=1
    )
    slot_quantum_seconds: float = _field(
        8, "Adapters", "How long an adapter keeps its slot while others wait, if it is asked.", ge=0
    )
    slot_wait_seconds: float = _field(
        60, "Adapters", "How long a request waits for a slot before it gets a 503.", gt=0
    )
    load_seconds: float = _field(
        60, "Adapters", "How long bringing an adapter into the engine may take.", gt=0
    )
    retire_seconds: float = _field(
        600, "Adapters", "How long requests may go on that run on a retired version.", ge=0
    )
    other_rounding: Literal["warn", "refuse"] = _field(
        "warn",
        "Adapters",
        "What to do with an adapter that was trained over the base rounded otherwise, as QLoRA's "
        "are over NF4.",
    )
    cpu_lora_kernels: Literal["grouped", "stock"] = _field(
        "grouped",
        "Adapters",
        "LoRA operators on CPU; stock is vLLM's, slow and wrong (base requests get an adapter): "
        "for measurements only.",
    )
    gpu_lora_kernels: Literal["fused", "stock"] = _field(
        "fused",
        "Adapters",
        "LoRA operators on CUDA; stock is vLLM's, with a third more launches.",
    )
    gpu_lora_loading: Literal["step", "stream"] = _field(
        "step",
        "Adapters",
        "How adapters get into slots on CUDA: within the engine's step, as vLLM does it, or on a "
        "stream beside it, which has yet to run on a GPU.",
    )
    gpu_lora_tiles: Path | None = _field(
        None,
        "Adapters",
        "Table of tile sizes for the fused operators, as `loraplex tune` writes it; default: "
        "lora-tiles.json in the data folder, where there is one.",
    )
    max_adapter_mib: int = _field(
        2048, "Adapters", "Largest adapter accepted for registration, in MiB.", ge=1
    )
    max_uploads: int = _field(
        4, "Adapters", "Uploads of one tenant at a time; a further one gets a 429.", ge=1
    )
    upload_seconds: float = _field(3600, "Adapters", "How long one upload may take in all.", gt=0)
    local_roots: Annotated[tuple[Path, ...], NoDecode] = _field(
        (), "Adapters", "Folders that path sources may come from, separated by ':'."
    )
    disk_budget_gib: float | None = _field(
        None,
        "Adapters",
        "Room for adapters' files in the data folder, in GiB; default: the disk's.",
        gt=0,
    )
    garbage_seconds: float = _field(
        3600,
        "Adapters",
        "How long files that no version needs any more are kept, in the data folder and at the "
        "origin, before the server removes them.",
        ge=0,
    )
    rejected_days: float = _field(
        7,
        "Adapters",
        "How many days the records of rejected versions are kept; of each adapter at most 20.",
        ge=0,
    )
    origin: str | None = _field(
        None,
        "Adapters",
        "s3://bucket/prefix that keeps all adapters' files, for every replica; the data folder is "
        "then its cache. Credentials and endpoint: AWS_*.",
    )

    data_dir: Path = _field(Path("var"), "Server", "Where records, adapters and the key live.")
    database_url: str | None = _field(
        None, "Server", "SQLAlchemy URL of the records; default: SQLite in the data folder."
    )
    host: str = _field("127.0.0.1", "Server", "Address to listen on.", min_length=1)
    port: int = _field(8000, "Server", "Port to listen on; 0 takes a free one.", ge=0, le=65535)
    max_running: int | None = _field(
        None,
        "Server",
        "Prompts that the engine computes at a time; more wait, by tenants' shares. Default: 32 on "
        "CPU, else 256.",
        ge=1,
    )
    prefill_tokens: int | None = _field(
        None,
        "Server",
        "Prompt tokens that a step of the engine computes of a long prompt, or of several of one "
        "tenant, while others are served. Default: 64 on CPU, else 512.",
        ge=1,
    )
    max_bodies_mib: int = _field(
        256,
        "Server",
        "Bodies of inference requests held at a time, of all tenants together, in MiB; beyond it "
        "requests get a 503.",
        ge=8,
    )
    max_tenant_bodies_mib: int = _field(
        64,
        "Server",
        "Bodies of inference requests of one tenant held at a time, in MiB; beyond it its requests "
        "get a 429.",
        ge=8,
    )
    drain_seconds: float = _field(
        30, "Server", "How long open streams may go on after SIGTERM or Ctrl-C.", ge=0
    )
    notice_seconds: float = _field(
        5,
        "Server",
        "How long after SIGTERM new requests are still answered, while /readyz says 503 and "
        "routers take note.",
        ge=0,
    )
    max_engine_restarts: int = _field(
        3, "Server", "How often in ten minutes a dead engine is restarted before giving up.", ge=0
    )
    log_level: Literal["debug", "info", "warning", "error"] = _field(
        "info", "Server", "How much the server logs; vLLM's own logs show at debug."
    )
    demo: bool = _field(False, "Server", "Register the demo adapters at start.")
    engine_args: Annotated[tuple[str, ...], NoDecode] = _field(
        (),
        "Server",
        "More arguments for vLLM's engine, as one would write them on its command line.",
    )

    url: str = _field("http://127.0.0.1:8000", "Client", "The server that client commands talk to.")
    api_key: str | None = _field(
        None, "Client", "The key they send; default: the one in the data folder."
    )

    @field_validator("local_roots", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        return tuple(Path(p) for p in value.split(":") if p) if isinstance(value, str) else value

    @field_validator("engine_args", mode="before")
    @classmethod
    def _split_arguments(cls, value: Any) -> Any:
        return tuple(shlex.split(value)) if isinstance(value, str) else value

    @field_validator("max_lora_rank")
    @classmethod
    def _check_rank_limit(cls, value: int) -> int:
        if value not in RANK_LIMITS:
            raise ValueError(f"must be one of {', '.join(map(str, RANK_LIMITS))}")
        return value

    @field_validator("origin")
    @classmethod
    def _check_origin(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("s3://"):
            raise ValueError("must be s3://bucket/prefix")
        return value

    @field_validator("base")
    @classmethod
    def _check_base(cls, value: str) -> str:
        if not value:
            return value
        directory = Path(value).expanduser()
        if directory.is_dir():
            if not (directory / "config.json").is_file():
                raise ValueError(f"{value} holds no config.json, so it is no model directory")
            return str(directory)
        if value.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(value):
            raise ValueError(
                f"{value} doesn't exist: give a model directory or a Hugging Face id (org/name)"
            )
        return value

    @model_validator(mode="after")
    def _check_host_cache(self) -> Settings:
        if self.max_cpu_loras is not None and self.max_cpu_loras < self.max_loras:
            raise ValueError(
                "LORAPLEX_MAX_CPU_LORAS (--max-cpu-loras): must be at least LORAPLEX_MAX_LORAS"
            )
        return self

    @property
    def host_adapters(self) -> int:
        """Adapters kept in host memory, the default resolved."""
        return self.max_cpu_loras or 4 * self.max_loras

    @property
    def disk_budget_bytes(self) -> int | None:
        """The budget in bytes, None where there is none."""
        return None if self.disk_budget_gib is None else int(self.disk_budget_gib * (1 << 30))

    @property
    def garbage_grace(self) -> timedelta:
        """The time of grace for files that no version needs."""
        return timedelta(seconds=self.garbage_seconds)

    @property
    def keep_rejected(self) -> timedelta:
        """The time for which records of rejected versions are kept."""
        return timedelta(days=self.rejected_days)

    @property
    def records_url(self) -> str:
        """The database, the default resolved."""
        return self.database_url or f"sqlite:///{self.data_dir / 'registry.db'}"

    @property
    def gpu_lora_tiles_file(self) -> Path:
        """Where the table of tile sizes is written and read, the default resolved."""
        return self.gpu_lora_tiles or self.data_dir / "lora-tiles.json"

    @property
    def admin_key_file(self) -> Path:
        """Where the first admin key is written, alone on one line."""
        return self.data_dir / "admin.key"


def load_settings(**flags: Any) -> Settings:
    """Settings from flags (None: not given) and the environment.

    Raises:
        SettingsError: an unknown `LORAPLEX_` variable, or a value that can't be used.
    """
    _refuse_unknown_variables()
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise SettingsError(message) from None
        name = str(first["loc"][0])
        given = f" (it is {first['input']!r})" if first["input"] not in ("", None) else ""
        raise SettingsError(f"{variable_of(name)} (--{flag_of(name)}): {message}{given}") from None


def variable_of(field_name: str) -> str:
    """The environment variable of a field."""
    return PREFIX + field_name.upper()


def flag_of(field_name: str) -> str:
    """The flag of a field, without its dashes."""
    return field_name.replace("_", "-")


def group_of(field: FieldInfo) -> str:
    """The heading under which help and documentation list a field."""
    assert isinstance(field.json_schema_extra, dict)
    return str(field.json_schema_extra["group"])


def _refuse_unknown_variables() -> None:
    known = [variable_of(name) for name in Settings.model_fields]
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in known:
            nearest = difflib.get_close_matches(variable, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "`loraplex serve --help` lists all"
            raise SettingsError(f"{variable} is no setting: {hint}")
