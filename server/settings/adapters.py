"""Settings of adapters: slots, memory, files, and checks."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode

from adapters_registry.check.ranks import RANK_LIMITS
from server.settings.fields import setting

MANY_ADAPTERS = 1 << 20
"""A number of adapters that is never reached. It stands for no bound on their number."""

_REGISTRY = re.compile(r"(https?://)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?", re.ASCII)


class AdapterSettings(BaseSettings):
    """Adapters: slots, memory, files."""

    max_loras: int = setting(
        16,
        "Adapters",
        "Adapter slots: how many different adapters one step of the engine computes. Requests for "
        "more adapters take turns. If it isn't set, a GPU with much memory gets 32 or 64, a CPU "
        "64, and a device with little memory fewer than 16. The start-up line says how many.",
        ge=1,
        le=512,
    )
    max_lora_rank: int = setting(
        16,
        "Adapters",
        "The largest rank that an adapter may have, one of "
        f"{', '.join(map(str, RANK_LIMITS))}. Adapters of a larger rank are rejected at "
        "registration. If it isn't set, a GPU with much memory gets 32 or 64. Set it if several "
        "servers share adapters.",
    )
    max_cpu_loras: int | None = setting(
        None,
        "Adapters",
        "The largest number of adapters in host memory, including those in slots. Default: as many "
        "as LORAPLEX_HOST_CACHE_GIB holds.",
        ge=1,
    )
    host_cache_gib: float | None = setting(
        None,
        "Adapters",
        "Host memory for adapters, in GiB. If it is full, the adapters that were used least "
        "recently are evicted, and read from disk when they are asked for again. Default: a "
        "quarter of the free memory (on CPU an eighth of what the base leaves), but enough for all "
        "slots.",
        gt=0,
    )
    slot_quantum_seconds: float = setting(
        8,
        "Adapters",
        "How many seconds an adapter in use keeps its slot while other adapters wait for a slot.",
        ge=0,
    )
    slot_wait_seconds: float = setting(
        60,
        "Adapters",
        "How many seconds a request waits for a slot before it is refused.",
        gt=0,
    )
    preempt_seconds: float = setting(
        30,
        "Adapters",
        "How many seconds a tenant with less than its share of the slots waits for one. Then "
        "requests of a tenant with more than its share are ended on as many slots as are lacking. "
        "0: never.",
        ge=0,
    )
    load_seconds: float = setting(
        60,
        "Adapters",
        "How many seconds fetching an adapter may take, and again loading it. After that its "
        "requests get a 503.",
        gt=0,
    )
    warm_seconds: float = setting(
        60,
        "Adapters",
        "How many seconds a promotion with `--warm` waits at most until every server that serves "
        "the adapter has the version in host memory. Then the alias moves in any case.",
        gt=0,
        le=300,
    )
    retire_seconds: float = setting(
        600,
        "Adapters",
        "How many seconds requests on a retired version may go on. Then they end with the text "
        "they have so far.",
        ge=0,
    )
    base_quantization_mismatch: Literal["warn", "refuse"] = setting(
        "warn",
        "Adapters",
        "What to do at registration with an adapter that was trained over a base with another "
        "quantization than the served one (QLoRA trains over NF4): accept it with a warning, or "
        "reject it.",
    )
    recheck_at_start: bool = setting(
        False,
        "Adapters",
        "Check at start the versions that were never checked on the present base, as after a "
        "change of base. The server is ready when that is done. Otherwise such versions are not "
        "offered until `loraplex adapters recheck`.",
    )
    cpu_lora_kernels: Literal["grouped", "stock"] = setting(
        "grouped",
        "Adapters",
        "LoRA operators on CPU. `stock` takes vLLM's, which are slow and wrong (requests for the "
        "base get an adapter). Use it only for measurements.",
    )
    gpu_lora_kernels: Literal["fused", "stock"] = setting(
        "fused",
        "Adapters",
        "LoRA operators on a GPU. `stock` takes vLLM's, which launch 1.5 times as many kernels.",
    )
    gpu_lora_loading: Literal["step", "stream"] = setting(
        "step",
        "Adapters",
        "How adapters get into slots on a GPU: within the engine's step, as in vLLM, or on a CUDA "
        "stream while steps run. The stream has not run on a GPU yet.",
    )
    gpu_lora_tiles: Path | None = setting(
        None,
        "Adapters",
        "File with tile sizes for the fused operators, as `loraplex tune` writes it. Default: "
        "lora-tiles.json in the data folder, if it exists.",
    )
    max_adapter_mib: int = setting(
        2048, "Adapters", "The largest adapter that can be registered, in MiB.", ge=1
    )
    max_uploads: int = setting(
        4,
        "Adapters",
        "How many uploads of one tenant may run at a time. Further ones get a 429.",
        ge=1,
    )
    upload_seconds: float = setting(
        3600, "Adapters", "How many seconds one upload may take in all.", gt=0
    )
    local_roots: Annotated[tuple[Path, ...], NoDecode] = setting(
        (),
        "Adapters",
        "Folders from which adapters can be registered by path, separated by `:`. Default: none.",
    )
    oci_registries: Annotated[tuple[str, ...], NoDecode] = setting(
        (),
        "Adapters",
        "Registries that adapters can be registered from with oci://, separated by commas, for "
        "example ghcr.io,registry.acme.com:5000. With http:// in front, a registry is asked "
        "without TLS. Default: none.",
    )
    oci_auth_file: Path | None = setting(
        None,
        "Adapters",
        "File with the credentials for these registries, in the form of Docker's config.json. It "
        "is read at each registration.",
    )
    sigstore_trust_config: Path | None = setting(
        None,
        "Adapters",
        "File with the trust configuration of a private Sigstore, for signatures of identities. "
        "Default: the public Sigstore, whose certificates are fetched from the network.",
    )
    source_wait_seconds: float = setting(
        30,
        "Adapters",
        "How many seconds a request whose model names a source waits while the adapter is fetched "
        "and checked. After that it gets a 503, and the registration goes on.",
        ge=0,
    )
    disk_budget_gib: float | None = setting(
        None,
        "Adapters",
        "Space for adapters' files in the data folder, in GiB. Default: all that is free on its "
        "disk.",
        gt=0,
    )
    garbage_seconds: float = setting(
        3600,
        "Adapters",
        "How many seconds files that no version needs are kept, in the data folder and at the "
        "origin, before the server removes them.",
        ge=0,
    )
    composition_seconds: float = setting(
        3600,
        "Adapters",
        "How many seconds a composition that a request names (`style*0.7+domain*0.3`) is kept "
        "after its last use.",
        gt=0,
    )
    rejected_days: float = setting(
        7,
        "Adapters",
        "How many days the records of rejected versions are kept, at most 20 of each adapter.",
        ge=0,
    )
    origin: str | None = setting(
        None,
        "Adapters",
        "The place s3://bucket/prefix that keeps the adapters' files for all servers. The data "
        "folder is then a cache. The AWS_* variables give credentials and endpoint.",
    )

    @field_validator("local_roots", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        return tuple(Path(p) for p in value.split(":") if p) if isinstance(value, str) else value

    @field_validator("oci_registries", mode="before")
    @classmethod
    def _split_registries(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(name for part in value.split(",") if (name := part.strip().rstrip("/")))

    @field_validator("oci_registries")
    @classmethod
    def _check_registries(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _REGISTRY.fullmatch(name):
                raise ValueError(f"{name!r} is not of the form host, host:port or http://host:port")
        return value

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

    @model_validator(mode="after")
    def _check_host_cache(self) -> Self:
        if self.max_cpu_loras is not None and self.max_cpu_loras < self.max_loras:
            raise ValueError(
                "LORAPLEX_MAX_CPU_LORAS (--max-cpu-loras): must be at least LORAPLEX_MAX_LORAS"
            )
        return self

    @property
    def host_adapters(self) -> int:
        """Return how many adapters host memory may hold, apart from the bound on bytes."""
        if self.max_cpu_loras is not None:
            return self.max_cpu_loras
        return 4 * self.max_loras if self.host_cache_gib is None else MANY_ADAPTERS

    @property
    def host_cache_bytes(self) -> int | None:
        """Return the bound on adapters' bytes in host memory, or None if only their number is."""
        return None if self.host_cache_gib is None else int(self.host_cache_gib * (1 << 30))

    @property
    def disk_budget_bytes(self) -> int | None:
        """Return the budget in bytes, or None if there is none."""
        return None if self.disk_budget_gib is None else int(self.disk_budget_gib * (1 << 30))

    @property
    def garbage_grace(self) -> timedelta:
        """Return how long files that no version needs are kept."""
        return timedelta(seconds=self.garbage_seconds)

    @property
    def keep_compositions(self) -> timedelta:
        """Return how long a composition that a request names is kept after its last use."""
        return timedelta(seconds=self.composition_seconds)

    @property
    def keep_rejected(self) -> timedelta:
        """Return how long records of rejected versions are kept."""
        return timedelta(days=self.rejected_days)
