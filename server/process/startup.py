"""What must be there before the first request: the base, the registry, the admin's key."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from adapters_registry.check.base import BaseSpec, quantization_of
from adapters_registry.check.fingerprint import TOKENIZER_FILES, fingerprint_of
from adapters_registry.check.ranks import RANK_LIMITS
from adapters_registry.content.adapter_files import GENERATION_FILE
from adapters_registry.content.merged_model import MergedVersion
from adapters_registry.content.origin import Origin
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import InvalidKey, SourceRefused, StoreUnavailable
from adapters_registry.registry import Registry
from server import metrics
from server.auth import Keys
from server.console.sessions import read_secret
from server.process.data_dir import take_server_id
from server.settings import Settings, SettingsError

log = logging.getLogger(__name__)


def open_content(settings: Settings) -> ContentStore:
    """Open the folder of adapters' files, with its budget and its origin.

    Raises:
        SettingsError: the origin's name does not have the form `s3://bucket/prefix`.
    """
    try:
        origin = Origin(settings.origin) if settings.origin else None
    except SourceRefused as error:
        raise SettingsError(f"LORAPLEX_ORIGIN (--origin): {error}") from error
    folder = settings.data_dir / "content"
    return ContentStore(
        folder,
        budget_bytes=settings.disk_budget_bytes,
        origin=origin,
        on_evict=metrics.EVICTIONS.labels("disk", "capacity").inc,
    )


def open_registry(settings: Settings, base: str, merged: MergedVersion | None = None) -> Registry:
    """Open the database and the folder of adapters' files.

    `merged` is the version that the base holds on a dedicated server. Versions are then seen as
    shared servers see them, on the base into which it was merged.

    Raises:
        SettingsError: the base's files, the database or the data folder cannot be used.
    """
    try:
        spec = replace(
            base_spec(base, settings.max_lora_rank),
            refuses_quantization_mismatch=settings.base_quantization_mismatch == "refuse",
        )
        if merged:
            spec = replace(
                spec,
                name=merged.base,
                fingerprint=merged.base_fingerprint,
                max_rank=RANK_LIMITS[-1],
            )
        else:
            method = settings.quantization or ""
            spec = replace(spec, fingerprint=fingerprint_of(weights_directory(base), method))
    except (OSError, ValueError) as error:
        raise SettingsError(f"LORAPLEX_BASE (--base): {error}") from error
    try:
        content = open_content(settings)
        _try_origin(content)
        own, before = take_server_id(settings)
        return Registry(
            settings.records_url,
            content,
            spec,
            server_id=own,
            former_id=before,
            sigstore_trust=settings.sigstore_trust_config,
        )
    except (OSError, ImportError, SQLAlchemyError) as error:
        cause = str(error).splitlines()[0]
        raise SettingsError(
            f"LORAPLEX_DATA_DIR, LORAPLEX_DATABASE_URL: cannot open the registry: {cause}"
        ) from error


def provide_admin_key(settings: Settings, keys: Keys) -> None:
    """Ensure that there is an admin key: the operator's, or one that is created now.

    Then keys get an end that live longer than LORAPLEX_MAX_KEY_DAYS allows.

    Raises:
        SettingsError: the operator's file cannot be read, or holds no key that can be used.
    """
    operators_key = _install_admin_key(settings, keys)
    if num_bounded := keys.bound_lives(operators_key):
        log.warning(
            "LORAPLEX_MAX_KEY_DAYS (--max-key-days): keys without an end, or with a later one, end "
            "in %g days now: %d. `loraplex keys list` shows them, `loraplex keys rotate` replaces "
            "one",
            settings.max_key_days,
            num_bounded,
        )


def _install_admin_key(settings: Settings, keys: Keys) -> str:
    """Return the operator's admin key, or "" if there is none and the server has made its own."""
    file = settings.admin_key_file
    if file is None:
        keys.create_first_admin_key(settings.admin_key_path)
        return ""
    setting = "LORAPLEX_ADMIN_KEY_FILE (--admin-key-file)"
    try:
        key = file.read_text().strip()
        if not keys.install_admin_key(key):
            log.warning("%s: the key in %s was revoked and stays so", setting, file)
        return key
    except (OSError, UnicodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(f"{setting}: cannot read {file}: {cause}") from error
    except InvalidKey as error:
        raise SettingsError(f"{setting}: {error}") from error


def provide_session_secret(settings: Settings) -> bytes:
    """Return the secret that signs the console's sessions: the operator's, or one kept here.

    Raises:
        SettingsError: the file cannot be read, or holds no secret.
    """
    file = settings.console_secret_file
    try:
        if file is not None and not file.is_file():
            raise ValueError("there is no such file")
        return read_secret(file or settings.data_dir / "console.secret")
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"LORAPLEX_CONSOLE_SECRET_FILE (--console-secret-file): {error}"
        ) from error


def _try_origin(content: ContentStore) -> None:
    """Log now if the origin cannot be used. The files in the data folder are served anyway."""
    try:
        if content.origin:
            content.origin.size_of("0" * 64)
    except StoreUnavailable as error:
        log.error("LORAPLEX_ORIGIN: %s", error)


def base_spec(base: str, max_rank: int) -> BaseSpec:
    """Read the base's modules from its directory or, for a hub id, from the hub's configuration.

    Raises:
        SettingsError: the configuration cannot be fetched.
        ValueError: it is not that of a model of a known family.
    """
    name = "" if Path(base).is_dir() else base
    return BaseSpec.from_directory(config_directory(base), max_rank, name)


def weights_directory(base: str) -> Path:
    """Return the directory with all that belongs to a base; a hub's base is downloaded first.

    The engine downloads the same files, and finds them there.

    Raises:
        SettingsError: the hub cannot be reached, or does not have it.
    """
    if (directory := Path(base)).is_dir():
        return directory
    from huggingface_hub import snapshot_download

    wanted = ["config.json", "*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES]
    wanted.append(GENERATION_FILE)  # adapters' own are compared with it
    # Mistral's repositories have the weights a second time, in files of that name.
    unwanted = ["*/*", "consolidated*"]
    try:
        return Path(snapshot_download(base, allow_patterns=wanted, ignore_patterns=unwanted))
    except OSError as error:
        raise _not_from_the_hub(base, error) from error


def config_directory(base: str) -> Path:
    """Return a directory that holds `config.json` of a base: its own, or the hub's cache.

    Raises:
        SettingsError: the hub cannot be reached, or does not have it.
    """
    if (directory := Path(base)).is_dir():
        return directory
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(base, "config.json")).parent
    except OSError as error:
        raise _not_from_the_hub(base, error) from error


def base_quantization(settings: Settings, directory: Path) -> str:
    """Return what the base's weights were rounded to, or an empty string.

    A configuration that cannot be read counts as none here. The registry's check of the base
    says what is wrong with it.
    """
    if settings.quantization:
        return settings.quantization
    try:
        return quantization_of(json.loads((directory / "config.json").read_text("utf-8")))
    except (OSError, ValueError, AttributeError):
        return ""


def _not_from_the_hub(base: str, error: OSError) -> SettingsError:
    return SettingsError(
        f"LORAPLEX_BASE (--base): cannot get {base} from the Hugging Face hub "
        f"({type(error).__name__}): check the connection and HF_TOKEN, or name a model directory"
    )
