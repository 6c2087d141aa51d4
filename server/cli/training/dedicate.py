"""The command `loraplex dedicate`: merges one version of an adapter, verifies and serves it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.console import ending_on, say
from server.cli.training.shared import refuse
from server.settings import Settings, SettingsError

if TYPE_CHECKING:
    from adapters_registry.content.merged_model import MergedVersion
    from adapters_registry.records.catalog import VersionRecord
    from adapters_registry.registry import Registry

EXAMPLES = """Examples:

loraplex dedicate support@3 --beside var --data-dir var-support --port 8001

loraplex dedicate acme/support@3 --base /models/llama-3.1-8b --data-dir /data
--database-url postgresql://loraplex@db/loraplex --origin s3://bucket/loraplex
"""

VersionArgument = Annotated[
    str, typer.Argument(help="The version: NAME@3, or TENANT/NAME@3.", show_default=False)
]
BesideOption = Annotated[
    Path | None,
    typer.Option(
        help="The data folder of a shared server on this machine. Its database, adapters' files "
        "and admin key are used, unless a setting names others."
    ),
]
OnlyMergeOption = Annotated[
    bool,
    typer.Option("--only-merge", help="End when the model is made. `serve --base` serves it."),
]
FOLDER = "dedicated"
"""Below the data folder: the models that were made."""
_VERSION = re.compile(
    r"(?:(?P<tenant>[^/@]+)/)?(?P<name>[^/@]+)@(?P<number>[1-9]\d{0,8})", re.ASCII
)


@dataclass(frozen=True)
class Made:
    """A model that was made, ready to be served."""

    settings: Settings
    """Those of the server, whose base is the model."""
    verify: Callable[[str], None]
    """Compares the server at an address with the shared one. Raises `TrainingError`."""


def make(wanted: str, settings: Settings, beside: Path | None, *, is_served: bool) -> Made:
    """Merge a version into the base, unless that was done before, and verify the model.

    `is_served`: whether it will be compared with a shared server, for which a key is needed. The
    command ends with one message if there is no such version, if its files can't be had, or if the
    merged model differs from base and adapter.
    """
    from adapters_registry.errors import RegistryError
    from training.errors import TrainingError
    from training.export.parity import probe_texts
    from training.export.served_parity import ModelAt, compare_served

    with ending_on(TrainingError, SettingsError, RegistryError):
        settings = _beside(settings, beside)
        key = settings.api_key or ""
        if is_served and not key:
            refuse("no API key for the shared server: set LORAPLEX_API_KEY, or use --beside")
        base, merged, model = _merged_model(wanted, settings, beside)
        texts = probe_texts(base)

    def verify(address: str) -> None:
        shared = ModelAt(settings.url, key, merged.public_name)
        parity = compare_served(shared, ModelAt(address, key, merged.public_name), texts)
        say(f"served beside {settings.url}: {parity}")

    return Made(settings.model_copy(update={"base": str(model)}), verify)


def _beside(settings: Settings, beside: Path | None) -> Settings:
    """Return the settings with the database and key of a server on this machine."""
    if beside is None:
        return settings
    if not beside.is_dir():
        refuse(f"--beside: {beside} isn't a folder")
    if settings.data_dir.resolve() == beside.resolve():
        refuse("--data-dir: a dedicated server needs a data folder of its own")
    update: dict[str, object] = {}
    if settings.database_url is None:
        update["database_url"] = f"sqlite:///{(beside / 'registry.db').absolute()}"
    key_file = beside / "admin.key"
    if settings.api_key is None and key_file.is_file():
        update["api_key"] = key_file.read_text().strip()
    return settings.model_copy(update=update)


def _merged_model(
    wanted: str, settings: Settings, beside: Path | None
) -> tuple[Path, MergedVersion, Path]:
    """Return the base's directory, the version, and the directory of the merged model."""
    from server.process.data_dir import own_data_dir
    from server.process.dedication import LARGEST_RANK
    from server.process.serve import prepare_base
    from server.process.startup import open_registry, weights_directory

    match = _VERSION.fullmatch(wanted)
    if match is None:
        refuse(f"{wanted!r} names no version: write NAME@3 or TENANT/NAME@3")
    tenant, name, number = match["tenant"] or "default", match["name"], int(match["number"])
    with own_data_dir(settings):
        base = weights_directory(prepare_base(settings, say))
        any_rank = settings.model_copy(update={"max_lora_rank": LARGEST_RANK})
        registry = open_registry(any_rank, str(base))
        try:
            version = _find(registry, tenant, name, number)
            merged, model = _merge(registry, version, base, settings, beside)
        finally:
            registry.close()
    return base, merged, model


def _find(registry: Registry, tenant: str, name: str, number: int) -> VersionRecord:
    """Return a version that is ready on this base. Raises `TrainingError` if there is none."""
    from training.errors import TrainingError

    adapter = registry.get_adapter(tenant, name)
    if (version := adapter.ready.get(number)) is not None:
        return version
    if (known := adapter.versions.get(number)) is None:
        raise TrainingError(
            f"there is no version {number} of {adapter.id}, or it was rejected or retired"
        )
    reasons = "; ".join(str(reason["message"]) for reason in known.reasons)
    raise TrainingError(
        f"{known.public_name} is {known.state.value} on the base {registry.base.name}. {reasons}"
    )


def _merge(
    registry: Registry,
    version: VersionRecord,
    base: Path,
    settings: Settings,
    beside: Path | None,
) -> tuple[MergedVersion, Path]:
    """Make the merged model in the data folder, or find it there."""
    from adapters_registry.content.adapter_files import companions_in
    from adapters_registry.content.merged_model import COMPANIONS_FOLDER, MergedVersion
    from training.export.merge import merge_adapter

    merged = MergedVersion(
        version.tenant,
        version.name,
        version.number,
        version.digest,
        registry.base.name,
        registry.base.fingerprint,
    )
    folder = f"{version.digest[:16]}-{registry.base.fingerprint[:16]}"
    model = settings.data_dir / FOLDER / folder
    if model.is_dir() and MergedVersion.of(model) == merged:
        say(f"{merged.public_name} was merged before: {model}")
        return merged, model
    shutil.rmtree(model, ignore_errors=True)  # what a crash has left, without its record
    files = _files(registry, version, beside)
    dtype = "float32" if settings.dtype == "float32" else "bfloat16"
    model.parent.mkdir(parents=True, exist_ok=True)
    parity = merge_adapter(files, base, model, dtype, "original", keeps_companions=False)
    companions = model / COMPANIONS_FOLDER
    companions.mkdir()
    for name in companions_in(files):
        shutil.copyfile(files / name, companions / name)
    merged.write(model)
    say(f"{merged.public_name} merged in {model}; against base and adapter: {parity}")
    return merged, model


def _files(registry: Registry, version: VersionRecord, beside: Path | None) -> Path:
    """Return the directory with the version's files, which were compared with its digest."""
    from adapters_registry.content.adapter_files import digest_of
    from adapters_registry.content.store import directory_of

    if beside is not None:
        files = directory_of(beside / "content", version.digest)
        if files.is_dir() and digest_of(files)[0] == version.digest:
            return files
    if registry.content.origin is None and not registry.content.has(version.digest):
        refuse(
            f"the files of {version.public_name} aren't on this machine: set LORAPLEX_ORIGIN "
            "(--origin) as on the shared servers, or name the data folder of one with --beside"
        )
    return registry.content.fetch(version.digest)
