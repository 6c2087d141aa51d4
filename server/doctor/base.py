"""Checks whether the base can be had, and whether it fits this machine with these settings."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from server import bundled_base
from server.doctor.finding import Finding, ok, problem
from server.engine.arguments import engine_arguments
from server.engine.device.base_size import size_of
from server.engine.device.choice import fit_to_device
from server.engine.device.device import read_device
from server.engine.environment import prepare_environment
from server.process.startup import base_spec, config_directory
from server.settings import Settings, SettingsError

_GIB = 1 << 30


def check_base(
    settings: Settings, bundled_file: Callable[[], object] = bundled_base.gguf_file
) -> Iterator[Finding]:
    """Yield whether the base is there, is of a known family, and fits the memory.

    The last is found out as at the start of a server: vLLM is imported, and no weights are loaded.
    `bundled_file` finds the file of the bundled base.
    """
    base = settings.base
    if not base:
        directory = bundled_base.bundled_base_directory()
        if not (directory / "config.json").is_file():
            yield _not_prepared(bundled_file)
            return
        base = str(directory)
    try:
        directory = config_directory(base)
        base_spec(base, settings.max_lora_rank)
    except SettingsError as error:
        yield problem("base", str(error))
        return
    except (OSError, ValueError) as error:
        yield problem(
            "base", f"{base}: {error}", "choose a base of a family that docs/bases.md lists"
        )
        return
    yield ok("base", base if Path(base).is_dir() else f"the hub has {base}")
    if not Path(base).is_dir():
        yield from _check_download(base, directory)
    yield from _check_fit(settings, base, directory)


def _not_prepared(bundled_file: Callable[[], object]) -> Finding:
    try:
        bundled_file()
    except bundled_base.BundledBaseMissing as error:
        return problem("base", str(error))
    return ok("base", "the bundled base is prepared at the first start, in about 20 s")


def _check_download(base: str, directory: Path) -> Iterator[Finding]:
    """Yield whether the disk has room for weights that are not downloaded yet."""
    from huggingface_hub import constants, try_to_load_from_cache

    names = ("model.safetensors", "model.safetensors.index.json")
    size = size_of(directory)
    if size is None or any(isinstance(try_to_load_from_cache(base, n), str) for n in names):
        return
    free = shutil.disk_usage(existing(Path(constants.HF_HUB_CACHE))).free
    text = (
        f"the base takes about {size.weights_bytes / _GIB:.1f} GiB, and {free / _GIB:.1f} are free"
    )
    if free < size.weights_bytes:
        yield problem("download", text, "free disk space there, or set HF_HOME to a larger disk")
    else:
        yield ok("download", f"{text} ({constants.HF_HUB_CACHE})")


def _check_fit(settings: Settings, base: str, directory: Path) -> Iterator[Finding]:
    prepare_environment(base, settings.log_level, settings.cpu_lora_kernels, settings.data_dir)
    chosen: list[str] = []
    try:
        fitted = fit_to_device(settings, directory, chosen.append)
        engine_arguments(fitted, base, read_device())
    except SettingsError as error:
        yield problem("memory", str(error))
    else:
        yield ok("memory", chosen[0])


def existing(path: Path) -> Path:
    """Return the deepest folder of a path that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.is_dir())
